"""Write the samples of a source to a store, one sample at a time; resumable.

Samples read so far are in a folder next to that of the store: parts of up to 64 MiB and a progress
record. The store appears when it is complete. Memory use is bounded for any source, and a second
call resumes after the last part.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from sftsearch.datasets.errors import BadSampleError, DatasetError
from sftsearch.datasets.file_lock import locked
from sftsearch.datasets.preparation_record import PreparationRecord, read_record, write_record
from sftsearch.datasets.sample_checks import count_classes
from sftsearch.datasets.samples import Ragged, Split
from sftsearch.datasets.source import as_float32, first_tokens
from sftsearch.datasets.spec import SPLITS, DatasetSpec
from sftsearch.datasets.writer import (
    BATCH_BYTES,
    Moments,
    add_tokens,
    check_samples,
    finish,
    record_batch,
    split_writer,
    statistics_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.source import Sample, Source

    Progress = Callable[[int, int], None]
    """Called with the number of samples done and the total."""

OnNaN = Literal["zero", "drop", "fail"]
"""How to handle NaN and infinity: replace by 0, drop the sample, or raise an error."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Result of a preparation."""

    path: Path
    num_samples: int
    num_zeroed: int
    """Non-finite numbers replaced by 0."""
    num_dropped: int
    """Samples dropped because of a non-finite number."""


def prepare(
    name: str,
    source: Source,
    path: Path,
    *,
    nan: OnNaN = "fail",
    revision: str = "",
    progress: Progress = lambda done, total: None,
) -> Prepared:
    """Write the samples of a source as a store.

    Args:
        name: the name of the dataset.
        source: the samples that a reader listed.
        path: the folder of the store; it must not exist.
        nan: how to handle numbers that are not finite.
        revision: `revision_of` the files; an interrupted preparation of another one restarts.
        progress: called after each sample.

    Raises:
        DatasetError: the source is not a valid dataset, a file cannot be read, a number is not
            finite (`nan="fail"`), or another process prepares the same store.
    """
    draft = _draft(name, source)
    if path.exists():
        raise DatasetError(
            f"A dataset '{name}' already exists: {path}. Choose another name, or run "
            f"`sftsearch data remove {name}` first."
        )
    building = path.parent / f".preparing-{path.name}"
    building.mkdir(parents=True, exist_ok=True)
    with _exclusive(building, name):
        writer = _Writer(building, draft, source, nan, _identity(draft, source, nan, revision))
        writer.run(progress)
        return writer.finish(path)


def _draft(name: str, source: Source) -> DatasetSpec:
    """Return the spec, except for the fingerprint and the samples to be dropped.

    Raises:
        DatasetError: a sample name is duplicated, a split is unknown or empty, a subject is in two
            splits, or the spec is invalid.
    """
    names, counts = Counter(sample.name for sample in source.samples), dict.fromkeys(SPLITS, 0)
    duplicate = next((sample for sample, count in names.items() if count > 1), None)
    if duplicate is not None:
        raise DatasetError(f"Sample names must be unique, but two are called '{duplicate}'.")
    people: dict[str, set[str]] = {split: set() for split in SPLITS}
    for sample in source.samples:
        if sample.split not in counts:
            raise DatasetError(
                f"Sample '{sample.name}' must be in {', '.join(SPLITS)}, but got {sample.split!r}."
            )
        counts[sample.split] += 1
        if sample.subject is not None:
            people[sample.split].add(sample.subject)
    for split, count in counts.items():
        if not count:
            raise DatasetError(f"'{name}' must have samples in every split, but {split} has none.")
    _check_leaks(name, people)
    return DatasetSpec(
        name=name,
        task=source.task,
        modalities=dict(source.modalities),
        classes=source.classes,
        num_samples=counts,
        subjects={split: tuple(sorted(people[split])) for split in SPLITS},
        licence=source.licence,
        attribution=source.attribution,
        source=source.source,
        description=source.description,
        fingerprint="0" * 64,
        best_accuracy=source.best_accuracy,
    )


def _check_leaks(name: str, people: Mapping[str, set[str]]) -> None:
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        leaks = sorted(people[one] & people[other])
        if leaks:
            more = "" if len(leaks) == 1 else f" and {len(leaks) - 1} more"
            raise DatasetError(
                f"Splits of '{name}' must not share a subject, but '{leaks[0]}'{more} "
                f"{'is' if len(leaks) == 1 else 'are'} in {one} and in {other}."
            )


def revision_of(path: Path | None) -> str:
    """Return a hash of path, size and modification time of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    files = [path] if path is not None and path.is_file() else []
    if path is not None and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _identity(draft: DatasetSpec, source: Source, nan: OnNaN, revision: str) -> str:
    """Return a hash of everything a preparation depends on except the values."""
    fields = asdict(draft) | {"modalities": _shapes(draft)}
    digest = hashlib.sha256(json.dumps([fields, nan, revision]).encode())
    for sample in source.samples:
        line = [sample.name, sample.split, sample.label, sample.subject]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        DatasetError: another process prepares the same dataset.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise DatasetError(f"'{name}' is being prepared by another process.") from error
        yield


class _Writer:
    """Reads samples and writes them in parts."""

    def __init__(
        self, folder: Path, draft: DatasetSpec, source: Source, nan: OnNaN, identity: str
    ) -> None:
        self.folder, self.draft, self.source, self.nan = folder, draft, source, nan
        self.state = read_record(folder, identity) or self._fresh(identity)
        self._codes = {
            split: {person: code for code, person in enumerate(people)}
            for split, people in draft.subjects.items()
        }

    def _fresh(self, identity: str) -> PreparationRecord:
        for file in self.folder.glob("*.arrow"):
            file.unlink()
        return PreparationRecord(
            identity,
            class_counts={split: [0] * self.draft.num_classes for split in SPLITS},
            moments={name: Moments() for name in self.draft.modalities},
        )

    def run(self, progress: Progress) -> None:
        """Read the remaining samples and write them part by part."""
        total = len(self.source.samples)
        progress(self.state.done, total)
        pending: list[tuple[Sample, dict[str, npt.NDArray[Any]]]] = []
        size = 0
        for number in range(self.state.done, total):
            sample = self.source.samples[number]
            values = self._clean(sample)
            if values is not None:
                pending.append((sample, values))
                size += sum(x.nbytes for x in values.values())
            if size >= BATCH_BYTES or number == total - 1:
                self._write(pending, number + 1)
                pending, size = [], 0
            progress(number + 1, total)

    def _clean(self, sample: Sample) -> dict[str, npt.NDArray[Any]] | None:
        """Return the values of a sample, (T, F) by modality; None if it is dropped."""
        try:
            found = sample.read()
        except BadSampleError:
            if self.nan != "drop":
                raise
            self.state.dropped.append(sample.name)
            return None
        clean = {}
        for name, shape in self.draft.modalities.items():
            read = found.get(name)
            what = f"{name} of sample '{sample.name}'"
            empty = np.zeros((0, shape.num_features), dtype=np.float32)
            x_TF = empty if read is None else as_float32(first_tokens(read, shape, what))
            if not shape.variable_length and len(x_TF) != shape.num_tokens:
                raise DatasetError(
                    f"{what} must have {shape.num_tokens} tokens, but got {len(x_TF)}."
                )
            with np.errstate(over="ignore"):
                x_TF = x_TF.astype(shape.dtype, copy=False)
            is_bad = ~np.isfinite(x_TF)
            if is_bad.any():
                if self.nan == "drop":
                    self.state.dropped.append(sample.name)
                    return None
                x_TF = self._replace_bad(x_TF, is_bad, what)
            clean[name] = x_TF
        if not any(len(x_TF) for x_TF in clean.values()):
            raise DatasetError(f"Sample '{sample.name}' must have a modality, but has none.")
        return clean

    def _replace_bad(
        self, x_TF: npt.NDArray[Any], is_bad: npt.NDArray[np.bool_], what: str
    ) -> npt.NDArray[Any]:
        if self.nan == "fail":
            token, feature = (int(index[0]) for index in np.nonzero(is_bad))
            limit = " in float16" if x_TF.dtype == np.float16 else ""
            raise DatasetError(
                f"{what} must be finite{limit}, but token {token}, feature {feature} is "
                f"{x_TF[token, feature]}. Choose `--nan zero` or `--nan drop`."
            )
        self.state.num_zeroed += int(is_bad.sum())
        return np.where(is_bad, 0, x_TF).astype(x_TF.dtype)

    def _write(
        self, pending: Sequence[tuple[Sample, dict[str, npt.NDArray[Any]]]], done: int
    ) -> None:
        """Write the pending samples as one part per split, then update the record."""
        state = self.state
        for split in SPLITS:
            chosen = [one for one in pending if one[0].split == split]
            if not chosen:
                continue
            part = self._gather(split, chosen)
            check_samples(self.draft, part)
            batch = record_batch(self.draft, part)
            with split_writer(self._part(split, state.parts[split]), self.draft) as writer:
                writer.write_batch(batch)
            state.parts[split] += 1
            state.counts[split] += len(part)
            counts = count_classes(self.draft, part.labels)
            state.class_counts[split] = [
                a + b for a, b in zip(state.class_counts[split], counts, strict=True)
            ]
            state.content = _chain_hash(state.content, split, part)
            if split == "train":
                add_tokens(state.moments, part)
        state.done = done
        write_record(self.folder, state)

    def _gather(
        self, split: str, chosen: Sequence[tuple[Sample, dict[str, npt.NDArray[Any]]]]
    ) -> Split:
        modalities: dict[str, Any] = {}
        lengths = {}
        for name, shape in self.draft.modalities.items():
            arrays = [values[name] for _, values in chosen]
            if shape.variable_length:
                lengths[name] = np.array([len(x) for x in arrays], dtype=np.int64)
                starts = np.concatenate([[0], np.cumsum(lengths[name])])
                modalities[name] = Ragged([np.concatenate(arrays)], [starts], shape.num_tokens)
            else:
                modalities[name] = np.stack(arrays).astype(np.float32, copy=False)
        found: list[Any] = [sample.label for sample, _ in chosen]
        dtype = np.int64 if self.draft.task == "classification" else np.float32
        labels: npt.NDArray[Any] = np.array(found, dtype=dtype)
        people = self._codes[split]
        return Split(
            name=split,
            modalities=modalities,
            labels=labels,
            subjects=np.array(
                [people.get(sample.subject or "", -1) for sample, _ in chosen], dtype=np.int64
            ),
            lengths=lengths,
        )

    def _part(self, split: str, number: int) -> Path:
        return self.folder / f"{split}-{number:05d}.arrow"

    def finish(self, path: Path) -> Prepared:
        """Merge the parts into the store and rename it to `path`."""
        state = self.state
        for split, count in state.counts.items():
            if not count:
                raise DatasetError(
                    f"No sample of {split} is left: all had numbers that are not finite. "
                    "Choose `--nan zero`."
                )
        statistics = statistics_of(state.moments)
        spec = _with_counts(self.draft, state)
        building = self.folder / "store"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        for split in SPLITS:
            with split_writer(building / f"{split}.arrow", spec) as writer:
                for number in range(state.parts[split]):
                    part = os.fspath(self._part(split, number))
                    writer.write_batch(pa.ipc.open_file(pa.memory_map(part)).get_batch(0))
        counts = {split: tuple(found) for split, found in state.class_counts.items()}
        finish(building, path, spec, counts, statistics)
        shutil.rmtree(self.folder, ignore_errors=True)
        if state.dropped:
            shown = ", ".join(state.dropped[:20])
            _logger.warning("dropped samples with numbers that are not finite: %s", shown)
        return Prepared(
            path=path,
            num_samples=sum(state.counts.values()),
            num_zeroed=state.num_zeroed,
            num_dropped=len(state.dropped),
        )


def _with_counts(draft: DatasetSpec, state: PreparationRecord) -> DatasetSpec:
    """Return the spec of the written samples; its fingerprint hashes names and content."""
    fields = asdict(draft) | {"modalities": draft.modalities, "num_samples": dict(state.counts)}
    declared = [draft.name, draft.task, draft.classes, draft.subjects]
    content = json.dumps([declared, _shapes(draft), state.content])
    return DatasetSpec(**fields | {"fingerprint": hashlib.sha256(content.encode()).hexdigest()})


def _shapes(draft: DatasetSpec) -> dict[str, object]:
    return {name: shape.hashed() for name, shape in draft.modalities.items()}


def _chain_hash(before: str, split: str, part: Split) -> str:
    digest = hashlib.sha256(f"{before} {split}".encode())
    digest.update(part.labels.tobytes())
    digest.update(part.subjects.tobytes())
    for name, source in part.modalities.items():
        for x in source.parts if isinstance(source, Ragged) else (source[:],):
            digest.update(np.ascontiguousarray(x).tobytes())
        if name in part.lengths:
            digest.update(part.lengths[name].tobytes())
    return digest.hexdigest()
