"""Read stores: samples on disk in Arrow format, memory-mapped and shared by all trials of a node.

A store is a folder:

    manifest.json      the dataset spec, class counts, training statistics, sizes and checksums
    train.arrow        one Arrow IPC file per split, uncompressed, record batches of up to 64 MiB;
    validation.arrow     columns
    test.arrow             label: int64, or fixed_size_list<float32>[C] (multilabel), or float32
                             (regression)
                           subject: int64
                           <modality>: lists of float32 or float16, row-major tokens x features,
                             of fixed size T * F or, with variable length, of any size

A store is written under a temporary name and renamed, so that it is complete (`writer.py`). It may
come from another version, be truncated or tampered with, so all content is validated before use.
Only `verify` compares checksums, because that reads every byte.

Shapes: N samples, T tokens, F features, C classes or labels.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sftsearch.datasets.checksums import file_sha256
from sftsearch.datasets.errors import DatasetError, SealedSplitError
from sftsearch.datasets.sample_checks import count_classes, label_fault, length_fault
from sftsearch.datasets.samples import Ragged, Rows, Split
from sftsearch.datasets.spec import FORMAT_VERSION, MANIFEST, SPLITS, DatasetSpec, ModalitySpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from sftsearch.datasets.samples import Samples

_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in (
        ("int64", "int64"), ("int32", "int32"), ("float", "float32"), ("halffloat", "float16")
    )
}  # fmt: skip
MAX_MANIFEST_BYTES = 4 << 20  # real ones have kilobytes; never parse a gigabyte of JSON
_REMEDY = "Delete the folder to rebuild the dataset, or prepare it again."


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """An opened store. Its pickle is only the path, so that the receiver maps the same pages."""

    spec: DatasetSpec
    path: Path
    statistics: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    """Mean and standard deviation of the valid training tokens, (F,) each, by modality. A constant
    feature has standard deviation 1, so that dividing by it is safe."""
    class_counts: dict[str, tuple[int, ...]]
    """Number of samples of each class, or with each label, by split; empty for regression."""
    checksums: dict[str, str]
    """sha256 of the file of each split."""

    def split(self, name: str, *, unseal_test: bool = False) -> Split:
        """Map one split.

        Args:
            name: train, validation or test.
            unseal_test: allow "test"; only for the confirmation of a frozen front.

        Raises:
            SealedSplitError: the test split without `unseal_test`.
            DatasetError: the split is unknown, or its file is damaged.
        """
        if name not in SPLITS:
            raise DatasetError(f"No split is called {name!r}. Known: {', '.join(SPLITS)}.")
        if name == "test" and not unseal_test:
            raise SealedSplitError(
                f"The test split of '{self.spec.name}' is sealed: only `sftsearch confirm STUDY` "
                "reads it, once. Use the validation split."
            )
        return _read_split(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def open_store(path: Path) -> Store:
    """Open the store in folder `path`: read the manifest and check the file sizes.

    Raises:
        DatasetError: the store is missing, damaged or of another format version.
    """
    path = Path(path).absolute()
    manifest = _read_manifest(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"The store {path} has format version {version!r:.40}, but this version of sftsearch "
            f"reads {FORMAT_VERSION}. {_REMEDY}"
        )
    try:
        store = _parse_manifest(path, manifest)
        sizes = {split: int(manifest["files"][split]["num_bytes"]) for split in SPLITS}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path / MANIFEST, f"{type(error).__name__}: {error}") from error
    for split, expected in sizes.items():
        _check_size(path / f"{split}.arrow", expected)
    return store


def verify(store: Store) -> None:
    """Read every file of the store and compare its sha256 with the manifest.

    Raises:
        DatasetError: the content of a file has changed.
    """
    for split, expected in store.checksums.items():
        file = store.path / f"{split}.arrow"
        try:
            actual = file_sha256(file)
        except OSError as error:
            raise _damaged(file, str(error.strerror)) from error
        if actual != expected:
            raise _damaged(file, f"sha256 is {actual[:12]}, the manifest says {expected[:12]}")


# Reading


def _damaged(file: Path, why: str) -> DatasetError:
    # `why` may quote the file, so it is reduced to one line.
    what = " ".join(why.split())[:200].rstrip(".")
    return DatasetError(f"The store {file.parent} is damaged ({file.name}: {what}). {_REMEDY}")


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        if path.is_dir():
            raise _damaged(file, "it is missing") from None
        raise DatasetError(f"There is no store at {path}.") from None
    except OSError as error:
        raise DatasetError(f"Cannot read the store {path}: {error.strerror}.") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise _damaged(file, f"it has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"not JSON, {error}") from error
    if not isinstance(manifest, dict):
        raise _damaged(file, "not a JSON object")
    return manifest


def _parse_manifest(path: Path, manifest: dict[str, Any]) -> Store:
    fields = dict(manifest["spec"])
    modalities = {name: ModalitySpec(**shape) for name, shape in fields.pop("modalities").items()}
    classes = tuple(_text(name) for name in fields.pop("classes"))
    subjects = {
        split: tuple(_text(person) for person in people)
        for split, people in fields.pop("subjects").items()
    }
    for key in ("name", "licence", "attribution", "source", "description", "fingerprint"):
        _text(fields[key])
    spec = DatasetSpec(modalities=modalities, classes=classes, subjects=subjects, **fields)
    counts = {split: tuple(map(int, manifest["class_counts"][split])) for split in SPLITS}
    for split, of_classes in counts.items():
        if not _add_up(of_classes, spec, spec.num_samples[split]):
            raise ValueError(f"class counts of {split} do not add up")
    return Store(
        spec=spec,
        path=path,
        statistics={
            name: (
                _statistic(manifest["statistics"][name]["mean"], shape, positive=False),
                _statistic(manifest["statistics"][name]["std"], shape, positive=True),
            )
            for name, shape in spec.modalities.items()
        },
        class_counts=counts,
        checksums={split: _text(manifest["files"][split]["sha256"]) for split in SPLITS},
    )


def _add_up(counts: tuple[int, ...], spec: DatasetSpec, num_samples: int) -> bool:
    if len(counts) != spec.num_classes:
        return False
    if spec.task == "classification":
        return sum(counts) == num_samples
    return all(0 <= count <= num_samples for count in counts)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r:.40}")
    return value


def _statistic(values: object, shape: ModalitySpec, *, positive: bool) -> npt.NDArray[np.float32]:
    if not isinstance(values, list):
        raise TypeError("statistics must be a list")
    with np.errstate(over="ignore"):  # out-of-range numbers become infinite and are rejected
        statistic = np.array([float(value) for value in values]).astype(np.float32)
    if statistic.shape != (shape.num_features,) or not np.isfinite(statistic).all():
        raise ValueError(f"statistics must be {shape.num_features} finite numbers")
    if positive and statistic.min() <= 0:
        raise ValueError("standard deviations must be positive")
    statistic.flags.writeable = False
    return statistic


def _check_size(file: Path, expected: int) -> None:
    try:
        actual = file.stat().st_size
    except OSError as error:
        raise _damaged(file, str(error.strerror)) from error
    if actual != expected:
        raise _damaged(file, f"it has {actual} bytes, the manifest says {expected}")


def _read_split(store: Store, name: str) -> Split:
    file, spec = store.path / f"{name}.arrow", store.spec
    batches = _read_batches(file, spec)
    count = sum(batch.num_rows for batch in batches)
    if count != spec.num_samples[name]:
        raise _damaged(file, f"it has {count} samples, not {spec.num_samples[name]}")
    try:
        labels = _joined(batches, "label")
        subjects = _joined(batches, "subject")
        modalities = {
            key: _samples([batch.column(key) for batch in batches], shape)
            for key, shape in spec.modalities.items()
        }
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    lengths = {key: found.lengths for key, found in modalities.items() if isinstance(found, Ragged)}
    fault = label_fault(spec, labels) or length_fault(spec, lengths)
    if fault:
        raise _damaged(file, fault)
    if count_classes(spec, labels) != store.class_counts[name]:
        raise _damaged(file, "its labels do not match the class counts of the manifest")
    if subjects.min() < -1 or subjects.max() >= len(spec.subjects[name]):
        raise _damaged(file, "it has a subject without a name")
    for array in lengths.values():
        array.flags.writeable = False
    return Split(
        name=name,
        modalities=modalities,
        labels=labels,
        subjects=subjects,
        lengths=lengths,
    )


def _joined(batches: list[pa.RecordBatch], column: str) -> npt.NDArray[Any]:
    """Return a column of numbers as (N,), or of lists as (N, width); read-only."""
    parts = [_values(batch.column(column)) for batch in batches]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    joined.flags.writeable = False
    return joined


def _values(column: pa.Array) -> npt.NDArray[Any]:
    if isinstance(column, pa.FixedSizeListArray):
        return _numbers(column.values).reshape(-1, column.type.list_size)
    return _numbers(column)


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Return a view of numbers. `to_numpy` would import pandas: 30 MiB in every process."""
    dtype = _DTYPES[str(column.type)]
    buffer = column.buffers()[-1]
    return np.frombuffer(buffer, dtype, len(column), column.offset * dtype.itemsize)


def _samples(columns: list[pa.Array], shape: ModalitySpec) -> Samples:
    """Wrap the batches of a modality.

    Raises:
        ValueError: a list has a partial token or too many tokens, or offsets decrease.
    """
    if shape.variable_length:
        values, starts = zip(*(_lists(column, shape) for column in columns), strict=True)
        return Ragged(values, starts, shape.num_tokens)
    parts = [_values(one).reshape(-1, shape.num_tokens, shape.num_features) for one in columns]
    if len(parts) == 1 and parts[0].dtype == np.float32:
        return parts[0]
    return Rows(parts, np.arange(sum(map(len, parts))))


def _lists(
    column: pa.ListArray, shape: ModalitySpec
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    ends, values = _numbers(column.offsets), _numbers(column.values)
    starts, rest = np.divmod(ends.astype(np.int64), shape.num_features)
    sizes = np.diff(starts)
    if rest.any() or starts[0] != 0 or starts[-1] * shape.num_features != len(values):
        raise ValueError(f"its lists are not tokens of {shape.num_features} features")
    if sizes.min() < 0 or sizes.max() > shape.num_tokens:
        raise ValueError(f"its lists must have up to {shape.num_tokens} tokens")
    return values.reshape(-1, shape.num_features), starts


def _read_batches(file: Path, spec: DatasetSpec) -> list[pa.RecordBatch]:
    """Map the record batches of a file; check for the columns of `spec` and for nulls."""
    try:
        # The arrays of a batch keep its buffers alive, and the buffers keep the map.
        reader = pa.ipc.open_file(pa.memory_map(os.fspath(file), "r"))
        if not reader.num_record_batches or not reader.schema.equals(schema_of(spec)):
            raise pa.ArrowInvalid("its columns do not match the manifest")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()
            if not batch.num_rows or any(_num_nulls(column) for column in batch.columns):
                raise pa.ArrowInvalid("it has nulls or an empty batch")
    except (OSError, OverflowError, pa.ArrowException) as error:
        raise _damaged(file, str(error)) from error
    return batches


def _num_nulls(column: pa.Array) -> int:
    if not isinstance(column, pa.FixedSizeListArray | pa.ListArray):
        return int(column.null_count)
    return int(column.null_count + column.values.null_count)


def schema_of(spec: DatasetSpec) -> pa.Schema:
    """Return the schema of the file of a split."""
    label = {
        "classification": pa.int64(),
        "multilabel": pa.list_(pa.float32(), spec.num_outputs),
        "regression": pa.float32(),
    }[spec.task]
    return pa.schema(
        [("label", label), ("subject", pa.int64())]
        + [(name, _column_type(shape)) for name, shape in spec.modalities.items()]
    )


def _column_type(shape: ModalitySpec) -> pa.DataType:
    number = pa.float16() if shape.dtype == "float16" else pa.float32()
    if shape.variable_length:
        return pa.list_(number)
    return pa.list_(number, shape.num_tokens * shape.num_features)
