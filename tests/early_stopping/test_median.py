"""The median rule against the standard library's median."""

from __future__ import annotations

import statistics

import numpy as np

from sftsearch.orchestrator.early_stopping.median import MedianRule

from learning_curves import judge, report_of


def test_median_rule_compares_with_earlier_values() -> None:
    rule = MedianRule(audit_share=0)
    generator = np.random.default_rng(0)
    values = generator.integers(0, 12, 60) / 12  # many ties
    for n, value in enumerate(values):
        expected = n >= 5 and value < statistics.median(values[:n])
        assert judge(rule, report_of(f"t{n}", 2, value)).stop == expected


def test_median_rule_ignores_cost() -> None:
    rule = MedianRule(audit_share=0)
    for n in range(5):
        judge(rule, report_of(f"t{n}", 2, 0.8, cost=100.0))
    assert judge(rule, report_of("cheap", 2, 0.7, cost=1.0)).stop
