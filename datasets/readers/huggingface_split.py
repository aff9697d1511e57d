"""Read the record batches of one split of a Hugging Face dataset, memory-mapped.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sftsearch.datasets.readers.sound import log_mel, read_sound
from sftsearch.datasets.source import unreadable, within

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.spec import ModalitySpec

MAX_JSON = 16 << 20
MAX_FILES = 100_000


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object of moderate size.

    Raises:
        DatasetError: the file is unreadable or has something else.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_JSON + 1)
        found = json.loads(content) if len(content) <= MAX_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    if not isinstance(found, dict):
        raise unreadable(file, f"it must be a JSON object of at most {MAX_JSON} bytes")
    return found


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column has lists."""
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def is_sound(kind: pa.DataType) -> bool:
    """Return whether a column has sounds; images have the same fields, but other features."""
    return isinstance(kind, pa.StructType) and {one.name for one in kind} == {"bytes", "path"}


def storage(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values that an extension type such as `Array2D` stores."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _plain(column: pa.Array) -> pa.Array:
    """Return the storage of an extension type such as `Array2D`, or the column itself."""
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


class SavedSplit:
    """A split as memory-mapped record batches."""

    def __init__(self, path: Path, name: str) -> None:
        self.folder = within(path, name)
        state = read_json(self.folder / "state.json")
        self.information = read_json(self.folder / "dataset_info.json")
        self._batches = self._open(state.get("_data_files"))
        if not self._batches:
            raise unreadable(self.folder, "it has no samples")
        self.schema = self._batches[0].schema
        if not all(batch.schema.equals(self.schema) for batch in self._batches):
            raise unreadable(self.folder, "its files have different columns")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.num_rows = int(self._starts[-1])
        self._rows = self._indices(state.get("_indices_data_files"))
        if self._rows is not None:
            self.num_rows = len(self._rows)

    def _open(self, files: Any) -> list[pa.RecordBatch]:
        """Return the batches of the files that state.json names."""
        if not isinstance(files, list) or not 0 < len(files) <= MAX_FILES:
            raise unreadable(self.folder / "state.json", "it names no data files")
        batches: list[pa.RecordBatch] = []
        for entry in files:
            file_name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(file_name, str):
                raise unreadable(self.folder / "state.json", f"invalid data file {entry!r:.60}")
            batches += self._map(within(self.folder, file_name))
        return batches

    def _indices(self, files: Any) -> npt.NDArray[np.int64] | None:
        """Return the row of each sample in the data files; None if the split has all rows."""
        if not files:
            return None
        batches = self._open(files)
        kinds = [batch.schema.types for batch in batches]
        if not batches or not all(len(k) == 1 and pa.types.is_integer(k[0]) for k in kinds):
            raise unreadable(self.folder, "its indices are not one column of integers")
        found = np.array([x for batch in batches for x in batch.column(0).to_pylist()])
        if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= self.num_rows:
            raise unreadable(self.folder, f"its indices must be in [0, {self.num_rows})")
        return found.astype(np.int64)

    def _map(self, file: Path) -> list[pa.RecordBatch]:
        try:
            reader = pa.ipc.open_stream(pa.memory_map(str(file)))
            batches = [batch for batch in reader if batch.num_rows]
            for batch in batches:
                batch.validate(full=True)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise unreadable(file, error) from error
        return batches

    def class_names(self, label: str) -> list[str]:
        """Return the names of a `ClassLabel`; empty for other features."""
        feature = self.information.get("features", {})
        feature = feature.get(label, {}) if isinstance(feature, dict) else {}
        names = feature.get("names") if isinstance(feature, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return []
        return names

    def column(self, name: str) -> list[Any]:
        """Return a column as Python values."""
        found = [value for batch in self._batches for value in batch.column(name).to_pylist()]
        return found if self._rows is None else [found[row] for row in self._rows]

    def _scalar(self, row: int, name: str) -> pa.Scalar:
        """Return a cell."""
        row = row if self._rows is None else int(self._rows[row])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return _plain(self._batches[number].column(name))[row - int(self._starts[number])]

    def cell(self, row: int, name: str) -> pa.Array | None:
        """Return the list in a cell, or None."""
        cell = self._scalar(row, name)
        return cell.values if cell.is_valid else None

    def is_sound(self, name: str) -> bool:
        """Return whether a column has sounds."""
        return is_sound(storage(self.schema.field(name).type))

    def sound(self, row: int, name: str) -> tuple[str, bytes] | None:
        """Return the name and the bytes of a sound, or None if it is missing.

        Raises:
            DatasetError: the bytes are in another file.
        """
        cell = self._scalar(row, name)
        if not cell.is_valid:
            return None
        content, where = cell["bytes"].as_py(), f"{name} of sample {row}"
        if content is None and cell["path"].as_py() is not None:
            raise unreadable(
                self.folder,
                f"{where} is in another file: save the dataset with embedded sounds "
                "(`embed_table_storage`)",
            )
        return None if content is None else (f"{where} in {self.folder}", bytes(content))

    def tokens(self, row: int, name: str, width: int | None) -> npt.NDArray[Any] | None:
        """Return the tokens of a cell, (T, F), or None if it is empty.

        Raises:
            DatasetError: the cell is not numbers in tokens of one width.
        """
        if self.is_sound(name):
            found = self.sound(row, name)
            return None if found is None else log_mel(read_sound(found[0], content=found[1]))
        inner = self.cell(row, name)
        if inner is None or not len(inner):
            return None
        if is_list(inner.type):
            widths = {len(token) if token.is_valid else -1 for token in inner}
            if len(widths) != 1:
                raise unreadable(
                    self.folder, f"{name} of sample {row} has tokens of widths {sorted(widths)[:3]}"
                )
            (width,) = widths
            inner = inner.flatten()
        is_number = pa.types.is_floating(inner.type) or pa.types.is_integer(inner.type)
        if inner.null_count or not is_number:
            raise unreadable(self.folder, f"{name} of sample {row} must be numbers")
        width = width or 1
        if width < 1 or len(inner) % width:
            raise unreadable(
                self.folder, f"{name} of sample {row} is not a multiple of {width} features"
            )
        return np.asarray(inner).reshape(-1, width)

    def read(self, row: int, shapes: dict[str, ModalitySpec]) -> dict[str, npt.NDArray[Any] | None]:
        """Return the values of a sample."""
        values: dict[str, npt.NDArray[Any] | None] = {}
        for name, shape in shapes.items():
            found = self.tokens(row, name, shape.num_features)
            values[name] = found
        return values
