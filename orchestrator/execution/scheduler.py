"""Tune scheduler: decide whether a trial continues, and which to start next.

Tune asks for the next trial several times a second. At these calls the scheduler also handles
interrupts, trials that exceed their time limit, and the loss of all nodes.
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
"""Text of Ray's error when an actor raises during its creation."""


class StudyScheduler(FIFOScheduler):
    """Starts trials in order; the search decides whether one continues."""

    def __init__(
        self,
        searcher: StudySearcher,
        capacity: ClusterCapacity,
        outcome: RunOutcome,
        interruption: Interruption,
        *,
        notice: Callable[[str], None],
        max_trial_hours: float | None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the scheduler of one run.

        Args:
            searcher: receives the trials' reports.
            capacity: of the cluster; the run ends if no node fits a trial for too long.
            outcome: state of the run.
            interruption: counts interrupts.
            notice: called with a message when an interrupt is handled.
            max_trial_hours: time limit of a trial; None: no limit.
            poll: called several times a second, from the first report of a trial on.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher, self._capacity, self._outcome = searcher, capacity, outcome
        self._interruption, self._notice = interruption, notice
        self._max_trial_hours, self._poll, self._has_reported = max_trial_hours, poll, False
        self._started_at: dict[str, float] = {}
        """Monotonic time at which each trial was first seen running, by Tune's trial id."""
        self._count = 0
        """Interrupts that were handled."""

    def __getstate__(self) -> dict[str, object]:
        """Return no state; see `StudySearcher`."""
        return {}

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, object]
    ) -> str:
        """Pass an epoch's report to the search, which decides whether the trial continues."""
        self._has_reported = True
        continues = self._searcher.on_report(trial.trial_id, result)
        return FIFOScheduler.CONTINUE if continues else FIFOScheduler.STOP

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Handle interrupts and overdue trials, then start trials in order.

        Errors that end the run are raised here: raised while Tune processes a result, they would
        count as errors of the trial.
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
        if self._has_reported:
            with self._outcome.failing_on_errors():
                self._poll()
        return super().choose_trial_to_run(tune_controller)

    def on_idle(self) -> None:
        """Poll and handle interrupts while no trial runs and none can be added yet."""
        if self._interruption.count > self._count:
            self._count = self._interruption.count
            self._outcome.close()
            self._notice("Stopping now.")
        self._poll()

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """End the run if a trial's process could not start, as no other would either.

        The searcher handles processes that die later.
        """
        text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
        if NO_START in text:
            reason = text.strip().splitlines()[-1].strip()
            self._outcome.fail(
                ResourceError(
                    f"Ray cannot start the trials' processes: {reason}. Every node needs the same "
                    "sftsearch (or --ship-code) and the study's dependencies. Finished work is "
                    "kept: install what is missing, then continue with --resume."
                )
            )

    def _interrupt(self, tune_controller: TuneController, live: list[Trial], *, now: bool) -> None:
        """Cancel the waiting trials and, if `now`, also end the running ones."""
        self._outcome.close()
        running = [trial for trial in live if trial.status == Trial.RUNNING]
        if now:
            self._notice("Stopping now.")
        else:
            self._notice(
                f"No new trials: the {len(running)} running ones finish, then the report is "
                "written. Press Ctrl-C again to stop now; --resume continues either way."
            )
        actors = [_actor_of(trial) for trial in running] if now else []
        for trial in live:
            if now or trial not in running:
                tune_controller.stop_trial(trial)  # type: ignore[no-untyped-call]
        for actor in actors:
            ray.kill(actor)  # Tune itself would wait for the epoch to end

    def _end_overdue(self, running: list[Trial]) -> None:
        """End the processes of trials that exceed the time limit; Tune then reports them dead."""
        if self._max_trial_hours is None:
            return
        moment = time.monotonic()
        for trial in running:
            started_at = self._started_at.setdefault(trial.trial_id, moment)
            is_overdue = moment - started_at > 3600 * self._max_trial_hours
            if is_overdue and not self._outcome.was_process_ended(trial.trial_id):
                self._outcome.note_process_ended(
                    trial.trial_id,
                    "it ran for longer than `resources.max_trial_hours` allows "
                    f"({self._max_trial_hours:g})",
                )
                ray.kill(_actor_of(trial))


def _actor_of(running: Trial) -> ActorHandle[object]:
    actor = running.temporary_state.ray_actor
    assert actor is not None, "a running trial has an actor"
    return actor
