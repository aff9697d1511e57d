"""Track how much of its limits a study has used, and why it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.storage.events import Ended, Expected, Opened
from sftsearch.orchestrator.storage.trial_events import EpochEnded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.orchestrator.search.state import StudyState
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState
    from sftsearch.search_spaces.schema import Resources
    from sftsearch.search_spaces.search_plan import SearchPlan

CONVERGED_GAIN = 0.001
"""Expected gain of accuracy, over the whole range of scaled cost, below which a study may end."""


MOST_RESERVED = 0.5
"""Largest share of a limit that is kept for the fresh replicates at the end."""


@dataclass(frozen=True, slots=True)
class Use:
    """What some trials use of a study's limits."""

    epochs: float = 0.0
    seconds: float = 0.0
    """Of the study, on the clock."""
    gpu_seconds: float = 0.0


class Budget:
    """Counts epochs and time, and compares them with the study's limits."""

    def __init__(self, plan: SearchPlan, resources: Resources) -> None:
        self._plan, self._resources = plan, resources
        self.epochs = 0
        self.seconds = 0.0
        """Total time between the first and the last event of each driver."""
        self.gpu_seconds = 0.0
        self._last_time: float | None = None
        self._small_gains = 0

    def apply(self, entry: Entry, state: StudyState) -> None:
        """Count what an event used; `state` is the state after the event."""
        self._count_time(entry)
        event = entry.event
        if isinstance(event, EpochEnded):
            trial = state.trials[event.trial]
            given = self._resources.of(trial.configuration.cost)
            gpus = max(given.gpus, 1.0) if trial.alone else given.gpus * given.workers
            self.epochs += 1
            self.gpu_seconds += gpus * event.metrics.get("seconds", 0.0)
        elif isinstance(event, Expected):
            # Number of small expected gains in a row.
            self._small_gains = self._small_gains + 1 if event.gain < CONVERGED_GAIN else 0

    def _count_time(self, entry: Entry) -> None:
        """Count the time since the previous event while a driver is running."""
        if isinstance(entry.event, Opened):
            self._last_time = entry.time
        elif self._last_time is not None:
            self.seconds += max(0.0, entry.time - self._last_time)
            self._last_time = None if isinstance(entry.event, Ended) else entry.time

    def exceeded(self, reserved: Use | None = None) -> str:
        """Return which limit of the study was reached, as a phrase; empty if none.

        Args:
            reserved: kept for the fresh replicates at the end.
        """
        if self._plan.until_converged and self._small_gains >= 2:
            return "nothing more is expected of going on"
        for limit, used, kept, what in self._limits(reserved or Use()):
            if used + min(kept, MOST_RESERVED * limit) >= limit:
                return f"the limit of {limit:g} {what} was reached"
        return ""

    def shares(self) -> dict[str, float]:
        """Return the used share of each limit that the study has, except `trials`."""
        return {f"{limit:g} {what}": used / limit for limit, used, _, what in self._limits(Use())}

    def use_of(self, trials: Iterable[tuple[ConfigurationState, float]], concurrent: int) -> Use:
        """Return what trials will use of the limits.

        Args:
            trials: the configuration and the expected seconds of each.
            concurrent: number of trials that run at a time.
        """
        trials = list(trials)
        given = [self._resources.of(configuration.cost) for configuration, _ in trials]
        return Use(
            epochs=sum(configuration.epochs for configuration, _ in trials),
            seconds=sum(seconds for _, seconds in trials) / max(1, min(concurrent, len(trials))),
            gpu_seconds=sum(
                one.gpus * one.workers * seconds
                for one, (_, seconds) in zip(given, trials, strict=True)
            ),
        )

    def _limits(self, reserved: Use) -> list[tuple[float, float, float, str]]:
        plan, hour = self._plan, 3600
        limits = (
            (plan.max_epochs, self.epochs, reserved.epochs, "epochs"),
            (plan.max_hours, self.seconds / hour, reserved.seconds / hour, "hours"),
            (plan.max_gpu_hours, self.gpu_seconds / hour, reserved.gpu_seconds / hour, "GPU hours"),
        )
        return [
            (limit, used, kept, what) for limit, used, kept, what in limits if limit is not None
        ]
