"""List the readers of published files and of your own, and read the samples with one.

To add a reader, write a module in `datasets/readers` with `open_source(path, *, ...)`, and add its
line to `READERS`. Contract tests iterate over this list.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError, look_up, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from sftsearch.datasets.source import Source

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
"""Readers of published files: module of `datasets/readers` and function, imported on first use."""
_plugin_readers: dict[str, Callable[..., Source]] = {}


def reader(name: str) -> Callable[..., Source]:
    """Return the function `(path, *, ...options) -> Source` of a reader.

    Raises:
        UserError: no reader has this name.
    """
    if name in _plugin_readers:
        return _plugin_readers[name]
    module, function = look_up(READERS, name, kind="reader").split(":")
    found: Callable[..., Source] = getattr(
        importlib.import_module(f"sftsearch.datasets.readers.{module}"), function
    )
    return found


def add_readers(readers: Mapping[str, Callable[..., Source]]) -> None:
    """Add readers of a plug-in, which may not have the name of a shipped one.

    Raises:
        UserError: a name is taken.
    """
    for name in readers:
        if name in READERS:
            raise UserError(f"'{name}' is the name of a shipped reader: choose another.")
    _plugin_readers.update(readers)


def reader_names() -> list[str]:
    """Return the names of all readers, sorted."""
    return sorted({*READERS, *_plugin_readers})


def reader_for(name: str, path: Path | None) -> str:
    """Return the reader of this name, or the one that fits the files at the path.

    Raises:
        UserError: no reader has this name, and the path fits none.
    """
    if name in reader_names():
        return name
    if path is None:
        known = unknown(name, reader_names(), kind="reader")
        raise UserError(f"{known} Choose one by --reader, or give files by --from.")
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "parquet"
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return "huggingface"
    if path.is_dir() and any(path.glob("*.csv")):
        return "arrays"
    raise UserError(
        f"No reader is called '{name}', and {path} is not a Parquet file, a folder of "
        f"arrays with a CSV, or a saved Hugging Face dataset. Choose one by --reader. Known: "
        f"{', '.join(reader_names())}."
    )


def read_source(name: str, path: Path | None, options: Iterable[str] = ()) -> Source:
    """List the samples of published files with a reader.

    Args:
        name: the reader.
        path: a file or folder; None only for a reader that generates its samples.
        options: `KEY=VALUE`.

    Raises:
        UserError: unknown reader or option, or a value of the wrong type.
        DatasetError: the files do not have the format that the reader expects.
    """
    read = reader(name)
    parameters = inspect.signature(read).parameters
    known = {
        option.name: option.default
        for option in parameters.values()
        if option.kind is option.KEYWORD_ONLY
    }
    known = {"axes": "", "modalities": ""} | known  # the options of every reader
    if path is None and parameters["path"].default is inspect.Parameter.empty:
        raise UserError(f"The reader '{name}' needs published files. Give their path by --from.")
    values: dict[str, object] = {"axes": ""}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"An option must be KEY=VALUE, but got {text!r}.")
        default = look_up(known, key, kind=f"option of the reader '{name}'")
        values[key] = _parse_option(key, value, default)
    axes = values.pop("axes")
    chosen = "" if "modalities" in parameters else str(values.pop("modalities", ""))
    source = read(path, **values) if name in READERS else _read_guarded(name, path, values)
    if chosen:
        source = with_modalities(source, chosen)
    return with_axes(source, str(axes)) if axes else source


def _read_guarded(name: str, path: Path | None, values: Mapping[str, object]) -> Source:
    """List samples with the reader of a plug-in; any error becomes one line."""
    from sftsearch.datasets.source import guarded, unreadable

    try:
        source = _plugin_readers[name](path, **values)
    except UserError:
        raise
    except Exception as error:
        raise unreadable(path, f"the reader '{name}' failed: {error!r}") from error
    samples = [replace(one, read=guarded(one.read, one.name)) for one in source.samples]
    return replace(source, samples=samples)


def with_modalities(source: Source, chosen: str) -> Source:
    """Return a source with some of its modalities, given as `audio,text`, in its own order.

    Raises:
        UserError: no modality has this name.
    """
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        look_up(source.modalities, name, kind="modality of this dataset")
    kept = {name: shape for name, shape in source.modalities.items() if name in names}
    return replace(source, modalities=kept)


def with_axes(source: Source, axes: str) -> Source:
    """Return a source with declared `axes` of modalities, given as `acc=3,gyro=3`.

    Raises:
        UserError: no modality has this name.
        DatasetError: the text has another form, or a modality has no such axes.
    """
    from sftsearch.datasets.readers.tabular import parse_pairs

    declared, modalities = parse_pairs(axes, "axes"), dict(source.modalities)
    for name, number in declared.items():
        shape = look_up(modalities, name, kind="modality of option `axes`")
        modalities[name] = replace(shape, axes=number)
    return replace(source, modalities=modalities)


def _parse_option(key: str, value: str, default: object) -> object:
    """Convert the text of an option to the type of its default: bool, int or str."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise UserError(f"Option `{key}` must be true or false, but got {value!r}.")
        return value.lower() == "true"
    if isinstance(default, int):
        if not re.fullmatch(r"-?[0-9]{1,12}", value):
            raise UserError(f"Option `{key}` must be a whole number, but got {value!r}.")
        return int(value)
    return value
