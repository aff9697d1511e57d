"""Samples on disk as Arrow, memory-mapped: all trials of a node read the same pages.

A store is a folder:

    manifest.json      the data set's spec, class counts, training statistics, sizes and checksums
    train.arrow        one Arrow IPC file a split, uncompressed, of record batches of up to 64 MiB;
    validation.arrow     columns
    test.arrow             label: int64, or fixed_size_list<float32>[C] (multilabel), or float32
                             (regression)
                           subject: int64
                           <modality>: lists of float32 or float16, row-major tokens x features,
                             of fixed size T * F, or, where its length varies, of as many as
                             there are

It is complete from the moment it has its name: it is written beside and renamed (`writer.py`).
Whatever is read here was possibly written by another version, cut short or tampered with, so
nothing is believed before it is checked; a checksum of everything costs a read of everything and is
`verify`'s.

Shapes: N samples, T tokens, F features, C classes or labels.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sftsearch.datasets.errors import DatasetError, SealedSplitError
from sftsearch.datasets.sample_checks import count_classes, label_fault, length_fault
from sftsearch.datasets.samples import Ragged, Rows
from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from sftsearch.datasets.samples import Samples

FORMAT_VERSION = 2
"""Raised whenever an older store can no longer be read."""

MANIFEST = "manifest.json"
_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in (
        ("int64", "int64"), ("int32", "int32"), ("float", "float32"), ("halffloat", "float16")
    )
}  # fmt: skip
MAX_MANIFEST_BYTES = 4 << 20  # ours have some kilobytes; never parse a gigabyte of JSON
_REMEDY = "Delete the folder: it is built anew, or prepare it again."


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The samples of one split; opened from a store, read-only views on the memory map."""

    name: str
    modalities: Mapping[str, Samples]
    """(N, T, F) by modality, in the order of the spec."""
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    """By task: (N,) indices into the spec's classes, int64; (N, C) of 0 and 1, float32; or
    (N,) numbers, float32."""
    subjects: npt.NDArray[np.int64]
    """(N,), indices into the spec's subjects of this split; -1 where the person is not known."""
    lengths: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """(N,) valid tokens from the front, of each modality of variable length; 0: it is missing."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """An opened store. Pickling it passes the path alone, and the receiver maps the same pages."""

    spec: DatasetSpec
    path: Path
    statistics: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    """Mean and standard deviation of the training split's valid tokens, (F,) each, by modality; a
    feature that never changes has the deviation 1, so that dividing by it is safe."""
    class_counts: dict[str, tuple[int, ...]]
    """Samples of each class, or with each label, by split; empty for regression."""
    checksums: dict[str, str]
    """sha256 of each split's file, by split."""

    def split(self, name: str, *, unseal_test: bool = False) -> Split:
        """Map one split.

        Args:
            name: train, validation or test.
            unseal_test: allow "test"; only the confirmation of a frozen front may.

        Raises:
            SealedSplitError: the test split, without `unseal_test`.
            DatasetError: no such split, or its file is damaged.
        """
        if name not in SPLITS:
            raise DatasetError(f"No split is called {name!r}. Known: {', '.join(SPLITS)}.")
        if name == "test" and not unseal_test:
            raise SealedSplitError(
                f"The test split of '{self.spec.name}' is sealed: it is read once, "
                "by `sftsearch confirm STUDY`. Use the validation split."
            )
        return _read_split(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


def open_store(path: Path) -> Store:
    """Open the store in folder `path`: read its manifest and check its files' sizes.

    Raises:
        DatasetError: there is none, or it is damaged, or of another format version.
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
    """Read every file of the store and compare its sha256 with the manifest's.

    Raises:
        DatasetError: a file's bytes are not the ones that were written.
    """
    for split, expected in store.checksums.items():
        file = store.path / f"{split}.arrow"
        try:
            actual = file_sha256(file)
        except OSError as error:
            raise _damaged(file, str(error.strerror)) from error
        if actual != expected:
            raise _damaged(file, f"sha256 is {actual[:12]}, the manifest says {expected[:12]}")


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Reading


def _damaged(file: Path, why: str) -> DatasetError:
    # One line, whatever the file holds: names from it are repeated in `why`.
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
        raise _damaged(file, "it is too long")
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
        raise TypeError(f"expected a text, got {value!r:.40}")
    return value


def _statistic(values: object, shape: ModalitySpec, *, positive: bool) -> npt.NDArray[np.float32]:
    if not isinstance(values, list):
        raise TypeError("statistics must be a list")
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
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
        raise _damaged(file, "its labels are not those the manifest counts")
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
    """Return a column as (N,), or as (N, width) where it is one of lists; read-only."""
    parts = [_values(batch.column(column)) for batch in batches]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    joined.flags.writeable = False
    return joined


def _values(column: pa.Array) -> npt.NDArray[Any]:
    if isinstance(column, pa.FixedSizeListArray):
        return _numbers(column.values).reshape(-1, column.type.list_size)
    return _numbers(column)


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Return a view on numbers. Not `to_numpy`, which imports pandas: 30 MiB in every process."""
    dtype = _DTYPES[str(column.type)]
    buffer = column.buffers()[-1]
    return np.frombuffer(buffer, dtype, len(column), column.offset * dtype.itemsize)


def _samples(columns: list[pa.Array], shape: ModalitySpec) -> Samples:
    """Wrap the batches of a modality.

    Raises:
        ValueError: lists have parts of tokens, too many of them, or run backwards.
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
    """Map the record batches of a file, without nulls and with the columns of `spec`."""
    try:
        # The arrays of a batch keep its buffers alive, and these the map.
        reader = pa.ipc.open_file(pa.memory_map(os.fspath(file), "r"))
        if not reader.num_record_batches or not reader.schema.equals(schema_of(spec)):
            raise pa.ArrowInvalid("its columns are not the manifest's")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()
            if not batch.num_rows or any(_num_nulls(column) for column in batch.columns):
                raise pa.ArrowInvalid("it has empty values")
    except (OSError, OverflowError, pa.ArrowException) as error:
        raise _damaged(file, str(error)) from error
    return batches


def _num_nulls(column: pa.Array) -> int:
    if not isinstance(column, pa.FixedSizeListArray | pa.ListArray):
        return int(column.null_count)
    return int(column.null_count + column.values.null_count)


def schema_of(spec: DatasetSpec) -> pa.Schema:
    """Return the columns of a split's file."""
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
