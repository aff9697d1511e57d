"""Limit the disk space of final weights: remove those farthest below the front first."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import sign_of
from sftsearch.orchestrator.storage.trial_events import Finished
from sftsearch.orchestrator.storage.trial_files import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.orchestrator.storage.event import Numbers, TrialKey
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.orchestrator.storage.trial_files import TrialFolder

FREED = 0.1
"""Extra share of the limit to free, so that not every trial triggers a removal."""


@dataclass(frozen=True, slots=True)
class _Kept:
    folder: TrialFolder
    size: int
    configuration_id: str
    accuracy: float
    """Sign-adjusted so that more is better."""
    cost: float


class Retention:
    """Keeps the total size of a study's weights below a limit.

    The gap of a configuration is the best mean accuracy at its cost or below, minus its own mean.
    Weights with the largest gap are removed first; those on the front are never removed.
    """

    def __init__(
        self,
        folder_of: Callable[[TrialKey], TrialFolder],
        finished: Iterable[tuple[TrialKey, Numbers]],
        *,
        accuracy: tuple[str, str],
        cost: str,
        limit: float,
    ) -> None:
        """Register the weights that a study already has.

        Args:
            folder_of: returns the folder of a trial by its key.
            finished: the finished trials with their final values.
            accuracy: the first objective and its direction.
            cost: the second objective.
            limit: bytes.
        """
        self._folder_of, self._limit = folder_of, limit
        self._metric, self._cost = accuracy[0], cost
        self._sign = sign_of(accuracy[1])
        self._kept: dict[TrialKey, _Kept] = {}
        self._total = 0
        for key, values in finished:
            self._add(key, values)

    def on_event(self, entry: Entry) -> None:
        """Register the weights of a finished trial; remove weights if they exceed the limit."""
        if isinstance(entry.event, Finished):
            self._add(entry.event.trial, entry.event.values)
            if self._total > self._limit:
                self._remove()

    def _add(self, key: TrialKey, values: Numbers) -> None:
        folder = self._folder_of(key)
        size = folder.size(WEIGHTS)
        if size:
            accuracy, identity = self._sign * values[self._metric], key.configuration_id
            self._kept[key] = _Kept(folder, size, identity, accuracy, values[self._cost])
            self._total += size

    def _remove(self) -> None:
        gaps = self._gaps()
        for key in sorted(self._kept, key=lambda key: -gaps[self._kept[key].configuration_id]):
            kept = self._kept[key]
            if self._total <= (1 - FREED) * self._limit or not gaps[kept.configuration_id]:
                return
            kept.folder.remove(WEIGHTS)
            self._total -= kept.size
            del self._kept[key]

    def _gaps(self) -> dict[str, float]:
        """Return how far each configuration is below the front; 0 on the front."""
        values: dict[str, list[float]] = defaultdict(list)
        costs: dict[str, float] = {}
        for kept in self._kept.values():
            values[kept.configuration_id].append(kept.accuracy)
            costs[kept.configuration_id] = kept.cost
        means = {identity: math.fsum(own) / len(own) for identity, own in values.items()}
        gaps, best = {}, -math.inf
        for identity in sorted(means, key=lambda identity: (costs[identity], -means[identity])):
            gaps[identity] = max(0.0, best - means[identity])
            best = max(best, means[identity])
        return gaps
