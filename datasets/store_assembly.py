"""Write the samples that a preparation has read to the split files of a store.

The batches, and so the store's checksums and fingerprint, depend on the samples and their order
only, not on the parts in which they were kept.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.sample_checks import count_classes
from sftsearch.datasets.samples import Ragged, Split
from sftsearch.datasets.spec import SPLITS, DatasetSpec
from sftsearch.datasets.writer import (
    Moments,
    add_tokens,
    check_samples,
    record_batch,
    split_writer,
    statistics_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.read_samples import ReadSample, ReadSamples
    from sftsearch.datasets.source import Sample
    from sftsearch.datasets.writer import Statistics

    Values = Mapping[str, npt.NDArray[Any]]


class StoreAssembly:
    """Writes samples that were read to the split files of a store."""

    def __init__(self, draft: DatasetSpec, cache: ReadSamples, batch_bytes: int) -> None:
        self._draft, self._cache, self._batch_bytes = draft, cache, batch_bytes
        self._codes = {
            split: {person: code for code, person in enumerate(people)}
            for split, people in draft.subjects.items()
        }
        self._counts = dict.fromkeys(SPLITS, 0)
        self._by_class = {split: np.zeros(draft.num_classes, np.int64) for split in SPLITS}
        self._moments = {name: Moments() for name in draft.modalities}
        self._content = ""

    def write(
        self,
        folder: Path,
        samples: Sequence[tuple[Sample, ReadSample]],
        progress: Callable[[int, int], None],
    ) -> None:
        """Write the samples in record batches of about `batch_bytes`."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            files = {
                split: stack.enter_context(split_writer(folder / f"{split}.arrow", self._draft))
                for split in SPLITS
            }
            pending: list[tuple[Sample, Values]] = []
            size = 0
            for number, (sample, read) in enumerate(samples, start=1):
                values = self._cache.values(read)
                pending.append((sample, values))
                size += sum(x_TF.nbytes for x_TF in values.values())
                if size >= self._batch_bytes or number == len(samples):
                    self._write_batches(files, pending)
                    pending, size = [], 0
                progress(number, len(samples))

    def _write_batches(
        self, files: Mapping[str, Any], pending: Iterable[tuple[Sample, Values]]
    ) -> None:
        """Write the pending samples as one batch per split."""
        by_split: dict[str, list[tuple[Sample, Values]]] = {split: [] for split in SPLITS}
        for sample, values in pending:
            by_split[sample.split].append((sample, values))
        for split, chosen in by_split.items():
            if not chosen:
                continue
            part = self._gather(split, chosen)
            check_samples(self._draft, part)
            files[split].write_batch(record_batch(self._draft, part))
            self._counts[split] += len(part)
            self._by_class[split] += np.array(count_classes(self._draft, part.labels), np.int64)
            self._content = _chain_hash(self._content, split, part)
            if split == "train":
                add_tokens(self._moments, part)

    def _gather(self, split: str, chosen: Sequence[tuple[Sample, Values]]) -> Split:
        modalities: dict[str, Any] = {}
        lengths = {}
        for name, shape in self._draft.modalities.items():
            arrays = [values[name] for _, values in chosen]
            if shape.variable_length:
                lengths[name] = np.array([len(x) for x in arrays], dtype=np.int64)
                starts = np.concatenate([[0], np.cumsum(lengths[name])])
                modalities[name] = Ragged([np.concatenate(arrays)], [starts], shape.num_tokens)
            else:
                modalities[name] = np.stack(arrays).astype(np.float32, copy=False)
        found: list[Any] = [sample.label for sample, _ in chosen]
        dtype = np.int64 if self._draft.task == "classification" else np.float32
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

    @property
    def counts(self) -> dict[str, int]:
        """The number of samples written by split."""
        return self._counts

    @property
    def class_counts(self) -> dict[str, tuple[int, ...]]:
        """The samples of each class by split."""
        return {split: tuple(found.tolist()) for split, found in self._by_class.items()}

    def statistics(self) -> Statistics:
        """Return the statistics of the training samples.

        Raises:
            DatasetError: all training samples lack a modality.
        """
        return statistics_of(self._moments)

    def spec(self) -> DatasetSpec:
        """Return the spec of the written samples; its fingerprint hashes names and content."""
        draft = self._draft
        fields = asdict(draft) | {"modalities": draft.modalities, "num_samples": dict(self._counts)}
        declared = [draft.name, draft.task, draft.classes, draft.subjects]
        content = json.dumps([declared, hashed_shapes(draft), self._content])
        return DatasetSpec(**fields | {"fingerprint": hashlib.sha256(content.encode()).hexdigest()})


def hashed_shapes(draft: DatasetSpec) -> dict[str, object]:
    """Return what identifies the shapes of the modalities."""
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
