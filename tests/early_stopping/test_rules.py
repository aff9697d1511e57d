"""Stopping rules against scipy's regression, enumeration, and curves whose end is known."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.early_stopping import base
from sftsearch.orchestrator.early_stopping.base import (
    RULES,
    Audit,
    Decision,
    FrontRule,
    Fronts,
    Line,
    MedianRule,
    MOASHARule,
    Report,
    false_stop_rate,
    farthest_first,
    rungs,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from numpy.typing import NDArray

    from sftsearch.orchestrator.early_stopping.base import Rule

EPOCHS = 16


def report_of(key: str, epoch: int, value: float, cost: float = 1.0, **more: Any) -> Report:
    bounds = {"cost_low": cost, "cost_high": cost, "epochs": EPOCHS}
    return Report(key=key, epoch=epoch, value=value, **(bounds | more))


# --------------------------------------------------------------------- rungs


@pytest.mark.parametrize(
    ("epochs", "warmup", "min_epochs", "factor", "expected"),
    [
        (16, 0, 2, 2.0, (2, 4, 8)),  # the last epoch is none
        (17, 0, 2, 2.0, (2, 4, 8, 16)),
        (12, 5, 2, 2.0, (8,)),  # two epochs after the warm-up is 7
        (12, 6, 2, 2.0, (8,)),
        (12, 7, 2, 2.0, ()),
        (100, 0, 1, 3.0, (1, 3, 9, 27, 81)),
        (8, 0, 1, 1.2, (1, 2, 3, 4, 5, 6, 7)),  # rounded, without repeats
        (2, 0, 2, 2.0, ()),
        (1, 0, 1, 2.0, ()),
    ],
)
def test_rungs_are_a_geometric_series_after_the_warm_up(
    epochs: int, warmup: int, min_epochs: int, factor: float, expected: tuple[int, ...]
) -> None:
    assert rungs(epochs, warmup, min_epochs, factor) == expected


# ---------------------------------------------------------------- regression


@pytest.mark.parametrize("num", [3, 8, 50])
def test_the_line_agrees_with_least_squares(num: int) -> None:
    """Against numpy's least squares, and the predictive variance from its hat matrix."""
    generator = np.random.default_rng(num)
    x = generator.normal(0.7, 0.1, num)
    y = 0.2 + 0.8 * x + generator.normal(0, 0.02, num)
    line = Line()
    for pair in zip(x, y, strict=True):
        line.add(*pair)
    design = np.column_stack([np.ones(num), x])
    coefficients, residual, _, _ = np.linalg.lstsq(design, y, rcond=None)
    for new in (0.3, 0.7, 1.2):
        row = np.array([1.0, new])
        leverage = row @ np.linalg.inv(design.T @ design) @ row
        scale = math.sqrt(residual[0] / (num - 2) * (1 + leverage))
        prediction = line.predict(new)
        assert prediction is not None
        assert prediction == pytest.approx((row @ coefficients, scale, num - 2), rel=1e-9)
        expected = stats.t(num - 2, row @ coefficients, scale).sf(0.75)
        assert prediction.above(0.75) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_line_does_not_cancel_far_from_zero() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0])
    near, far = Line(), Line()
    for a, b in zip(x, y, strict=True):
        near.add(a, b)
        far.add(a + 1e8, b + 1e8)
    one, other = near.predict(4.0), far.predict(4.0 + 1e8)
    assert one is not None
    assert other is not None
    assert other.scale == pytest.approx(one.scale, rel=1e-6)
    assert other.mean - 1e8 == pytest.approx(one.mean, abs=1e-6)


def test_a_line_needs_three_points_and_two_places() -> None:
    line = Line()
    for _ in range(9):
        line.add(0.3, 0.6)
    assert line.predict(0.3) is None
    line = Line()
    line.add(0.0, 0.0)
    line.add(1.0, 1.0)
    assert line.predict(0.5) is None


def test_trials_on_a_line_leave_no_doubt() -> None:
    line = Line()
    for x in range(8):
        line.add(float(x), 2.0 * x)
    prediction = line.predict(10.0)
    assert prediction is not None
    assert prediction.scale == 0.0
    assert [prediction.above(at) for at in (19.0, 20.0, 21.0)] == [1.0, 1.0, 0.0]


def test_five_percent_of_eight_points_is_five_percent() -> None:
    """The error over its scale has Student's distribution exactly; a normal one promises too much.

    At the value that a prediction exceeds with 95 %, the share below is 5 % over fits.
    """
    generator = np.random.default_rng(0)
    num_fits, below, below_normal = 6000, 0, 0
    x = generator.normal(size=(num_fits, 9))
    y = 1 + 2 * x + generator.normal(size=(num_fits, 9))
    quantile, normal = stats.t.ppf(0.05, 6), stats.norm.ppf(0.05)
    for fit in range(num_fits):
        line = Line()
        for n in range(8):
            line.add(x[fit, n], y[fit, n])
        prediction = line.predict(x[fit, 8])
        assert prediction is not None
        below += y[fit, 8] < prediction.mean + quantile * prediction.scale
        below_normal += y[fit, 8] < prediction.mean + normal * prediction.scale
    error = math.sqrt(0.05 * 0.95 / num_fits)
    assert below / num_fits == pytest.approx(0.05, abs=4 * error)
    assert below_normal / num_fits == pytest.approx(stats.t.cdf(normal, 6), abs=5 * error)  # 7.6 %


# --------------------------------------------------------------------- front


def teach(rule: Rule, num: int, group: Hashable = "g", seed: int = 0) -> None:
    """Finish trials of which the value at rung 4 is 0.1 below the final one, with noise."""
    generator = np.random.default_rng(seed)
    for n in range(num):
        final = generator.uniform(0.6, 0.9)
        key = f"{group}{n}"
        rule.decide(report_of(key, 4, final - 0.1 + generator.normal(0, 0.01), group=group))
        rule.finished(key, final)


def test_the_front_rule_stops_by_the_probability_of_its_fit() -> None:
    rule = FrontRule(audit_share=0, delta=0.005)
    generator = np.random.default_rng(1)
    finals = generator.uniform(0.6, 0.9, 12)
    early = finals - 0.1 + generator.normal(0, 0.02, 12)
    for n in range(12):
        rule.decide(report_of(f"t{n}", 4, early[n], group="g"))
        rule.finished(f"t{n}", finals[n])
    fit = stats.linregress(early, finals)
    spread = math.sqrt(np.sum((finals - fit.intercept - fit.slope * early) ** 2) / 10)
    outcomes = set()
    for n, value in enumerate(np.linspace(0.5, 0.8, 31)):
        leverage = 1 / 12 + (value - early.mean()) ** 2 / np.sum((early - early.mean()) ** 2)
        scale = spread * math.sqrt(1 + leverage)
        expected = stats.t(10, fit.intercept + fit.slope * value, scale).sf(0.80 - 0.005)
        report = report_of(f"new{n}", 4, value, group="g", best_affordable=0.80)
        decision = rule.decide(report)
        assert decision.probability == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert decision.threshold == pytest.approx(0.795)
        assert decision.stop == (expected < 0.05)
        outcomes.add(decision.stop)
    assert outcomes == {True, False}


@pytest.mark.parametrize("num", [0, 7, 8])
def test_the_front_rule_waits_for_eight_of_the_group(num: int) -> None:
    rule = FrontRule(audit_share=0)
    teach(rule, 30, group="other")
    teach(rule, num)
    hopeless = {"epoch": 4, "value": 0.1, "best_affordable": 0.9}
    assert rule.decide(report_of("a", group="g", **hopeless)).stop == (num >= 8)
    # A value at epoch 4 of 17 tells nothing about one at epoch 4 of 16, nor does another rung.
    assert not rule.decide(report_of("b", group="g", **(hopeless | {"epochs": 17}))).stop
    assert not rule.decide(report_of("c", group="g", **(hopeless | {"epoch": 8}))).stop
    assert not rule.decide(report_of("d", group="g", **(hopeless | {"epoch": 5}))).stop


def test_unfinished_trials_teach_nothing() -> None:
    rule = FrontRule(audit_share=0)
    teach(rule, 7)
    for n in range(20):
        rule.decide(report_of(f"x{n}", 4, 0.3 + 0.01 * n, group="g"))
        rule.stopped(f"x{n}")
        rule.finished(f"x{n}", 0.5)  # too late
    rule.decide(report_of("nan", 4, 0.7, group="g"))
    rule.finished("nan", math.nan)
    assert not rule.decide(report_of("a", 4, 0.1, group="g", best_affordable=0.9)).stop


def test_nothing_affordable_means_no_stop() -> None:
    rule = FrontRule(audit_share=0)
    teach(rule, 20)
    assert rule.decide(report_of("a", 4, 0.1, group="g")) == Decision(stop=False)


def test_a_second_report_of_a_rung_does_not_count() -> None:
    rule = FrontRule(audit_share=0)
    teach(rule, 20)
    assert not rule.decide(report_of("a", 4, 0.8, group="g", best_affordable=0.8)).stop
    assert not rule.decide(report_of("a", 4, 0.1, group="g", best_affordable=0.8)).stop
    assert not rule.decide(report_of("b", 4, math.nan, group="g", best_affordable=0.8)).stop
    assert rule.decide(report_of("b", 4, 0.1, group="g", best_affordable=0.8)).stop


# -------------------------------------------------- a study of known curves


class Study:
    """Trials in waves on a rule, as a search drives it; A(c) is the best value finished.

    A trial's values approach its final one as 1 - epoch / EPOCHS, with noise; dearer is better.
    """

    def __init__(self, rule: Rule, seed: int, *, noise: float = 0.02) -> None:
        self.rule, self.noise = rule, noise
        self.generator = np.random.default_rng(seed)
        self.done: list[tuple[float, float]] = []
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.decisions: list[Decision] = []
        self.stops: list[tuple[Report, Decision, float]] = []
        """Each stop that was decided, carried out or not, with the true final value."""

    def affordable(self, cost_low: float) -> float | None:
        return max((value for cost, value in self.done if cost <= cost_low), default=None)

    def run(self, num_waves: int, width: int = 4, *, shuffle: int | None = None) -> None:
        for wave in range(num_waves):
            trials = [self.draw(f"{wave}-{n}") for n in range(width)]
            order = np.random.default_rng(shuffle).permutation(width) if shuffle else range(width)
            alive = [trials[n] for n in order]
            for epoch in range(1, EPOCHS + 1):
                alive = [trial for trial in alive if self.goes_on(epoch, trial)]
            for key, group, cost, curve in sorted(alive, key=lambda trial: trial[0]):
                del group
                self.call("finished", key, curve[-1])
                self.done.append((1.1 * cost, curve[-1]))

    def draw(self, key: str) -> tuple[str, str, float, NDArray[np.float64]]:
        group = f"g{self.generator.integers(2)}"
        cost = float(np.exp(self.generator.uniform(0, 3)))
        final = 0.6 + 0.05 * math.log(cost) + self.generator.normal(0, 0.06)
        left = 1 - np.arange(1, EPOCHS + 1) / EPOCHS
        gap = 0.3 if group == "g0" else 0.1
        noise = self.noise * self.generator.normal(size=EPOCHS)
        return key, group, cost, final - gap * left + noise * (left > 0)

    def goes_on(self, epoch: int, trial: tuple[str, str, float, NDArray[np.float64]]) -> bool:
        key, group, cost, curve = trial
        report = Report(
            key=key,
            epoch=epoch,
            value=float(curve[epoch - 1]),
            cost_low=0.9 * cost,
            cost_high=1.1 * cost,
            group=group,
            epochs=EPOCHS,
            best_affordable=self.affordable(0.9 * cost),
        )
        decision = self.call("decide", report)
        self.decisions.append(decision)
        if decision.stop or decision.audit:
            self.stops.append((report, decision, float(curve[-1])))
        if decision.stop:
            self.call("stopped", key)
        return not decision.stop

    def call(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, arguments))
        return getattr(self.rule, name)(*arguments)


@pytest.mark.medium
def test_false_stops_are_as_rare_as_they_are_said_to_be() -> None:
    """With every stop audited, predictions are calibrated: as many exceed as were promised."""
    stops = []
    for seed in range(4):
        study = Study(FrontRule(audit_share=1.0, seed=seed), seed)
        study.run(80)
        stops += study.stops
        rate = false_stop_rate(study.rule.audits)
        false = [final > decision.threshold for _, decision, final in study.stops]
        assert (rate.num, rate.rate) == (len(false), pytest.approx(np.mean(false)))
        assert rate.low <= 0.05
    assert len(stops) > 400
    promised = [decision.probability for _, decision, _ in stops]
    wrong = [final > decision.threshold for _, decision, final in stops]
    assert max(promised) < 0.05
    error = math.sqrt(np.mean(promised) / len(stops))  # of a rare event's share
    assert np.mean(wrong) == pytest.approx(np.mean(promised), abs=3 * error)


def test_stopping_spares_training_and_keeps_false_stops_under_five_percent() -> None:
    """Carried out, stops remove trials from the fits; false ones must remain rare."""
    stops, num_epochs, num_trials = [], 0, 0
    for seed in range(4):
        study = Study(FrontRule(audit_share=0.1, seed=seed), 100 + seed)
        study.run(80)
        stops += study.stops
        num_epochs += len(study.decisions)
        num_trials += 320
    wrong = sum(final > decision.threshold for _, decision, final in stops)
    assert stats.binomtest(wrong, len(stops)).proportion_ci().high < 0.05
    assert num_epochs < 0.75 * num_trials * EPOCHS
    audited = sum(decision.audit for _, decision, _ in stops)
    assert stats.binomtest(audited, len(stops), 0.1).pvalue > 0.001


@pytest.mark.parametrize("name", ["front", "mo_asha", "median", "none"])
def test_told_the_same_again_a_rule_decides_the_same(name: str) -> None:
    study = Study(RULES[name](seed=3), seed=7)
    study.run(40)
    again = RULES[name](seed=3)
    results = [getattr(again, call)(*arguments) for call, arguments in study.calls]
    assert [result for result in results if result is not None] == study.decisions
    assert again == study.rule
    assert again.audits == study.rule.audits
    assert bool(study.stops) == (name != "none")


def test_no_stop_below_every_finished_cost() -> None:
    """Nor while a group has fewer than eight finished trials; each with a look at all stops."""
    study = Study(FrontRule(audit_share=0.5), seed=11)
    study.run(60)
    finished: dict[str, int] = {}
    lowest, groups = math.inf, {}
    decisions = iter(study.decisions)
    for call, arguments in study.calls:
        if call == "finished":
            report = groups[arguments[0]]
            finished[report.group] = finished.get(report.group, 0) + 1
            lowest = min(lowest, report.cost_high)
        elif call == "decide":
            report, decision = arguments[0], next(decisions)
            groups[report.key] = report
            if decision.stop or decision.audit:
                assert report.cost_low >= lowest
                assert finished[report.group] >= 8
    assert study.stops


def test_the_order_of_simultaneous_reports_does_not_matter_to_the_front_rule() -> None:
    """Trials of a wave report each epoch in another order: the same are stopped and audited."""
    outcomes = []
    for shuffle in (None, 1, 2):
        study = Study(FrontRule(seed=5), seed=13)
        study.run(50, width=8, shuffle=shuffle)
        outcomes.append({(r.key, r.epoch, decision) for r, decision, _ in study.stops})
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(outcomes[0]) > 50


# -------------------------------------------------------------------- audits


def test_an_audited_trial_runs_on_and_is_not_judged_again() -> None:
    rule = FrontRule(audit_share=1.0, delta=0.01)
    teach(rule, 20)
    low = {"value": 0.4, "group": "g", "best_affordable": 0.8}
    decision = rule.decide(report_of("a", 4, **low))
    assert (decision.stop, decision.audit, decision.threshold) == (False, True, 0.79)
    # The threshold is that of the decision, not a later one.
    later = rule.decide(report_of("a", 8, **(low | {"best_affordable": 0.95})))
    assert (later.stop, later.audit) == (False, False)
    assert rule.audits == (Audit("a", 4, decision.probability, 0.79),)
    assert false_stop_rate(rule.audits).num == 0
    rule.finished("a", 0.80)
    assert rule.audits[0].is_false
    assert false_stop_rate(rule.audits)[::3] == (1.0, 1)


@pytest.mark.parametrize(
    ("final", "threshold", "expected"),
    [(0.81, 0.8, True), (0.8, 0.8, False), (0.1, None, True), (None, 0.8, False)],
)
def test_a_stop_is_false_if_the_final_value_exceeds_the_threshold(
    final: float | None, threshold: float | None, expected: bool
) -> None:
    assert Audit("a", 4, 0.01, threshold, final).is_false == expected


def test_the_draw_of_audits_is_uniform_and_of_the_key_alone() -> None:
    keys = [f"configuration-{n}:0" for n in range(5000)]
    share = {seed: [RULES["front"](seed=seed)._is_audited(key) for key in keys] for seed in (0, 1)}
    for drawn in share.values():
        assert stats.binomtest(sum(drawn), 5000, 0.1).pvalue > 0.001
    both = sum(a and b for a, b in zip(share[0], share[1], strict=True))
    assert stats.binomtest(both, 5000, 0.01).pvalue > 0.001  # seeds are independent
    assert not any(RULES["front"](audit_share=0)._is_audited(key) for key in keys)
    assert all(RULES["front"](audit_share=1)._is_audited(key) for key in keys)


def audits_of(wrong: int, num: int) -> Iterable[Audit]:
    return [Audit(str(n), 4, 0.01, 0.5, 0.6 if n < wrong else 0.4) for n in range(num)]


@pytest.mark.parametrize(("wrong", "num"), [(0, 1), (1, 1), (0, 30), (3, 60), (30, 30)])
def test_the_interval_agrees_with_scipy(wrong: int, num: int) -> None:
    expected = stats.binomtest(wrong, num).proportion_ci(method="exact")
    rate = false_stop_rate(audits_of(wrong, num))
    assert rate == pytest.approx((wrong / num, expected.low, expected.high, num), abs=1e-12)


@pytest.mark.parametrize("num", [5, 20, 60])
def test_the_interval_holds_the_truth_at_its_level(num: int) -> None:
    """Its exact coverage, summed over all outcomes."""
    intervals = [false_stop_rate(audits_of(wrong, num)) for wrong in range(num + 1)]
    for truth in np.linspace(0.01, 0.5, 50):
        held = [interval.low <= truth <= interval.high for interval in intervals]
        assert stats.binom.pmf(np.arange(num + 1), num, truth) @ held >= 0.95


def test_without_audits_the_rate_is_unknown() -> None:
    rate = false_stop_rate([])
    assert math.isnan(rate.rate)
    assert rate[1:] == (0.0, 1.0, 0)


# ------------------------------------------------------------------- MO-ASHA


def ranks_by_definition(points: list[tuple[float, float]]) -> list[int]:
    """Peel off the points that none of the rest dominates, again and again."""
    ranks = [-1] * len(points)
    for rank in range(len(points)):
        rest = [i for i, known in enumerate(ranks) if known < 0]
        for i in rest:
            cost, value = points[i]
            beaten = any(
                c <= cost and v >= value and (c, v) != (cost, value)
                for c, v in (points[j] for j in rest)
            )
            if not beaten:
                ranks[i] = rank
    return ranks


def points_of(kind: str, num: int, seed: int) -> list[tuple[float, float]]:
    generator = np.random.default_rng(seed)
    cost, value = generator.random(num), generator.random(num)
    if kind == "ties":
        cost, value = np.floor(cost * 6), np.floor(value * 6)
    elif kind == "chain":
        value = -cost
    elif kind == "front":
        value = cost
    return list(zip(cost.tolist(), value.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["random", "ties", "chain", "front"])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_agree_with_their_definition(kind: str, seed: int) -> None:
    """After each insertion, and for a point that is only asked about."""
    fronts = Fronts()
    points = points_of(kind, 60, seed)
    for n, point in enumerate(points):
        expected = ranks_by_definition(points[: n + 1])
        assert fronts.rank(point) == expected[-1]
        fronts.add(point)
        layers: list[list[tuple[float, float]]] = [[] for _ in range(max(expected) + 1)]
        for known, rank in zip(points, expected, strict=False):
            layers[rank].append(known)
        assert fronts.fronts == [sorted(layer) for layer in layers]


def farthest_by_definition(points: NDArray[np.float64]) -> list[int]:
    order = [max(range(len(points)), key=lambda i: points[i][0])]
    while len(order) < len(points):
        rest = [i for i in range(len(points)) if i not in order]
        order.append(max(rest, key=lambda i: min(math.dist(points[i], points[j]) for j in order)))
    return order


@pytest.mark.parametrize("seed", range(5))
def test_the_net_takes_the_farthest_point_next(seed: int) -> None:
    points = np.random.default_rng(seed).random((25, 2))
    points[7] = points[3]  # equal points come last
    order = farthest_first(points, 25)
    assert order == farthest_by_definition(points)
    assert order[-1] == 7
    assert farthest_first(points, 9) == order[:9]


def among_by_definition(known: list[tuple[float, float]], new: tuple[float, float]) -> list[int]:
    """Return the whole order, best first, of the known points and the new one, the last index."""
    points = [*known, new]
    ranks = ranks_by_definition(points)
    table = np.array([[value, math.log(cost)] for cost, value in points])
    table = (table - table.min(axis=0)) / np.ptp(table, axis=0)
    order: list[int] = []
    for rank in range(max(ranks) + 1):
        front = sorted((i for i in range(len(points)) if ranks[i] == rank), key=lambda i: points[i])
        order += [front[i] for i in farthest_by_definition(table[front])]
    return order


@pytest.mark.parametrize("kind", ["random", "front"])
def test_among_the_best_agrees_with_the_whole_order(kind: str) -> None:
    points = [(cost + 0.01, value) for cost, value in points_of(kind, 40, 3)]
    fronts = Fronts()
    for point in points:
        fronts.add(point)
    for new in [(cost + 0.01, value) for cost, value in points_of("random", 12, 4)]:
        place = among_by_definition(points, new).index(40)
        assert [fronts.is_among(new, count) for count in range(1, 42)] == [
            place < count for count in range(1, 42)
        ]


def test_a_front_too_long_to_order_is_thinned_evenly() -> None:
    """Of 1,000 points of one front the best half is asked for: about half of them is kept."""
    points = points_of("front", 1000, 5)
    assert len(points) > 4 * base.MAX_SPREAD
    fronts = Fronts()
    for point in points[:-200]:
        fronts.add(point)
    kept = sum(fronts.is_among(point, 401) for point in points[-200:])
    assert 70 <= kept <= 130
    assert len(fronts.fronts) == 1


@pytest.mark.parametrize("seed", range(4))
def test_mo_asha_keeps_who_dominates_all_and_one_in_eta(seed: int) -> None:
    rule = MOASHARule(audit_share=0, reduction_factor=3)
    points = points_of("random", 300, seed)
    stops = [
        rule.decide(report_of(f"t{n}", 2, value, cost)).stop
        for n, (cost, value) in enumerate(points)
    ]
    assert not stops[0]  # the first at a rung has no rival
    assert np.mean(stops) == pytest.approx(2 / 3, abs=0.1)
    cheap_and_good = report_of("best", 2, 1.1, 1e-6)
    assert not rule.decide(cheap_and_good).stop
    assert rule.decide(report_of("worst", 2, -0.1, 2.0)).stop


def test_mo_asha_counts_each_rung_by_itself() -> None:
    rule = MOASHARule(audit_share=0)
    rule.decide(report_of("good", 2, 0.9))
    assert rule.decide(report_of("bad", 2, 0.5)).stop
    assert not rule.decide(report_of("bad", 4, 0.5)).stop


def test_a_trial_is_judged_by_its_lower_and_rivals_by_their_upper_cost() -> None:
    """Of two equal gated models the dearer may be the cheaper one: it is not dominated."""
    rule = MOASHARule(audit_share=0, reduction_factor=1000)  # one goes on
    assert not rule.decide(report_of("a", 2, 0.8, cost_low=1.0, cost_high=3.0)).stop
    assert not rule.decide(report_of("b", 2, 0.8, cost_low=2.0, cost_high=4.0)).stop
    assert rule.decide(report_of("c", 2, 0.8, cost=3.5)).stop


# -------------------------------------------------------------------- median


def test_the_median_rule_compares_with_the_values_so_far() -> None:
    rule = MedianRule(audit_share=0)
    generator = np.random.default_rng(0)
    values = generator.integers(0, 12, 60) / 12  # many equals
    for n, value in enumerate(values):
        expected = n >= 5 and value < statistics.median(values[:n])
        assert rule.decide(report_of(f"t{n}", 2, value)).stop == expected


def test_the_median_rule_is_blind_to_cost() -> None:
    rule = MedianRule(audit_share=0)
    for n in range(5):
        rule.decide(report_of(f"t{n}", 2, 0.8, cost=100.0))
    assert rule.decide(report_of("cheap", 2, 0.7, cost=1.0)).stop


# --------------------------------------------------------- options and speed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("front", {"delta": -0.1}),
        ("front", {"audit_share": 1.5}),
        ("front", {"min_probability": 0.0}),
        ("front", {"min_finished": 2}),
        ("median", {"min_values": 0}),
        ("mo_asha", {"reduction_factor": 1.0}),
        ("none", {"min_epochs": 0}),
        ("none", {"delta": math.nan}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(options))}` of a stopping rule must be"):
        RULES[name](**options)


@pytest.mark.parametrize("name", sorted(RULES))
def test_no_rule_stops_the_first_trial(name: str) -> None:
    """A study of one trial: every epoch reported, twice, and one that is not a number."""
    rule = RULES[name]()
    for epoch, value in itertools.product(range(1, EPOCHS + 1), (math.nan, 0.1, 0.1)):
        decision = rule.decide(report_of("only", epoch, value))
        assert (decision.stop, decision.audit) == (False, False)
    rule.finished("only", 0.1)
    rule.finished("only", 0.1)
    assert rule.audits == ()


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_decision_takes_under_a_millisecond_after_many_trials(name: str) -> None:
    rule = RULES[name](audit_share=0)
    generator = np.random.default_rng(0)
    cost = np.exp(generator.uniform(0, 4, 3000))
    value = 0.6 + 0.05 * np.log(cost) + generator.normal(0, 0.05, 3000)
    seconds = []
    for n in range(3000):
        report = report_of(f"t{n}", 4, value[n], cost[n], best_affordable=0.8)
        started = time.perf_counter()
        rule.decide(report)
        seconds.append(time.perf_counter() - started)
        rule.finished(f"t{n}", value[n] + 0.1)
    assert statistics.median(seconds[-300:]) < 1e-3
