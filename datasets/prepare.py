"""Write the samples of a source to a store, one sample at a time; resumable.

Samples that were read are kept in a folder next to that of the store (`read_samples.py`) until the
store is complete. A second call, after an interruption or a correction of some files, reads only
the other ones. Memory use is bounded for any source, and the store does not depend on
interruptions.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sftsearch.datasets.bad_samples import BadSample, refusal
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.file_lock import locked
from sftsearch.datasets.listing import draft_spec, resolve_duplicates
from sftsearch.datasets.preparation_report import (
    PreparationReport,
    report_preparation,
    write_report,
)
from sftsearch.datasets.read_samples import ReadSample, ReadSamples, sample_key
from sftsearch.datasets.source import as_float32, checked_tokens
from sftsearch.datasets.spec import SPLITS, DatasetSpec
from sftsearch.datasets.store_assembly import StoreAssembly, hashed_shapes
from sftsearch.datasets.writer import BATCH_BYTES, finish, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.source import Sample, Source

    Progress = Callable[[int, int], None]
    """Called with the number of samples done and the total."""

OnNaN = Literal["zero", "drop", "fail"]
"""How to handle NaN and infinity: replace by 0, drop the sample, or raise an error."""
OnBad = Literal["drop", "fail"]
"""How to handle samples that cannot be used: drop them, or raise an error that names all."""
HOPELESS = 100
"""If the first so many samples are all bad, the others are not read before the error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Result of a preparation."""

    path: Path
    num_samples: int
    num_zeroed: int
    """Non-finite numbers replaced by 0."""
    num_dropped: int
    """Samples dropped because they cannot be used or have a number that is not finite."""
    report: PreparationReport


def _ignore(done: int, total: int) -> None:
    """Report no progress."""


def prepare(
    name: str,
    source: Source,
    path: Path,
    *,
    nan: OnNaN = "fail",
    bad: OnBad | None = None,
    revision: str = "",
    options: Sequence[str] = (),
    progress: Progress = _ignore,
    writing: Progress = _ignore,
) -> Prepared:
    """Write the samples of a source as a store.

    Args:
        name: the name of the dataset.
        source: the samples that a reader listed.
        path: the folder of the store; it must not exist.
        nan: how to handle numbers that are not finite.
        bad: how to handle samples that cannot be used; None: `drop` if `nan` is, else `fail`.
        revision: `revision_of` the files; samples that name no files are read again if it changes.
        options: of the reader; with other ones, all samples are read again.
        progress: called after each sample that was read.
        writing: called after each sample that was written to the store.

    Raises:
        DatasetError: the source is not a valid dataset, samples cannot be used (`bad="fail"`), a
            number is not finite (`nan="fail"`), another process prepares the same store, or the
            folder cannot be written.
    """
    samples, num_equal = resolve_duplicates(source.samples)
    bad = bad or ("drop" if nan == "drop" else "fail")
    draft = draft_spec(name, source, [one for one in samples if not (one.bad and bad == "drop")])
    if path.exists():
        raise DatasetError(
            f"A dataset '{name}' already exists: {path}. Choose another name, or run "
            f"`sftsearch data remove {name}` first."
        )
    building = path.parent / f".preparing-{path.name}"
    with _disk_errors(path.parent), _exclusive(building, name):
        identity = _identity(draft, options)
        cache = ReadSamples(building, draft.modalities, identity, BATCH_BYTES)
        reading = _Reading(draft, cache, nan, bad, revision)
        reading.run(samples, progress)
        notes = [*source.notes]
        if num_equal:
            notes.append(f"Listed more than once with equal entries: {num_equal}, kept once.")
        draft = reading.without_absent(draft, notes)
        if refused := reading.refused():
            raise refusal(refused, reading.num_done, building)
        store = StoreAssembly(draft, cache, BATCH_BYTES)
        store.write(building / "store", reading.usable, writing)
        return _finish(path, building / "store", store, reading, notes)


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


def _identity(draft: DatasetSpec, options: Sequence[str]) -> str:
    """Return a hash of everything that values depend on except their files."""
    content = json.dumps([hashed_shapes(draft), sorted(options)])
    return hashlib.sha256(content.encode()).hexdigest()


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Convert errors of writing a folder to one line with the remedy."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).rpartition("] ")[2]  # Arrow: "... [errno 28] No ..."
        raise DatasetError(
            f"Cannot write the dataset in {folder}: {why}. Make room or choose another folder by "
            "the environment variable SFTSEARCH_CACHE; the same command then continues."
        ) from error


@contextlib.contextmanager
def _exclusive(folder: Path, name: str) -> Iterator[None]:
    """Create a folder and hold its lock.

    Raises:
        DatasetError: another process prepares the same dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise DatasetError(f"'{name}' is being prepared by another process.") from error
        yield


class _Reading:
    """Reads the samples that are not in the parts yet, and sorts out the bad ones."""

    def __init__(
        self, draft: DatasetSpec, cache: ReadSamples, nan: OnNaN, bad: OnBad, revision: str
    ) -> None:
        self._modalities, self._cache = draft.modalities, cache
        self._nan, self._on_bad, self._revision = nan, bad, revision
        self.usable: list[tuple[Sample, ReadSample]] = []
        self.bad: list[BadSample] = []
        self.num_done = 0

    def refused(self) -> list[BadSample]:
        """Return the bad samples that are not to be dropped."""
        return [
            one for one in self.bad if (self._nan if one.is_nonfinite else self._on_bad) == "fail"
        ]

    def run(self, samples: Sequence[Sample], progress: Progress) -> None:
        """Read all samples, or the first `HOPELESS` if all of them are refused."""
        progress(0, len(samples))
        for sample in samples:
            found = self._find(sample)
            if isinstance(found, BadSample):
                self.bad.append(found)
            else:
                self.usable.append((sample, found))
            self.num_done += 1
            progress(self.num_done, len(samples))
            if self.num_done == HOPELESS and len(self.refused()) == HOPELESS:
                break
        self._cache.flush()

    def _find(self, sample: Sample) -> ReadSample | BadSample:
        if sample.bad:
            message = f"Sample '{sample.name}' cannot be used: {sample.bad}."
            return _bad(sample, sample.bad, message)
        try:
            key = sample_key(sample, self._revision)
            known = self._cache.find(key)
            if known is not None and (self._nan == "zero" or not known.num_zeroed):
                return known
            read = sample.read()
        except DatasetError as error:
            return _bad(sample, error.reason or str(error), str(error))
        except OSError as error:
            why = error.strerror or str(error)
            return _bad(sample, why, f"Cannot read sample '{sample.name}': {why}.")
        return self._check(sample, key, read)

    def without_absent(self, draft: DatasetSpec, notes: list[str]) -> DatasetSpec:
        """Return the spec without the modalities that no training sample has.

        Samples that have no other one become bad.

        Args:
            draft: the spec.
            notes: gets a sentence for each modality.
        """
        of_training = [read.lengths for sample, read in self.usable if sample.split == "train"]
        names = list(draft.modalities)
        kept = [number for number in range(len(names)) if any(x[number] for x in of_training)]
        if len(kept) == len(names) or not kept:
            return draft
        for name in (name for number, name in enumerate(names) if number not in kept):
            others = ",".join(names[number] for number in kept)
            notes.append(
                f"No training sample has {name}: it is left out. `--option modalities={others}` "
                "does not read it."
            )
        usable = []
        for sample, read in self.usable:
            lengths = tuple(read.lengths[number] for number in kept)
            if any(lengths):
                usable.append((sample, replace(read, lengths=lengths)))
            else:
                text = "it has no modality of the training samples"
                self.bad.append(_bad(sample, text, f"Sample '{sample.name}': {text}."))
        self.usable = usable
        return replace(draft, modalities={names[i]: draft.modalities[names[i]] for i in kept})

    def _check(
        self, sample: Sample, key: str, read: Mapping[str, npt.NDArray[Any] | None]
    ) -> ReadSample | BadSample:
        """Convert the values of a sample and keep them, unless they cannot be used."""
        values, lengths, num_zeroed = {}, [], 0
        for name, shape in self._modalities.items():
            found = read.get(name)
            what = f"{name} of sample '{sample.name}'"
            x_TF = np.zeros((0, shape.num_features)) if found is None else found
            try:
                checked_tokens(x_TF, shape)
            except DatasetError as error:
                return _bad(sample, f"{name} {error}", f"{what} {error}.")
            lengths.append(len(x_TF))
            x_TF = as_float32(x_TF[: shape.num_tokens])
            with np.errstate(over="ignore"):
                x_TF = x_TF.astype(shape.dtype, copy=False)
            is_bad = ~np.isfinite(x_TF)
            if is_bad.any():
                if self._nan != "zero":
                    return _nonfinite(sample, name, x_TF, is_bad)
                num_zeroed += int(is_bad.sum())
                x_TF = np.where(is_bad, 0, x_TF).astype(x_TF.dtype)
            values[name] = x_TF
        if not any(lengths):
            message = f"Sample '{sample.name}' must have a modality, but has none."
            return _bad(sample, "it has no modality", message)
        return self._cache.add(key, values, tuple(lengths), num_zeroed)


def _bad(sample: Sample, reason: str, message: str) -> BadSample:
    return BadSample(name=sample.name, split=sample.split, reason=reason, message=message)


def _nonfinite(
    sample: Sample, modality: str, x_TF: npt.NDArray[Any], is_bad: npt.NDArray[np.bool_]
) -> BadSample:
    token, feature = (int(index[0]) for index in np.nonzero(is_bad))
    limit = " in float16" if x_TF.dtype == np.float16 else ""
    message = (
        f"{modality} of sample '{sample.name}' must be finite{limit}, but token {token}, feature "
        f"{feature} is {x_TF[token, feature]}."
    )
    return BadSample(
        name=sample.name,
        split=sample.split,
        reason=f"{modality} is not finite{limit}",
        message=message,
        is_nonfinite=True,
    )


def _finish(
    path: Path, folder: Path, store: StoreAssembly, reading: _Reading, notes: Sequence[str]
) -> Prepared:
    """Write manifest and report of the store in `folder`, and rename it to `path`."""
    for split, count in store.counts.items():
        if not count:
            raise DatasetError(
                f"No sample of {split} is left: all of them cannot be used or have numbers that "
                "are not finite."
            )
    spec, statistics = store.spec(), store.statistics()
    lengths = {
        split: [read.lengths for sample, read in reading.usable if sample.split == split]
        for split in SPLITS
    }
    report = report_preparation(spec, lengths, store.class_counts, reading.bad, notes)
    sync(write_report(folder, report))
    finish(folder, path, spec, store.class_counts, statistics)
    shutil.rmtree(folder.parent, ignore_errors=True)
    return Prepared(
        path=path,
        num_samples=sum(store.counts.values()),
        num_zeroed=sum(read.num_zeroed for _, read in reading.usable),
        num_dropped=len(reading.bad),
        report=report,
    )
