"""Tune searcher: pass Tune's requests and results to `Search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ray.tune.search import Searcher

from sftsearch.orchestrator.execution import reports
from sftsearch.orchestrator.execution.placement import ResourceError
from sftsearch.orchestrator.execution.reports import FailureCause
from sftsearch.orchestrator.execution.trainable import REPORT, SPEC
from sftsearch.orchestrator.storage.event import TrialKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sftsearch.orchestrator.execution.placement import ClusterCapacity
    from sftsearch.orchestrator.execution.run_outcome import RunOutcome
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion

DIED = "the worker process died (out of memory, killed, or lost with its node)"


class StudySearcher(Searcher):
    """Adapts `Search` to Tune; decides nothing and records nothing."""

    def __init__(
        self,
        search: Search,
        make_spec: Callable[[TrialSuggestion], TrialSpec],
        capacity: ClusterCapacity,
        outcome: RunOutcome,
    ) -> None:
        super().__init__(metric=REPORT, mode="max")
        self._search = search
        self._make_spec = make_spec
        self._capacity = capacity
        self._outcome = outcome
        self._specs: dict[str, TrialSpec] = {}
        """Specs of the running trials, by Tune's trial id."""
        self.on_idle: Callable[[], None] = lambda: None
        """Called while no trial runs any more: Tune then asks for a trial once a second, and does
        nothing else."""
        self._has_suggested = False

    def __getstate__(self) -> dict[str, object]:
        """Return no state: Tune pickles its searcher, but we never restore Tune."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, str] | None:
        """Return the next trial as a Tune configuration; None if none now, FINISHED at the end."""
        with self._outcome.failing_on_errors():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> dict[str, str] | None:
        finished = cast("dict[str, str]", Searcher.FINISHED)  # a string constant of Tune
        if self._has_suggested and not self._search.num_running:
            self.on_idle()
        if not self._outcome.adds_trials:
            return finished
        if self._search.num_running >= self._capacity.max_concurrent_trials():
            return None
        suggestion = self._search.propose()
        if suggestion is None:
            return finished if self._search.exhausted else None
        self._has_suggested = True
        spec = self._specs[trial_id] = self._make_spec(suggestion)
        return {SPEC: spec.to_json()}

    def on_report(self, trial_id: str, result: Mapping[str, object]) -> bool:
        """Pass a worker's report to the search; return whether the trial continues."""
        with self._outcome.failing_on_errors():
            return self._on_report(self._specs[trial_id], reports.from_json(str(result[REPORT])))

    def _on_report(self, spec: TrialSpec, report: reports.SentReport) -> bool:
        if report["fencing_token"] != spec.fencing_token:
            return False  # from a worker that lost this trial to another one
        for number, metrics in enumerate(report["epochs"], start=1):
            is_last = "final" in report and number == len(report["epochs"])
            if not self._search.report(_key(spec), metrics, is_last=is_last):
                return False
        if "failed" in report:
            self._on_failure(spec, report["failed"], FailureCause(report["cause"]))
        elif "final" in report:
            final = report["final"]
            self._search.finish(_key(spec), final["values"], final["groups"], final["facts"])
        return True

    def _on_failure(self, spec: TrialSpec, reason: str, cause: FailureCause) -> None:
        if cause is FailureCause.NO_SPACE:
            raise ResourceError(
                f"Trial {spec.key} cannot write '{spec.folder}': {reason}. The study stops; "
                "nothing is lost. Free disk space, then continue with --resume."
            )
        if cause is FailureCause.WORKER_LOST:
            self._search.on_worker_lost(_key(spec), reason)
        elif cause is FailureCause.OUT_OF_MEMORY:
            self._search.on_out_of_memory(_key(spec), reason)
        else:
            self._search.on_failure(_key(spec), reason)

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        """Do nothing: the scheduler has already passed it to the search."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
    ) -> None:
        """Pass the last report to the search; a trial whose process died has none."""
        if self._outcome.has_failed:
            pass  # a resumed run continues the trial
        elif error:
            with self._outcome.failing_on_errors():
                self._on_process_ended(self._specs[trial_id], self._outcome.take_reason(trial_id))
        elif result is not None and result.get("done") and REPORT in result:
            self.on_report(trial_id, result)
        self._specs.pop(trial_id, None)

    def _on_process_ended(self, spec: TrialSpec, reason: str | None) -> None:
        """Fail the trial if we ended its process; retry it if the process died by itself."""
        if reason is None:
            self._search.on_worker_lost(_key(spec), DIED)
        else:
            self._search.on_failure(_key(spec), reason)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the record."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the journal is the record."""


def _key(spec: TrialSpec) -> TrialKey:
    return TrialKey.parse(spec.key)
