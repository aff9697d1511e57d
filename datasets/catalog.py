"""DATASETS: the one place to add a data set, and where its store is kept.

To add one, write `datasets/<name>.py` with a `spec()` and a `load()`, and add its line here; the
contract test finds it by this list.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets import digits, synthetic, wearables
from sftsearch.datasets.errors import DatasetError, look_up
from sftsearch.datasets.store import Store, open_store, write_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.datasets.store import Split

_FINGERPRINT_DIGITS = 16  # of 64, in the names of folders


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """How a data set is declared and read."""

    spec: Callable[[], DatasetSpec]
    """What it declares, with its fingerprint; cheap."""
    load: Callable[[], dict[str, Split]]
    """Its samples, by split; called once, to build its store."""


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(spec=digits.spec, load=digits.load),
    "synthetic": Dataset(spec=synthetic.spec, load=synthetic.load),
    "synthetic_rating": Dataset(spec=synthetic.rating_spec, load=synthetic.load_rating),
    "synthetic_tags": Dataset(spec=synthetic.tags_spec, load=synthetic.load_tags),
    "wearables": Dataset(spec=wearables.spec, load=wearables.load),
}


def describe(name: str) -> DatasetSpec:
    """Return what a data set declares, without building its store.

    Raises:
        UserError: no data set has this name.
    """
    return look_up(DATASETS, name, kind="data set").spec()


def open_dataset(name: str, *, cache: Path | None = None) -> Store:
    """Open a data set's store, building it the first time.

    Args:
        name: one of `DATASETS`.
        cache: the folder the stores are in; None: `cache_folder()`.

    Raises:
        UserError: no data set has this name.
        DatasetError: the store is damaged, or the cache cannot be written.
    """
    dataset = look_up(DATASETS, name, kind="data set")
    spec = dataset.spec()
    path = store_path(spec, cache=cache)
    _build_if_missing(path, spec, dataset)
    store = open_store(path)
    if _content(store.spec) != _content(spec):
        raise DatasetError(
            f"The store {path} is not the '{name}' that this version of sftsearch describes. "
            "Delete the folder, it will be rebuilt."
        )
    return replace(store, spec=spec)  # whose texts may have been improved since it was built


def store_path(spec: DatasetSpec, *, cache: Path | None = None) -> Path:
    """Return the folder of a data set's store: another fingerprint, another folder."""
    folder = cache_folder() if cache is None else Path(cache).absolute()
    return folder / f"{spec.name}-{spec.fingerprint[:_FINGERPRINT_DIGITS]}"


def cache_folder() -> Path:
    """Return the folder of all stores.

    It is $SFTSEARCH_CACHE, else $XDG_CACHE_HOME/sftsearch, else ~/.cache/sftsearch.

    Raises:
        DatasetError: neither is set and there is no home folder.
    """
    chosen = os.environ.get("SFTSEARCH_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if shared and Path(shared).is_absolute():  # the XDG specification: ignore relative ones
            return Path(shared) / "sftsearch"
        return Path.home() / ".cache" / "sftsearch"
    except RuntimeError as error:
        raise DatasetError(
            "There is no home folder to keep data sets in. Set SFTSEARCH_CACHE to a folder you "
            "can write."
        ) from error


def _build_if_missing(path: Path, spec: DatasetSpec, dataset: Dataset) -> None:
    try:
        if not path.is_dir():
            write_store(path, spec, dataset.load())
    except OSError as error:
        raise DatasetError(
            f"Cannot build the data set '{spec.name}' in {path.parent}: {error.strerror or error}. "
            "Set SFTSEARCH_CACHE to a folder you can write, with enough space."
        ) from error


def _content(spec: DatasetSpec) -> tuple[object, ...]:
    """Return what of a spec depends on the samples; the order of modalities does."""
    modalities = tuple(spec.modalities.items())
    declared = spec.name, spec.task, spec.classes, spec.num_samples, spec.subjects
    return *declared, modalities, spec.fingerprint
