"""The rule `dominated` against scipy's regression, and on curves with known final values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator.early_stopping.audits import false_stop_rate
from sftsearch.orchestrator.early_stopping.base import Decision
from sftsearch.orchestrator.early_stopping.dominated import DominatedRule

from learning_curves import EPOCHS, CurveStudy, judge, report_of, teach


def test_dominated_rule_stops_by_the_probability_of_its_fit() -> None:
    rule = DominatedRule(audit_share=0, delta=0.005)
    generator = np.random.default_rng(1)
    finals = generator.uniform(0.6, 0.9, 12)
    early = finals - 0.1 + generator.normal(0, 0.02, 12)
    for n in range(12):
        judge(rule, report_of(f"t{n}", 4, early[n], group="g"))
        rule.on_finished(f"t{n}", finals[n])
    fit = stats.linregress(early, finals)
    spread = math.sqrt(np.sum((finals - fit.intercept - fit.slope * early) ** 2) / 10)
    outcomes = set()
    for n, value in enumerate(np.linspace(0.5, 0.8, 31)):
        leverage = 1 / 12 + (value - early.mean()) ** 2 / np.sum((early - early.mean()) ** 2)
        scale = spread * math.sqrt(1 + leverage)
        expected = stats.t(10, fit.intercept + fit.slope * value, scale).sf(0.80 - 0.005)
        report = report_of(f"new{n}", 4, value, group="g", best_affordable=0.80)
        decision = judge(rule, report)
        assert decision.probability == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert decision.threshold == pytest.approx(0.795)
        assert decision.stop == (expected < 0.05)
        outcomes.add(decision.stop)
    assert outcomes == {True, False}


@pytest.mark.parametrize("num", [0, 7, 8])
def test_dominated_rule_needs_eight_finished_trials_of_the_group(num: int) -> None:
    rule = DominatedRule(audit_share=0)
    teach(rule, 30, group="other")
    teach(rule, num)
    hopeless = {"epoch": 4, "value": 0.1, "best_affordable": 0.9}
    assert judge(rule, report_of("a", group="g", **hopeless)).stop == (num >= 8)
    # Trials with another number of epochs, and other rungs, do not count.
    assert not judge(rule, report_of("b", group="g", **(hopeless | {"epochs": 17}))).stop
    assert not judge(rule, report_of("c", group="g", **(hopeless | {"epoch": 8}))).stop
    assert not judge(rule, report_of("d", group="g", **(hopeless | {"epoch": 5}))).stop


def test_dominated_rule_learns_nothing_from_unfinished_trials() -> None:
    rule = DominatedRule(audit_share=0)
    teach(rule, 7)
    for n in range(20):
        judge(rule, report_of(f"x{n}", 4, 0.3 + 0.01 * n, group="g"))
        rule.on_stopped(f"x{n}")
        rule.on_finished(f"x{n}", 0.5)  # too late
    judge(rule, report_of("nan", 4, 0.7, group="g"))
    rule.on_finished("nan", math.nan)
    assert not judge(rule, report_of("a", 4, 0.1, group="g", best_affordable=0.9)).stop


def test_dominated_rule_stops_nothing_without_a_finished_trial_of_its_cost() -> None:
    rule = DominatedRule(audit_share=0)
    teach(rule, 20)
    assert judge(rule, report_of("a", 4, 0.1, group="g")) == Decision(stop=False)


def test_dominated_rule_counts_only_the_first_report_of_a_rung() -> None:
    rule = DominatedRule(audit_share=0)
    teach(rule, 20)
    assert not judge(rule, report_of("a", 4, 0.8, group="g", best_affordable=0.8)).stop
    assert not judge(rule, report_of("a", 4, 0.1, group="g", best_affordable=0.8)).stop
    assert not judge(rule, report_of("b", 4, math.nan, group="g", best_affordable=0.8)).stop
    assert judge(rule, report_of("b", 4, 0.1, group="g", best_affordable=0.8)).stop


def test_dominated_rule_predictions_are_calibrated() -> None:
    """With every stop audited, the share of wrong stops equals the mean predicted probability."""
    stops = []
    for seed in range(4):
        study = CurveStudy(DominatedRule(audit_share=1.0, seed=seed), seed)
        study.run(80)
        stops += study.stops
        rate = false_stop_rate(study.rule.audits)
        false = [final > decision.threshold for _, decision, final in study.stops]
        assert (rate.num, rate.rate) == (len(false), pytest.approx(np.mean(false)))
        assert rate.low <= 0.05
    assert len(stops) > 400
    predicted = [decision.probability for _, decision, _ in stops]
    wrong = [final > decision.threshold for _, decision, final in stops]
    assert max(predicted) < 0.05
    error = math.sqrt(np.mean(predicted) / len(stops))  # of the share of a rare event
    assert np.mean(wrong) == pytest.approx(np.mean(predicted), abs=3 * error)


@pytest.mark.medium
def test_dominated_rule_saves_epochs_with_under_five_percent_false_stops() -> None:
    """Stops that are carried out remove trials from the fits; false stops must stay rare."""
    stops, num_epochs, num_trials = [], 0, 0
    for seed in range(4):
        study = CurveStudy(DominatedRule(audit_share=0.1, seed=seed), 100 + seed)
        study.run(80)
        stops += study.stops
        num_epochs += len(study.decisions)
        num_trials += 320
    wrong = sum(final > decision.threshold for _, decision, final in stops)
    assert stats.binomtest(wrong, len(stops)).proportion_ci().high < 0.05
    assert num_epochs < 0.75 * num_trials * EPOCHS
    audited = sum(decision.audit for _, decision, _ in stops)
    assert stats.binomtest(audited, len(stops), 0.1).pvalue > 0.001


def test_dominated_rule_stops_no_trial_cheaper_than_all_finished_ones() -> None:
    """Nor any while its group has fewer than eight finished trials; checked for every stop."""
    study = CurveStudy(DominatedRule(audit_share=0.5), seed=11)
    study.run(60)
    finished: dict[str, int] = {}
    lowest, groups = math.inf, {}
    decisions = iter(study.decisions)
    for call, arguments in study.calls:
        if call == "on_finished":
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


def test_dominated_rule_ignores_the_order_of_simultaneous_reports() -> None:
    """If the trials of a wave report in another order, the same are stopped and audited."""
    outcomes = []
    for shuffle in (None, 1, 2):
        study = CurveStudy(DominatedRule(seed=5), seed=13)
        study.run(50, width=8, shuffle=shuffle)
        outcomes.append({(r.key, r.epoch, decision) for r, decision, _ in study.stops})
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(outcomes[0]) > 50
