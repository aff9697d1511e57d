"""Calls of Tune as they reach a search; no Ray is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.execution import reports
from sftsearch.orchestrator.execution.placement import ResourceError
from sftsearch.orchestrator.execution.reports import FailureCause, failure
from sftsearch.orchestrator.execution.run_outcome import RunOutcome
from sftsearch.orchestrator.execution.searcher import DIED, StudySearcher
from sftsearch.orchestrator.execution.trainable import REPORT, SPEC
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.storage.event import TrialKey

from trial_specs import trial_spec

TOKEN = 7

KEY = TrialKey("c", 0)


class FakeSearch:
    """Replaces the search and the cluster capacity; records its calls."""

    num_running = 0
    exhausted = False

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def max_concurrent_trials(self) -> int:
        return 1

    def propose(self) -> object:
        return object()

    def report(self, key: str, metrics: dict[str, float], *, is_last: bool) -> bool:
        self.calls.append(("report", key, metrics))
        return metrics["epoch"] < 2

    def __getattr__(self, name: str) -> Any:
        if name not in ("finish", "on_failure", "on_worker_lost", "on_out_of_memory"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))


@dataclasses.dataclass
class Setup:
    """A searcher with one running trial, whose Tune id is `t`."""

    search: FakeSearch = dataclasses.field(default_factory=FakeSearch)
    outcome: RunOutcome = dataclasses.field(default_factory=RunOutcome)

    def __post_init__(self) -> None:
        spec = trial_spec(Path("folder"), fencing_token=TOKEN)
        search = cast("Any", self.search)
        self.searcher = StudySearcher(search, lambda _: spec, search, self.outcome)
        suggested = self.searcher.suggest("t")
        assert suggested is not None
        assert TrialSpec.from_json(suggested[SPEC]) == spec

    def report(self, report: reports.WorkerReport, token: int = TOKEN) -> bool:
        return self.searcher.on_report("t", {REPORT: reports.to_json(report, token)})


def test_searcher_suggests_nothing_at_capacity_and_ends_when_closing() -> None:
    setup = Setup()
    setup.search.num_running = 1
    assert setup.searcher.suggest("u") is None
    setup.outcome.close()
    assert setup.searcher.suggest("u") == "FINISHED"


def test_searcher_ends_once_the_search_is_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    monkeypatch.setattr(setup.search, "propose", lambda: None)
    assert setup.searcher.suggest("u") is None
    setup.search.exhausted = True
    assert setup.searcher.suggest("u") == "FINISHED"


def test_searcher_ignores_reports_with_a_stale_token() -> None:
    setup = Setup()
    assert not setup.report({"epochs": [{"epoch": 1.0}]}, token=TOKEN - 1)
    assert setup.search.calls == []


def test_searcher_passes_epochs_on_until_the_search_stops_the_trial() -> None:
    setup = Setup()
    assert not setup.report({"epochs": [{"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 3.0}]})
    assert [call[2]["epoch"] for call in setup.search.calls] == [1.0, 2.0]


def test_searcher_passes_the_final_report_on() -> None:
    setup = Setup()
    setup.report({"epochs": [], "final": {"values": {"top1": 1.0}, "groups": {}, "facts": {}}})
    assert setup.search.calls == [("finish", KEY, {"top1": 1.0}, {}, {})]


@pytest.mark.parametrize(
    ("cause", "called"),
    [
        (FailureCause.TRIAL, "on_failure"),
        (FailureCause.WORKER_LOST, "on_worker_lost"),
        (FailureCause.OUT_OF_MEMORY, "on_out_of_memory"),
    ],
)
def test_searcher_maps_the_cause_of_a_failure_to_a_call(cause: FailureCause, called: str) -> None:
    setup = Setup()
    setup.report(failure("it broke", cause))
    assert setup.search.calls == [(called, KEY, "it broke")]


def test_searcher_fails_the_run_when_the_disk_is_full() -> None:
    setup = Setup()
    with pytest.raises(ResourceError, match="Trial c-0 cannot write 'folder': the disk is full"):
        setup.report(failure("the disk is full", FailureCause.NO_SPACE))
    assert setup.outcome.has_failed
    setup.searcher.on_trial_complete("t", error=True)
    assert setup.search.calls == []  # a resumed run continues the trial


def test_searcher_distinguishes_a_dead_process_from_one_that_was_ended() -> None:
    setup = Setup()
    setup.searcher.on_trial_complete("t", error=True)
    assert setup.search.calls == [("on_worker_lost", KEY, DIED)]
    setup = Setup()
    setup.outcome.note_process_ended("t", "it took too long")
    setup.searcher.on_trial_complete("t", error=True)
    assert setup.search.calls == [("on_failure", KEY, "it took too long")]


def test_searcher_records_an_error_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()

    def propose() -> None:
        raise UserError("the journal cannot be written")

    monkeypatch.setattr(setup.search, "propose", propose)
    with pytest.raises(UserError, match="journal"):
        setup.searcher.suggest("u")
    assert str(setup.outcome.error) == "the journal cannot be written"
