"""Samples on disk as Arrow, memory-mapped: all trials of a node read the same pages.

A store is a folder:

    manifest.json      the data set's spec, class counts, training statistics, sizes and checksums
    train.arrow        one Arrow IPC file a split, one record batch, uncompressed; columns
    validation.arrow     label: int64, or fixed_size_list<float32>[C] (multilabel), or float32
    test.arrow             (regression); subject: int64
                         <modality>: fixed_size_list<float32>[T * F], row-major tokens x features
                         <modality>_length: int64, where its length varies; padding is zero

It is complete from the moment it has its name: it is written beside and renamed. Whatever is read
here was possibly written by another version, cut short or tampered with, so nothing is believed
before it is checked; a checksum of everything costs a read of everything and is `verify`'s.

Shapes: N samples, T tokens, F features, C classes or labels.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from sftsearch.datasets.errors import DatasetError, SealedSplitError
from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

FORMAT_VERSION = 1
"""Raised whenever an older store can no longer be read."""

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 4 << 20  # ours have some kilobytes; never parse a gigabyte of JSON
_STALE_SECONDS = 3600.0  # a build takes seconds; what is older was left by a killed one
_REMEDY = "Delete the folder, it will be rebuilt."


class Rows:
    """Some rows of arrays that stand one behind the other; read when they are asked for.

    The arrays may be views on memory maps, which are never copied as a whole.
    """

    def __init__(self, parts: Sequence[Samples], index: npt.NDArray[np.int64]) -> None:
        self._parts, self._index = list(parts), index
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (len(index), *parts[0].shape[1:])

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return a copy of the rows that an index array, mask or slice names, (N, T, F)."""
        index = self._index[rows]
        chosen = np.empty((len(index), *self.shape[1:]), dtype=np.float32)
        for part, start, end in zip(self._parts, self._starts[:-1], self._starts[1:], strict=True):
            here = (index >= start) & (index < end)
            chosen[here] = part[index[here] - start]
        return chosen


class Samples(Protocol):
    """What holds the tokens of many samples: an array, or some rows of arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T, F)."""

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return some samples."""


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


def write_store(path: Path, spec: DatasetSpec, splits: Mapping[str, Split]) -> None:
    """Write a store to the folder `path`, which appears complete or not at all.

    Equal input gives equal bytes. When another process has written the same store meanwhile,
    theirs stays and ours is dropped.

    Args:
        path: the folder to make; the folders above it are made too.
        spec: what the samples are declared to be.
        splits: the samples, by the names of the spec's splits.

    Raises:
        DatasetError: the samples are not what the spec declares.
        OSError: the folder cannot be written.
    """
    for name in SPLITS:
        _check_samples(spec, splits[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    # Not `mkdtemp`: its mode 0700 would stay, and a shared cache is for others to read.
    building = path.parent / f".building-{path.name}-{secrets.token_hex(8)}"
    building.mkdir()
    try:
        files = {name: _write_split(building, spec, splits[name]) for name in SPLITS}
        _write_manifest(building / MANIFEST, spec, splits, files)
        _sync(building)
        _publish(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _sync(path.parent)


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
            content = stream.read(_MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        if path.is_dir():
            raise _damaged(file, "it is missing") from None
        raise DatasetError(f"There is no store at {path}.") from None
    except OSError as error:
        raise DatasetError(f"Cannot read the store {path}: {error.strerror}.") from error
    if len(content) > _MAX_MANIFEST_BYTES:
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
    batch = _read_batch(file, spec)
    if batch.num_rows != spec.num_samples[name]:
        raise _damaged(file, f"it has {batch.num_rows} samples, not {spec.num_samples[name]}")
    labels = _values(batch.column("label"))
    subjects = batch.column("subject").to_numpy()
    lengths = {key: batch.column(_length(key)).to_numpy() for key in _variable(spec)}
    fault = _label_fault(spec, labels) or _length_fault(spec, lengths)
    if fault:
        raise _damaged(file, fault)
    if count_classes(spec, labels) != store.class_counts[name]:
        raise _damaged(file, "its labels are not those the manifest counts")
    if subjects.min() < -1 or subjects.max() >= len(spec.subjects[name]):
        raise _damaged(file, "it has a subject without a name")
    modalities = {
        key: _values(batch.column(key)).reshape(-1, shape.num_tokens, shape.num_features)
        for key, shape in spec.modalities.items()
    }
    return Split(
        name=name, modalities=modalities, labels=labels, subjects=subjects, lengths=lengths
    )


def _values(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column as (N,), or as (N, width) where it is one of lists."""
    if isinstance(column, pa.FixedSizeListArray):
        values: npt.NDArray[Any] = column.flatten().to_numpy()
        return values.reshape(-1, column.type.list_size)
    values = column.to_numpy()
    return values


def _read_batch(file: Path, spec: DatasetSpec) -> pa.RecordBatch:
    """Map the one record batch of a file, without nulls and with the columns of `spec`."""
    try:
        # The arrays of the batch keep its buffers alive, and these the map.
        reader = pa.ipc.open_file(pa.memory_map(os.fspath(file), "r"))
        if reader.num_record_batches != 1 or not reader.schema.equals(_schema(spec)):
            raise pa.ArrowInvalid("its columns are not the manifest's")
        batch = reader.get_batch(0)
        batch.validate()
        if any(_num_nulls(column) for column in batch.columns):
            raise pa.ArrowInvalid("it has empty values")
    except (OSError, OverflowError, pa.ArrowException) as error:
        raise _damaged(file, str(error)) from error
    return batch


def _num_nulls(column: pa.Array) -> int:
    inner = column.flatten().null_count if isinstance(column, pa.FixedSizeListArray) else 0
    return int(column.null_count + inner)


# What is checked of samples, read or to be written


def _variable(spec: DatasetSpec) -> list[str]:
    return [name for name, shape in spec.modalities.items() if shape.variable_length]


def _length(modality: str) -> str:
    """Return the name of the column of a modality's lengths."""
    return f"{modality}_length"


def _label_fault(spec: DatasetSpec, labels: npt.NDArray[Any]) -> str | None:
    """Say what the values of labels of the right shape must be, or None where they are."""
    if spec.task == "regression":
        return None if np.isfinite(labels).all() else "`labels` must be finite"
    if spec.task == "multilabel":
        return None if ((labels == 0) | (labels == 1)).all() else "`labels` must be 0 or 1"
    low, high = labels.min(), labels.max()
    if low >= 0 and high < spec.num_classes:
        return None
    return f"`labels` must be in [0, {spec.num_classes}), but got {low} to {high}"


def _length_fault(spec: DatasetSpec, lengths: Mapping[str, npt.NDArray[np.int64]]) -> str | None:
    """Say what lengths of the right shape must be, or None where they are."""
    for name, length_N in lengths.items():
        low, high, most = length_N.min(), length_N.max(), spec.modalities[name].num_tokens
        if low < 0 or high > most:
            return f"lengths of {name} must be in [0, {most}], but got {low} to {high}"
    if len(lengths) < len(spec.modalities):
        return None  # the others are never missing
    empty = np.logical_and.reduce([length_N == 0 for length_N in lengths.values()])
    if empty.any():
        return f"every sample must have a modality, but number {empty.argmax()} has none"
    return None


def count_classes(spec: DatasetSpec, labels: npt.NDArray[Any]) -> tuple[int, ...]:
    """Count the samples of each class, or with each label."""
    if spec.task == "regression":
        return ()
    if spec.task == "multilabel":
        return tuple(np.count_nonzero(labels, axis=0).tolist())
    return tuple(np.bincount(labels, minlength=spec.num_classes).tolist())


# Writing


def _schema(spec: DatasetSpec) -> pa.Schema:
    label = {
        "classification": pa.int64(),
        "multilabel": pa.list_(pa.float32(), spec.num_outputs),
        "regression": pa.float32(),
    }[spec.task]
    return pa.schema(
        [("label", label), ("subject", pa.int64())]
        + [
            (name, pa.list_(pa.float32(), shape.num_tokens * shape.num_features))
            for name, shape in spec.modalities.items()
        ]
        + [(_length(name), pa.int64()) for name in _variable(spec)]
    )


def _check_samples(spec: DatasetSpec, split: Split) -> None:
    where = f"{split.name} of '{spec.name}'"
    if list(split.modalities) != list(spec.modalities):
        raise DatasetError(f"{where} has modalities {list(split.modalities)}, not the declared.")
    if list(split.lengths) != _variable(spec):
        raise DatasetError(
            f"{where} must have lengths of {_variable(spec)}, but got {list(split.lengths)}."
        )
    _check_arrays(spec, split, where)
    fault = _label_fault(spec, split.labels) or _length_fault(spec, split.lengths)
    if fault:
        raise DatasetError(f"In {where}, {fault}.")
    low, high = split.subjects.min(), split.subjects.max()
    if low < -1 or high >= len(spec.subjects[split.name]):
        raise DatasetError(
            f"In {where}, `subjects` must be in [-1, {len(spec.subjects[split.name])}), "
            f"but got {low} to {high}."
        )
    for name in spec.modalities:
        _check_tokens(name, where, split)


def _check_arrays(spec: DatasetSpec, split: Split, where: str) -> None:
    """Check types and shapes alone."""
    count = spec.num_samples[split.name]
    num_labels = (count, spec.num_classes) if spec.task == "multilabel" else (count,)
    label = np.int64 if spec.task == "classification" else np.float32
    _check_array("`labels`", where, split.labels, label, num_labels)
    _check_array("`subjects`", where, split.subjects, np.int64, (count,))
    for name, length_N in split.lengths.items():
        _check_array(f"lengths of {name}", where, length_N, np.int64, (count,))
    for name, shape in spec.modalities.items():
        expected = (count, shape.num_tokens, shape.num_features)
        _check_array(name, where, split.modalities[name][:], np.float32, expected)


def _check_array(
    what: str,
    where: str,
    values: npt.NDArray[Any],
    dtype: type[np.generic],
    shape: tuple[int, ...],
) -> None:
    if values.shape != shape or values.dtype != dtype:
        raise DatasetError(
            f"{what} in {where} must be {np.dtype(dtype)} {shape}, "
            f"but got {values.dtype} {values.shape}."
        )


def _check_tokens(name: str, where: str, split: Split) -> None:
    x_NTF = split.modalities[name][:]
    if not np.isfinite(x_NTF).all():
        raise DatasetError(f"{name} in {where} must be finite, but has NaN or infinity.")
    if name not in split.lengths:
        return
    if x_NTF[~_valid(split, name)].any():
        raise DatasetError(f"{name} in {where} must be zero after each sample's length.")
    if split.name == "train" and not split.lengths[name].any():
        raise DatasetError(f"{name} in {where} must not be missing from every sample.")


def _valid(split: Split, name: str) -> npt.NDArray[np.bool_]:
    """Return which tokens (N, T) of a modality of variable length are valid."""
    valid_NT: npt.NDArray[np.bool_] = (
        np.arange(split.modalities[name].shape[1]) < split.lengths[name][:, None]
    )
    return valid_NT


def _write_split(folder: Path, spec: DatasetSpec, split: Split) -> dict[str, Any]:
    columns = [_column(split.labels), pa.array(split.subjects)]
    columns += [_column(split.modalities[name][:]) for name in spec.modalities]
    columns += [pa.array(split.lengths[name]) for name in _variable(spec)]
    file, schema = folder / f"{split.name}.arrow", _schema(spec)
    with pa.OSFile(os.fspath(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    _sync(file)
    return {"num_bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _column(values: npt.NDArray[Any]) -> pa.Array:
    """Return (N,) as it is, and more axes as lists of what a sample has, row-major."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, math.prod(values.shape[1:]))


def _write_manifest(
    file: Path, spec: DatasetSpec, splits: Mapping[str, Split], files: dict[str, Any]
) -> None:
    manifest = {
        "format_version": FORMAT_VERSION,
        "spec": _spec_fields(spec),
        "class_counts": {name: count_classes(spec, splits[name].labels) for name in SPLITS},
        "statistics": {
            name: {"mean": mean_F.tolist(), "std": std_F.tolist()}
            for name, (mean_F, std_F) in training_statistics(splits["train"]).items()
        },
        "files": files,
    }
    file.write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _sync(file)


def _spec_fields(spec: DatasetSpec) -> dict[str, Any]:
    """Return a spec as JSON, without what older stores had no word for and do not need."""
    fields = asdict(spec)
    if spec.task == "classification":
        del fields["task"]
    for shape in fields["modalities"].values():
        if not shape["variable_length"]:
            del shape["variable_length"]
    return fields


def training_statistics(
    split: Split,
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Return mean and standard deviation over all valid tokens, (F,) each, by modality.

    A feature that never changes has the deviation 1.
    """
    found = {}
    for name, source in split.modalities.items():
        x_NTF = source[:]
        if name in split.lengths:
            x_NTF = x_NTF[_valid(split, name)][None]
        mean_F = x_NTF.mean(axis=(0, 1), dtype=np.float64)
        std_F = x_NTF.std(axis=(0, 1), dtype=np.float64)
        std_F[std_F == 0] = 1.0
        found[name] = mean_F, std_F
    return found


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename must not overtake what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot synchronise a folder
            raise
    finally:
        os.close(descriptor)


def _publish(building: Path, path: Path) -> None:
    try:
        building.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_stale(cache: Path) -> None:
    """Remove what builds that were killed left behind."""
    for folder in cache.glob(".building-*"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
