"""What Tune asks and tells, as a search hears it; no Ray is started."""

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


class Heard:
    """Stands for a search, and for what the cluster holds: proposes, and notes what it hears."""

    num_running = 0
    exhausted = False

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def max_concurrent_trials(self) -> int:
        return 1

    def propose(self) -> object:
        return object()

    def report(self, key: str, metrics: dict[str, float]) -> bool:
        self.calls.append(("report", key, metrics))
        return metrics["epoch"] < 2

    def __getattr__(self, name: str) -> Any:
        if name not in ("finish", "on_failure", "on_worker_lost", "on_out_of_memory"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))


@dataclasses.dataclass
class Setting:
    """A searcher with one trial handed out, whose id at Tune's is `t`."""

    heard: Heard = dataclasses.field(default_factory=Heard)
    outcome: RunOutcome = dataclasses.field(default_factory=RunOutcome)

    def __post_init__(self) -> None:
        spec = trial_spec(Path("folder"), fencing_token=TOKEN)
        heard = cast("Any", self.heard)
        self.searcher = StudySearcher(heard, lambda _: spec, heard, self.outcome)
        suggested = self.searcher.suggest("t")
        assert suggested is not None
        assert TrialSpec.from_json(suggested[SPEC]) == spec

    def say(self, report: reports.WorkerReport, token: int = TOKEN) -> bool:
        return self.searcher.on_report("t", {REPORT: reports.to_json(report, token)})


def test_searcher_suggests_nothing_where_no_more_fits_and_ends_when_closing() -> None:
    setting = Setting()
    setting.heard.num_running = 1
    assert setting.searcher.suggest("u") is None
    setting.outcome.close()
    assert setting.searcher.suggest("u") == "FINISHED"


def test_searcher_ends_once_the_search_is_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    monkeypatch.setattr(setting.heard, "propose", lambda: None)
    assert setting.searcher.suggest("u") is None
    setting.heard.exhausted = True
    assert setting.searcher.suggest("u") == "FINISHED"


def test_searcher_hears_nothing_of_an_actor_that_a_trial_was_taken_from() -> None:
    setting = Setting()
    assert not setting.say({"epochs": [{"epoch": 1.0}]}, token=TOKEN - 1)
    assert setting.heard.calls == []


def test_searcher_passes_epochs_on_until_the_search_stops_the_trial() -> None:
    setting = Setting()
    assert not setting.say({"epochs": [{"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 3.0}]})
    assert [call[2]["epoch"] for call in setting.heard.calls] == [1.0, 2.0]


def test_searcher_passes_the_end_of_a_trial_on() -> None:
    setting = Setting()
    setting.say({"epochs": [], "final": {"values": {"top1": 1.0}, "groups": {}, "facts": {}}})
    assert setting.heard.calls == [("finish", KEY, {"top1": 1.0}, {}, {})]


@pytest.mark.parametrize(
    ("cause", "called"),
    [
        (FailureCause.TRIAL, "on_failure"),
        (FailureCause.WORKER_LOST, "on_worker_lost"),
        (FailureCause.OUT_OF_MEMORY, "on_out_of_memory"),
    ],
)
def test_searcher_passes_a_failure_on_by_its_cause(cause: FailureCause, called: str) -> None:
    setting = Setting()
    setting.say(failure("it broke", cause))
    assert setting.heard.calls == [(called, KEY, "it broke")]


def test_searcher_fails_the_run_where_a_trial_finds_no_space() -> None:
    setting = Setting()
    with pytest.raises(ResourceError, match="Trial c-0 cannot write 'folder': the disk is full"):
        setting.say(failure("the disk is full", FailureCause.NO_SPACE))
    assert setting.outcome.has_failed
    setting.searcher.on_trial_complete("t", error=True)
    assert setting.heard.calls == []  # what ran goes on in a resumed run


def test_searcher_tells_a_process_that_died_from_one_that_was_ended() -> None:
    setting = Setting()
    setting.searcher.on_trial_complete("t", error=True)
    assert setting.heard.calls == [("on_worker_lost", KEY, DIED)]
    setting = Setting()
    setting.outcome.note_process_ended("t", "it took too long")
    setting.searcher.on_trial_complete("t", error=True)
    assert setting.heard.calls == [("on_failure", KEY, "it took too long")]


def test_searcher_keeps_an_error_of_the_search_from_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()

    def propose() -> None:
        raise UserError("the journal cannot be written")

    monkeypatch.setattr(setting.heard, "propose", propose)
    with pytest.raises(UserError, match="journal"):
        setting.searcher.suggest("u")
    assert str(setting.outcome.error) == "the journal cannot be written"
