"""Write stores atomically, batch by batch, with all samples checked.

Shapes: N samples, T tokens, F features, M tokens of all samples together.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sftsearch.datasets.checksums import file_sha256
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.sample_checks import (
    count_classes,
    label_fault,
    length_fault,
    variable,
)
from sftsearch.datasets.samples import Ragged, Split
from sftsearch.datasets.spec import FORMAT_VERSION, MANIFEST, SPLITS
from sftsearch.datasets.store import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec

    Statistics = dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
    """Mean and standard deviation, (F,) each, by modality."""

BATCH_BYTES = 64 << 20
"""Approximate maximum size of a record batch, which bounds the memory of the writer."""
_STALE_SECONDS = 3600.0  # a build takes seconds; older folders are from killed builds


def write_store(path: Path, spec: DatasetSpec, splits: Mapping[str, Split]) -> None:
    """Write a store to the folder `path` atomically.

    Equal input gives equal bytes. If another process has written the same store meanwhile, that
    store is kept.

    Args:
        path: the folder to create, with its parents.
        spec: the spec of the samples.
        splits: the samples by split.

    Raises:
        DatasetError: the samples do not match the spec.
        OSError: the folder cannot be written.
    """
    for name in SPLITS:
        if len(splits[name]) != spec.num_samples[name]:
            raise DatasetError(
                f"{name} of '{spec.name}' must have {spec.num_samples[name]} samples, "
                f"but got {len(splits[name])}."
            )
        check_samples(spec, splits[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    # `mkdtemp` would set mode 0700, but a shared cache must be readable by others.
    building = path.parent / f".building-{path.name}-{secrets.token_hex(8)}"
    building.mkdir()
    try:
        counts = {}
        for name, split in splits.items():
            with split_writer(building / f"{name}.arrow", spec) as writer:
                for batch in cut(split):
                    writer.write_batch(record_batch(spec, batch))
            counts[name] = count_classes(spec, split.labels)
        finish(building, path, spec, counts, training_statistics(splits["train"]))
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def split_writer(file: Path, spec: DatasetSpec) -> Iterator[pa.RecordBatchFileWriter]:
    """Open the file of a split for record batches; on exit it is synchronized to disk."""
    schema = schema_of(spec)
    with pa.OSFile(os.fspath(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        yield writer
    sync(file)


def finish(
    building: Path,
    path: Path,
    spec: DatasetSpec,
    class_counts: Mapping[str, tuple[int, ...]],
    statistics: Statistics,
) -> None:
    """Write the manifest next to the split files in `building`, and rename the folder to `path`."""
    files = {}
    for name in SPLITS:
        file = building / f"{name}.arrow"
        files[name] = {"num_bytes": file.stat().st_size, "sha256": file_sha256(file)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "spec": asdict(spec),
        "class_counts": class_counts,
        "statistics": {
            name: {"mean": mean_F.tolist(), "std": std_F.tolist()}
            for name, (mean_F, std_F) in statistics.items()
        },
        "files": files,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    (building / MANIFEST).write_text(text, encoding="utf-8")
    sync(building / MANIFEST)
    sync(building)
    try:
        building.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    sync(path.parent)


def cut(split: Split) -> Iterator[Split]:
    """Yield the split in parts that fit a record batch."""
    widths = (math.prod(source.shape[1:]) for source in split.modalities.values())
    step = max(1, BATCH_BYTES // (4 * sum(widths)))
    for start in range(0, len(split), step):
        rows = slice(start, start + step)
        yield replace(
            split,
            modalities={name: source[rows] for name, source in split.modalities.items()},
            labels=split.labels[rows],
            subjects=split.subjects[rows],
            lengths={name: length_N[rows] for name, length_N in split.lengths.items()},
        )


def record_batch(spec: DatasetSpec, split: Split) -> pa.RecordBatch:
    """Return samples as a record batch with the schema `schema_of(spec)`."""
    columns = [_column(split.labels), pa.array(split.subjects)]
    columns += [_tokens_column(spec, split, name) for name in spec.modalities]
    return pa.record_batch(columns, schema=schema_of(spec))


def _tokens_column(spec: DatasetSpec, split: Split, name: str) -> pa.Array:
    source, dtype = split.modalities[name], np.dtype(spec.modalities[name].dtype)
    if name not in split.lengths:
        return _column(source[:].astype(dtype, copy=False))
    if isinstance(source, Ragged):
        values_MF = np.concatenate(source.parts)
    else:
        values_MF = source[:][valid_tokens(split, name)]
    ends_N = np.concatenate([[0], np.cumsum(split.lengths[name])]) * values_MF.shape[1]
    flat = pa.array(values_MF.astype(dtype, copy=False).reshape(-1))
    return pa.ListArray.from_arrays(pa.array(ends_N.astype(np.int32)), flat)


def _column(values: npt.NDArray[Any]) -> pa.Array:
    """Return (N,) as a column of numbers, and more axes as row-major lists, one per sample."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, math.prod(values.shape[1:]))


# Checks


def check_samples(spec: DatasetSpec, split: Split) -> None:
    """Check the samples of a split or of a part of it.

    Raises:
        DatasetError: the samples do not match the spec.
    """
    where = f"{split.name} of '{spec.name}'"
    if list(split.modalities) != list(spec.modalities):
        raise DatasetError(
            f"{where} must have modalities {list(spec.modalities)}, but got "
            f"{list(split.modalities)}."
        )
    if list(split.lengths) != variable(spec):
        raise DatasetError(
            f"{where} must have lengths of {variable(spec)}, but got {list(split.lengths)}."
        )
    _check_arrays(spec, split, where)
    fault = label_fault(spec, split.labels) or length_fault(spec, split.lengths)
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
    """Check types and shapes."""
    count = len(split)
    num_labels = (count, spec.num_classes) if spec.task == "multilabel" else (count,)
    label = np.int64 if spec.task == "classification" else np.float32
    _check_array("`labels`", where, split.labels, label, num_labels)
    _check_array("`subjects`", where, split.subjects, np.int64, (count,))
    for name, length_N in split.lengths.items():
        _check_array(f"lengths of {name}", where, length_N, np.int64, (count,))
    for name, shape in spec.modalities.items():
        expected = (count, shape.num_tokens, shape.num_features)
        source = split.modalities[name]
        if isinstance(source, Ragged):
            if source.shape != expected:
                raise DatasetError(f"{name} in {where} must be {expected}, but got {source.shape}.")
        else:
            _check_array(name, where, source[:], np.float32, expected)


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
    source = split.modalities[name]
    parts = source.parts if isinstance(source, Ragged) else (source[:],)
    if not all(np.isfinite(x).all() for x in parts):
        raise DatasetError(f"{name} in {where} must be finite, but has NaN or infinity.")
    if name not in split.lengths or isinstance(source, Ragged):
        return
    if parts[0][~valid_tokens(split, name)].any():
        raise DatasetError(f"{name} in {where} must be zero after the length of each sample.")


def valid_tokens(split: Split, name: str) -> npt.NDArray[np.bool_]:
    """Return the mask of valid tokens, (N, T), of a modality of variable length."""
    valid_NT: npt.NDArray[np.bool_] = (
        np.arange(split.modalities[name].shape[1]) < split.lengths[name][:, None]
    )
    return valid_NT


# Statistics


@dataclass(slots=True)
class Moments:
    """Running mean and variance of features.

    Source: Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing
    sample variances, eq. 1.1 to 1.3; precise also for means far from zero.
    """

    count: int = 0
    mean: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Sums of squared differences from the mean; (F,), as the mean."""

    def add(self, x_MF: npt.NDArray[Any]) -> None:
        """Add tokens."""
        number = len(x_MF)
        if number == 0:
            return
        mean_F = x_MF.mean(axis=0, dtype=np.float64)
        squares_F = x_MF.var(axis=0, dtype=np.float64) * number
        if self.count:
            total, delta_F = self.count + number, mean_F - self.mean
            squares_F += self.squares + delta_F**2 * (self.count * number / total)
            mean_F = self.mean + delta_F * (number / total)
        self.count, self.mean, self.squares = self.count + number, mean_F, squares_F

    def statistics(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return mean and standard deviation; the deviation of a constant feature is 1."""
        std_F = np.sqrt(self.squares / self.count)
        std_F[std_F == 0] = 1.0
        return self.mean, std_F


def training_statistics(split: Split) -> Statistics:
    """Return mean and standard deviation over all valid tokens, by modality.

    The deviation of a constant feature is 1.

    Raises:
        DatasetError: every sample lacks a modality.
    """
    moments = {name: Moments() for name in split.modalities}
    for part in cut(split):
        add_tokens(moments, part)
    return statistics_of(moments)


def add_tokens(moments: Mapping[str, Moments], split: Split) -> None:
    """Add the valid tokens of some samples to the moments."""
    for name, source in split.modalities.items():
        if isinstance(source, Ragged):
            for values_MF in source.parts:
                moments[name].add(values_MF)
        elif name in split.lengths:
            moments[name].add(source[:][valid_tokens(split, name)])
        else:
            moments[name].add(source[:].reshape(-1, source.shape[2]))


def statistics_of(moments: Mapping[str, Moments]) -> Statistics:
    """Return the statistics of accumulated moments.

    Raises:
        DatasetError: a modality has no token.
    """
    for name, found in moments.items():
        if not found.count:
            raise DatasetError(f"{name} in train must not be missing from every sample.")
    return {name: found.statistics() for name, found in moments.items()}


def sync(path: Path) -> None:
    """Synchronize a file or folder to disk, so that a later rename is not written before it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system cannot synchronize a folder
            raise
    finally:
        os.close(descriptor)


def _remove_stale(cache: Path) -> None:
    """Remove the folders left by killed builds."""
    for folder in cache.glob(".building-*"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
