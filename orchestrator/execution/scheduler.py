"""Tune asks here whether a trial goes on, and several times a second what to start next.

Then it is seen to what no report of a trial tells of: interrupts, trials that take too long, nodes
that are all gone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from sftsearch.orchestrator.execution.placement import ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.actor import ActorHandle
    from ray.tune.execution.tune_controller import TuneController

    from sftsearch.orchestrator.execution.interrupts import Interruption
    from sftsearch.orchestrator.execution.placement import ClusterCapacity
    from sftsearch.orchestrator.execution.run_outcome import RunOutcome
    from sftsearch.orchestrator.execution.searcher import StudySearcher

NO_START = "error raised in its creation task"
"""How Ray says that an actor raised before it was there."""


class StudyScheduler(FIFOScheduler):
    """Starts trials in order; whether one goes on says the search."""

    def __init__(
        self,
        searcher: StudySearcher,
        capacity: ClusterCapacity,
        outcome: RunOutcome,
        interruption: Interruption,
        *,
        notice: Callable[[str], None],
        max_trial_hours: float | None,
    ) -> None:
        """Take what decides, and what limits trials.

        Args:
            searcher: passes reports on.
            capacity: of the cluster; no node for too long ends the run.
            outcome: of the run.
            interruption: counts what a person asks for.
            notice: called with a line when that is acted on.
            max_trial_hours: how long a trial may run; None: without an end.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher, self._capacity, self._outcome = searcher, capacity, outcome
        self._interruption, self._notice = interruption, notice
        self._max_trial_hours = max_trial_hours
        self._began: dict[str, float] = {}
        """When each trial was first seen running, by Tune's id of it."""
        self._count = 0
        """Interrupts that were acted on."""

    def __getstate__(self) -> dict[str, object]:
        """Nothing; see `StudySearcher`."""
        return {}

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, object]
    ) -> str:
        """Pass an epoch's report on."""
        goes_on = self._searcher.on_report(trial.trial_id, result)
        return FIFOScheduler.CONTINUE if goes_on else FIFOScheduler.STOP

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Act on interrupts and on trials that take too long; then start trials in order.

        What ends the run is raised here. As Tune passes a result on, it would take that for a fault
        of the trial, and go on.
        """
        self._outcome.raise_error()
        with self._outcome.failing_on_errors():
            self._capacity.max_concurrent_trials()
        live = list(tune_controller.get_live_trials())  # type: ignore[no-untyped-call]
        count = self._interruption.count
        if count > self._count:
            self._count = count
            self._interrupt(tune_controller, live, now=count >= 2)
        self._end_overdue([trial for trial in live if trial.status == Trial.RUNNING])
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Fail where the process could not even start: so would all others.

        Of one that died later the searcher is told.
        """
        text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
        if NO_START in text:
            reason = text.strip().splitlines()[-1].strip()
            self._outcome.fail(
                ResourceError(
                    f"Ray cannot start the trials' processes: {reason}. Every node needs the same "
                    "sftsearch (or --ship-code) and what the study uses. What ran is kept: mend "
                    "it, and go on with --resume."
                )
            )

    def _interrupt(self, tune_controller: TuneController, live: list[Trial], *, now: bool) -> None:
        """Take back the trials that wait; `now`, end those that run as well."""
        self._outcome.close()
        running = [trial for trial in live if trial.status == Trial.RUNNING]
        if now:
            self._notice("Stopping now.")
        else:
            self._notice(
                f"No new trials: the {len(running)} running are finished, then the report is "
                "written. Ctrl-C again stops now; --resume goes on either way."
            )
        actors = [_actor_of(trial) for trial in running] if now else []
        for trial in live:
            if now or trial not in running:
                tune_controller.stop_trial(trial)  # type: ignore[no-untyped-call]
        for actor in actors:
            ray.kill(actor)  # Tune itself would wait for the epoch to end

    def _end_overdue(self, running: list[Trial]) -> None:
        """End the process of a trial that takes too long: Tune then tells that it died."""
        if self._max_trial_hours is None:
            return
        moment = time.monotonic()
        for trial in running:
            began = self._began.setdefault(trial.trial_id, moment)
            is_overdue = moment - began > 3600 * self._max_trial_hours
            if is_overdue and not self._outcome.was_process_ended(trial.trial_id):
                self._outcome.note_process_ended(
                    trial.trial_id,
                    "it ran for longer than `resources.max_trial_hours` allows "
                    f"({self._max_trial_hours:g})",
                )
                ray.kill(_actor_of(trial))


def _actor_of(running: Trial) -> ActorHandle[object]:
    actor = running.temporary_state.ray_actor
    assert actor is not None, "a trial that runs has a process"
    return actor
