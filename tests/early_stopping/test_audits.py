"""Audited trials, and the rate of wrong stops against scipy's interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator.early_stopping.audits import Audit, false_stop_rate
from sftsearch.orchestrator.early_stopping.dominated import DominatedRule
from sftsearch.orchestrator.early_stopping.median import MedianRule

from learning_curves import judge, report_of, teach

if TYPE_CHECKING:
    from collections.abc import Iterable


def test_audited_trial_runs_on_and_is_not_judged_again() -> None:
    rule = DominatedRule(audit_share=1.0, delta=0.01)
    teach(rule, 20)
    low = {"value": 0.4, "group": "g", "best_affordable": 0.8}
    decision = judge(rule, report_of("a", 4, **low))
    assert (decision.stop, decision.audit, decision.threshold) == (False, True, 0.79)
    # The threshold is that of the decision, not a later one.
    later = judge(rule, report_of("a", 8, **(low | {"best_affordable": 0.95})))
    assert (later.stop, later.audit) == (False, False)
    assert rule.audits == (Audit("a", 4, decision.probability, 0.79),)
    assert false_stop_rate(rule.audits).num == 0
    rule.on_finished("a", 0.80)
    assert rule.audits[0].is_false
    assert false_stop_rate(rule.audits)[::3] == (1.0, 1)


@pytest.mark.parametrize(
    ("final", "threshold", "expected"),
    [(0.81, 0.8, True), (0.8, 0.8, False), (0.1, None, True), (None, 0.8, False)],
)
def test_audit_is_false_if_the_final_value_exceeds_the_threshold(
    final: float | None, threshold: float | None, expected: bool
) -> None:
    assert Audit("a", 4, 0.01, threshold, final).is_false == expected


def audited_of(keys: list[str], **options: float) -> list[bool]:
    """Return which of the hopeless trials a rule audits."""
    rule = MedianRule(**options)
    for n in range(5):
        judge(rule, report_of(f"good{n}", 2, 0.9))
    return [rule.decide(report_of(key, 2, 0.1)).audit for key in keys]


def test_draw_of_audits_is_uniform_and_depends_only_on_seed_and_key() -> None:
    keys = [f"configuration-{n}:0" for n in range(5000)]
    drawn = [audited_of(keys, seed=seed) for seed in (0, 1)]
    for one in drawn:
        assert stats.binomtest(sum(one), 5000, 0.1).pvalue > 0.001
    both = sum(a and b for a, b in zip(*drawn, strict=True))
    assert stats.binomtest(both, 5000, 0.01).pvalue > 0.001  # seeds are independent
    assert audited_of(keys[::-1]) == drawn[0][::-1]
    assert not any(audited_of(keys, audit_share=0))
    assert all(audited_of(keys, audit_share=1))


def audits_of(wrong: int, num: int) -> Iterable[Audit]:
    return [Audit(str(n), 4, 0.01, 0.5, 0.6 if n < wrong else 0.4) for n in range(num)]


@pytest.mark.parametrize(("wrong", "num"), [(0, 1), (1, 1), (0, 30), (3, 60), (30, 30)])
def test_false_stop_rate_has_scipy_s_interval(wrong: int, num: int) -> None:
    expected = stats.binomtest(wrong, num).proportion_ci(method="exact")
    rate = false_stop_rate(audits_of(wrong, num))
    assert rate == pytest.approx((wrong / num, expected.low, expected.high, num), abs=1e-12)


@pytest.mark.parametrize("num", [5, 20, 60])
def test_false_stop_rate_interval_covers_the_truth_at_its_level(num: int) -> None:
    """Exact coverage, summed over all outcomes."""
    intervals = [false_stop_rate(audits_of(wrong, num)) for wrong in range(num + 1)]
    for truth in np.linspace(0.01, 0.5, 50):
        covers = [interval.low <= truth <= interval.high for interval in intervals]
        assert stats.binom.pmf(np.arange(num + 1), num, truth) @ covers >= 0.95


def test_false_stop_rate_is_nan_without_audits() -> None:
    rate = false_stop_rate([])
    assert math.isnan(rate.rate)
    assert rate[1:] == (0.0, 1.0, 0)
