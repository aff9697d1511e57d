"""Search without Ray, on a toy training, with studies in folders that are reopened."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.search import planner
from sftsearch.orchestrator.search.state import StudyState, record_of

from journals import Journal
from toy_study import STUDY, TPE, Toy, finish, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from journals import RawEvent

CONTINUOUS = STUDY.replace(
    "patch: 8", "patch: 8\n    learning_rate: {{kind: float, low: 1e-4, high: 1e-2, log: true}}"
)
TINY = """\
  - kind: unimodal
    patch: 8
    num_heads: 4
    dim: {{kind: choice, values: [8, 16, 512]}}
    modalities: [watch_acc]
    fused_layers: 1
"""
"""A branch with two admissible configurations; the third is over the limit."""


def proposals(events: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [(body["branch"], body["values"]) for kind, body in events if kind == "proposed"]


def test_search_runs_each_trial_once_and_tells_each_mean_once(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    journal, search = toy.open()
    run(search)
    journal.close()
    events = toy.events()
    finished = [body["trial"] for kind, body in events if kind == "finished"]
    assert len(finished) == len(set(finished)) == 24
    told = {body["number"]: body for kind, body in events if kind == "told"}
    admitted = {body["number"]: body for kind, body in events if kind == "admitted"}
    assert told.keys() == admitted.keys()
    assert len(told) == 12
    complete = [t for t in search.known.optuna.study.trials if t.state == TrialState.COMPLETE]
    assert len(complete) == 12
    for number, body in admitted.items():
        gflops = body["cost"]["gflops"]
        mean = 1 - 1 / (1 + 2000 * gflops) + 0.005  # of seeds 0 and 1
        assert told[number]["values"] == pytest.approx([mean, gflops], rel=1e-12)
        assert search.known.optuna.study.trials[number].values == told[number]["values"]


@pytest.mark.medium
def test_search_runs_no_configuration_twice_or_over_a_limit(tmp_path: Path) -> None:
    toy = Toy(tmp_path, trials=60, seeds=1)
    journal, search = toy.open()
    run(search)
    journal.close()
    admitted = [body for kind, body in toy.events() if kind == "admitted"]
    ids = [body["configuration_id"] for body in admitted]
    assert len(ids) == len(set(ids)) == 60
    assert max(body["cost"]["parameters"] for body in admitted) <= 40_000
    # The space is enumerated: configurations over the limit are never proposed.
    assert [kind for kind, _ in toy.events() if kind == "refused"] == []
    assert Admission(toy.source, describe("wearables")).num_refused["over limit"] > 0


@pytest.mark.medium
def test_search_journals_refusals_and_tells_the_sampler(tmp_path: Path) -> None:
    toy = Toy(tmp_path, trials=60, seeds=1, text=CONTINUOUS)
    journal, search = toy.open()
    run(search)
    journal.close()
    admitted = [body for kind, body in toy.events() if kind == "admitted"]
    assert len(admitted) == 60
    assert max(body["cost"]["parameters"] for body in admitted) <= 40_000
    refused = [body for kind, body in toy.events() if kind == "refused"]
    assert {body["reason"] for body in refused} == {"over limit"}
    pruned = [t for t in search.known.optuna.study.trials if t.state == TrialState.PRUNED]
    assert [trial.number for trial in pruned] == [body["number"] for body in refused]
    assert 0 < len(pruned) < 60
    assert all(trial.constraints["admission"] > 0 for trial in pruned)
    again, replayed = toy.open()
    again.close()
    states = [trial.state for trial in replayed.known.optuna.study.trials]
    assert states == [trial.state for trial in search.known.optuna.study.trials]


@pytest.mark.parametrize("sampler", ["{kind: exhaustive}", "{kind: random, seed: 3}"])
def test_study_ends_when_the_space_is_used_up(tmp_path: Path, sampler: str) -> None:
    toy = Toy(tmp_path, sampler=sampler, trials=10_000, seeds=1)
    journal, search = toy.open()
    run(search)
    journal.close()
    admission = Admission(toy.source, describe("wearables"))
    assert admission.table is not None
    assert search.state.num_ended["finished"] == len(admission.table)
    assert search.why_ended() == "the space is used up"
    if "exhaustive" in sampler:
        costs = [body["cost"]["gflops"] for kind, body in toy.events() if kind == "admitted"]
        assert costs == sorted(costs)


@pytest.mark.parametrize("stop_after", [1, 2, 7, 12])
@pytest.mark.parametrize("deterministic", [False, True])
def test_resumed_study_has_every_trial_once(
    tmp_path: Path, stop_after: int, deterministic: bool
) -> None:
    toy = Toy(tmp_path, deterministic=deterministic)
    journal, search = toy.open()
    run(search, stop_after=stop_after)
    journal.close()  # like a SIGKILL: without further calls
    journal, resumed = toy.open()
    run(resumed)
    journal.close()
    events = toy.events()
    finished = [body["trial"] for kind, body in events if kind == "finished"]
    assert len(finished) == len(set(finished)) == 24
    told = [body["number"] for kind, body in events if kind == "told"]
    assert len(told) == len(set(told))
    numbers = [body["number"] for kind, body in events if kind == "proposed"]
    assert numbers == list(range(len(numbers)))
    replayed = toy.open()
    for a, b in zip(
        resumed.known.optuna.study.trials, replayed[1].known.optuna.study.trials, strict=True
    ):
        assert (a.params, a.state, a.values) == (b.params, b.state, b.values)
    replayed[0].close()


@pytest.mark.medium
def test_deterministic_proposals_do_not_depend_on_which_trial_ends_first(tmp_path: Path) -> None:
    orders: list[Callable[[int], int]] = [lambda _: 0, lambda n: n - 1, random.Random(1).randrange]
    found = []
    for i, pick in enumerate(orders):
        toy = Toy(tmp_path / str(i), deterministic=True, slots=3, seeds=1, trials=30)
        journal, search = toy.open()
        run(search, slots=3, pick=pick)
        journal.close()
        found.append(proposals(toy.events()))
    assert found[0] == found[1] == found[2]
    free = []
    for i, pick in enumerate(orders[:2]):
        toy = Toy(tmp_path / f"free{i}", deterministic=False, slots=3, seeds=1, trials=30)
        journal, search = toy.open()
        run(search, slots=3, pick=pick)
        journal.close()
        free.append(proposals(toy.events()))
    assert free[0] != free[1]  # without `deterministic` they do depend on it


@pytest.mark.medium
def test_resumed_deterministic_study_equals_the_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = Toy(tmp_path / "a", deterministic=True, seeds=1, trials=20)
    journal, search = undisturbed.open()
    run(search)
    journal.close()
    for stop_after in (1, 5, 11):
        toy = Toy(tmp_path / str(stop_after), deterministic=True, seeds=1, trials=20)
        journal, search = toy.open()
        run(search, stop_after=stop_after)
        journal.close()
        journal, search = toy.open()
        run(search)
        journal.close()
        assert proposals(toy.events()) == proposals(undisturbed.events())


def test_failed_replicate_fails_its_configuration_only(tmp_path: Path) -> None:
    toy = Toy(tmp_path, trials=8)
    journal, search = toy.open()
    first = search.propose()
    assert first is not None
    search.on_failure(first.key, "it broke")
    run(search)
    journal.close()
    assert (search.state.num_ended["failed"], search.state.num_ended["finished"]) == (1, 7)
    assert search.known.optuna.study.trials[0].state == TrialState.FAIL
    with Journal(toy.folder) as again:
        trials = {trial.key: trial for trial in record_of(StudyState.of(again.entries())).trials}
    assert (trials[str(first.key)].status, trials[str(first.key)].reason) == ("failed", "it broke")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_value_fails_the_trial(tmp_path: Path, bad: float) -> None:
    journal, search = Toy(tmp_path).open()
    first, second = search.propose(), search.propose()
    assert first is not None
    assert second is not None
    assert not search.report(first.key, {"epoch": 1, "top1": bad})
    search.finish(second.key, {"top1": bad, **second.cost}, {})
    reasons = [event.body["reason"] for event in journal.events() if event.kind == "failed"]
    journal.close()
    assert reasons == [
        "`top1` is not finite in epoch 1",
        "the objective `top1` has no finite value",
    ]


def test_repeated_epoch_must_have_the_same_values(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    journal, search = toy.open()
    trial = search.propose()
    assert trial is not None
    search.report(trial.key, {"epoch": 1, "top1": 0.5, "seconds": 1.0})
    journal.close()
    journal, search = toy.open()
    again = search.propose()
    assert again is not None
    assert (again.key, again.num_journalled) == (trial.key, 1)
    assert search.report(again.key, {"epoch": 1, "top1": 0.5, "seconds": 2.0})
    assert not search.report(again.key, {"epoch": 1, "top1": 0.25, "seconds": 2.0})
    kinds = [event.kind for event in journal.events()]
    journal.close()
    assert kinds.count("epoch") == 1
    assert kinds[-1] == "failed"


def test_search_ignores_reports_of_an_ended_trial(tmp_path: Path) -> None:
    journal, search = Toy(tmp_path).open()
    trial = search.propose()
    assert trial is not None
    finish(search, trial)
    last = journal.last_id
    search.finish(trial.key, {"top1": 1.0, **trial.cost}, {})
    search.on_failure(trial.key, "late")
    assert not search.report(trial.key, {"epoch": 3, "top1": 1.0})
    assert journal.last_id == last
    journal.close()


def test_study_can_be_extended_with_more_trials(tmp_path: Path) -> None:
    small = Toy(tmp_path, trials=6)
    journal, search = small.open()
    run(search)
    journal.close()
    large = Toy(tmp_path, trials=10)
    journal, search = large.open()
    assert search.state.num_ended["finished"] == 6
    run(search)
    journal.close()
    assert search.state.num_ended["finished"] == 10


# ------------------------------------------------------------------- balance


def turns(events: list[tuple[str, dict[str, Any]]]) -> list[int]:
    """Return the branch of each admitted configuration, in order."""
    branches = {body["number"]: body["branch"] for kind, body in events if kind == "proposed"}
    return [branches[body["number"]] for kind, body in events if kind == "admitted"]


def balanced(folder: Path, sampler: str, text: str = STUDY, **more: Any) -> Toy:
    return Toy(folder, sampler=sampler, balance="branches", seeds=1, text=text + TINY, **more)


@pytest.mark.parametrize(
    ("sampler", "text"),
    [(TPE, STUDY), ("{kind: random}", STUDY), ("{kind: exhaustive}", STUDY),
     (TPE, CONTINUOUS), ("{kind: random}", CONTINUOUS)],
    ids=["tpe", "random", "exhaustive", "tpe-continuous", "random-continuous"],
)  # fmt: skip
def test_balance_lets_branches_take_turns_until_they_are_used_up(
    tmp_path: Path, sampler: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third branch has two configurations; a third of the trials fail and count."""
    monkeypatch.setattr(admissions, "MAX_DRAWS", 100)
    toy = balanced(tmp_path, sampler, text, trials=27)
    journal, search = toy.open()
    for i in range(27):
        assignment = search.propose()
        assert assignment is not None
        if i % 3 == 1:
            search.on_failure(assignment.key, "it broke")
        else:
            finish(search, assignment)
    assert search.exhausted
    journal.close()
    order = turns(toy.events())
    assert order[:6] == [0, 1, 2] * 2
    assert order[6:] == [0, 1] * 10 + [0]


def test_balance_keeps_the_exhaustive_order_within_each_branch(tmp_path: Path) -> None:
    toy = balanced(tmp_path, "{kind: exhaustive}", trials=30)
    journal, search = toy.open()
    run(search)
    journal.close()
    order = turns(toy.events())
    costs = [body["cost"]["gflops"] for kind, body in toy.events() if kind == "admitted"]
    for branch in range(3):
        own = [cost for cost, of in zip(costs, order, strict=True) if of == branch]
        assert own == sorted(own)
    assert costs != sorted(costs)


@pytest.mark.medium
@pytest.mark.parametrize("sampler", [TPE, "{kind: random}", "{kind: exhaustive}"])
def test_balanced_study_ends_when_every_branch_is_used_up(tmp_path: Path, sampler: str) -> None:
    toy = balanced(tmp_path, sampler, trials=10_000)
    journal, search = toy.open()
    run(search)
    journal.close()
    admission = Admission(toy.source, describe("wearables"))
    assert admission.table is not None
    assert search.why_ended() == "the space is used up"
    assert search.state.num_ended["finished"] == len(admission.table)


class KilledError(Exception):
    """The driver dies."""


@pytest.mark.medium
@pytest.mark.parametrize("balance", ["branches", "none"])
@pytest.mark.parametrize("text", [STUDY, CONTINUOUS], ids=["listed", "continuous"])
def test_study_killed_after_any_event_has_the_undisturbed_proposals(
    tmp_path: Path, text: str, balance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between refusals; here 3 in a row lead to a uniform draw."""
    monkeypatch.setattr(admissions, "MAX_DRAWS", 100)
    monkeypatch.setattr(planner, "MAX_REFUSALS", 3)

    def study(name: str) -> Toy:
        return Toy(tmp_path / name, trials=24, seeds=1, deterministic=True, balance=balance,
                   text=text + TINY)  # fmt: skip

    undisturbed = study("undisturbed")
    journal, search = undisturbed.open()
    run(search)
    journal.close()
    events = undisturbed.events()
    refused = [i for i, (kind, _) in enumerate(events, start=1) if kind == "refused"]
    assert bool(refused) == (text == CONTINUOUS)
    for last in {5, 20, len(events) // 2, *refused[::4]}:
        toy = study(str(last))
        journal, search = toy.open()
        journal.listen(functools.partial(_die_after, last))
        with pytest.raises(KilledError):
            run(search)
        journal.close()
        journal, search = toy.open()
        run(search)
        journal.close()
        assert proposals(toy.events()) == proposals(events)


def _die_after(last: int, event: RawEvent) -> None:
    if event.id == last:
        raise KilledError


def test_balance_can_be_set_when_a_study_is_extended(tmp_path: Path) -> None:
    """The branches with fewer configurations catch up."""
    first = Toy(tmp_path, sampler="{kind: random}", seeds=1, trials=12)
    journal, search = first.open()
    run(search)
    journal.close()
    before = turns(first.events())
    assert before.count(0) > before.count(1) + 2
    second = Toy(tmp_path, sampler="{kind: random}", seeds=1, trials=24, balance="branches")
    journal, search = second.open()
    run(search)
    journal.close()
    order = turns(second.events())
    assert order[:12] == before
    assert order.count(0) == order.count(1) == 12
