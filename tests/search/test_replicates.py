"""Choice of replicates and early stopping, in complete toy studies."""

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
    """Return the number of replicates of each width, without fresh ones."""
    return {o.parameters["dim"]: len(o.values.keys() - o.fresh) for o in search.known.past.all}


# ----------------------------------------------------------------- replicates


@pytest.mark.medium
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("replicates", ["{min: 1, max: 3}", "{min: 2, max: 5, fresh: 3}"])
def test_replicates_stay_within_their_maximum_and_the_number_of_trials(
    replicates: str, slots: int
) -> None:
    plan = f"sampler: ehvi, trials: 45, replicates: {replicates}"
    events, search = run(plan, Training(truth=uneven, sigma=0.05), slots=slots)
    least, most = (1, 3) if "min: 1" in replicates else (2, 5)
    counts = [len(o.values.keys() - o.fresh) for o in search.known.past.all]
    assert min(counts) == least
    assert least < max(counts) <= most
    assert sum(counts) == search.state.num_trials == 45
    for observed in search.known.past.all:  # consecutive, so that the folds rotate
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
def test_replicates_go_to_configurations_with_an_uncertain_front() -> None:
    """Widths 16 and 24 differ by half a point, 32 is far below both, 8 and 40 far from all."""
    truth = by_width(w8=0.5, w16=0.7, w24=0.705, w32=0.55, w40=0.9)
    plan = "sampler: ehvi, trials: 25, replicates: {min: 1, max: 12}"
    _, search = run(plan, Training(truth=truth, sigma=0.02), space=width(8, 16, 24, 32, 40))
    counts = counts_of(search)
    assert counts[16] + counts[24] >= 15
    assert min(counts[16], counts[24]) >= 4
    assert counts[32] == 1
    assert max(counts[8], counts[40]) <= 3


@pytest.mark.medium
def test_failed_and_stopped_configurations_get_no_replicates() -> None:
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
def test_rate_of_a_replicate_is_the_front_s_expected_rise_per_second() -> None:
    """Reference by quadrature over the change of one mean, on a grid of budgets."""
    plan = "sampler: random, trials: 12, replicates: {min: 2, max: 2}"
    _, search = run(plan, Training(truth=uneven, sigma=0.1, seconds=7.0), space=width(*WIDTHS))
    measured, posterior = search.known.past.measured(), search.known.surrogate.posterior()
    budgets = np.linspace(0, 1.01, 20_001)
    u = posterior.u[:, 0]

    def area(means: np.ndarray) -> float:
        """Integrate the best mean within each budget; the cheapest fits every budget."""
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
    chosen = measured.ids.index(option.configuration_id)  # two rates may be equal
    assert rates[chosen] == pytest.approx(rates.max(), rel=0.02)
    assert measured.seconds == pytest.approx(np.full(len(u), 14.0))  # two epochs of 7 s
    assert search.known.surrogate.best_replicate(2) is None


WIDTHS = (8, 16, 24, 32, 40, 48)


def test_faster_replicate_comes_first_if_its_expected_change_is_equal() -> None:
    """Times are those of the configuration's own replicates."""

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
def test_running_replicates_count_as_finished_in_the_choice_of_the_next() -> None:
    """Nine concurrent trials do not all go to one configuration."""
    truth = by_width(w8=0.5, w16=0.7, w24=0.7, w32=0.9)
    plan = "sampler: ehvi, trials: 13, replicates: {min: 1, max: 12}"
    memory = Memory(source_of(plan, space=width(8, 16, 24, 32)), slots=9)
    _, search = memory.open()
    memory.drive(search, Training(truth=truth, sigma=0.02))
    counts = counts_of(search)
    assert min(counts[16], counts[24]) >= 3


# ------------------------------------------------------------------- early stopping


DOMINATED = "early_stopping: {kind: dominated, audit_share: 0}"


@pytest.mark.medium
def test_dominated_rule_does_not_compare_cheap_trials_with_more_expensive_ones() -> None:
    """Accuracy rises with cost; the median rule ignores cost and stops cheap trials."""
    rising = Training(epochs=8, sigma=0.0005)
    events, search = run(f"sampler: random, trials: 27, {DOMINATED}", rising)
    judged = [e.body for e in events if e.kind == "judged"]
    assert search.state.num_ended["stopped"] == 0
    assert any(body["probability"] is not None for body in judged)
    median = "early_stopping: {kind: median, audit_share: 0}"
    assert run(f"sampler: random, trials: 27, {median}", rising)[1].state.num_ended["stopped"] > 5


@pytest.mark.medium
def test_dominated_rule_stops_hopeless_expensive_trials() -> None:
    """A third of the configurations end 0.3 below others of the same cost."""
    truths: dict[str, float] = {}

    def truth(assignment: TrialSuggestion) -> float:
        mean = uneven(assignment) - 0.3 * (noise(assignment.key.configuration_id) > 0.4)
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
            # A(c) is estimated from the trials finished by then, at this cost or below.
            affordable = [v for i, v in values.items() if costs[i] <= costs[identity]]
            assert body["best"] == pytest.approx(max(affordable), abs=0.02)
            assert body["threshold"] == body["best"] - 0.005
            assert len(values) >= 8
    hopeless = [o for o in search.known.past.all if o.stopped and noise(o.id) > 0.4]
    assert len(hopeless) >= 3
    assert not {o.id for o in search.known.past.all if o.stopped} & set(
        search.known.surrogate.front()
    )


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["dominated", "mo_asha", "median"])
def test_early_stopping_judges_only_first_replicates(kind: str) -> None:
    rule = f"early_stopping: {{kind: {kind}, min_epochs: 1}}"
    plan = f"sampler: random, trials: 42, replicates: 3, {rule}"
    events, _ = run(plan, Training(epochs=4, truth=uneven, sigma=0.03), slots=4)
    decided = [e.body["trial"] for e in events if e.kind == "judged"]
    decided += [e.body["trial"] for e in events if e.kind == "stopped" and "stop" in e.body]
    assert decided
    assert {key.rpartition("-")[2] for key in decided} == {"0"}


@pytest.mark.medium
def test_audits_run_on_and_estimate_how_often_stopping_is_wrong() -> None:
    def truth(assignment: TrialSuggestion) -> float:
        return uneven(assignment) - 0.3 * (noise(assignment.key.configuration_id) > 0.4)

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
def test_early_stopping_judges_the_same_epochs_for_any_number_of_slots() -> None:
    plan = "sampler: exhaustive, trials: 27, early_stopping: {kind: dominated, audit_share: 1}"
    judged = []
    for slots in (1, 5):
        events, _ = run(plan, Training(epochs=8, truth=uneven), slots=slots)
        judged.append(
            Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "judged")
        )
    assert judged[0] == judged[1]
    assert set(judged[0].values()) == {1}
    assert {epoch for _, epoch in judged[0]} == {2, 4}
    assert len(judged[0]) == len(list(itertools.product(range(27), (2, 4))))
