"""Read a custom dataset from a Parquet file: one row per sample, one list column per modality.

A modality is a column of flat lists of numbers, row-major tokens x features, or of lists of tokens,
also as list views. Tensors of one shape (`arrow.fixed_shape_tensor`) are tokens by their first
dimension, features by the others.
The number of features per token of flat lists comes from the file metadata (`modality.NAME.dims`)
or option `dims`. An optional column `NAME_tokens` has the token counts, where null or 0 means a
missing modality; without it they follow from the lists.

One row group is read at a time, so its maximum size bounds the memory.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sftsearch.datasets.errors import DatasetError, look_up
from sftsearch.datasets.readers.tabular import (
    SUBJECT_COLUMNS,
    Labels,
    parse_pairs,
    read_labels,
    read_splits,
)
from sftsearch.datasets.source import Sample, Source, unreadable
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

MAX_GROUP_BYTES = 2 << 30
"""Maximum uncompressed size of a row group."""
MAX_ROWS = 100_000_000


def open_source(
    path: Path,
    *,
    label: str = "label",
    task: str = "auto",
    split: str = "",
    subject: str = "",
    modalities: str = "",
    dims: str = "",
    tokens: str = "",
    dtype: str = "float32",
    licence: str = "not stated",
    attribution: str = "not stated",
) -> Source:
    """List the samples of a Parquet file, or of a folder with one.

    Args:
        path: the file or folder.
        label: the column of labels; names of integer classes may be in LABEL_name.
        task: auto, classification, multilabel or regression.
        split: the column of splits, by default `split`; without it splits are drawn by subject,
            else by class.
        subject: the column of subjects; by default the first of subject, speaker, ...
        modalities: the columns of modalities, with commas; by default all columns of lists.
        dims: features per token, as audio=32,image=1; overrides the file metadata.
        tokens: maximum tokens of modalities, as audio=300; further tokens are cut off.
        dtype: storage type, float32 or float16.
        licence: license of the samples.
        attribution: credit for the samples.

    Raises:
        DatasetError: the file is unreadable or has another format.
    """
    file = _find_file(path)
    table = _Table(file)
    shapes, sizes = _shapes(table, _modalities(table, modalities, label), dims, tokens, dtype)
    rows = table.columns([name for name in _scalar_columns(table) if name not in sizes])
    labels = _labels(table, rows, label, task)
    people = _subjects(file, rows, subject, table)
    identifiers = _identifiers(table, rows)
    given = _column(table, rows, split, "split") if split else rows.get("split")
    splits = read_splits(file, given, people, labels.values, identifiers)
    samples = [
        Sample(
            name=identifiers[i],
            split=splits[i],
            label=labels.values[i],
            subject=people[i],
            read=_Row(table, i, shapes, sizes),
            bad=labels.fault(i),
        )
        for i in range(table.num_rows)
    ]
    used = {label, split or "split", subject, *shapes, *sizes}
    return Source(
        task=labels.task, modalities=shapes, classes=labels.classes, samples=samples,
        licence=licence, attribution=attribution, source=file.name,
        description=f"Read from the Parquet file {file.name}.", notes=_left_out(table, used),
    )  # fmt: skip


def _left_out(table: _Table, used: set[str]) -> list[str]:
    """Return a note on the columns that are neither modalities nor read for another purpose."""
    label_names = {f"{name}_name" for name in used}
    known = {*used, *label_names, "id", *SUBJECT_COLUMNS}
    others = [field for field in table.schema if field.name not in known]
    if not others:
        return []
    text = ", ".join(f"{field.name} ({field.type})" for field in others[:20])
    return [f"Columns left out, because a modality must be lists of numbers: {text}."]


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.parquet"))
    if len(files) != 1:
        raise unreadable(path, f"it must have one Parquet file, but has {len(files)}")
    return files[0]


class _Table:
    """A Parquet file; caches the last row group."""

    def __init__(self, file: Path) -> None:
        self.path = file
        try:
            self._file = pq.ParquetFile(file)
            stored = self._file.schema_arrow
            metadata = self._file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
            raise unreadable(file, error) from error
        tensors = {one.name: one.type for one in stored if _is_tensor(one.type)}
        self.tensor_widths = {name: _tensor_width(file, name, tensors[name]) for name in tensors}
        """Features per token of columns of tensors."""
        self.schema = pa.schema(
            [field.with_type(_as_lists(field.type)) for field in stored], stored.metadata
        )
        self.num_rows = metadata.num_rows
        counts = [group.num_rows for group in groups]
        if not 0 < self.num_rows <= MAX_ROWS or sum(counts) != self.num_rows or min(counts) < 0:
            raise unreadable(file, f"its row count {self.num_rows} is invalid")
        for number, group in enumerate(groups):
            if not 0 <= group.total_byte_size <= MAX_GROUP_BYTES:
                raise unreadable(
                    file,
                    f"row group {number} has {group.total_byte_size} bytes; at most "
                    f"{MAX_GROUP_BYTES} are allowed: write smaller row groups",
                )
        self._starts = np.cumsum([0, *counts])
        self._last: tuple[int, tuple[str, ...], pa.Table] | None = None

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return columns as Python values."""
        try:
            read = self._file.read(columns=list(names))
            return {name: read[name].to_pylist() for name in names}
        except (OSError, pa.ArrowException, ValueError, KeyError, OverflowError) as error:
            raise unreadable(self.path, error) from error

    def sizes(self, name: str) -> npt.NDArray[np.int64]:
        """Return the lengths of the lists of a column, (N,); 0 for null."""
        import pyarrow.compute as pc

        found = []
        for number in range(self._file.num_row_groups):
            column = self._group(number, (name,))[name]
            lengths = pc.fill_null(pc.list_value_length(column), 0)
            found.append(np.asarray(lengths.combine_chunks()).astype(np.int64))
        return np.concatenate(found)

    def row(self, number: int, names: tuple[str, ...]) -> dict[str, pa.ListScalar]:
        """Return some columns of a row."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        table = self._group(group, names)
        return {name: table[name][number - int(self._starts[group])] for name in names}

    def _group(self, number: int, names: tuple[str, ...]) -> pa.Table:
        if self._last is None or self._last[:2] != (number, names):
            self._last = None  # frees it before the next one is read
            try:
                table = self._file.read_row_group(number, columns=list(names))
                table.validate(full=True)
                table = _convert(table)
            except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
                raise unreadable(self.path, error) from error
            self._last = number, names, table
        return self._last[2]


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _is_tensor(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedShapeTensorType)


def _tensor_width(file: Path, name: str, kind: pa.FixedShapeTensorType) -> int:
    """Return the number of features per token: the product of all dimensions but the first."""
    if kind.permutation and list(kind.permutation) != sorted(kind.permutation):
        raise unreadable(file, f"the dimensions of {name} are permuted")
    return math.prod(kind.shape[1:])


def _as_lists(kind: pa.DataType) -> pa.DataType:
    """Return the type of lists that a column of tensors or list views is converted to."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type if _is_tensor(kind) else kind
    if isinstance(kind, pa.ListViewType | pa.LargeListViewType):
        return pa.large_list(_as_lists(kind.value_type))
    return kind


def _convert(table: pa.Table) -> pa.Table:
    """Convert the columns of tensors and of list views to lists."""
    for number, field in enumerate(table.schema):
        column, kind = table.column(number), _as_lists(field.type)
        if kind != field.type:
            if _is_tensor(field.type):
                column = pa.chunked_array([part.storage for part in column.chunks], kind)
            table = table.set_column(number, field.name, column.cast(kind))
    return table


def _inner(kind: pa.DataType) -> pa.DataType:
    return kind.value_type


def _scalar_columns(table: _Table) -> list[str]:
    """Return the columns that are not lists; they are small."""
    return [field.name for field in table.schema if not _is_list(field.type)]


def _modalities(table: _Table, given: str, label: str) -> list[str]:
    lists = [field.name for field in table.schema if _is_list(field.type) and field.name != label]
    chosen = [name.strip() for name in given.split(",") if name.strip()] or lists
    for name in chosen:
        if name not in lists:
            raise _no_column(table.path, name, "modality", table)
    if not chosen:
        raise unreadable(table.path, "it has no column of lists; a modality must be one")
    return chosen


def _column(table: _Table, rows: dict[str, list[Any]], name: str, what: str) -> list[Any]:
    """Return a column that the user named.

    Raises:
        DatasetError: there is no such column.
    """
    if name not in rows:
        raise _no_column(table.path, name, what, table)
    return rows[name]


def _no_column(file: Path, name: str, what: str, table: _Table) -> DatasetError:
    known = ", ".join(table.schema.names[:30])
    return unreadable(file, f"it has no column '{name}' for a {what}; it has {known}")


def _shapes(
    table: _Table, names: Sequence[str], dims: str, tokens: str, dtype: str
) -> tuple[dict[str, ModalitySpec], dict[str, str]]:
    """Return the shape of every modality, and the columns of token counts by modality."""
    width_of, most = parse_pairs(dims, "dims"), parse_pairs(tokens, "tokens")
    for option, given in (("dims", width_of), ("tokens", most)):
        for name in given:
            look_up(dict.fromkeys(names), name, kind=f"modality of option `{option}`")
    metadata = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (table.schema.metadata or {}).items()
    }
    counts = {f"{name}_tokens": name for name in names if f"{name}_tokens" in table.schema.names}
    shapes = {}
    for name in names:
        kind = _inner(table.schema.field(name).type)
        sizes_N = table.sizes(name)
        if _is_list(kind):
            num_features = _width(table, name)
        else:
            text = metadata.get(f"modality.{name}.dims", "")
            by_file = int(text) if text.isdigit() and text != "0" else 1
            num_features = width_of.get(name) or table.tensor_widths.get(name) or by_file
            sizes_N, rest = np.divmod(sizes_N, num_features)
            if rest.any():
                raise unreadable(
                    table.path,
                    f"{name} of row {int(rest.argmax())} is not a multiple of {num_features} "
                    f"features: set `--option dims={name}=NUMBER`",
                )
        longest = min(int(sizes_N.max()), most.get(name, 10**9))
        if longest == 0:
            raise unreadable(table.path, f"{name} is empty in every row")
        varies = bool((np.minimum(sizes_N, longest) != longest).any())
        varies = varies or (f"{name}_tokens" in counts and _vary(table, name, longest))
        shapes[name] = ModalitySpec(
            num_tokens=longest,
            num_features=num_features,
            variable_length=varies,
            dtype=dtype,  # type: ignore[arg-type]
        )
    return shapes, counts


def _vary(table: _Table, name: str, longest: int) -> bool:
    counts = table.columns([f"{name}_tokens"])[f"{name}_tokens"]
    return any(count is None or min(count, longest) != longest for count in counts)


def _width(table: _Table, name: str) -> int:
    """Return the number of features per token in lists of lists."""
    for number in range(table.num_rows):
        tokens = table.row(number, (name,))[name].as_py()
        if tokens:
            if not tokens[0]:
                raise unreadable(table.path, f"{name} of row {number} has tokens without features")
            return len(tokens[0])
    raise unreadable(table.path, f"{name} is empty in every row")


def _labels(table: _Table, rows: dict[str, list[Any]], label: str, task: str) -> Labels:
    if label not in rows and label not in table.schema.names:
        raise _no_column(table.path, label, "label", table)
    values = rows.get(label) or table.columns([label])[label]
    return read_labels(table.path, values, rows.get(f"{label}_name"), task)


def _identifiers(table: _Table, rows: dict[str, list[Any]]) -> list[str]:
    """Return the names of samples: the column `id` if it is unique, else their row numbers."""
    identifiers = [str(value) for value in rows["id"]] if "id" in rows else []
    if len(set(identifiers)) == table.num_rows:
        return identifiers
    return [f"row {number}" for number in range(table.num_rows)]


def _subjects(
    file: Path, rows: dict[str, list[Any]], given: str, table: _Table
) -> list[str | None]:
    if given:
        _column(table, rows, given, "subject")
    column = given or next((name for name in SUBJECT_COLUMNS if name in rows), None)
    if column is None:
        return [None] * table.num_rows
    return [None if person is None else str(person) for person in rows[column]]


class _Row:
    """Reads the values of one row."""

    def __init__(
        self, table: _Table, number: int, shapes: dict[str, ModalitySpec], counts: dict[str, str]
    ) -> None:
        self._table, self._number, self._shapes = table, number, shapes
        self._counts = {name: column for column, name in counts.items()}

    def __call__(self) -> dict[str, npt.NDArray[Any] | None]:
        """Return (T, F) by modality.

        Raises:
            DatasetError: a list is not numbers, or its length is wrong.
        """
        names = (*self._shapes, *self._counts.values())
        row = self._table.row(self._number, names)
        values: dict[str, npt.NDArray[Any] | None] = {}
        for name, shape in self._shapes.items():
            count = None
            if name in self._counts:
                count = row[self._counts[name]].as_py() or 0
            values[name] = self._tokens(name, shape, row[name], count)
        return values

    def _tokens(
        self, name: str, shape: ModalitySpec, cell: pa.ListScalar, count: int | None
    ) -> npt.NDArray[Any] | None:
        if count == 0 or not cell.is_valid:
            return None
        inner = cell.values
        if _is_list(inner.type):
            sizes = {len(token) for token in inner}
            if sizes != {shape.num_features}:
                raise self._error(name, f"must have tokens of {shape.num_features} features")
            inner = inner.flatten()
        if inner.null_count or not (
            pa.types.is_floating(inner.type) or pa.types.is_integer(inner.type)
        ):
            raise self._error(name, f"must be numbers without nulls, but is {inner.type}")
        x_TF = np.asarray(inner).reshape(-1, shape.num_features)
        if count is not None and count != len(x_TF):
            raise self._error(name, f"has {len(x_TF)} tokens, but {name}_tokens is {count}")
        return x_TF

    def _error(self, name: str, why: str) -> DatasetError:
        return unreadable(self._table.path, f"{name} of row {self._number} {why}")
