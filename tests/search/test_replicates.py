"""Which configuration earns another replicate, and which trial is stopped, in whole toy studies."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from toy_study import Memory, Training, noise, source_of, uneven, width

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion

    from journals import RawEvent


def run(
    search: str, training: Training, *, slots: int = 1, **more: Any
) -> tuple[list[RawEvent], Search]:
    memory = Memory(source_of(search, epochs=training.epochs, **more), slots=slots)
    journal, found = memory.open()
    memory.drive(found, training)
    return list(journal.events()), found


def by_width(**truths: float) -> Callable[[TrialSuggestion], float]:
    """Return the mean of each width: `w8=0.7`."""
    return lambda assignment: truths[f"w{assignment.parameters['dim']}"]


def counts_of(search: Search) -> dict[int, int]:
    """Return how many replicates each width had, fresh ones left out."""
    return {o.parameters["dim"]: len(o.values.keys() - o.fresh) for o in search.known.past.all}


# ----------------------------------------------------------------- replicates


@pytest.mark.medium
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("replicates", ["{min: 1, max: 3}", "{min: 2, max: 5, fresh: 3}"])
def test_no_configuration_has_more_than_the_maximum_nor_the_study_more_than_its_trials(
    replicates: str, slots: int
) -> None:
    plan = f"sampler: ehvi, trials: 45, replicates: {replicates}"
    events, search = run(plan, Training(truth=uneven, sigma=0.05), slots=slots)
    least, most = (1, 3) if "min: 1" in replicates else (2, 5)
    counts = [len(o.values.keys() - o.fresh) for o in search.known.past.all]
    assert min(counts) == least
    assert least < max(counts) <= most
    assert sum(counts) == search.state.num_trials == 45
    for observed in search.known.past.all:  # numbered in turn, so that folds are taken in turn too
        assert sorted(observed.values) == list(range(len(observed.values)))
    frozen = [e.body["seeds"] for e in events if e.kind == "frozen"]
    if "fresh" not in replicates:
        assert frozen == []
        return
    (seeds,) = frozen
    reported = events[-1].body["reported"]
    assert list(seeds) == reported
    for observed in search.known.past.all:
        assert len(observed.fresh) == (3 if observed.id in seeds else 0)
    assert search.state.num_ended["finished"] == 45 + 3 * len(reported)


@pytest.mark.medium
def test_replicates_go_where_the_front_is_hard_to_tell_and_not_to_what_is_hopeless() -> None:
    """Widths 16 and 24 are half a point apart, 32 is far below both, 8 and 40 far from all."""
    truth = by_width(w8=0.5, w16=0.7, w24=0.705, w32=0.55, w40=0.9)
    plan = "sampler: ehvi, trials: 25, replicates: {min: 1, max: 12}"
    _, search = run(plan, Training(truth=truth, sigma=0.02), space=width(8, 16, 24, 32, 40))
    counts = counts_of(search)
    assert counts[16] + counts[24] >= 15
    assert min(counts[16], counts[24]) >= 4
    assert counts[32] == 1
    assert max(counts[8], counts[40]) <= 3


@pytest.mark.medium
def test_a_configuration_that_failed_or_was_stopped_earns_none() -> None:
    class Sometimes(Training):
        def step(self, search: Search, assignment: TrialSuggestion, epoch: int) -> bool:
            if int(assignment.key.configuration_id[:2], 16) % 4 == 0:
                search.on_failure(assignment.key, "it broke")
                return False
            return super().step(search, assignment, epoch)

    plan = (
        "sampler: random, trials: 50, replicates: {min: 1, max: 4},"
        "early_stopping: {kind: mo_asha, min_epochs: 1}"
    )
    events, search = run(plan, Sometimes(epochs=4, truth=uneven, sigma=0.03), slots=2)
    ended: set[str] = set()
    num_replicated = 0
    for event in events:
        if event.kind in ("failed", "stopped"):
            ended.add(event.body["trial"].rpartition("-")[0])
        elif event.kind == "replicated":
            assert event.body["configuration_id"] not in ended
            num_replicated += 1
    assert num_replicated > 0
    assert search.state.num_ended["failed"] > 0
    assert search.state.num_ended["stopped"] > 0


@pytest.mark.medium
def test_the_rate_of_a_replicate_is_the_expected_rise_of_the_front_by_its_seconds() -> None:
    """By quadrature over the move of one mean, and over budgets on a grid."""
    plan = "sampler: random, trials: 12, replicates: {min: 2, max: 2}"
    _, search = run(plan, Training(truth=uneven, sigma=0.1, seconds=7.0), space=width(*WIDTHS))
    measured, posterior = search.known.past.measured(), search.known.surrogate.posterior()
    budgets = np.linspace(0, 1.01, 20_001)
    u = posterior.u[:, 0]

    def area(means: np.ndarray) -> float:
        """Integrate the best that each budget affords; all afford the cheapest."""
        best = np.where(u[:, None] <= budgets, means[:, None], -np.inf).max(axis=0)
        return float(best[:-1].sum() * (budgets[1] - budgets[0]))

    variance = posterior.deviations**2
    move = variance / np.sqrt(variance + posterior.sigmas**2)
    quantiles = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    rises = []
    for i in range(len(u)):
        shifts = np.eye(len(u))[i] * move[i] * quantiles[:, None]
        rises.append(np.mean([area(posterior.means + shift) for shift in shifts]))
    rates = (np.array(rises) - area(posterior.means)) / measured.seconds
    option = search.known.surrogate.best_replicate(3)
    assert option is not None
    assert option.rate == pytest.approx(rates.max(), rel=0.02)
    chosen = measured.ids.index(option.configuration_id)  # its rival's rate may be the same
    assert rates[chosen] == pytest.approx(rates.max(), rel=0.02)
    assert measured.seconds == pytest.approx(np.full(len(u), 14.0))  # two epochs of seven
    assert search.known.surrogate.best_replicate(2) is None


WIDTHS = (8, 16, 24, 32, 40, 48)


def test_of_equal_changes_the_quicker_one_comes_first() -> None:
    """Seconds are those of the configuration's own replicates."""

    class Uneven(Training):
        def step(self, search: Search, assignment: TrialSuggestion, epoch: int) -> bool:
            self.seconds = 1.0 if assignment.parameters["dim"] == 16 else 1000.0
            return super().step(search, assignment, epoch)

    truth = by_width(w8=0.5, w16=0.7, w24=0.7, w32=0.9)
    plan = "sampler: ehvi, trials: 12, replicates: {min: 1, max: 9}"
    _, search = run(plan, Uneven(truth=truth, sigma=0.02), space=width(8, 16, 24, 32))
    counts = counts_of(search)
    assert counts[16] > counts[24]


@pytest.mark.medium
def test_running_replicates_count_as_done_so_that_others_get_their_turn() -> None:
    """Nine at a time: not all of them go to one configuration."""
    truth = by_width(w8=0.5, w16=0.7, w24=0.7, w32=0.9)
    plan = "sampler: ehvi, trials: 13, replicates: {min: 1, max: 12}"
    memory = Memory(source_of(plan, space=width(8, 16, 24, 32)), slots=9)
    _, search = memory.open()
    memory.drive(search, Training(truth=truth, sigma=0.02))
    counts = counts_of(search)
    assert min(counts[16], counts[24]) >= 3


# ------------------------------------------------------------------- stopping


EXACT = Training(epochs=8, sigma=0.0005)
"""What a trial will reach is seen early."""
DOMINATED = "early_stopping: {kind: dominated, audit_share: 0}"


def scattered(configuration_id: str) -> float:
    return noise(configuration_id)


@pytest.mark.medium
def test_a_cheap_trial_is_never_stopped_because_a_dearer_one_is_better() -> None:
    """Each is better than all that cost less; the median rule, blind to cost, stops the cheap."""
    rising = Training(epochs=8, sigma=0.0005)
    events, search = run(f"sampler: random, trials: 27, {DOMINATED}", rising)
    judged = [e.body for e in events if e.kind == "judged"]
    assert search.state.num_ended["stopped"] == 0
    assert any(body["probability"] is not None for body in judged)
    blind = "early_stopping: {kind: median, audit_share: 0}"
    assert run(f"sampler: random, trials: 27, {blind}", rising)[1].state.num_ended["stopped"] > 5


@pytest.mark.medium
def test_a_dear_trial_that_is_hopeless_is_stopped() -> None:
    """A third of the configurations end 0.3 below what their cost affords elsewhere."""
    truths: dict[str, float] = {}

    def truth(assignment: TrialSuggestion) -> float:
        mean = uneven(assignment) - 0.3 * (scattered(assignment.key.configuration_id) > 0.4)
        return truths.setdefault(str(assignment.key), mean)

    training = Training(epochs=8, sigma=0.0005, truth=truth)
    events, search = run(f"sampler: random, trials: 27, {DOMINATED}", training)
    costs = {o.id: o.cost["gflops"] for o in search.known.past.all}
    values: dict[str, float] = {}
    for event in events:
        body = event.body
        if event.kind == "finished":
            values[body["trial"].rpartition("-")[0]] = body["values"]["top1"]
        elif event.kind == "stopped":
            identity = body["trial"].rpartition("-")[0]
            assert truths[body["trial"]] < body["threshold"]
            assert body["epoch"] in (2, 4)
            assert body["probability"] < 0.05
            # A(c) is believed of what had finished by then at no more than its cost.
            affordable = [v for i, v in values.items() if costs[i] <= costs[identity]]
            assert body["best"] == pytest.approx(max(affordable), abs=0.02)
            assert body["threshold"] == body["best"] - 0.005
            assert len(values) >= 8
    hopeless = [o for o in search.known.past.all if o.stopped and scattered(o.id) > 0.4]
    assert len(hopeless) >= 3
    assert not {o.id for o in search.known.past.all if o.stopped} & set(
        search.known.surrogate.front()
    )


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["dominated", "mo_asha", "median"])
def test_only_the_first_replicate_is_judged(kind: str) -> None:
    rule = f"early_stopping: {{kind: {kind}, min_epochs: 1}}"
    plan = f"sampler: random, trials: 42, replicates: 3, {rule}"
    events, _ = run(plan, Training(epochs=4, truth=uneven, sigma=0.03), slots=4)
    decided = [e.body["trial"] for e in events if e.kind == "judged"]
    decided += [e.body["trial"] for e in events if e.kind == "stopped" and "stop" in e.body]
    assert decided
    assert {key.rpartition("-")[2] for key in decided} == {"0"}


@pytest.mark.medium
def test_one_decided_stop_in_ten_runs_on_and_tells_how_often_stopping_is_wrong() -> None:
    def truth(assignment: TrialSuggestion) -> float:
        return uneven(assignment) - 0.3 * (scattered(assignment.key.configuration_id) > 0.4)

    training = Training(epochs=8, sigma=0.0005, truth=truth)
    plan = "sampler: random, trials: 27, early_stopping: {kind: dominated, audit_share: 1}"
    events, search = run(plan, training)
    audited = [e.body["trial"] for e in events if e.kind == "judged" and e.body["audit"]]
    assert search.state.num_ended["stopped"] == 0
    assert len(audited) == len(set(audited)) >= 3
    assert events[-1].body["audits"]["num"] == len(audited)
    assert events[-1].body["audits"]["rate"] == 0
    some = run(plan.replace("audit_share: 1", "audit_share: 0.5"), training)[1]
    assert some.state.num_ended["stopped"] > 0
    assert some.known.rule.audits


@pytest.mark.medium
def test_rungs_meet_in_the_order_of_the_clock_whatever_the_number_of_slots() -> None:
    """More at a time only means that less is known: the rule hears of the same epochs."""
    plan = "sampler: exhaustive, trials: 27, early_stopping: {kind: dominated, audit_share: 1}"
    heard = []
    for slots in (1, 5):
        events, _ = run(plan, Training(epochs=8, truth=uneven), slots=slots)
        heard.append(
            Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "judged")
        )
    assert heard[0] == heard[1]
    assert set(heard[0].values()) == {1}
    assert {epoch for _, epoch in heard[0]} == {2, 4}
    assert len(heard[0]) == len(list(itertools.product(range(27), (2, 4))))
