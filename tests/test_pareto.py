"""Compare fronts, hypervolumes and knees with closed forms, enumeration and slow references."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftsearch.orchestrator import pareto

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

MAX_MIN = ("maximize", "minimize")


def test_non_dominated_keeps_the_front() -> None:
    points = [(0.9, 2.0), (0.8, 1.0), (0.8, 2.0), (0.95, 9.0), (0.7, 1.0)]
    assert pareto.non_dominated(points, MAX_MIN).tolist() == [True, True, False, True, False]


def test_non_dominated_keeps_both_of_equal_points() -> None:
    points = [(0.9, 2.0), (0.9, 2.0), (0.9, 2.5)]
    assert pareto.non_dominated(points, MAX_MIN).tolist() == [True, True, False]


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_non_dominated_agrees_with_its_definition(num_objectives: int) -> None:
    generator = np.random.default_rng(num_objectives)
    points = generator.integers(0, 5, (80, num_objectives)).astype(float)  # many ties
    directions = ["maximize" if d % 2 else "minimize" for d in range(num_objectives)]
    signed = points * [-1 if d % 2 else 1 for d in range(num_objectives)]
    expected = [
        not any(np.all(other <= own) and np.any(other < own) for other in signed) for own in signed
    ]
    assert pareto.non_dominated(points, directions).tolist() == expected


def test_non_dominated_of_two_objectives_is_not_quadratic() -> None:
    """All 100,000 points are on the front; each occurs twice."""
    x = np.random.default_rng(7).permutation(np.repeat(np.arange(50_000.0), 2))
    assert pareto.non_dominated(np.column_stack([x, x]), MAX_MIN).all()


@pytest.mark.parametrize("num_objectives", [3, 4])
def test_non_dominated_finds_a_front_of_many_blocks(num_objectives: int) -> None:
    """Points on a sphere do not dominate each other, but they dominate copies moved outwards."""
    generator = np.random.default_rng(num_objectives)
    front = generator.random((700, num_objectives)) + 0.1
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    points = np.concatenate([front, front * generator.uniform(1.001, 2.0, (700, 1))])
    order = generator.permutation(1400)
    kept = pareto.non_dominated(points[order], ["minimize"] * num_objectives)
    assert kept.tolist() == (order < 700).tolist()


def test_non_dominated_of_no_points_is_empty() -> None:
    assert pareto.non_dominated(np.empty((0, 2)), MAX_MIN).tolist() == []
    assert pareto.hypervolume([], (0.0, 1.0), MAX_MIN) == 0.0


def test_pareto_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pareto.non_dominated([(float("nan"), 1.0)], MAX_MIN)
    with pytest.raises(ValueError, match="NaN"):
        pareto.hypervolume([(0.5, 1.0)], (0.0, float("nan")), MAX_MIN)


def test_pareto_refuses_an_unknown_direction() -> None:
    with pytest.raises(ValueError, match="'max'"):
        pareto.non_dominated([(1.0, 1.0)], ("max", "minimize"))


@st.composite
def integer_points(draw: st.DrawFn, *, side: int = 5) -> Points:
    """Return 1 to 8 points of 2 to 4 objectives on a coarse grid, with many ties."""
    num_objectives = draw(st.integers(2, 4))
    row = st.lists(st.integers(0, side), min_size=num_objectives, max_size=num_objectives)
    return np.array(draw(st.lists(row, min_size=1, max_size=8)), dtype=float)


def _minimize(points: Points) -> list[str]:
    return ["minimize"] * points.shape[1]


@pytest.mark.medium
@given(points=integer_points(), data=st.data())
def test_pareto_does_not_depend_on_order_and_duplicates(
    points: Points, data: st.DataObject
) -> None:
    """Permuted and duplicated points have the same front, hypervolume and knee."""
    indices = st.integers(0, len(points) - 1)
    order = data.draw(st.permutations(range(len(points)))) + data.draw(st.lists(indices))
    other, directions = points[order], _minimize(points)
    kept = pareto.non_dominated(points, directions)
    assert pareto.non_dominated(other, directions).tolist() == kept[order].tolist()
    reference = np.full(points.shape[1], 5.0)
    volume = pareto.hypervolume(points, reference, directions)
    assert pareto.hypervolume(other, reference, directions) == volume
    own, moved = pareto.knee(points, directions), pareto.knee(other, directions)
    assert (own is None) == (moved is None)
    if own is not None and moved is not None:
        # Any of equally distant points may be the knee.
        beyond = _beyond(points)
        assert beyond[order[moved]] == pytest.approx(beyond[own], abs=1e-9)
        assert beyond[own] == pytest.approx(beyond.max(), abs=1e-9)


def _beyond(points: Points) -> Points:
    """Return how far each point is beyond the plane through the ends, -inf off the front.

    A slow reference: it sorts tuples to find the ends and fits the plane by least squares.
    """
    on = pareto.non_dominated(points, _minimize(points))
    scaled = (points - points[on].min(axis=0)) / np.ptp(points[on], axis=0)
    front = [tuple(row) for row in scaled[on]]
    ends = [min(front, key=lambda row: row[d:] + row[:d]) for d in range(points.shape[1])]
    normal = np.linalg.lstsq(np.array(ends), np.ones(len(ends)), rcond=None)[0]
    beyond: Points = np.where(on, (1 - scaled @ normal) / np.linalg.norm(normal), -np.inf)
    return beyond


@pytest.mark.medium
@given(points=integer_points(), data=st.data())
def test_pareto_does_not_depend_on_a_dominated_point(points: Points, data: st.DataObject) -> None:
    directions = _minimize(points)
    dominated = points[data.draw(st.integers(0, len(points) - 1))].copy()
    dominated[data.draw(st.integers(0, points.shape[1] - 1))] += data.draw(st.integers(1, 9))
    more = np.vstack([points, dominated])
    kept = pareto.non_dominated(more, directions)
    assert kept.tolist() == [*pareto.non_dominated(points, directions).tolist(), False]
    reference = np.full(points.shape[1], 5.0)
    volume = pareto.hypervolume(points, reference, directions)
    assert pareto.hypervolume(more, reference, directions) == volume
    assert pareto.knee(more, directions) == pareto.knee(points, directions)


@pytest.mark.medium
@given(points=integer_points(), data=st.data())
def test_hypervolume_is_monotone(points: Points, data: st.DataObject) -> None:
    """It grows with another point and with a reference further out."""
    row = st.lists(st.integers(0, 5), min_size=points.shape[1], max_size=points.shape[1])
    more = np.vstack([points, data.draw(row)])
    near, far = np.full(points.shape[1], 4.0), np.full(points.shape[1], 6.0)
    volume = pareto.hypervolume(points, near, _minimize(points))
    assert pareto.hypervolume(more, near, _minimize(points)) >= volume
    assert pareto.hypervolume(points, far, _minimize(points)) >= volume


@given(points=integer_points())
def test_hypervolume_agrees_with_inclusion_and_exclusion(points: Points) -> None:
    """The volume of a union is that of the boxes minus pairs plus triples, and so on."""
    reference = np.full(points.shape[1], 5.0)
    expected = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            box = np.prod(reference - np.max(some, axis=0))
            expected -= (-1) ** size * box
    assert pareto.hypervolume(points, reference, _minimize(points)) == expected


@given(points=integer_points())
def test_hypervolume_counts_the_cells_of_a_grid(points: Points) -> None:
    cells = np.indices((5,) * points.shape[1]).reshape(points.shape[1], -1).T
    dominated = np.any(np.all(points[:, None] <= cells, axis=2), axis=0)
    reference = np.full(points.shape[1], 5.0)
    assert pareto.hypervolume(points, reference, _minimize(points)) == dominated.sum()


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_hypervolume_of_a_staircase(n: int) -> None:
    """Points (i, n - 1 - i) dominate n * n minus a triangle of n (n - 1) / 2 unit squares."""
    points = [(i, n - 1 - i) for i in range(n)]
    volume = pareto.hypervolume(points, (n, n), ("minimize", "minimize"))
    assert volume == n * n - n * (n - 1) // 2


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4, 5])
def test_hypervolume_of_one_point_is_a_box(num_objectives: int) -> None:
    directions = ["minimize"] * num_objectives
    volume = pareto.hypervolume([[0.25] * num_objectives], [1.0] * num_objectives, directions)
    assert volume == pytest.approx(0.75**num_objectives, rel=1e-12)


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_hypervolume_agrees_with_a_grid(num_objectives: int) -> None:
    """For integer points the volume is the number of dominated unit cells."""
    generator = np.random.default_rng(num_objectives)
    side = 6
    points = generator.integers(0, side + 1, (12, num_objectives))  # some on the boundary
    cells = itertools.product(range(side), repeat=num_objectives)
    dominated = sum(any(np.all(point <= cell) for point in points) for cell in map(np.array, cells))
    directions = ["minimize"] * num_objectives
    assert pareto.hypervolume(points, [side] * num_objectives, directions) == dominated
    mirrored = ["maximize"] * num_objectives
    assert pareto.hypervolume(-points, [-side] * num_objectives, mirrored) == dominated


def test_area_agrees_with_volume() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        losses = generator.random((30, 2))
        worst = np.ones(2)
        fast, slow = pareto.area(losses, worst), pareto.volume(losses, worst)
        assert fast == pytest.approx(slow, rel=1e-12)


def test_hypervolume_is_scaled_by_a_constant_objective() -> None:
    """With a constant third objective the volume is a prism: area times height."""
    losses = np.random.default_rng(1).random((25, 2))
    area = pareto.hypervolume(losses, (1, 1), ["minimize"] * 2)
    prism = np.column_stack([losses, np.full(25, 0.5)])
    volume = pareto.hypervolume(prism, (1, 1, 2), ["minimize"] * 3)
    assert volume == pytest.approx(1.5 * area, rel=1e-12)


def test_hypervolume_ignores_points_on_the_reference_boundary() -> None:
    with_it = pareto.hypervolume([(0.5, 0.5), (0.9, 1.0)], (0.0, 1.0), MAX_MIN)
    assert with_it == 0.25


def test_knee_is_where_the_front_bends() -> None:
    front = [(0.5, 1.0), (0.9, 2.0), (0.95, 10.0), (0.96, 20.0)]
    assert pareto.knee(front, MAX_MIN) == 1


@pytest.mark.parametrize(
    "front",
    [
        [],
        [(0.5, 1.0), (0.6, 2.0)],
        [(0.5, 1.0), (0.6, 2.0), (0.7, 3.0)],  # a straight line has no knee
        [(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)],
    ],
)
def test_knee_may_be_none(front: list[tuple[float, float]]) -> None:
    assert pareto.knee(front, MAX_MIN) is None


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_knee_of_a_corner_is_the_corner(num_objectives: int) -> None:
    """The ends are complements of unit vectors; the inner one of two points is the knee."""
    ends = 1.0 - np.eye(num_objectives)
    inner, outer = np.full(num_objectives, 0.2), np.full(num_objectives, 0.3)
    inner[0] += 0.09  # so that neither dominates the other
    outer[0] -= 0.09
    points = [*ends, outer, inner]
    assert pareto.knee(points, ["minimize"] * num_objectives) == num_objectives + 1


def test_knee_is_none_if_the_ends_span_no_plane() -> None:
    """One point is best in two objectives."""
    points = [(0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (0.5, 1.0, 0.5), (0.2, 0.2, 0.2)]
    assert pareto.knee(points, ["minimize"] * 3) is None


def test_knee_refuses_one_objective() -> None:
    with pytest.raises(ValueError, match="at least 2 objectives, but got 1"):
        pareto.knee([1.0, 2.0, 3.0], ["minimize"])


def test_thin_covers_every_point() -> None:
    costs = [1.00, 1.01, 1.02, 1.50, 2.00, 2.03]
    values = [0.70, 0.71, 0.72, 0.724, 0.80, 0.79]
    # 1.02 covers the first four, because 1.50 is better by less than delta; 2.03 is dominated.
    kept = pareto.thin(costs, values)
    assert kept.tolist() == [False, False, True, False, True, False]


@st.composite
def costs_and_values(draw: st.DrawFn) -> tuple[Points, Points]:
    """Return the costs and values of up to 7 points, many close together."""
    pair = st.tuples(st.integers(100, 130), st.integers(0, 20))
    costs, values = np.array(draw(st.lists(pair, min_size=1, max_size=7)), dtype=float).T
    return costs, values / 100


def _covers(costs: Points, values: Points, epsilon: float, delta: float) -> NDArray[np.bool_]:
    """Return whether point n covers point m, (N, M)."""
    covers: NDArray[np.bool_] = (costs[:, None] <= (1 + epsilon) * costs) & (
        values[:, None] >= values - delta
    )
    return covers


@given(points=costs_and_values(), epsilon=st.floats(0, 0.3), delta=st.floats(0, 0.2))
def test_thin_returns_the_smallest_covering_set(
    points: tuple[Points, Points], epsilon: float, delta: float
) -> None:
    costs, values = points
    kept = pareto.thin(costs, values, epsilon=epsilon, delta=delta)
    assert np.all(pareto.non_dominated(np.column_stack([values, costs]), MAX_MIN)[kept])
    covers = _covers(costs, values, epsilon, delta)
    assert covers[kept].any(axis=0).all()
    fewer = itertools.combinations(range(len(costs)), int(kept.sum()) - 1)
    assert not any(covers[list(some)].any(axis=0).all() for some in fewer)


@given(points=costs_and_values())
def test_thin_without_tolerances_only_drops_duplicates(
    points: tuple[Points, Points],
) -> None:
    rows = np.column_stack(points)
    kept = pareto.thin(*points, epsilon=0, delta=0)
    front = rows[pareto.non_dominated(rows, ("minimize", "maximize"))]
    assert sorted(map(tuple, rows[kept])) == sorted(set(map(tuple, front)))


def test_thin_refuses_negative_costs_and_tolerances() -> None:
    for costs, epsilon, delta in (([-1.0], 0.1, 0.1), ([1.0], -0.1, 0.1), ([1.0], 0.1, -0.1)):
        with pytest.raises(ValueError, match="at least 0"):
            pareto.thin(costs, [0.5], epsilon=epsilon, delta=delta)
    assert pareto.thin([], []).tolist() == []
