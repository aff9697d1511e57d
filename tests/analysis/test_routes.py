"""Summarize routes by resource weight."""

from __future__ import annotations

import pytest

from sftsearch.orchestrator.analysis.routes import levels_of, routes_of

from report_studies import gated, routes_front, sweep


def test_levels_of_gives_means_by_weight() -> None:
    levels = levels_of(routes_of(sweep()))
    assert [level.weight for level in levels] == [0.1, 0.5]
    assert [level.num_configurations for level in levels] == [2, 1]
    assert levels[0].shares == pytest.approx((0.2, 0.8))
    assert levels[0].expected == pytest.approx(1.8)
    assert levels[1].shares == pytest.approx((0.9, 0.1))


def test_levels_of_one_weight_or_different_routes_is_empty() -> None:
    assert levels_of(routes_of(routes_front(gated("a", 0.1, 0.5)))) == []
    assert levels_of(routes_of(routes_front(gated("a", None, 0.5)))) == []
    other = routes_front(gated("a", 0.1, 0.5), gated("b", 0.2, 0.5, route_3=0.0))
    assert levels_of(routes_of(other)) == []
