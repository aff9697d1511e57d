"""What a study has used of what it may use, and why it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.journal import Event
    from sftsearch.search_spaces.search_plan import SearchPlan

CONVERGED_GAIN = 0.001
"""Of accuracy, over the whole range of scaled cost: what is no longer worth going on for."""


class Budget:
    """What a study has used of what it may use."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self.trials = 0
        """Admitted, fresh replicates not counted."""
        self.epochs = 0
        self.seconds = 0.0
        """Between the first and the last event of each driver."""
        self.gpu_seconds = 0.0
        self._last_time: float | None = None
        self._small_gains = 0

    def note_time(self, event: Event) -> None:
        """Count the time since the event before, while a driver runs trials."""
        if event.kind == "opened":
            self._last_time = event.time
        elif self._last_time is not None and event.kind != "mirrored":  # may come before `opened`
            self.seconds += max(0.0, event.time - self._last_time)
            self._last_time = None if event.kind == "ended" else event.time

    def note_epoch(self, event: Event, gpus: float) -> None:
        """Count an epoch of a trial that has so many GPUs."""
        self.epochs += 1
        self.gpu_seconds += gpus * event.body["metrics"].get("seconds", 0.0)

    def note_gain(self, gain: float) -> None:
        """Count how often in a row hardly anything was expected of going on."""
        self._small_gains = self._small_gains + 1 if gain < CONVERGED_GAIN else 0

    def exceeded(self) -> str:
        """Say which limit of the study was reached; empty where none was."""
        if self._plan.until_converged and self._small_gains >= 2:
            return "nothing more is expected of going on"
        for limit, used, what in self._limits():
            if used >= limit:
                return f"the limit of {limit:g} {what} was reached"
        return ""

    def shares(self) -> dict[str, float]:
        """Return how much of each limit was used: of those that the study has, `trials` apart."""
        return {f"{limit:g} {what}": used / limit for limit, used, what in self._limits()}

    def _limits(self) -> list[tuple[float, float, str]]:
        plan = self._plan
        limits = (
            (plan.max_epochs, self.epochs, "epochs"),
            (plan.max_hours, self.seconds / 3600, "hours"),
            (plan.max_gpu_hours, self.gpu_seconds / 3600, "GPU hours"),
        )
        return [(limit, used, what) for limit, used, what in limits if limit is not None]
