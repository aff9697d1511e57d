"""Read a Hugging Face dataset saved by `DatasetDict.save_to_disk`.

    dataset_dict.json          {"splits": ["train", "validation", "test"]}
    SPLIT/state.json           the files, in order
    SPLIT/dataset_info.json    the features: names of classes, license, citation
    SPLIT/data-*.arrow         Arrow's stream format
    SPLIT/indices.arrow        the rows that are in the split, in order, if it was filtered

A single `Dataset` has the files of one split in the folder itself. Its splits are drawn (see
`tabular.py`), as are those of a dataset with a training split only. Without a validation split, a
fifth of the training samples validates, by subject if subjects are known. A split called `eval`
is for validation.

Files are read with Arrow, without the `datasets` library. Modalities are columns of lists of
numbers, or of lists of tokens (also `Array2D`). Other columns are ignored, except for the label and
subject.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sftsearch.datasets.errors import look_up
from sftsearch.datasets.readers.tabular import (
    SPLIT_NAMES,
    SUBJECT_COLUMNS,
    parse_pairs,
    read_labels,
    read_splits,
)
from sftsearch.datasets.source import Sample, Source, unreadable, within
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

MAX_JSON = 16 << 20
MAX_FILES = 100_000
SPLITS = SPLIT_NAMES | {"eval": "validation", "evaluation": "validation"}


def open_source(
    path: Path,
    *,
    label: str = "label",
    task: str = "auto",
    subject: str = "",
    modalities: str = "",
    dims: str = "",
    tokens: str = "",
    dtype: str = "float32",
) -> Source:
    """List the samples of a Hugging Face dataset saved to disk.

    Args:
        path: the folder with dataset_dict.json.
        label: the column of labels.
        task: auto, classification, multilabel or regression.
        subject: the column of subjects; by default the first of subject, speaker, ...
        modalities: the columns of modalities, with commas; by default all columns of lists.
        dims: features per token of flat lists, as audio=32.
        tokens: maximum tokens of modalities, as audio=300; further tokens are cut off.
        dtype: storage type, float32 or float16.

    Raises:
        DatasetError: the folder has another format.
    """
    notes: list[str] = []
    splits = _splits(path, notes)
    first = next(iter(splits.values()))
    chosen = _modalities(path, first.schema, modalities, label)
    shapes = _shapes(splits, chosen, dims, tokens, dtype)
    values = [value for part in splits.values() for value in part.column(label)]
    classes = first.class_names(label)
    names = [classes[v] for v in values] if classes and _are_indices(values, classes) else None
    labels = read_labels(path, values, names, task)
    if subject:
        look_up(dict.fromkeys(first.schema.names), subject, kind="column of this dataset")
    column = subject or next((name for name in SUBJECT_COLUMNS if name in first.schema.names), None)
    samples: list[Sample] = []
    for split, part in splits.items():
        people = part.column(column) if column else [None] * part.num_rows
        samples += [
            Sample(
                name=f"{split} {row}",
                split=split,
                label=labels.values[len(samples) + row],
                subject=None if people[row] is None else str(people[row]),
                read=partial(part.read, row, shapes),
                bad=labels.fault(len(samples) + row),
            )
            for row in range(part.num_rows)
        ]
    samples = _with_all_splits(path, samples, notes)
    information = first.information
    return Source(
        task=labels.task,
        modalities=shapes,
        classes=tuple(classes) if classes and labels.task == "classification" else labels.classes,
        samples=samples,
        licence=_text(information.get("license")) or "not stated",
        attribution=_text(information.get("citation")) or "not stated",
        source=_text(information.get("homepage")) or path.name,
        description=f"Read from the Hugging Face dataset {path.name}.",
        notes=notes + _left_out(first.schema, {label, column, *shapes}),
    )


def _splits(path: Path, notes: list[str]) -> dict[str, _Split]:
    """Open all splits and check that their columns are equal."""
    file = path / "dataset_dict.json"
    if not file.exists() and (path / "state.json").is_file():
        notes.append("It is a single Dataset, no DatasetDict: its splits are drawn.")
        return {"train": _Split(path, ".")}
    names = _json(file).get("splits")
    known = isinstance(names, list) and all(isinstance(n, str) and n in SPLITS for n in names)
    if not names or not known or len({SPLITS[name] for name in names}) != len(names):
        raise unreadable(file, f"its splits are invalid: {names!r:.80}")
    splits = {SPLITS[name]: _Split(path, name) for name in names}
    first = next(iter(splits.values()))
    for split in splits.values():
        if not split.schema.equals(first.schema):
            raise unreadable(path, "its splits have different columns")
    return splits


def _with_all_splits(path: Path, samples: list[Sample], notes: list[str]) -> list[Sample]:
    """Draw the splits of a dataset with a training split only, or its missing validation split."""
    present = {sample.split for sample in samples}
    if present not in ({"train"}, {"train", "test"}):
        return samples
    train = [sample for sample in samples if sample.split == "train"]
    drawn = read_splits(
        path,
        None,
        [sample.subject for sample in train],
        [sample.label for sample in train],
        [sample.name for sample in train],
    )
    if "test" in present:
        notes.append("It has no validation split: a fifth of the training samples is.")
        drawn = ["train" if split == "test" else split for split in drawn]
    split_of = dict(zip((sample.name for sample in train), drawn, strict=True))
    return [replace(sample, split=split_of.get(sample.name, "test")) for sample in samples]


def _modalities(path: Path, schema: pa.Schema, given: str, label: str) -> list[str]:
    """Return the columns of modalities: the given ones, or all lists except the label."""
    chosen = [n.strip() for n in given.split(",") if n.strip()]
    lists = [field.name for field in schema if _is_list(_storage(field.type))]
    chosen = chosen or [name for name in lists if name != label]
    for name in (label, *chosen):
        look_up(dict.fromkeys(schema.names), name, kind="column of this dataset")
    flat = next((name for name in chosen if name not in lists), None)
    if not chosen or flat:
        raise unreadable(path, f"a modality must be a column of lists, but {flat or 'none'} is not")
    return chosen


def _left_out(schema: pa.Schema, used: set[str | None]) -> list[str]:
    """Return a note on the columns that are not read."""
    others = [field for field in schema if field.name not in used]
    text = ", ".join(f"{field.name} ({field.type})"[:60] for field in others[:20])
    more = f" and {len(others) - 20} more" if len(others) > 20 else ""
    return [f"Columns left out: {text}{more}."] if others else []


def _text(value: object) -> str:
    return " ".join(value.split())[:500] if isinstance(value, str) else ""


def _are_indices(values: list[Any], names: list[str]) -> bool:
    return all(isinstance(value, int) and 0 <= value < len(names) for value in values)


def _json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_JSON + 1)
        found = json.loads(content) if len(content) <= MAX_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, getattr(error, "strerror", None) or error) from error
    if not isinstance(found, dict):
        raise unreadable(file, f"it must be a JSON object of at most {MAX_JSON} bytes")
    return found


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _plain(column: pa.Array) -> pa.Array:
    """Return the storage of an extension type such as `Array2D`, or the column itself."""
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


class _Split:
    """A split as memory-mapped record batches."""

    def __init__(self, path: Path, name: str) -> None:
        self.folder = within(path, name)
        state = _json(self.folder / "state.json")
        self.information = _json(self.folder / "dataset_info.json")
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
        found = [value for batch in self._batches for value in batch.column(name).to_pylist()]
        return found if self._rows is None else [found[row] for row in self._rows]

    def cell(self, row: int, name: str) -> pa.Array | None:
        """Return the list in a cell, or None."""
        row = row if self._rows is None else int(self._rows[row])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        column = _plain(self._batches[number].column(name))
        cell = column[row - int(self._starts[number])]
        return cell.values if cell.is_valid else None

    def tokens(self, row: int, name: str, width: int | None) -> npt.NDArray[Any] | None:
        """Return the tokens of a cell, (T, F), or None if it is empty.

        Raises:
            DatasetError: the cell is not numbers in tokens of one width.
        """
        inner = self.cell(row, name)
        if inner is None or not len(inner):
            return None
        if _is_list(inner.type):
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


def _shapes(
    splits: dict[str, _Split],
    names: list[str],
    dims: str,
    tokens: str,
    dtype: str,
) -> dict[str, ModalitySpec]:
    width_of, most, shapes = parse_pairs(dims, "dims"), parse_pairs(tokens, "tokens"), {}
    for name in names:
        lengths, widths = set(), set()
        for split in splits.values():
            for row in range(split.num_rows):
                found = split.tokens(row, name, width_of.get(name))
                lengths.add(0 if found is None else len(found))
                if found is not None:
                    widths.add(found.shape[1])
            if len(widths) > 1:
                raise unreadable(
                    split.folder, f"{name} has different feature counts: {sorted(widths)[:3]}"
                )
        longest = min(max(lengths), most.get(name, 10**9))
        if longest < 1:
            raise unreadable(next(iter(splits.values())).folder, f"{name} is empty in every sample")
        shapes[name] = ModalitySpec(
            num_tokens=longest,
            num_features=widths.pop(),
            variable_length=any(min(length, longest) != longest for length in lengths),
            dtype=dtype,  # type: ignore[arg-type]
        )
    return shapes
