"""What goes wrong in a study, and drivers that die: the record is complete and the end is told."""

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
"""A space without end."""
FEW = width(*range(8, 80, 8))
"""Nine configurations: fewer than trials, so that there are replicates."""
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
    "limited": f"sampler: ehvi, trials: 60, max_epochs: 70, {ADAPTIVE}",
}
"""Sections of study files, each with events of its own."""


def gifted(assignment: TrialSuggestion) -> float:
    """A mean by which every other configuration is hopeless, so that rules have what to stop."""
    hopeless = noise(assignment.key.configuration_id) > 0
    return uneven(assignment) - 0.3 * hopeless


TRAINING = Training(epochs=4, truth=gifted)


def memory_of(name: str, **more: Any) -> Memory:
    space = FEW if name in ("mo_asha", "limited") else LISTED
    return Memory(source_of(CASES[name], epochs=4, space=space), **more)


def check_complete(events: list[RawEvent], search: Search, *why: str) -> None:
    """Check that every trial of a journal ended once, and that the journal says how it ended."""
    given: Counter[str] = Counter()
    for event in events:
        body = event.body
        if event.kind in ("admitted", "replicated"):
            given.update(f"{body['configuration_id']}-{seed}" for seed in body["seeds"])
        elif event.kind == "frozen":
            given.update(f"{i}-{seed}" for i, own in body["seeds"].items() for seed in own)
        elif event.kind == "stopped":
            given.subtract(body["withdrawn"])
    ended = Counter(e.body["trial"] for e in events if e.kind in ("finished", "failed", "stopped"))
    assert +given == ended
    assert set(ended.values()) <= {1}
    told = Counter(e.body["number"] for e in events if e.kind == "told")
    assert told == Counter(e.body["number"] for e in events if e.kind == "admitted")
    assert search.exhausted
    assert search.why_ended() in why
    assert (
        search.state.num_ended["finished"],
        search.state.num_ended["failed"],
        search.state.num_ended["stopped"],
    ) == tuple(sum(e.kind == kind for e in events) for kind in ("finished", "failed", "stopped"))
    has_front = any(observed.is_complete for observed in search.known.past.all)
    assert (events[-1].kind == "concluded") == has_front


# ------------------------------------------------------------------ replaying


def state_of(search: Search) -> dict[str, Any]:
    """Return everything that later decisions follow from."""
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
    """Return what was decided and heard, in order; drivers come and go."""
    drivers = ("opened", "started", "concluded")
    return [(e.kind, json.dumps(e.body)) for e in events if e.kind not in drivers]


def between(events: list[RawEvent]) -> list[int]:
    """Return a place between each two kinds of event that follow one another somewhere."""
    found: dict[tuple[str, str], list[int]] = {}
    for number, (before, after) in enumerate(itertools.pairwise(events), start=1):
        found.setdefault((before.kind, after.kind), []).append(number)
    return sorted({places[4 * len(places) // 5] for places in found.values()})


@pytest.mark.medium
@pytest.mark.parametrize("name", CASES)
def test_killed_after_any_event_a_study_goes_on_as_if_it_had_not_been(name: str) -> None:
    memory = memory_of(name)
    # Where nothing is uncertain, a study converges without a replicate.
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
    for cut in between(events):
        again, resumed = memory.open(events[:cut])
        memory.drive(resumed, training)
        assert decisions(list(again.events())) == decisions(events), events[cut - 1].kind
        assert state_of(resumed) == state


@pytest.mark.medium
@pytest.mark.parametrize("name", ["adaptive", "dominated", "mo_asha"])
def test_search_lets_everybody_hear_what_it_decides_of_another_drivers_trials(name: str) -> None:
    memory = memory_of(name)
    journal, search = memory.open()
    memory.drive(search, TRAINING)
    events = list(journal.events())
    decided = set()
    for cut in between(events):
        heard: list[Entry] = []
        again, _ = memory.open(events[:cut], listener=heard.append)
        opened = cut + 1
        assert [entry.id for entry in heard] == list(range(opened + 1, again.last_id + 1))
        decided |= {entry.event.kind for entry in heard}
    assert decided >= {"told"} | (set() if name == "adaptive" else {"judged", "stopped"})


@pytest.mark.medium
@pytest.mark.parametrize("name", ["adaptive", "dominated", "mo_asha"])
def test_with_several_at_a_time_every_trial_is_there_once_whenever_a_driver_dies(name: str) -> None:
    memory, random_ = memory_of(name, slots=3), random.Random(0)
    journal, search = memory.open()
    memory.drive(search, TRAINING, pick=random_.randrange)
    events = list(journal.events())
    check_complete(events, search, ALL_RAN)
    places = between(events)
    for cut in random_.sample(places, min(8, len(places))):
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
def test_a_study_whose_drivers_die_all_the_time_comes_to_its_end(name: str) -> None:
    """Each lives for a few events."""
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
    """Trials that break, by what `fate` says of a trial."""

    lost = 0

    def fate(self, assignment: TrialSuggestion, epoch: int) -> str:
        return ""

    def step(self, search: Search, assignment: TrialSuggestion, epoch: int) -> bool:
        key, fate = assignment.key, self.fate(assignment, epoch)
        if fate == "dies":
            search.on_failure(key, "the worker process died")
            return False
        if fate in ("is lost once", "is lost each time"):
            self.lost += 1
            if fate == "is lost each time" or self.lost % 2:
                search.on_worker_lost(key, "the worker process died")
                return False
        if fate == "nan":
            return search.report(key, {"epoch": epoch, "top1": math.nan})
        goes_on = super().step(search, assignment, epoch)
        if fate == "dies after its report" and goes_on:
            search.on_failure(key, "the worker process died")
            return False
        if fate == "twice" and goes_on:
            assert search.report(key, {"epoch": epoch, "top1": self.value(assignment, epoch)})
        elif fate == "twice":
            assert not super().step(search, assignment, epoch)
        return goes_on


def run(
    search: str, training: Training, *, space: str = LISTED, slots: int = 1, **more: Any
) -> tuple[list[RawEvent], Search]:
    memory = Memory(source_of(search, space=space, epochs=training.epochs, **more), slots=slots)
    journal, found = memory.open()
    memory.drive(found, training)
    return list(journal.events()), found


class Hit(Failing):
    """Every third trial meets its fate at an epoch."""

    def __init__(self, kind: str, at: int) -> None:
        super().__init__(epochs=4, truth=uneven)
        self.kind, self.at = kind, at

    def fate(self, assignment: TrialSuggestion, epoch: int) -> str:
        is_hit = int(assignment.key.configuration_id[:2], 16) % 3 == 0
        return self.kind if is_hit and epoch == self.at else ""


@pytest.mark.medium
@pytest.mark.parametrize("at", [2, 4])
@pytest.mark.parametrize("kind", ["dies", "nan", "dies after its report", "twice"])
@pytest.mark.parametrize("name", ["dominated", "mo_asha"])
def test_whatever_befalls_a_trial_the_record_is_complete(name: str, kind: str, at: int) -> None:
    """Also where it dies at a rung, before or after it reports there."""
    memory = memory_of(name, slots=2)
    journal, search = memory.open()
    memory.drive(search, Hit(kind, at))
    events = list(journal.events())
    check_complete(events, search, search.why_ended())
    harmless = kind == "twice" or (kind == "dies after its report" and at == 4)
    assert (search.state.num_ended["failed"] == 0) == harmless
    pairs = Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "epoch")
    assert set(pairs.values()) == {1}
    assert state_of(memory.open(events)[1]) == state_of(search)


@pytest.mark.medium
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_trial_that_is_lost_once_changes_nothing(name: str, at: int) -> None:
    """With one trial at a time all is as in an undisturbed study."""
    told = {}
    for fate in ("is lost once", ""):
        memory = memory_of(name)
        journal, search = memory.open()
        memory.drive(search, Hit(fate, at))
        told[fate] = [one for one in decisions(list(journal.events())) if one[0] != "retried"]
        assert state_of(memory.open(list(journal.events()))[1]) == state_of(search)
    assert told["is lost once"] == told[""]


@pytest.mark.medium
@pytest.mark.parametrize("name", ["dominated", "mo_asha"])
def test_a_trial_that_is_lost_again_and_again_fails(name: str) -> None:
    memory = memory_of(name, slots=2)
    journal, search = memory.open()
    memory.drive(search, Hit("is lost each time", 2))
    events = list(journal.events())
    check_complete(events, search, search.why_ended())
    retried = Counter(e.body["trial"] for e in events if e.kind == "retried")
    failed = {e.body["trial"] for e in events if e.kind == "failed"}
    assert failed
    assert retried == dict.fromkeys(failed, MAX_LOSSES - 1)
    assert state_of(memory.open(events)[1]) == state_of(search)


class Broken(Failing):
    def fate(self, assignment: TrialSuggestion, epoch: int) -> str:
        return "dies" if assignment.seed == 0 else ""


@pytest.mark.parametrize("replicates", ["1", "2", "{min: 1, max: 3, fresh: 2}"])
@pytest.mark.parametrize("sampler", QUICK)
def test_where_every_first_replicate_fails_the_study_ends_without_a_front(
    sampler: str, replicates: str
) -> None:
    plan = f"sampler: {sampler}, trials: 12, replicates: {replicates}"
    events, search = run(plan, Broken(), slots=2)
    check_complete(events, search, ALL_RAN)
    assert search.known.past.measured().ids == []
    assert not [e for e in events if e.kind in ("replicated", "frozen", "concluded", "fitted")]


@pytest.mark.medium
@pytest.mark.parametrize("fresh", [0, 2])
@pytest.mark.parametrize("sampler", QUICK)
def test_where_all_accuracies_are_equal_the_cheapest_is_the_front(sampler: str, fresh: int) -> None:
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
    # SurrogateModel may differ by what is left of the prior, not by what anybody would care about.
    means = [belief["mean"] for belief in concluded["beliefs"].values()]
    assert np.ptp(means) < 1e-3


@pytest.mark.parametrize("until", ["false", "true"])
@pytest.mark.parametrize("replicates", ["1", "2", "{min: 1, max: 3}", "{min: 1, max: 3, fresh: 2}"])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_space_of_one_configuration(replicates: str, until: str, slots: int) -> None:
    plan = f"sampler: ehvi, trials: 12, replicates: {replicates}, until_converged: {until}"
    events, search = run(plan, Training(), space=ONE, slots=slots)
    check_complete(events, search, USED_UP)
    assert len(search.known.past) == 1
    # Nothing competes with it, so that more replicates would change nothing.
    first = 2 if replicates == "2" else 1
    assert search.state.num_trials == first
    assert search.state.num_ended["finished"] == first + (2 if "fresh" in replicates else 0)
    assert events[-1].body["reported"] == [search.known.past.all[0].id]
    assert events[-1].body["beliefs"][search.known.past.all[0].id]["on_front"] == 1


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("replicates", ["1", "{min: 1, max: 3}", "{min: 2, max: 4, fresh: 3}"])
@pytest.mark.parametrize("sampler", QUICK)
def test_fewer_configurations_than_trials(sampler: str, replicates: str, slots: int) -> None:
    """Under four of them: the replicates that tell them apart still come."""
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
def test_where_limits_leave_nothing_of_a_large_space_the_study_ends(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admissions, "MAX_DRAWS", 100)
    monkeypatch.setattr(candidate_pool, "NUM_DRAWN", 50)
    limit = "constraints: [{metric: parameters, max: 10}]"
    events, search = run(f"sampler: {sampler}, trials: 4", Training(), space=WIDE, more=limit)
    check_complete(events, search, USED_UP)
    assert len(search.known.past) == 0


def test_where_limits_leave_nothing_of_a_small_space_nothing_begins() -> None:
    limit = "constraints: [{metric: parameters, max: 10}]"
    with pytest.raises(StudyFileError, match="All 27 configurations are refused"):
        Memory(source_of("sampler: ehvi, trials: 4", more=limit))


def test_where_few_of_a_large_space_are_within_limits_they_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One width of many is cheap enough: the draws for a block of proposals hold few of it."""
    monkeypatch.setattr(candidate_pool, "NUM_DRAWN", 40)
    monkeypatch.setattr(candidate_pool, "DRAWN_FOR", 50)
    space = WIDE.replace("dim: 8", "dim: {kind: int, low: 8, high: 256, step: 8}")
    limit = "constraints: [{metric: parameters, max: 6000}]"
    events, search = run("sampler: ehvi, trials: 6", Training(), space=space, more=limit)
    check_complete(events, search, ALL_RAN)
    assert len(search.known.past) == 6
    assert {o.parameters["dim"] for o in search.known.past.all} == {8}


@pytest.mark.medium
def test_siblings_of_a_stopped_configuration_stop_or_are_withdrawn() -> None:
    """With two at a time one runs; with one, none has begun."""
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
def test_a_replicate_earned_before_the_first_ones_end_is_withdrawn_without_a_trace() -> None:
    """The second replicate ends first and earns a third; then the first is stopped."""
    plan = (
        "sampler: exhaustive, trials: 30, replicates: {min: 2, max: 3},"
        "early_stopping: {kind: median, min_epochs: 2}"
    )
    memory = Memory(source_of(plan, epochs=4), slots=2)
    journal, search = memory.open()
    training = Training(epochs=4, truth=gifted, sigma=0.1)
    memory.drive(search, training, pick=lambda number: number - 1)
    events = list(journal.events())
    check_complete(events, search, search.why_ended())
    earned = {k for e in events if e.kind == "replicated" for k in _keys(e.body)}
    withdrawn = {k for e in events if e.kind == "stopped" for k in e.body["withdrawn"]}
    assert earned
    assert state_of(memory.open(events)[1]) == state_of(search)
    assert withdrawn | earned


def _keys(body: dict[str, Any]) -> list[str]:
    return [f"{body['configuration_id']}-{seed}" for seed in body["seeds"]]


class FreshBroken(Failing):
    def fate(self, assignment: TrialSuggestion, epoch: int) -> str:
        return "dies" if assignment.seed > 0 else ""


@pytest.mark.medium
def test_where_what_is_reported_fails_anew_another_front_is_concluded() -> None:
    plan = "sampler: ehvi, trials: 10, replicates: {min: 1, max: 1, fresh: 1}"
    events, search = run(plan, FreshBroken(truth=uneven))
    check_complete(events, search, ALL_RAN)
    frozen = {i for e in events if e.kind == "frozen" for i in e.body["seeds"]}
    assert search.state.num_ended["failed"] == len(frozen) > 0
    assert not frozen & set(events[-1].body["reported"])


@pytest.mark.medium
def test_a_study_that_was_frozen_goes_on_and_is_frozen_anew() -> None:
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
def test_a_trial_ends_once_also_where_the_driver_breaks_in_the_middle_of_it(kind: str) -> None:
    """Who drives the search may tell it then that the trial failed; a listener breaks here."""
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
def test_the_record_of_a_study_full_of_faults_can_be_read() -> None:
    memory = memory_of("mo_asha", slots=2)
    journal, search = memory.open()
    memory.drive(search, Hit("dies", 2))
    trials = record_of(StudyState.of(journal.entries())).trials
    counts = Counter(trial.status for trial in trials)
    assert counts == Counter(
        finished=search.state.num_ended["finished"],
        failed=search.state.num_ended["failed"],
        stopped=search.state.num_ended["stopped"],
    )
