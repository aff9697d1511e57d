"""MO-ASHA, its ranks and its epsilon-net against their definitions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.orchestrator.early_stopping.mo_asha import (
    MAX_SPREAD,
    MOASHARule,
    NonDominatedSort,
    epsilon_net,
)

from learning_curves import judge, report_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ranks_by_definition(points: list[tuple[float, float]]) -> list[int]:
    """Remove the points that no remaining point dominates, repeatedly."""
    ranks = [-1] * len(points)
    for rank in range(len(points)):
        rest = [i for i, known in enumerate(ranks) if known < 0]
        for i in rest:
            cost, value = points[i]
            is_dominated = any(
                c <= cost and v >= value and (c, v) != (cost, value)
                for c, v in (points[j] for j in rest)
            )
            if not is_dominated:
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
def test_non_dominated_sort_agrees_with_its_definition(kind: str, seed: int) -> None:
    """After each insertion, and for a point before its insertion."""
    fronts = NonDominatedSort()
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
def test_epsilon_net_takes_the_farthest_point_next(seed: int) -> None:
    points = np.random.default_rng(seed).random((25, 2))
    points[7] = points[3]  # equal points come last
    order = epsilon_net(points, 25)
    assert order == farthest_by_definition(points)
    assert order[-1] == 7
    assert epsilon_net(points, 9) == order[:9]


def among_by_definition(known: list[tuple[float, float]], new: tuple[float, float]) -> list[int]:
    """Return the indices of the known points and the new one (the last index), best first."""
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
def test_is_among_agrees_with_its_definition(kind: str) -> None:
    points = [(cost + 0.01, value) for cost, value in points_of(kind, 40, 3)]
    fronts = NonDominatedSort()
    for point in points:
        fronts.add(point)
    for new in [(cost + 0.01, value) for cost, value in points_of("random", 12, 4)]:
        position = among_by_definition(points, new).index(40)
        assert [fronts.is_among(new, count) for count in range(1, 42)] == [
            position < count for count in range(1, 42)
        ]


def test_is_among_thins_a_long_front_evenly() -> None:
    """About half of the points are among the best half of a front of 800 points."""
    points = points_of("front", 1000, 5)
    assert len(points) > 4 * MAX_SPREAD
    fronts = NonDominatedSort()
    for point in points[:-200]:
        fronts.add(point)
    kept = sum(fronts.is_among(point, 401) for point in points[-200:])
    assert 70 <= kept <= 130
    assert len(fronts.fronts) == 1


@pytest.mark.parametrize("seed", range(4))
def test_mo_asha_keeps_one_in_eta_and_a_point_that_dominates_all(seed: int) -> None:
    rule = MOASHARule(audit_share=0, reduction_factor=3)
    points = points_of("random", 300, seed)
    stops = [
        judge(rule, report_of(f"t{n}", 2, value, cost)).stop
        for n, (cost, value) in enumerate(points)
    ]
    assert not stops[0]  # the first at a rung has no competitor
    assert np.mean(stops) == pytest.approx(2 / 3, abs=0.1)
    cheap_and_good = report_of("best", 2, 1.1, 1e-6)
    assert not judge(rule, cheap_and_good).stop
    assert judge(rule, report_of("worst", 2, -0.1, 2.0)).stop


def test_mo_asha_treats_rungs_separately() -> None:
    rule = MOASHARule(audit_share=0)
    judge(rule, report_of("good", 2, 0.9))
    assert judge(rule, report_of("bad", 2, 0.5)).stop
    assert not judge(rule, report_of("bad", 4, 0.5)).stop


def test_mo_asha_compares_the_lower_cost_with_competitors_upper_costs() -> None:
    """A gated model whose cost interval overlaps a competitor's is not dominated."""
    rule = MOASHARule(audit_share=0, reduction_factor=1000)  # only one continues
    assert not judge(rule, report_of("a", 2, 0.8, cost_low=1.0, cost_high=3.0)).stop
    assert not judge(rule, report_of("b", 2, 0.8, cost_low=2.0, cost_high=4.0)).stop
    assert judge(rule, report_of("c", 2, 0.8, cost=3.5)).stop
