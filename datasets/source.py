"""Define a dataset as a reader lists it: samples whose values are read on demand.

A reader is a function in `datasets/readers/`, `open_source(path, **options) -> Source`. It lists
the samples without reading their values, which takes seconds; `datasets/prepare.py` reads the
values, one sample at a time, and writes the store.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from sftsearch.datasets.spec import ModalitySpec, Task

    Values = Mapping[str, npt.NDArray[Any] | None]
    """(T, F) by modality, of any real dtype; None or no tokens: the modality is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample, before its values are read."""

    name: str
    """Name in the published files, shown in errors; unique within a source."""
    split: str
    """train, validation or test."""
    label: int | float | tuple[int, ...]
    """By task: the class index; a number; or 0 or 1 for each label."""
    subject: str | None = None
    """A group that must not be in two splits: a person, or the source video."""
    read: Callable[[], Values]
    """Read the values of every modality, all tokens, which may not be finite.

    Raises:
        DatasetError: the values cannot be read; the message names the file.
    """
    files: tuple[Path, ...] = ()
    """All files that the values are read from; empty if samples share files."""
    bad: str = ""
    """Why the listing says that the sample cannot be used, such as "it has no label"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A dataset as published."""

    task: Task
    modalities: Mapping[str, ModalitySpec]
    """By name, in the order of the models. With variable length a sample has up to `num_tokens`
    tokens, otherwise exactly `num_tokens`."""
    classes: tuple[str, ...]
    """Class names of a classification, label names of a multi-label task; empty for regression."""
    samples: Sequence[Sample]
    """All samples, in an order that is the same on every machine."""
    licence: str
    attribution: str
    source: str
    """URL of the published files."""
    description: str
    """One sentence."""
    best_accuracy: float | None = None
    """See `DatasetSpec.best_accuracy`."""
    notes: Sequence[str] = ()
    """Sentences on what the reader left out or had to assume, shown after the preparation."""


LFS_MARK = b"version https://git-lfs.github.com/spec/"
"""Begin of the text that Git LFS leaves instead of a file that was not downloaded."""
STORES = (".git/annex/objects", ".dvc/cache")
"""Folders, in one above a dataset, to which git-annex and DVC link."""


def unreadable(file: object, why: object) -> DatasetError:
    """Return a one-line error for a file that is damaged or of another format."""
    if isinstance(file, Path) and _is_lfs_pointer(file):
        why = "it is a Git LFS pointer instead of the data; run `git lfs pull` in its folder"
    what = " ".join(str(why).split())[:200].rstrip(".")
    error = DatasetError(f"Cannot read {file}: {what}.")
    error.reason = what
    return error


def _is_lfs_pointer(file: Path) -> bool:
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return stream.read(len(LFS_MARK)) == LFS_MARK
    except OSError:
        return False


def _stores(root: Path) -> Iterator[Path]:
    """Yield the folders to which links may lead: stores of files whose names are their hashes."""
    for above in (root, *root.parents):
        yield from (above / store for store in STORES)
        if root.is_relative_to(above / "snapshots"):  # of the Hugging Face hub
            yield above / "blobs"


def within(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    Links may lead to other files of the folder, or to the store of git-annex, DVC or the Hugging
    Face hub in a folder above it.

    Raises:
        DatasetError: the path leaves the folder, also through links.
    """
    file, root = folder / name, folder.resolve()
    written = Path(os.path.normpath(folder.absolute() / name))
    if "\0" in name or not written.is_relative_to(os.path.normpath(folder.absolute())):
        raise DatasetError(f"A file must be in {folder}, but got {name!r:.100}.")
    target = file.resolve()
    if not any(target.is_relative_to(one) for one in (root, *_stores(root))):
        raise DatasetError(
            f"A file must be in {folder}, but {name!r:.100} is a link out of it: replace links by "
            "files, for example with `cp -rL`."
        )
    return file


def guarded(read: Callable[[], Values], name: str) -> Callable[[], Values]:
    """Return a function that reads a sample and turns any error into one of this sample.

    For functions of others, whose errors are not known.
    """

    def read_guarded() -> Values:
        try:
            return read()
        except DatasetError:
            raise
        except Exception as error:
            raise unreadable(name, f"{type(error).__name__}: {error}") from error

    return read_guarded


def checked_tokens(values: npt.NDArray[Any], shape: ModalitySpec) -> None:
    """Check the values of a modality of one sample.

    Raises:
        DatasetError: the values are not numbers (T, F) with the right F, or of a modality of fixed
            length, their T is wrong; the message is a predicate, such as "must have 5 tokens".
    """
    if values.ndim != 2 or values.shape[1] != shape.num_features or values.dtype.kind not in "fiub":
        raise DatasetError(
            f"must be numbers (tokens, {shape.num_features}), but got {values.dtype} {values.shape}"
        )
    if not shape.variable_length and len(values) < shape.num_tokens:
        raise DatasetError(f"must have {shape.num_tokens} tokens, but got {len(values)}")


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert numbers to float32; numbers out of its range become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)
