"""Faults of trials and deaths of drivers: the record stays complete, the end has its reason."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.search.engine import MAX_LOSSES
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.surrogate import candidate_pool
from sftsearch.search_spaces.mistakes import StudyFileError

from journals import raw
from toy_study import LISTED, ONE, Memory, Training, noise, source_of, uneven, width

if TYPE_CHECKING:
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion
    from sftsearch.orchestrator.storage.journal import Entry

    from journals import RawEvent

WIDE = "  - {kind: sft, patch: 8, num_heads: 4, fused_layers: 1, dim: 8,\n" + (
    "     learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}}\n"
)
"""A continuous space."""
FEW = width(*range(8, 80, 8))
"""Nine configurations: fewer than the trials, so that there are replicates."""
ALL_RAN, USED_UP = "all trials ran", "the space is used up"
ADAPTIVE = "replicates: {min: 1, max: 4, fresh: 2}"
QUICK = ["ehvi", "tpe", "exhaustive"]
CASES = {
    "plain": "sampler: ehvi, trials: 12",
    "adaptive": f"sampler: ehvi, trials: 26, {ADAPTIVE}",
    "dominated": "sampler: {kind: ehvi, startup_configurations: 8}, trials: 24,"
    "early_stopping: {kind: dominated, min_epochs: 1, audit_share: 0.3}",
    "mo_asha": f"sampler: tpe, trials: 24, {ADAPTIVE}, "
    "early_stopping: {kind: mo_asha, min_epochs: 1}",
    "median": "sampler: random, trials: 20, replicates: 2, "
    "early_stopping: {kind: median, min_epochs: 1}",
    "converged": "sampler: ehvi, trials: 60, until_converged: true, replicates: {min: 1, max: 3}",
    "limited": f"sampler: ehvi, trials: 60, max_epochs: 110, {ADAPTIVE}",
}
"""Search sections of study files; each leads to other kinds of events."""


def half_hopeless(assignment: TrialSuggestion) -> float:
    """Return a mean that makes half of the configurations hopeless, so that rules stop trials."""
    hopeless = noise(assignment.key.configuration_id) > 0
    return uneven(assignment) - 0.3 * hopeless


TRAINING = Training(epochs=4, truth=half_hopeless)


def memory_of(name: str, **more: Any) -> Memory:
    space = FEW if name in ("mo_asha", "limited") else LISTED
    return Memory(source_of(CASES[name], epochs=4, space=space), **more)


def check_complete(events: list[RawEvent], search: Search, *reasons: str) -> None:
    """Check that every trial of a journal ended once, and that the study ended for a reason."""
    added: Counter[str] = Counter()
    for event in events:
        body = event.body
        if event.kind in ("admitted", "replicated"):
            added.update(f"{body['configuration_id']}-{seed}" for seed in body["seeds"])
        elif event.kind == "frozen":
            added.update(f"{i}-{seed}" for i, own in body["seeds"].items() for seed in own)
        elif event.kind == "stopped":
            added.subtract(body["withdrawn"])
    ended = Counter(e.body["trial"] for e in events if e.kind in ("finished", "failed", "stopped"))
    assert +added == ended
    assert set(ended.values()) <= {1}
    told = Counter(e.body["number"] for e in events if e.kind == "told")
    assert told == Counter(e.body["number"] for e in events if e.kind == "admitted")
    assert search.exhausted
    assert search.why_ended() in reasons
    assert (
        search.state.num_ended["finished"],
        search.state.num_ended["failed"],
        search.state.num_ended["stopped"],
    ) == tuple(sum(e.kind == kind for e in events) for kind in ("finished", "failed", "stopped"))
    has_front = any(observed.is_complete for observed in search.known.past.all)
    assert (events[-1].kind == "concluded") == has_front


# ------------------------------------------------------------------ replaying


def state_of(search: Search) -> dict[str, Any]:
    """Return everything on which later decisions depend."""
    fitted = search.known.surrogate.last_fit
    return {
        "past": [
            (o.id, o.number, o.values, o.pending, o.fresh, o.failed, o.stopped, o.group, o.epochs)
            for o in search.known.past.all
        ],
        "fitted": fitted and fitted.num,
        "hyperparameters": repr(fitted and fitted.hyperparameters),
        "rule": vars(search.known.rule),
        "used": (
            search.state.num_trials,
            search.known.budget.epochs,
            search.known.budget.gpu_seconds,
        ),
        "ended": (
            search.state.num_ended["finished"],
            search.state.num_ended["failed"],
            search.state.num_ended["stopped"],
            search.state.frozen,
        ),
        "optuna": [
            (t.params, t.state, t.values, t.user_attrs) for t in search.known.optuna.study.trials
        ],
        "running": search.num_running,
    }


def decisions(events: list[RawEvent]) -> list[tuple[str, str]]:
    """Return the events in order, without those that depend on the number of drivers."""
    drivers = ("opened", "started", "concluded")
    return [(e.kind, json.dumps(e.body)) for e in events if e.kind not in drivers]


def cuts_of(events: list[RawEvent]) -> list[int]:
    """Return one cut for each pair of kinds that follow one another in the events."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, (before, after) in enumerate(itertools.pairwise(events), start=1):
        found.setdefault((before.kind, after.kind), []).append(number)
    return sorted({cuts[4 * len(cuts) // 5] for cuts in found.values()})


@pytest.mark.medium
@pytest.mark.parametrize("name", CASES)
def test_study_killed_after_any_event_resumes_as_if_undisturbed(name: str) -> None:
    memory = memory_of(name)
    # Without noise, a study converges without a replicate.
    training = replace(TRAINING, sigma=0.03) if name == "converged" else TRAINING
    journal, search = memory.open()
    memory.drive(search, training)
    events, state = list(journal.events()), state_of(search)
    check_complete(events, search, search.why_ended())
    rare = {"replicated", "frozen", "stopped", "judged", "expected"} & {e.kind for e in events}
    assert (
        rare
        == {
            "plain": set(),
            "adaptive": {"replicated", "frozen"},
            "dominated": {"judged", "stopped"},
            "mo_asha": {"replicated", "frozen", "judged", "stopped"},
            "median": {"judged", "stopped"},
            "converged": {"replicated", "expected"},
            "limited": {"replicated", "frozen"},
        }[name]
    )
    assert state_of(memory.open(events)[1]) == state
    for cut in cuts_of(events):
        again, resumed = memory.open(events[:cut])
        memory.drive(resumed, training)
        assert decisions(list(again.events())) == decisions(events), events[cut - 1].kind
        assert state_of(resumed) == state


@pytest.mark.medium
@pytest.mark.parametrize("name", ["adaptive", "dominated", "mo_asha"])
def test_listeners_receive_decisions_about_an_earlier_driver_s_trials(name: str) -> None:
    memory = memory_of(name)
    journal, search = memory.open()
    memory.drive(search, TRAINING)
    events = list(journal.events())
    decided = set()
    for cut in cuts_of(events):
        received: list[Entry] = []
        again, _ = memory.open(events[:cut], listener=received.append)
        opened = cut + 1
        assert [entry.id for entry in received] == list(range(opened + 1, again.last_id + 1))
        decided |= {entry.event.kind for entry in received}
    assert decided >= {"told"} | (set() if name == "adaptive" else {"judged", "stopped"})


@pytest.mark.medium
@pytest.mark.parametrize("name", ["adaptive", "dominated", "mo_asha"])
def test_concurrent_study_has_every_trial_once_after_a_driver_died(name: str) -> None:
    memory, random_ = memory_of(name, slots=3), random.Random(0)
    journal, search = memory.open()
    memory.drive(search, TRAINING, pick=random_.randrange)
    events = list(journal.events())
    check_complete(events, search, ALL_RAN)
    cuts = cuts_of(events)
    for cut in random_.sample(cuts, min(8, len(cuts))):
        again, resumed = memory.open(events[:cut])
        memory.drive(resumed, TRAINING, pick=random_.randrange)
        whole = list(again.events())
        check_complete(whole, resumed, ALL_RAN, USED_UP)
        assert whole[:cut] == events[:cut]
        assert state_of(memory.open(whole)[1]) == state_of(resumed)


class KilledError(Exception):
    """The driver dies."""


def die_after(last: int, event: RawEvent) -> None:
    if event.id == last:
        raise KilledError


@pytest.mark.medium
@pytest.mark.parametrize("name", ["adaptive", "mo_asha"])
def test_study_ends_even_if_every_driver_dies_after_a_few_events(name: str) -> None:
    memory, random_ = memory_of(name, slots=2), random.Random(1)
    events: list[RawEvent] = []
    for _ in range(1000):
        journal, search = memory.open(events)
        last = journal.last_id + random_.randint(1, 25)
        journal.listen(functools.partial(die_after, last))
        try:
            memory.drive(search, TRAINING, pick=random_.randrange)
        except KilledError:
            events = list(journal.events())
        else:
            break
    check_complete(list(journal.events()), search, ALL_RAN, USED_UP)


# --------------------------------------------------------------------- faults


class Failing(Training):
    """Trials with the faults that `fault` returns."""

    lost = 0

    def fault(self, assignment: TrialSuggestion, epoch: int) -> str:
        return ""

    def step(self, search: Search, assignment: TrialSuggestion, epoch: int) -> bool:
        key, fault = assignment.key, self.fault(assignment, epoch)
        if fault == "fails":
            search.on_failure(key, "the worker process died")
            return False
        if fault in ("lost once", "lost each time"):
            self.lost += 1
            if fault == "lost each time" or self.lost % 2:
                search.on_worker_lost(key, "the worker process died")
                return False
        if fault == "nan":
            return search.report(key, {"epoch": epoch, "top1": math.nan})
        continues = super().step(search, assignment, epoch)
        if fault == "fails after its report" and continues:
            search.on_failure(key, "the worker process died")
            return False
        if fault == "reports twice" and continues:
            assert search.report(key, {"epoch": epoch, "top1": self.value(assignment, epoch)})
        elif fault == "reports twice":
            assert not super().step(search, assignment, epoch)
        return continues


def run(
    search: str, training: Training, *, space: str = LISTED, slots: int = 1, **more: Any
) -> tuple[list[RawEvent], Search]:
    memory = Memory(source_of(search, space=space, epochs=training.epochs, **more), slots=slots)
    journal, found = memory.open()
    memory.drive(found, training)
    return list(journal.events()), found


class EveryThird(Failing):
    """Every third configuration has a fault at an epoch."""

    def __init__(self, kind: str, at: int) -> None:
        super().__init__(epochs=4, truth=uneven)
        self.kind, self.at = kind, at

    def fault(self, assignment: TrialSuggestion, epoch: int) -> str:
        is_affected = int(assignment.key.configuration_id[:2], 16) % 3 == 0
        return self.kind if is_affected and epoch == self.at else ""


@pytest.mark.medium
@pytest.mark.parametrize("at", [2, 4])
@pytest.mark.parametrize("kind", ["fails", "nan", "fails after its report", "reports twice"])
@pytest.mark.parametrize("name", ["dominated", "mo_asha"])
def test_record_is_complete_after_any_fault(name: str, kind: str, at: int) -> None:
    """Also if the trial fails at a rung, before or after its report."""
    memory = memory_of(name, slots=2)
    journal, search = memory.open()
    memory.drive(search, EveryThird(kind, at))
    events = list(journal.events())
    check_complete(events, search, search.why_ended())
    harmless = kind == "reports twice" or (kind == "fails after its report" and at == 4)
    assert (search.state.num_ended["failed"] == 0) == harmless
    pairs = Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "epoch")
    assert set(pairs.values()) == {1}
    assert state_of(memory.open(events)[1]) == state_of(search)


@pytest.mark.medium
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("name", sorted(CASES))
def test_trial_whose_worker_is_lost_once_changes_nothing(name: str, at: int) -> None:
    """With one trial at a time, the study equals an undisturbed one."""
    decided = {}
    for fault in ("lost once", ""):
        memory = memory_of(name)
        journal, search = memory.open()
        memory.drive(search, EveryThird(fault, at))
        decided[fault] = [one for one in decisions(list(journal.events())) if one[0] != "retried"]
        assert state_of(memory.open(list(journal.events()))[1]) == state_of(search)
    assert decided["lost once"] == decided[""]


@pytest.mark.medium
@pytest.mark.parametrize("name", ["dominated", "mo_asha"])
def test_trial_whose_worker_is_lost_too_often_fails(name: str) -> None:
    memory = memory_of(name, slots=2)
    journal, search = memory.open()
    memory.drive(search, EveryThird("lost each time", 2))
    events = list(journal.events())
    check_complete(events, search, search.why_ended())
    retried = Counter(e.body["trial"] for e in events if e.kind == "retried")
    failed = {e.body["trial"] for e in events if e.kind == "failed"}
    assert failed
    assert retried == dict.fromkeys(failed, MAX_LOSSES - 1)
    assert state_of(memory.open(events)[1]) == state_of(search)


class FirstReplicateFails(Failing):
    def fault(self, assignment: TrialSuggestion, epoch: int) -> str:
        return "fails" if assignment.seed == 0 else ""


@pytest.mark.parametrize("replicates", ["1", "2", "{min: 1, max: 3, fresh: 2}"])
@pytest.mark.parametrize("sampler", QUICK)
def test_study_ends_without_a_front_if_every_first_replicate_fails(
    sampler: str, replicates: str
) -> None:
    plan = f"sampler: {sampler}, trials: 12, replicates: {replicates}"
    events, search = run(plan, FirstReplicateFails(), slots=2)
    check_complete(events, search, ALL_RAN)
    assert search.known.past.measured().ids == []
    assert not [e for e in events if e.kind in ("replicated", "frozen", "concluded", "fitted")]


@pytest.mark.medium
@pytest.mark.parametrize("fresh", [0, 2])
@pytest.mark.parametrize("sampler", QUICK)
def test_front_is_the_cheapest_if_all_accuracies_are_equal(sampler: str, fresh: int) -> None:
    flat = Training(sigma=0.0, truth=lambda _: 0.5)
    plan = f"sampler: {sampler}, trials: 20, replicates: {{min: 1, max: 3, fresh: {fresh}}}"
    events, search = run(
        f"{plan}, early_stopping: {{kind: dominated, min_epochs: 1}}", flat, slots=2
    )
    check_complete(events, search, ALL_RAN)
    concluded = events[-1].body
    costs = {o.id: o.cost["gflops"] for o in search.known.past.all}
    cheapest = min(costs.values())
    assert min(costs[i] for i in concluded["reported"]) == cheapest
    assert search.state.num_ended["stopped"] == 0
    # Posterior means may differ slightly because of the prior.
    means = [posterior["mean"] for posterior in concluded["beliefs"].values()]
    assert np.ptp(means) < 1e-3


@pytest.mark.parametrize("until", ["false", "true"])
@pytest.mark.parametrize("replicates", ["1", "2", "{min: 1, max: 3}", "{min: 1, max: 3, fresh: 2}"])
@pytest.mark.parametrize("slots", [1, 3])
def test_space_of_one_configuration_is_used_up(replicates: str, until: str, slots: int) -> None:
    plan = f"sampler: ehvi, trials: 12, replicates: {replicates}, until_converged: {until}"
    events, search = run(plan, Training(), space=ONE, slots=slots)
    check_complete(events, search, USED_UP)
    assert len(search.known.past) == 1
    # It has no competitor, so more replicates would change nothing.
    first = 2 if replicates == "2" else 1
    assert search.state.num_trials == first
    assert search.state.num_ended["finished"] == first + (2 if "fresh" in replicates else 0)
    assert events[-1].body["reported"] == [search.known.past.all[0].id]
    assert events[-1].body["beliefs"][search.known.past.all[0].id]["on_front"] == 1


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("replicates", ["1", "{min: 1, max: 3}", "{min: 2, max: 4, fresh: 3}"])
@pytest.mark.parametrize("sampler", QUICK)
def test_few_configurations_still_get_replicates(sampler: str, replicates: str, slots: int) -> None:
    """Three configurations are fewer than the surrogate needs for a fit."""
    plan = f"sampler: {sampler}, trials: 60, replicates: {replicates}"
    noisy = Training(sigma=0.05, truth=lambda a: 0.6 + 0.2 * a.cost["gflops"])
    events, search = run(plan, noisy, space=width(8, 16, 24), slots=slots)
    check_complete(events, search, USED_UP)
    assert len(search.known.past) == 3
    assert search.why_ended() == "the space is used up"
    most = max(len(o.values.keys() - o.fresh) for o in search.known.past.all)
    few, many = {"1": (1, 1), "{min: 1, max: 3}": (2, 3)}.get(replicates, (3, 4))
    assert few <= most <= many


@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "random"])
def test_study_ends_if_limits_exclude_all_of_a_large_space(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions, "MAX_DRAWS", 100)
    monkeypatch.setattr(candidate_pool, "NUM_DRAWN", 50)
    limit = "constraints: [{metric: parameters, max: 10}]"
    events, search = run(f"sampler: {sampler}, trials: 4", Training(), space=WIDE, more=limit)
    check_complete(events, search, USED_UP)
    assert len(search.known.past) == 0


def test_study_does_not_start_if_limits_exclude_all_of_a_small_space() -> None:
    limit = "constraints: [{metric: parameters, max: 10}]"
    with pytest.raises(StudyFileError, match="All 27 configurations are refused"):
        Memory(source_of("sampler: ehvi, trials: 4", more=limit))


def test_search_finds_the_few_configurations_within_limits_of_a_large_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only one of many widths is cheap enough, so few of the random draws are admissible."""
    monkeypatch.setattr(candidate_pool, "NUM_DRAWN", 40)
    monkeypatch.setattr(candidate_pool, "PROPOSALS_PER_DRAW", 50)
    space = WIDE.replace("dim: 8", "dim: {kind: int, low: 8, high: 256, step: 8}")
    limit = "constraints: [{metric: parameters, max: 6000}]"
    events, search = run("sampler: ehvi, trials: 6", Training(), space=space, more=limit)
    check_complete(events, search, ALL_RAN)
    assert len(search.known.past) == 6
    assert {o.parameters["dim"] for o in search.known.past.all} == {8}


@pytest.mark.medium
def test_other_replicates_of_a_stopped_configuration_stop_or_are_withdrawn() -> None:
    """With two slots the other replicate is running; with one it has not started."""
    plan = (
        "sampler: random, trials: 20, replicates: 2, early_stopping: {kind: median, min_epochs: 1}"
    )
    for slots in (1, 2):
        events, search = run(plan, TRAINING, slots=slots)
        check_complete(events, search, ALL_RAN)
        stops = [e.body for e in events if e.kind == "stopped"]
        firsts = [body for body in stops if body["trial"].endswith("-0")]
        assert firsts
        withdrawn = [key for body in stops for key in body["withdrawn"]]
        later = [body for body in stops if body["trial"].endswith("-1")]
        assert len(later) + len(withdrawn) == len(firsts)
        assert (not later) == (slots == 1)
        assert {body["reason"] for body in later} <= {"another replicate was stopped"}
        assert search.state.num_trials == 20
        stopped = {body["trial"].rpartition("-")[0] for body in stops}
        assert not stopped & set(search.known.past.measured().ids)
        states = {e.body["number"]: e.body["state"] for e in events if e.kind == "told"}
        for observed in search.known.past.all:
            assert (states[observed.number] == "stopped") == (observed.id in stopped)


@pytest.mark.medium
def test_replicate_added_before_the_first_one_is_stopped_is_withdrawn() -> None:
    """The second replicate ends first and a third is added; then the first is stopped."""
    plan = (
        "sampler: exhaustive, trials: 30, replicates: {min: 2, max: 3},"
        "early_stopping: {kind: median, min_epochs: 2}"
    )
    memory = Memory(source_of(plan, epochs=4), slots=2)
    journal, search = memory.open()
    training = Training(epochs=4, truth=half_hopeless, sigma=0.1)
    memory.drive(search, training, pick=lambda number: number - 1)
    events = list(journal.events())
    check_complete(events, search, search.why_ended())
    added = {k for e in events if e.kind == "replicated" for k in _keys(e.body)}
    withdrawn = {k for e in events if e.kind == "stopped" for k in e.body["withdrawn"]}
    assert added
    assert state_of(memory.open(events)[1]) == state_of(search)
    assert withdrawn | added


def _keys(body: dict[str, Any]) -> list[str]:
    return [f"{body['configuration_id']}-{seed}" for seed in body["seeds"]]


class LaterReplicatesFail(Failing):
    def fault(self, assignment: TrialSuggestion, epoch: int) -> str:
        return "fails" if assignment.seed > 0 else ""


@pytest.mark.medium
def test_study_reports_another_front_if_the_fresh_replicates_fail() -> None:
    plan = "sampler: ehvi, trials: 10, replicates: {min: 1, max: 1, fresh: 1}"
    events, search = run(plan, LaterReplicatesFail(truth=uneven))
    check_complete(events, search, ALL_RAN)
    frozen = {i for e in events if e.kind == "frozen" for i in e.body["seeds"]}
    assert search.state.num_ended["failed"] == len(frozen) > 0
    assert not frozen & set(events[-1].body["reported"])


@pytest.mark.medium
def test_extended_study_chooses_its_reported_configurations_again() -> None:
    memory = Memory(source_of(f"sampler: ehvi, trials: 12, {ADAPTIVE}"))
    journal, search = memory.open()
    memory.drive(search, Training(truth=uneven))
    events = list(journal.events())
    larger = Memory(source_of(f"sampler: ehvi, trials: 20, {ADAPTIVE}"))
    for cut in (len(events), next(e.id for e in events if e.kind == "frozen")):
        again, extended = larger.open(events[:cut])
        larger.drive(extended, Training(truth=uneven))
        whole = list(again.events())
        check_complete(whole, extended, ALL_RAN)
        assert extended.state.num_trials == 20
        first, second = [e.body["seeds"] for e in whole if e.kind == "frozen"]
        for identity, seeds in second.items():
            assert len(seeds) == 2
            assert not set(seeds) & set(first.get(identity, []))
            assert extended.known.past[identity].fresh == set(seeds)
        assert whole[-1].body["reported"] == list(second)


@pytest.mark.parametrize("kind", ["finished", "failed"])
def test_trial_ends_once_if_a_listener_raises_at_its_end(kind: str) -> None:
    """The driver may then report that the trial failed; the search must ignore it."""
    memory = Memory(source_of("sampler: ehvi, trials: 4"))
    journal, search = memory.open()
    first = search.propose()
    assert first is not None
    last = journal.last_id + 1
    search.listen(lambda entry: die_after(last, raw(entry)))
    end = {
        "finished": lambda: search.finish(first.key, {"top1": 0.5, **first.cost}, {}),
        "failed": lambda: search.on_failure(first.key, "it broke"),
    }
    with pytest.raises(KilledError):
        end[kind]()
    search.on_failure(first.key, "the worker process died")
    search.finish(first.key, {"top1": 0.7, **first.cost}, {})
    assert [event.kind for event in journal.events()][-1] == kind
    assert journal.last_id == last
    again, resumed = memory.open(list(journal.events()))
    memory.drive(resumed, Training())
    check_complete(list(again.events()), resumed, ALL_RAN)


@pytest.mark.medium
def test_record_of_a_study_with_many_faults_can_be_read() -> None:
    memory = memory_of("mo_asha", slots=2)
    journal, search = memory.open()
    memory.drive(search, EveryThird("fails", 2))
    trials = record_of(StudyState.of(journal.entries())).trials
    counts = Counter(trial.status for trial in trials)
    assert counts == Counter(
        finished=search.state.num_ended["finished"],
        failed=search.state.num_ended["failed"],
        stopped=search.state.num_ended["stopped"],
    )
