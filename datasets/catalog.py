"""Register the built-in datasets, and locate the stores on disk.

To ship a dataset, write `datasets/<name>.py` with a `spec()` and a `load()`, and add its line to
`DATASETS`; contract tests iterate over it. Readers are in `reader_catalog.py`.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError, UserError, look_up
from sftsearch.datasets.spec import FORMAT_VERSION, MANIFEST, NAME_PATTERN

if TYPE_CHECKING:
    from types import ModuleType

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.datasets.store import Store

_FINGERPRINT_DIGITS = 16  # of 64, in the names of folders


@dataclass(frozen=True, slots=True)
class Dataset:
    """Functions that declare and load a dataset."""

    module: str
    """A module of `datasets/`, imported on first use."""
    spec_function: str = "spec"
    load_function: str = "load"

    def spec(self) -> DatasetSpec:
        """Return the spec with its fingerprint; cheap."""
        spec: DatasetSpec = getattr(self._import(), self.spec_function)()
        return spec

    def load(self) -> dict[str, Split]:
        """Load the samples by split; called once, to build the store."""
        splits: dict[str, Split] = getattr(self._import(), self.load_function)()
        return splits

    def _import(self) -> ModuleType:
        return importlib.import_module(f"sftsearch.datasets.{self.module}")


DATASETS: dict[str, Dataset] = {
    "digits": Dataset("digits"),
    "synthetic": Dataset("synthetic"),
    "synthetic_rating": Dataset("synthetic", "rating_spec", "load_rating"),
    "synthetic_tags": Dataset("synthetic", "tags_spec", "load_tags"),
    "wearables": Dataset("wearables"),
}


def prepared_names(*, cache: Path | None = None) -> list[str]:
    """Return the names of the datasets prepared on this machine."""
    folder = prepared_folder(cache=cache)
    return sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST}"))


def known_names(*, cache: Path | None = None) -> list[str]:
    """Return the names of all datasets, built in or prepared."""
    return sorted({*DATASETS, *prepared_names(cache=cache)})


def describe(name: str, *, root: str | None = None, cache: Path | None = None) -> DatasetSpec:
    """Return the spec of a dataset without building its store.

    Args:
        name: one of `known_names()`, or the name of a store in `root`.
        root: a folder or URI of prepared stores; None: datasets built in or prepared here.
        cache: see `open_dataset`.

    Raises:
        UserError: no dataset has this name.
        DatasetError: the store is damaged, or the root cannot be read.
    """
    if root is None and name in DATASETS:
        return DATASETS[name].spec()
    return _open_prepared(name, root, cache).spec


def open_dataset(name: str, *, root: str | None = None, cache: Path | None = None) -> Store:
    """Open the store of a dataset; build or stage it the first time.

    Args:
        name: one of `known_names()`, or the name of a store in `root`.
        root: a folder or URI of prepared stores; None: datasets built in or prepared here.
        cache: the folder of the stores; None: `cache_folder()`.

    Raises:
        UserError: no dataset has this name.
        DatasetError: the store is damaged, the root cannot be read, or the cache cannot be
            written.
    """
    from sftsearch.datasets.store import open_store  # slow to import, not needed for specs

    if root is not None or name not in DATASETS:
        return _open_prepared(name, root, cache)
    dataset = DATASETS[name]
    spec = dataset.spec()
    path = store_path(spec, cache=cache)
    _build_if_missing(path, spec, dataset)
    store = open_store(path)
    if _content(store.spec) != _content(spec):
        raise DatasetError(
            f"The store {path} is not the '{name}' of this version of sftsearch. "
            "Delete the folder to rebuild it."
        )
    return replace(store, spec=spec)  # descriptive texts may have changed since the build


def _open_prepared(name: str, root: str | None, cache: Path | None) -> Store:
    from sftsearch.datasets.staging import stage
    from sftsearch.datasets.store import open_store

    if root is not None and "://" in root:
        check_name(name)
        folder = cache_folder() if cache is None else Path(cache).absolute()
        store = open_store(stage(name, root, folder / "staged"))
    else:
        folder = prepared_folder(cache=cache) if root is None else Path(root).expanduser()
        known = sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST}"))
        if root is None:
            known = sorted({*DATASETS, *known})
        look_up(dict.fromkeys([*known, *_damaged_names(folder)]), name, kind="dataset")
        store = open_store(folder / name)
    if store.spec.name != name:
        raise DatasetError(
            f"The store {store.path} holds '{store.spec.name}', not '{name}'. Rename the folder "
            f"to '{store.spec.name}'."
        )
    return store


def _damaged_names(folder: Path) -> list[str]:
    """Return the names of stores without a manifest, so that opening one reports the damage."""
    return [file.parent.name for file in folder.glob("*/train.arrow")]


def check_name(name: str) -> None:
    """Check that a name is valid for a dataset and its folder.

    Raises:
        UserError: the name is invalid.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            "The name of a dataset must be lower-case letters, digits and underscores, but got "
            f"{name!r}."
        )


def check_new_name(name: str) -> None:
    """Check that a dataset can be prepared under this name.

    Raises:
        UserError: the name is invalid, built in or already prepared.
    """
    check_name(name)
    if name in DATASETS:
        raise UserError(f"'{name}' is built in. Choose another name, and a reader by --reader.")
    if name in prepared_names():
        raise UserError(
            f"A dataset '{name}' already exists. Choose another name, or run "
            f"`sftsearch data remove {name}` first."
        )


def removable(name: str) -> Path:
    """Return the folder of a prepared dataset, which may be damaged.

    Raises:
        UserError: no dataset of this name was prepared, or it is built in.
    """
    check_name(name)
    folder = prepared_folder() / name
    if folder.is_dir():
        return folder
    if name in DATASETS:
        raise UserError(f"'{name}' is built in and cannot be removed.")
    known = ", ".join(prepared_names()) or "none"
    raise UserError(f"No dataset '{name}' was prepared on this machine. Prepared: {known}.")


def prepared_folder(*, cache: Path | None = None) -> Path:
    """Return the folder of the datasets prepared on this machine."""
    return (cache_folder() if cache is None else Path(cache).absolute()) / "prepared"


def store_path(spec: DatasetSpec, *, cache: Path | None = None) -> Path:
    """Return the folder of a store; its name contains the fingerprint and the format version."""
    folder = cache_folder() if cache is None else Path(cache).absolute()
    return folder / f"{spec.name}-{spec.fingerprint[:_FINGERPRINT_DIGITS]}-v{FORMAT_VERSION}"


def cache_folder() -> Path:
    """Return the folder of all stores.

    The folder is $SFTSEARCH_CACHE, else $XDG_CACHE_HOME/sftsearch, else ~/.cache/sftsearch.

    Raises:
        DatasetError: neither variable is set and there is no home folder.
    """
    chosen = os.environ.get("SFTSEARCH_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if shared and Path(shared).is_absolute():  # the XDG specification ignores relative paths
            return Path(shared) / "sftsearch"
        return Path.home() / ".cache" / "sftsearch"
    except RuntimeError as error:
        raise DatasetError(
            "There is no home folder for the dataset cache. Set SFTSEARCH_CACHE to a writable "
            "folder."
        ) from error


def _build_if_missing(path: Path, spec: DatasetSpec, dataset: Dataset) -> None:
    from sftsearch.datasets.writer import write_store

    try:
        if not path.is_dir():
            write_store(path, spec, dataset.load())
    except OSError as error:
        raise DatasetError(
            f"Cannot build the dataset '{spec.name}' in {path.parent}: {error.strerror or error}. "
            "Set SFTSEARCH_CACHE to a writable folder with enough space."
        ) from error


def _content(spec: DatasetSpec) -> tuple[object, ...]:
    """Return the fields of a spec that depend on the samples, including the modality order."""
    modalities = tuple((name, replace(one, axes=None)) for name, one in spec.modalities.items())
    declared = spec.name, spec.task, spec.classes, spec.num_samples, spec.subjects
    return *declared, modalities, spec.fingerprint
