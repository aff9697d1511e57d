"""From published files to a store: a sample at a time, interrupted and continued at will.

What is read so far lies in a folder beside the store's, as parts of up to 64 MiB with a record of
how far they go; the store appears when all of it is there. So memory stays bounded whatever the
source has, and a second call goes on behind the last part.

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

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.preparation_record import PreparationRecord, read_record, write_record
from sftsearch.datasets.sample_checks import count_classes
from sftsearch.datasets.samples import Ragged
from sftsearch.datasets.source import as_float32, first_tokens
from sftsearch.datasets.spec import SPLITS, DatasetSpec
from sftsearch.datasets.store import Split
from sftsearch.datasets.writer import (
    BATCH_BYTES,
    Moments,
    add_tokens,
    check_samples,
    finish,
    locked,
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
    """Called with the samples done and their number."""

OnNaN = Literal["zero", "drop", "fail"]
"""What becomes of a number that is none, or infinite: 0, or its sample is left out, or an error."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a preparation did."""

    path: Path
    num_samples: int
    num_zeroed: int
    """Numbers that were not finite and became 0."""
    num_dropped: int
    """Samples left out for one."""


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
        name: of the data set.
        source: what a reader found.
        path: the store's folder; it must not be there.
        nan: what becomes of numbers that are not finite.
        revision: of the files (`revision_of`): what another one left is not gone on with.
        progress: is told how far it is.

    Raises:
        DatasetError: the source is not what a data set may be, a file cannot be read, a number is
            not finite (`nan="fail"`), or another process prepares the same store.
    """
    draft = _draft(name, source)
    if path.exists():
        raise DatasetError(
            f"There is a data set '{name}' already, {path}. Choose another name, or "
            f"`sftsearch data remove {name}` first."
        )
    building = path.parent / f".preparing-{path.name}"
    building.mkdir(parents=True, exist_ok=True)
    with _alone(building, name):
        writer = _Writer(building, draft, source, nan, _identity(draft, source, nan, revision))
        writer.run(progress)
        return writer.finish(path)


def _draft(name: str, source: Source) -> DatasetSpec:
    """Return what the data set declares, but for its fingerprint and what is dropped.

    Raises:
        DatasetError: a sample is named twice, or in no split, or a subject is in two splits, or
            something else cannot be declared.
    """
    names, counts = Counter(sample.name for sample in source.samples), dict.fromkeys(SPLITS, 0)
    twice = next((one for one, count in names.items() if count > 1), None)
    if twice is not None:
        raise DatasetError(f"Every sample needs a name of its own, but two are called '{twice}'.")
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
    """Return a hash of names, sizes and times of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    files = [path] if path is not None and path.is_file() else []
    if path is not None and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        seen = file.stat()
        digest.update(f"{file}\0{seen.st_size}\0{seen.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _identity(draft: DatasetSpec, source: Source, nan: OnNaN, revision: str) -> str:
    """Return a hash of all that a preparation depends on but the values themselves."""
    digest = hashlib.sha256(json.dumps([asdict(draft), nan, revision]).encode())
    for sample in source.samples:
        line = [sample.name, sample.split, sample.label, sample.subject]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        DatasetError: another process prepares the same data set.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise DatasetError(f"'{name}' is being prepared by another process.") from error
        yield


class _Writer:
    """Reads samples, and writes parts of them."""

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
        """Read what is left, a part at a time."""
        total = len(self.source.samples)
        progress(self.state.done, total)
        waiting: list[tuple[Sample, dict[str, npt.NDArray[Any]]]] = []
        size = 0
        for number in range(self.state.done, total):
            sample = self.source.samples[number]
            values = self._clean(sample)
            if values is not None:
                waiting.append((sample, values))
                size += sum(x.nbytes for x in values.values())
            if size >= BATCH_BYTES or number == total - 1:
                self._write(waiting, number + 1)
                waiting, size = [], 0
            progress(number + 1, total)

    def _clean(self, sample: Sample) -> dict[str, npt.NDArray[Any]] | None:
        """Return a sample's values, (T, F) each; None where it is to be left out."""
        found, clean = sample.read(), {}
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
                x_TF = self._zeroed(x_TF, is_bad, what)
            clean[name] = x_TF
        if not any(len(x_TF) for x_TF in clean.values()):
            raise DatasetError(f"Sample '{sample.name}' must have a modality, but has none.")
        return clean

    def _zeroed(
        self, x_TF: npt.NDArray[Any], is_bad: npt.NDArray[np.bool_], what: str
    ) -> npt.NDArray[Any]:
        if self.nan == "fail":
            token, feature = (int(place[0]) for place in np.nonzero(is_bad))
            limit = " in float16" if x_TF.dtype == np.float16 else ""
            raise DatasetError(
                f"{what} must be finite{limit}, but token {token}, feature {feature} is "
                f"{x_TF[token, feature]}. Choose `--nan zero` or `--nan drop`."
            )
        self.state.num_zeroed += int(is_bad.sum())
        return np.where(is_bad, 0, x_TF).astype(x_TF.dtype)

    def _write(
        self, waiting: Sequence[tuple[Sample, dict[str, npt.NDArray[Any]]]], done: int
    ) -> None:
        """Write what was read as a part of each split, then the record that says so."""
        state = self.state
        for split in SPLITS:
            chosen = [one for one in waiting if one[0].split == split]
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
            state.content = _chained(state.content, split, part)
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
        """Put the parts together, and give the store its name."""
        state = self.state
        for split, count in state.counts.items():
            if not count:
                raise DatasetError(
                    f"No sample of {split} is left, for all had numbers that are not finite. "
                    "Choose `--nan zero`."
                )
        statistics = statistics_of(state.moments)
        spec = _with_counts(self.draft, state)
        whole = self.folder / "store"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        for split in SPLITS:
            with split_writer(whole / f"{split}.arrow", spec) as writer:
                for number in range(state.parts[split]):
                    part = os.fspath(self._part(split, number))
                    writer.write_batch(pa.ipc.open_file(pa.memory_map(part)).get_batch(0))
        counts = {split: tuple(found) for split, found in state.class_counts.items()}
        finish(whole, path, spec, counts, statistics)
        shutil.rmtree(self.folder, ignore_errors=True)
        if state.dropped:
            _logger.warning("left out, for they are not finite: %s", ", ".join(state.dropped[:20]))
        return Prepared(
            path=path,
            num_samples=sum(state.counts.values()),
            num_zeroed=state.num_zeroed,
            num_dropped=len(state.dropped),
        )


def _with_counts(draft: DatasetSpec, state: PreparationRecord) -> DatasetSpec:
    """Return the spec of what was written; its fingerprint is that of names and content."""
    fields = asdict(draft) | {"modalities": draft.modalities, "num_samples": dict(state.counts)}
    declared = [draft.name, draft.task, draft.classes, draft.subjects]
    shapes = {name: asdict(shape) for name, shape in draft.modalities.items()}
    content = json.dumps([declared, shapes, state.content])
    return DatasetSpec(**fields | {"fingerprint": hashlib.sha256(content.encode()).hexdigest()})


def _chained(before: str, split: str, part: Split) -> str:
    digest = hashlib.sha256(f"{before} {split}".encode())
    digest.update(part.labels.tobytes())
    digest.update(part.subjects.tobytes())
    for name, source in part.modalities.items():
        for x in source.parts if isinstance(source, Ragged) else (source[:],):
            digest.update(np.ascontiguousarray(x).tobytes())
        if name in part.lengths:
            digest.update(part.lengths[name].tobytes())
    return digest.hexdigest()
