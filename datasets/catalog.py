"""DATASETS and READERS: the one place to add a data set or a reader, and where stores are kept.

To ship a data set, write `datasets/<name>.py` with a `spec()` and a `load()`, and add its line to
`DATASETS`. To read what others publish, write `datasets/readers/<name>.py` with an
`open_source(path, *, ...)`, and add its line to `READERS`. Contract tests find them by these lists.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets import digits, synthetic, wearables
from sftsearch.datasets.errors import DatasetError, UserError, look_up
from sftsearch.datasets.spec import NAME_PATTERN
from sftsearch.datasets.staging import stage
from sftsearch.datasets.store import FORMAT_VERSION, MANIFEST, Store, open_store
from sftsearch.datasets.writer import write_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.datasets.source import Source
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


READERS: dict[str, str] = {
    "arrays": "arrays:open_source",
    "audioset": "audiovisual:open_audioset",
    "digits_large": "digits_large:open_source",
    "epic_kitchens": "audiovisual:open_epic_kitchens",
    "huggingface": "huggingface:open_source",
    "kinetics_sounds": "audiovisual:open_kinetics_sounds",
    "synthetic_tunable": "synthetic_tunable:open_source",
    "mmimdb": "mmimdb:open_source",
    "moments_in_time": "audiovisual:open_moments_in_time",
    "mosei": "mosei:open_source",
    "mosi": "mosei:open_mosi",
    "ntu_rgbd": "ntu_rgbd:open_source",
    "parquet": "parquet:open_source",
    "ravdess": "ravdess:open_source",
    "vggsound": "audiovisual:open_vggsound",
}
"""What reads published files: a module of `datasets/readers` and its function, imported when it is
used. The one place to add a reader."""


def reader(name: str) -> Callable[..., Source]:
    """Return the function `(path, *, ...options) -> Source` of a reader.

    Raises:
        UserError: no reader has this name.
    """
    module, function = look_up(READERS, name, kind="reader").split(":")
    found: Callable[..., Source] = getattr(
        importlib.import_module(f"sftsearch.datasets.readers.{module}"), function
    )
    return found


def prepared_names(*, cache: Path | None = None) -> list[str]:
    """Return the names of the data sets that were prepared here."""
    folder = prepared_folder(cache=cache)
    return sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST}"))


def known_names(*, cache: Path | None = None) -> list[str]:
    """Return the names of all data sets, built in or prepared."""
    return sorted({*DATASETS, *prepared_names(cache=cache)})


def describe(name: str, *, root: str | None = None, cache: Path | None = None) -> DatasetSpec:
    """Return what a data set declares, without building its store.

    Args:
        name: one of `known_names()`, or of those in `root`.
        root: a folder or URI of prepared stores; None: what is built in or was prepared here.
        cache: see `open_dataset`.

    Raises:
        UserError: no data set has this name.
        DatasetError: its store is damaged, or the root cannot be read.
    """
    if root is None and name in DATASETS:
        return DATASETS[name].spec()
    return _open_prepared(name, root, cache).spec


def open_dataset(name: str, *, root: str | None = None, cache: Path | None = None) -> Store:
    """Open a data set's store, building or staging it the first time.

    Args:
        name: one of `known_names()`, or of those in `root`.
        root: a folder or URI of prepared stores; None: what is built in or was prepared here.
        cache: the folder the stores are in; None: `cache_folder()`.

    Raises:
        UserError: no data set has this name.
        DatasetError: the store is damaged, the root cannot be read, or the cache cannot be
            written.
    """
    if root is not None or name not in DATASETS:
        return _open_prepared(name, root, cache)
    dataset = DATASETS[name]
    spec = dataset.spec()
    path = store_path(spec, cache=cache)
    _build_if_missing(path, spec, dataset)
    store = open_store(path)
    if _content(store.spec) != _content(spec):
        raise DatasetError(
            f"The store {path} is not the '{name}' that this version of sftsearch describes. "
            "Delete the folder: it is built anew, or prepare it again."
        )
    return replace(store, spec=spec)  # whose texts may have been improved since it was built


def _open_prepared(name: str, root: str | None, cache: Path | None) -> Store:
    if root is not None and "://" in root:
        check_name(name)
        folder = cache_folder() if cache is None else Path(cache).absolute()
        store = open_store(stage(name, root, folder / "staged"))
    else:
        folder = prepared_folder(cache=cache) if root is None else Path(root).expanduser()
        known = sorted(file.parent.name for file in folder.glob(f"*/{MANIFEST}"))
        if root is None:
            known = sorted({*DATASETS, *known})
        look_up(dict.fromkeys([*known, *_damaged_names(folder)]), name, kind="data set")
        store = open_store(folder / name)
    if store.spec.name != name:
        raise DatasetError(
            f"The store {store.path} holds '{store.spec.name}', not '{name}'. Name the folder as "
            "the data set in it."
        )
    return store


def _damaged_names(folder: Path) -> list[str]:
    """Return what looks like a store and lacks its manifest, so that opening says so."""
    return [file.parent.name for file in folder.glob("*/train.arrow")]


def check_name(name: str) -> None:
    """Check that a name may be a data set's, and so a folder's.

    Raises:
        UserError: it may not.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            "A data set's name must be lower case letters, digits and underscores, but got "
            f"{name!r}."
        )


def check_new_name(name: str) -> None:
    """Check that a data set may be prepared under this name.

    Raises:
        UserError: it is none, or one that is built in or prepared already.
    """
    check_name(name)
    if name in DATASETS:
        raise UserError(f"'{name}' is built in; choose another name, and its reader by --reader.")
    if name in prepared_names():
        raise UserError(
            f"There is a data set '{name}' already. Choose another name, or "
            f"`sftsearch data remove {name}` first."
        )


def removable(name: str) -> Path:
    """Return the folder of a prepared data set, sound or not.

    Raises:
        UserError: there is none of this name, or it is built in.
    """
    check_name(name)
    folder = prepared_folder() / name
    if folder.is_dir():
        return folder
    if name in DATASETS:
        raise UserError(f"'{name}' is built in, and cannot be removed.")
    known = ", ".join(prepared_names()) or "none"
    raise UserError(f"No data set '{name}' was prepared here. Prepared: {known}.")


def reader_for(name: str, path: Path | None) -> str:
    """Return the reader that a name or what lies at a path asks for.

    Raises:
        UserError: neither tells.
    """
    if name in READERS:
        return name
    if path is None:
        raise UserError(
            f"No reader is called '{name}': choose one by --reader, or a file by --from. Known: "
            f"{', '.join(sorted(READERS))}."
        )
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "parquet"
    if (path / "dataset_dict.json").is_file():
        return "huggingface"
    if path.is_dir() and any(path.glob("*.csv")):
        return "arrays"
    raise UserError(
        f"No reader is called '{name}', and {path} does not look like a Parquet file, a folder of "
        f"arrays with a CSV, or a saved Hugging Face data set: choose one by --reader. Known: "
        f"{', '.join(sorted(READERS))}."
    )


def read_source(name: str, path: Path | None, options: Iterable[str] = ()) -> Source:
    """Let a reader list the samples of published files.

    Args:
        name: of the reader.
        path: a file or folder; None: a reader that makes its samples up needs none.
        options: `KEY=VALUE`.

    Raises:
        UserError: there is no such reader or option, or a value is of another kind.
        DatasetError: the files are not what the reader expects.
    """
    read = reader(name)
    parameters = inspect.signature(read).parameters
    known = {
        option.name: option.default
        for option in parameters.values()
        if option.kind is option.KEYWORD_ONLY
    }
    if path is None and parameters["path"].default is inspect.Parameter.empty:
        raise UserError(f"The reader '{name}' needs published files: say where by --from.")
    given: dict[str, object] = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"An option must be KEY=VALUE, but got {text!r}.")
        default = look_up(known, key, kind=f"option of the reader '{name}'")
        given[key] = _parsed(key, value, default)
    return read(path, **given)


def _parsed(key: str, value: str, default: object) -> object:
    """Return an option's value as its default is: a truth, a whole number or a text."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise UserError(f"Option `{key}` must be true or false, but got {value!r}.")
        return value.lower() == "true"
    if isinstance(default, int):
        if not re.fullmatch(r"-?[0-9]{1,12}", value):
            raise UserError(f"Option `{key}` must be a whole number, but got {value!r}.")
        return int(value)
    return value


def prepared_folder(*, cache: Path | None = None) -> Path:
    """Return the folder of the data sets that were prepared here."""
    return (cache_folder() if cache is None else Path(cache).absolute()) / "prepared"


def store_path(spec: DatasetSpec, *, cache: Path | None = None) -> Path:
    """Return the folder of a data set's store: of another fingerprint or format, another one."""
    folder = cache_folder() if cache is None else Path(cache).absolute()
    return folder / f"{spec.name}-{spec.fingerprint[:_FINGERPRINT_DIGITS]}-v{FORMAT_VERSION}"


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
