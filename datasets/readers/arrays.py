"""Read a custom dataset from a folder of numpy arrays with a CSV of labels.

    labels.csv          columns name and label; optionally split and subject. A multi-label task has
                        columns label:NAME of 0 and 1 instead of label.
    MODALITY/NAME.npy   (T, F), one file per sample; or
    NAME.npz            one array per modality; or
    MODALITY.npy        (N, T, F), in the order of the table

A missing file means a missing modality of the sample. Files that belong to no sample are counted,
or refused if they differ from names of samples in case only. Arrays are never unpickled; the shape
in a header is checked against the file size before use.

Shapes: N samples, T tokens, F features.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import re
import tokenize
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.named_files import NamedFiles
from sftsearch.datasets.readers.tabular import (
    SUBJECT_COLUMNS,
    parse_pairs,
    read_labels,
    read_splits,
)
from sftsearch.datasets.source import Sample, Source, unreadable, within
from sftsearch.datasets.spec import NAME_PATTERN, ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

MAX_BYTES = 1 << 30
"""Maximum size of the array of a sample."""
MAX_ROWS = 50_000_000
LABEL = "label:"


def open_source(
    path: Path,
    *,
    table: str = "labels.csv",
    task: str = "auto",
    tokens: str = "",
    dtype: str = "float32",
    licence: str = "not stated",
    attribution: str = "not stated",
) -> Source:
    """List the samples of a folder of .npy or .npz files and a CSV of labels.

    Args:
        path: the folder.
        table: the CSV file in it.
        task: auto, classification, multilabel or regression.
        tokens: maximum tokens of modalities, as audio=300; further tokens are cut off.
        dtype: storage type, float32 or float16.
        licence: license of the samples.
        attribution: credit for the samples.

    Raises:
        DatasetError: the folder has another format.
    """
    file = within(path, table)
    rows = _read_table(file)
    names = rows["name"]
    labels = read_labels(file, *_label_column(file, rows), task)
    column = next((name for name in SUBJECT_COLUMNS if name in rows), None)
    people = [person or None for person in rows[column]] if column else [None] * len(names)
    splits = read_splits(file, rows.get("split"), people, labels.values, names)
    loaders, notes = _find_loaders(path, names)
    faults: dict[int, str] = {}
    shapes = _shapes(path, loaders, parse_pairs(tokens, "tokens"), dtype, faults)
    classes = tuple(name.removeprefix(LABEL) for name in rows if name.startswith(LABEL))
    used = {"name", "label", "split", column, *(name for name in rows if name.startswith(LABEL))}
    if others := [name for name in rows if name not in used]:
        notes.append(f"Columns of {table} left out: {', '.join(others)}.")
    return Source(
        task=labels.task,
        modalities=shapes,
        classes=classes or labels.classes,
        samples=[
            Sample(
                name=name,
                split=splits[i],
                label=labels.values[i],
                subject=people[i],
                read=partial(_read, loaders, i),
                files=_files_of(loaders, i),
                bad=faults.get(i) or labels.fault(i),
            )
            for i, name in enumerate(names)
        ],
        licence=licence,
        attribution=attribution,
        source=path.name,
        description=f"Read from the folder {path.name}.",
        notes=notes,
    )


def _read_table(file: Path) -> dict[str, list[Any]]:
    """Return the columns of a CSV file with a header."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(itertools.islice(csv.reader(stream, strict=True), MAX_ROWS))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    header = [name.strip() for name in rows[0]] if rows else []
    name = next((name for name in ("name", "id", "file") if name in header), None)
    if name is None or len(set(header)) != len(header):
        raise unreadable(file, "the first line must be unique column names, one of them `name`")
    body = [row for row in rows[1:] if row]
    short = next((i for i, row in enumerate(body, start=2) if len(row) != len(header)), None)
    if short is not None or not body:
        what = f"line {short} must have {len(header)} cells" if body else "it has no samples"
        raise unreadable(file, what)
    columns = {key: [row[i].strip() for row in body] for i, key in enumerate(header)}
    columns["name"] = columns.pop(name)
    return columns


def _label_column(file: Path, rows: dict[str, list[Any]]) -> tuple[list[Any], None]:
    """Return labels, with numeric texts as numbers and label columns as lists of 0 and 1."""
    several = [name for name in rows if name.startswith(LABEL)]
    if several:
        cells = zip(*(rows[name] for name in several), strict=True)
        return [[int(x) if x in ("0", "1") else x for x in row] for row in cells], None
    if "label" not in rows:
        raise unreadable(file, "it has neither a column `label` nor columns `label:NAME`")
    found: list[Any] = rows["label"]
    for kind in (int, float):
        try:
            return [kind(text) if text else None for text in found], None
        except ValueError:
            continue
    return found, None


# ------------------------------------------------------------------ loaders of values


Loaders = dict[str, list["partial[Any] | None"]]
"""A loader for each sample, by modality; None for a missing modality."""


def _find_loaders(path: Path, names: Sequence[str]) -> tuple[Loaders, list[str]]:
    """Return the loaders of all modalities, and notes on files that belong to no sample."""
    loaders: Loaders = {}
    notes = []
    for entry in sorted(path.glob("[!.]*")):  # without .ipynb_checkpoints and ._x of macOS
        if entry.is_dir():
            listed = NamedFiles(path, entry.name, ".npy")
            if len(listed):
                loaders[entry.name] = _file_loaders(listed, names)
                notes.append(listed.check(names))
        elif entry.suffix == ".npy":
            loaders[entry.stem] = _row_loaders(within(path, entry.name), len(names))
    listed = NamedFiles(path, ".", ".npz")
    archives = [listed.find(name) for name in names]
    notes.append(listed.check(names))
    members = [_members(file) if file else frozenset() for file in archives]
    for member in sorted(frozenset().union(*members)):
        loaders[member] = [
            partial(read_member, file, member) if file and member in in_file else None
            for file, in_file in zip(archives, members, strict=True)
        ]
    if not loaders:
        raise unreadable(path, "it has no MODALITY/NAME.npy, NAME.npz or MODALITY.npy")
    return loaders, [note for note in notes if note]


def _file_loaders(listed: NamedFiles, names: Sequence[str]) -> list[partial[Any] | None]:
    files = [listed.find(name) for name in names]
    return [partial(read_array, file) if file else None for file in files]


def _files_of(loaders: Loaders, number: int) -> tuple[Path, ...]:
    """Return the files of a sample; for arrays of all samples, the whole array."""
    found = (reads[number] for reads in loaders.values())
    return tuple(dict.fromkeys(read.args[0] for read in found if read is not None))


def _row_loaders(file: Path, count: int) -> list[partial[Any] | None]:
    with _convert_errors(file), file.open("rb") as stream:
        shape, kind, is_fortran = _header(file, stream, file.stat().st_size, 3)
        offset = stream.tell()
    if shape[0] != count or is_fortran:
        raise unreadable(file, f"it must have {count} samples in C order, but has {shape[0]}")
    array = np.memmap(file, kind, "r", offset, shape)
    return [partial(_row, file, array, i) for i in range(count)]


def _row(file: Path, array: npt.NDArray[Any], number: int, *, header: bool = False) -> Any:
    """Return a row of the array of a file, (T, F), or only its shape."""
    return array.shape[1:] if header else array[number]


def _members(file: Path) -> frozenset[str]:
    with _convert_errors(file), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return frozenset(name.removesuffix(".npy") for name in names if name.endswith(".npy"))


def read_member(file: Path, member: str, *, header: bool = False) -> Any:
    """Return an array of an archive, (T, F), or only its shape."""
    with _convert_errors(file), zipfile.ZipFile(file) as archive:
        size = archive.getinfo(f"{member}.npy").file_size
        with archive.open(f"{member}.npy") as stream:
            return _read_stream(file, stream, size, header)  # type: ignore[arg-type]


def read_array(file: Path, *, header: bool = False) -> Any:
    """Return an array of a file, (T, F), or only its shape.

    Raises:
        DatasetError: the file is not a .npy file of numbers with two axes, or its size is wrong.
    """
    with _convert_errors(file), file.open("rb") as stream:
        return _read_stream(file, stream, file.stat().st_size, header)


@contextlib.contextmanager
def _convert_errors(file: Path) -> Iterator[None]:
    """Convert read errors to one line."""
    try:
        yield
    except DatasetError:
        raise
    except _DAMAGED as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error


_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    TypeError,
    MemoryError,
    OverflowError,
    RuntimeError,  # includes NotImplementedError: compression unknown to zipfile
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Raised by the parsers of numpy headers and zip archives for invalid bytes."""


def _read_stream(file: Path, stream: BinaryIO, size: int, header: bool) -> Any:
    shape, kind, is_fortran = _header(file, stream, size, 2)
    if header:
        return shape
    content = stream.read(math.prod(shape) * kind.itemsize)
    if len(content) != math.prod(shape) * kind.itemsize:
        raise unreadable(file, "it ends too early")
    flat = np.frombuffer(content, kind)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _header(
    file: Path, stream: BinaryIO, size: int, num_axes: int
) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Return shape, dtype and whether the order is Fortran; check them against the file size."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    elif version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    else:
        raise unreadable(file, f"its .npy version {version} is not supported")
    shape, is_fortran, kind = read(stream, max_header_size=10_000)
    if kind.kind not in "fiub" or kind.hasobject or len(shape) != num_axes:
        axes = {2: "(tokens, features)", 3: "(samples, tokens, features)"}[num_axes]
        raise unreadable(file, f"it must be numbers {axes}, but is {kind} {shape}")
    num_bytes = math.prod(shape) * kind.itemsize
    limit = size if num_axes == 3 else min(size, MAX_BYTES)
    if num_bytes > limit or min(shape[1:]) < 0 or 0 in shape[-1:]:
        raise unreadable(file, f"its header states the shape {shape}, which does not fit the file")
    return shape, kind, bool(is_fortran)


def _shapes(
    path: Path,
    loaders: Loaders,
    most: dict[str, int],
    dtype: str,
    faults: dict[int, str],
) -> dict[str, ModalitySpec]:
    """Return the shapes of all modalities; what is wrong with a file becomes its sample's fault."""
    shapes = {}
    for modality, reads in loaders.items():
        if not re.fullmatch(NAME_PATTERN, modality):
            raise unreadable(path, f"a modality name must be lower case, but is {modality!r:.40}")
        found: list[tuple[int, int | None]] = []
        for number, read in enumerate(reads):
            try:
                found.append(read(header=True) if read else (0, None))
            except DatasetError as error:
                faults[number] = error.reason
                found.append((0, None))
        widths = {width for length, width in found if width is not None}
        if len(widths) != 1:
            raise unreadable(path, f"{modality} has different feature counts: {sorted(widths)[:3]}")
        lengths = {length for length, _ in found}
        longest = min(max(lengths), most.get(modality, 10**9))
        if longest < 1:
            raise unreadable(path, f"{modality} is empty in every sample")
        varies = any(min(length, longest) != longest for length in lengths)
        shapes[modality] = ModalitySpec(
            num_tokens=longest,
            num_features=widths.pop(),
            variable_length=varies,
            dtype=dtype,  # type: ignore[arg-type]
        )
    return shapes


def _read(loaders: Loaders, number: int) -> dict[str, npt.NDArray[Any] | None]:
    found = {name: reads[number] for name, reads in loaders.items()}
    return {name: None if read is None else read() for name, read in found.items()}
