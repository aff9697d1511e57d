"""What a reader makes of published files: samples one by one, their values read when asked for.

A reader is a function in `datasets/readers/`, `open_source(path, **options) -> Source`. It lists
its samples without reading their values, so that it takes seconds; `datasets/prepare.py` reads the
values, a sample at a time, and writes the store.

Shapes: T tokens, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.spec import ModalitySpec, Task

    Values = Mapping[str, npt.NDArray[Any] | None]
    """By modality (T, F), of any real dtype; None or no tokens: the sample lacks it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample, before its values are read."""

    name: str
    """What its files call it; errors name it. No two of a source are called alike."""
    split: str
    """train, validation or test."""
    label: int | float | tuple[int, ...]
    """By task: the index of its class; a number; 0 or 1 for each label."""
    subject: str | None = None
    """Who or what must not be in two splits: a person, or the video it was cut from."""
    read: Callable[[], Values]
    """Reads the values of every modality of the source, finite or not.

    Raises:
        DatasetError: they cannot be read; the message names the file.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A data set as it was published."""

    task: Task
    modalities: Mapping[str, ModalitySpec]
    """By name, in the order models see them. A modality of variable length holds samples of up to
    `num_tokens` tokens; of another, every sample has them all."""
    classes: tuple[str, ...]
    """Of a classification; the labels of a multi-label task; empty for regression."""
    samples: Sequence[Sample]
    """All of them, in an order that is the same on every machine."""
    licence: str
    attribution: str
    source: str
    """The page where the files are published."""
    description: str
    """One sentence."""
    best_accuracy: float | None = None
    """See `DatasetSpec.best_accuracy`."""


def unreadable(file: object, why: object) -> DatasetError:
    """Return the error for a file that is damaged or not what was expected, in one line."""
    what = " ".join(str(why).split())[:200].rstrip(".")
    return DatasetError(f"Cannot read {file}: {what}.")


def within(folder: Path, name: str) -> Path:
    """Return a file of a folder, wherever links lead.

    Raises:
        DatasetError: the name leads out of the folder.
    """
    file = folder / name
    if "\0" in name or not file.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"A file must lie in {folder}, but got {name!r:.100}.")
    return file


def first_tokens(values: npt.NDArray[Any], shape: ModalitySpec, what: str) -> npt.NDArray[Any]:
    """Return the first `num_tokens` of (T, F).

    Raises:
        DatasetError: they are not numbers in two axes, or of another F.
    """
    if values.ndim != 2 or values.shape[1] != shape.num_features or values.dtype.kind not in "fiub":
        raise DatasetError(
            f"{what} must be numbers (tokens, {shape.num_features}), but got {values.dtype} "
            f"{values.shape}."
        )
    return values[: shape.num_tokens]


def as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return numbers as float32; what is too large for it becomes infinite, and is reported so."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)
