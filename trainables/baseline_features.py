"""Compute the statistics of all modalities once, for baselines on many subsets of them.

Shapes: N training samples, M other samples, D statistics of a modality, P of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sftsearch.trainables.evaluation import Batches
from sftsearch.trainables.statistics import Kind, SegmentStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.store import Store

MAX_SAMPLES = 10_000
"""Most samples of a training split that are used; of a larger one an evenly spaced part."""
MAX_STATISTICS = 4096
"""Most statistics of a sample; more would take too long to solve."""
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of statistics."""

    segments: int
    statistics: Kind

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields of `StatisticsConfig`."""
        return {"segments": self.segments, "statistics": self.statistics}

    def __str__(self) -> str:
        what = {
            "plain": "mean and deviation",
            "rich": "mean, deviation, minimum, maximum and mean absolute difference",
        }[self.statistics]
        return what if self.segments == 1 else f"{what} of {self.segments} segments"


SETTINGS = (Setting(1, "plain"), Setting(4, "plain"), Setting(1, "rich"), Setting(4, "rich"))


class _Statistics(NamedTuple):
    """The normalized statistics of one modality."""

    train: Tensor
    """(N, D)."""
    other: Tensor
    """(M, D)."""


class Features:
    """The statistics of training samples, and of the samples of another split."""

    def __init__(self, store: Store, train: Sequence[Split], other: Split) -> None:
        """Read no samples yet; see `read`.

        Args:
            store: of the splits.
            train: one or several splits to train on together.
            other: the split to evaluate on.
        """
        self._store, self._train, self._other = store, train, other
        self._found: dict[tuple[str, Setting], _Statistics] = {}
        self.labels = torch.cat([torch.tensor(split.labels[_rows(split)]) for split in train])
        """Of the training samples, (N,) or (N, C)."""

    def num_values(self, name: str) -> int:
        """Return how many numbers of a modality `read` reads, at most."""
        shape = self._store.spec.modalities[name]
        samples = sum(len(_rows(split)) for split in self._train) + len(self._other)
        return samples * shape.num_tokens * shape.num_features

    def read(
        self,
        name: str,
        settings: Iterable[Setting] = SETTINGS,
        is_late: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Compute the statistics of one modality.

        Args:
            name: the modality.
            settings: kinds of statistics; those with too many of them are left out.
            is_late: asked after each batch; once true, the modality is not read further.

        Returns:
            whether it was read.
        """
        num_features = self._store.spec.modalities[name].num_features
        modules = [
            SegmentStatistics(num_features=num_features, segments=one.segments, kind=one.statistics)
            for one in settings
        ]
        small = [module for module in modules if len(module.mean) <= MAX_STATISTICS]
        parts = [self._raw(name, split, _rows(split), small, is_late) for split in self._train]
        last = self._raw(name, self._other, np.arange(len(self._other)), small, is_late)
        if last is None or any(part is None for part in parts):
            return False
        present = torch.cat([part[1] for part in parts if part])
        for i, module in enumerate(small):
            raw_ND = torch.cat([part[0][i] for part in parts if part])
            module.normalize(raw_ND, present)
            self._found[name, Setting(module.segments, module.kind)] = _Statistics(
                module.normalized(raw_ND, present), module.normalized(last[0][i], last[1])
            )
        return True

    def of(self, names: Sequence[str], setting: Setting) -> tuple[Tensor, Tensor] | None:
        """Return the statistics of some modalities, (N, P) and (M, P); None: they are too many."""
        found = [self._found.get((name, setting)) for name in names]
        known = [one for one in found if one is not None]
        if len(known) < len(found) or sum(x.train.shape[1] for x in known) > MAX_STATISTICS:
            return None
        return (
            torch.cat([one.train for one in known], dim=1),
            torch.cat([one.other for one in known], dim=1),
        )

    def _raw(
        self,
        name: str,
        split: Split,
        rows: np.ndarray[Any, np.dtype[np.int64]],
        modules: Sequence[SegmentStatistics],
        is_late: Callable[[], bool],
    ) -> tuple[list[Tensor], Tensor] | None:
        """Return the statistics by module, and whether samples have the modality; None: late."""
        batches = Batches(self._store, split, (name,), "cpu")
        found, present = [], []
        for start in range(0, len(rows), _BATCH):
            if is_late():
                return None
            inputs, lengths, _ = batches(rows[start : start + _BATCH])
            x, length = inputs[name], lengths.get(name)
            found.append([module.raw(x, length) for module in modules])
            present.append(torch.ones(len(x), dtype=torch.bool) if length is None else length > 0)
        by_module = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return by_module, torch.cat(present)


def _rows(split: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows of a training split that are used."""
    if len(split) <= MAX_SAMPLES:
        return np.arange(len(split))
    return np.linspace(0, len(split) - 1, MAX_SAMPLES).round().astype(np.int64)
