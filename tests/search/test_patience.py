"""A trial that `patience` ends is finished, not stopped, also when its driver dies in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.benchmark.record import RecordingError, record_table
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.trial_events import EpochEnded
from sftsearch.orchestrator.storage.trial_files import LOG

from toy_study import Toy
from trial_specs import run, trial_spec

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion

RUNG = 2
JUDGED = """
study: {{name: toy}}
dataset: {{kind: wearables}}
search:
  sampler: {sampler}
  trials: {trials}
  replicates: {seeds}
  early_stopping: {{kind: median, audit_share: 0}}
training: {{epochs: 8, patience: 1}}
space:
  - kind: concat
    patch: 8
    num_heads: 4
    dim: {{kind: int, low: 8, high: 64, step: 8}}
    num_layers: {{kind: int, low: 1, high: 3}}
"""
"""The rule judges trials after epochs 2 and 4, and stops those below the median of five others."""


def propose(search: Search) -> TrialSuggestion:
    suggestion = search.propose()
    assert suggestion is not None
    return suggestion


def report(search: Search, trial: TrialSuggestion, epoch: int, top1: float, **last: bool) -> bool:
    return search.report(trial.key, {"epoch": epoch, "top1": top1, "seconds": 1.0}, **last)


def study_with_good_trials(folder: Path) -> tuple[Toy, Any, Search]:
    """Return a study whose first five trials reached the rung with a high value."""
    toy = Toy(folder, seeds=1, text=JUDGED)
    journal, search = toy.open()
    for first in [propose(search) for _ in range(5)]:
        assert all(report(search, first, epoch, 0.9) for epoch in (1, RUNG))
    return toy, journal, search


def end(search: Search, trial: TrialSuggestion) -> None:
    search.finish(trial.key, {"top1": 0.1, **trial.cost}, {"s01": [1.0, 2.0]})


def test_the_rule_does_not_judge_a_trial_after_its_last_epoch(tmp_path: Path) -> None:
    toy, journal, search = study_with_good_trials(tmp_path)
    ended, running = propose(search), propose(search)
    for trial, last in ((ended, True), (running, False)):
        assert report(search, trial, 1, 0.1)
        # The same value stops a trial that trains on.
        assert report(search, trial, RUNG, 0.1, is_last=last) == last
    end(search, ended)
    assert search.state.trials[ended.key].status == "finished"
    assert search.state.trials[running.key].status == "stopped"
    assert search.state.configurations[ended.key.configuration_id].is_complete
    assert search.known.budget.epochs == 14
    journal.close()
    epochs = [body for kind, body in toy.events() if kind == "epoch"]
    assert [(b["trial"], b["epoch"]) for b in epochs if b.get("last")] == [(str(ended.key), RUNG)]


def test_a_driver_that_dies_before_the_result_does_not_stop_the_trial(tmp_path: Path) -> None:
    toy, journal, search = study_with_good_trials(tmp_path)
    ended, running = propose(search), propose(search)
    assert report(search, ended, 1, 0.1)
    assert report(search, ended, RUNG, 0.1, is_last=True)
    journal.append("epoch", trial=str(running.key), epoch=RUNG, metrics={"top1": 0.1})
    journal.close()
    journal, search = toy.open()
    assert search.state.trials[running.key].status == "stopped"
    waiting = {trial.key for trial in search.state.waiting}
    assert ended.key in waiting
    again = propose(search)
    while again.key != ended.key:
        again = propose(search)
    assert again.num_journalled == RUNG
    end(search, again)
    assert search.state.trials[ended.key].status == "finished"
    journal.close()


def test_an_event_has_the_mark_only_if_it_is_set() -> None:
    key = TrialKey("c", 0)
    plain, last = EpochEnded(key, 1, {"top1": 1.0}), EpochEnded(key, 1, {"top1": 1.0}, last=True)
    assert "last" not in plain.to_json()
    assert EpochEnded.from_json(plain.to_json()) == plain
    assert EpochEnded.from_json(last.to_json()) == last


@pytest.mark.parametrize("where", ["training: {epochs: 3, ", "space: [{kind: sft, "])
def test_a_recorded_table_cannot_have_patience(tmp_path: Path, where: str) -> None:
    text = """
        study: {name: tiny}
        dataset: {kind: synthetic}
        search: {sampler: exhaustive, trials: 2, replicates: 2}
        training: {epochs: 3, batch_size: 256}
        space: [{kind: sft, num_heads: 2, dim: 4}]
    """
    file = tmp_path / "tiny.yaml"
    file.write_text(text.replace(where, f"{where}patience: 1, "))
    with pytest.raises(RecordingError, match="remove `patience`"):
        record_table(file, tmp_path / "table", runs=tmp_path / "runs")


@pytest.mark.medium
def test_a_worker_reports_the_result_after_the_last_epoch(tmp_path: Path) -> None:
    """At learning rate ~0 the first epoch is the best."""
    training = {"epochs": 7, "batch_size": 500, "patience": 3, "learning_rate": 1e-30}
    worker = TrainingWorker()
    worker.start(trial_spec(tmp_path, training=training))
    reports = run(worker)
    epochs = [epoch for one in reports for epoch in one["epochs"]]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    losses = [epoch["loss"] for epoch in epochs]
    assert reports[-1]["final"]["values"]["loss"] == pytest.approx(sum(losses[1:]) / 3)
    assert "`patience` ended the trial after epoch 4" in (tmp_path / LOG).read_text()
    # Without the last report, another worker gives the same result from the checkpoint.
    worker.start(trial_spec(tmp_path, training=training, num_journalled=4, fencing_token=1))
    again = worker.step()
    assert again["epochs"] == []
    assert again["final"]["values"]["loss"] == reports[-1]["final"]["values"]["loss"]
