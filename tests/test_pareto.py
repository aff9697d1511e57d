"""Fronts, hypervolumes and intervals against closed forms, enumeration and slow references."""

from __future__ import annotations

import itertools
import time
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


def test_non_dominated_keeps_what_nothing_beats() -> None:
    points = [(0.9, 2.0), (0.8, 1.0), (0.8, 2.0), (0.95, 9.0), (0.7, 1.0)]
    assert pareto.non_dominated(points, MAX_MIN).tolist() == [True, True, False, True, False]


def test_equal_points_are_both_kept() -> None:
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


def test_no_time_goes_by_the_square_of_a_front_of_two_objectives() -> None:
    """All of 100,000 points are on the front, and each twice."""
    x = np.random.default_rng(7).permutation(np.repeat(np.arange(50_000.0), 2))
    assert pareto.non_dominated(np.column_stack([x, x]), MAX_MIN).all()


@pytest.mark.parametrize("num_objectives", [3, 4])
def test_a_front_of_many_blocks_is_found_among_what_it_beats(num_objectives: int) -> None:
    """On the sphere no point beats another; moved outwards, a point is beaten by what it was."""
    generator = np.random.default_rng(num_objectives)
    front = generator.random((700, num_objectives)) + 0.1
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    points = np.concatenate([front, front * generator.uniform(1.001, 2.0, (700, 1))])
    order = generator.permutation(1400)
    kept = pareto.non_dominated(points[order], ["minimize"] * num_objectives)
    assert kept.tolist() == (order < 700).tolist()


def test_no_points_have_an_empty_front() -> None:
    assert pareto.non_dominated(np.empty((0, 2)), MAX_MIN).tolist() == []
    assert pareto.hypervolume([], (0.0, 1.0), MAX_MIN) == 0.0


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pareto.non_dominated([(float("nan"), 1.0)], MAX_MIN)
    with pytest.raises(ValueError, match="NaN"):
        pareto.hypervolume([(0.5, 1.0)], (0.0, float("nan")), MAX_MIN)


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="'max'"):
        pareto.non_dominated([(1.0, 1.0)], ("max", "minimize"))


@st.composite
def integer_points(draw: st.DrawFn, *, side: int = 5) -> Points:
    """Return 1 to 8 points of 2 to 4 objectives on a coarse grid, so that many tie."""
    num_objectives = draw(st.integers(2, 4))
    row = st.lists(st.integers(0, side), min_size=num_objectives, max_size=num_objectives)
    return np.array(draw(st.lists(row, min_size=1, max_size=8)), dtype=float)


def _minimize(points: Points) -> list[str]:
    return ["minimize"] * points.shape[1]


@pytest.mark.medium
@given(points=integer_points(), data=st.data())
def test_order_and_duplicates_do_not_matter(points: Points, data: st.DataObject) -> None:
    """Each drawn place keeps its mark, its part of the volume and its knee."""
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
        # Of points that bend equally far any may be named.
        beyond = _beyond(points)
        assert beyond[order[moved]] == pytest.approx(beyond[own], abs=1e-9)
        assert beyond[own] == pytest.approx(beyond.max(), abs=1e-9)


def _beyond(points: Points) -> Points:
    """Return how far each point of the front is beyond the plane, with a plane of least squares.

    Ends are found by sorting tuples; points off the front get -inf.
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
def test_a_dominated_point_changes_nothing(points: Points, data: st.DataObject) -> None:
    directions = _minimize(points)
    beaten = points[data.draw(st.integers(0, len(points) - 1))].copy()
    beaten[data.draw(st.integers(0, points.shape[1] - 1))] += data.draw(st.integers(1, 9))
    more = np.vstack([points, beaten])
    kept = pareto.non_dominated(more, directions)
    assert kept.tolist() == [*pareto.non_dominated(points, directions).tolist(), False]
    reference = np.full(points.shape[1], 5.0)
    volume = pareto.hypervolume(points, reference, directions)
    assert pareto.hypervolume(more, reference, directions) == volume
    assert pareto.knee(more, directions) == pareto.knee(points, directions)


@pytest.mark.medium
@given(points=integer_points(), data=st.data())
def test_hypervolume_only_grows(points: Points, data: st.DataObject) -> None:
    """With a point more, and with a reference further out."""
    row = st.lists(st.integers(0, 5), min_size=points.shape[1], max_size=points.shape[1])
    more = np.vstack([points, data.draw(row)])
    near, far = np.full(points.shape[1], 4.0), np.full(points.shape[1], 6.0)
    volume = pareto.hypervolume(points, near, _minimize(points))
    assert pareto.hypervolume(more, near, _minimize(points)) >= volume
    assert pareto.hypervolume(points, far, _minimize(points)) >= volume


@given(points=integer_points())
def test_hypervolume_is_inclusion_and_exclusion(points: Points) -> None:
    """The union's volume is the boxes less their pairs, plus their triples, and so on."""
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
    beaten = np.any(np.all(points[:, None] <= cells, axis=2), axis=0)
    reference = np.full(points.shape[1], 5.0)
    assert pareto.hypervolume(points, reference, _minimize(points)) == beaten.sum()


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_hypervolume_of_a_staircase(n: int) -> None:
    """Points (i, n - 1 - i) leave n * n less the triangle of n (n - 1) / 2 unit squares."""
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
    """On integer points the volume is the number of unit cells that some point beats."""
    generator = np.random.default_rng(num_objectives)
    side = 6
    points = generator.integers(0, side + 1, (12, num_objectives))  # some on the boundary
    cells = itertools.product(range(side), repeat=num_objectives)
    beaten = sum(any(np.all(point <= cell) for point in points) for cell in map(np.array, cells))
    directions = ["minimize"] * num_objectives
    assert pareto.hypervolume(points, [side] * num_objectives, directions) == beaten
    mirrored = ["maximize"] * num_objectives
    assert pareto.hypervolume(-points, [-side] * num_objectives, mirrored) == beaten


def test_the_fast_area_agrees_with_the_slow_volume() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        losses = generator.random((30, 2))
        worst = np.ones(2)
        fast, slow = pareto._area(losses, worst), pareto._volume(losses, worst)
        assert fast == pytest.approx(slow, rel=1e-12)


def test_a_constant_objective_scales_the_volume() -> None:
    """A third objective equal for all makes a prism: area times height."""
    losses = np.random.default_rng(1).random((25, 2))
    area = pareto.hypervolume(losses, (1, 1), ["minimize"] * 2)
    prism = np.column_stack([losses, np.full(25, 0.5)])
    volume = pareto.hypervolume(prism, (1, 1, 2), ["minimize"] * 3)
    assert volume == pytest.approx(1.5 * area, rel=1e-12)


def test_a_point_at_the_reference_adds_nothing() -> None:
    with_it = pareto.hypervolume([(0.5, 0.5), (0.9, 1.0)], (0.0, 1.0), MAX_MIN)
    assert with_it == 0.25


def test_the_knee_is_where_the_front_bends() -> None:
    front = [(0.5, 1.0), (0.9, 2.0), (0.95, 10.0), (0.96, 20.0)]
    assert pareto.knee(front, MAX_MIN) == 1


@pytest.mark.parametrize(
    "front",
    [
        [],
        [(0.5, 1.0), (0.6, 2.0)],
        [(0.5, 1.0), (0.6, 2.0), (0.7, 3.0)],  # a straight line bends nowhere
        [(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)],
    ],
)
def test_a_front_may_have_no_knee(front: list[tuple[float, float]]) -> None:
    assert pareto.knee(front, MAX_MIN) is None


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
def test_the_knee_of_a_corner(num_objectives: int) -> None:
    """The ends are the unit vectors' complement; of two points on the diagonal the inner bends."""
    ends = 1.0 - np.eye(num_objectives)
    inner, outer = np.full(num_objectives, 0.2), np.full(num_objectives, 0.3)
    inner[0] += 0.09  # so that neither beats the other
    outer[0] -= 0.09
    points = [*ends, outer, inner]
    assert pareto.knee(points, ["minimize"] * num_objectives) == num_objectives + 1


def test_the_ends_of_three_objectives_may_span_no_plane() -> None:
    """One point is best in two of them."""
    points = [(0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (0.5, 1.0, 0.5), (0.2, 0.2, 0.2)]
    assert pareto.knee(points, ["minimize"] * 3) is None


def test_one_objective_has_no_knee() -> None:
    with pytest.raises(ValueError, match="at least 2 objectives, but got 1"):
        pareto.knee([1.0, 2.0, 3.0], ["minimize"])


def test_thinning_keeps_a_stand_in_for_every_point() -> None:
    costs = [1.00, 1.01, 1.02, 1.50, 2.00, 2.03]
    values = [0.70, 0.71, 0.72, 0.724, 0.80, 0.79]
    # 1.02 stands for the first four: 1.50 is less than half a point better; 2.03 is dominated.
    kept = pareto.thin(costs, values)
    assert kept.tolist() == [False, False, True, False, True, False]


@st.composite
def priced(draw: st.DrawFn) -> tuple[Points, Points]:
    """Return the costs and values of up to 7 points, many of them near each other."""
    pair = st.tuples(st.integers(100, 130), st.integers(0, 20))
    costs, values = np.array(draw(st.lists(pair, min_size=1, max_size=7)), dtype=float).T
    return costs, values / 100


def _stand_in(costs: Points, values: Points, epsilon: float, delta: float) -> NDArray[np.bool_]:
    """Return whether point n stands for point m, (N, M)."""
    near: NDArray[np.bool_] = (costs[:, None] <= (1 + epsilon) * costs) & (
        values[:, None] >= values - delta
    )
    return near


@given(points=priced(), epsilon=st.floats(0, 0.3), delta=st.floats(0, 0.2))
def test_thinning_keeps_its_promise_with_the_fewest(
    points: tuple[Points, Points], epsilon: float, delta: float
) -> None:
    costs, values = points
    kept = pareto.thin(costs, values, epsilon=epsilon, delta=delta)
    assert np.all(pareto.non_dominated(np.column_stack([values, costs]), MAX_MIN)[kept])
    near = _stand_in(costs, values, epsilon, delta)
    assert near[kept].any(axis=0).all()
    fewer = itertools.combinations(range(len(costs)), int(kept.sum()) - 1)
    assert not any(near[list(some)].any(axis=0).all() for some in fewer)


@given(points=priced())
def test_thinning_by_nothing_leaves_the_front_once(points: tuple[Points, Points]) -> None:
    rows = np.column_stack(points)
    kept = pareto.thin(*points, epsilon=0, delta=0)
    front = rows[pareto.non_dominated(rows, ("minimize", "maximize"))]
    assert sorted(map(tuple, rows[kept])) == sorted(set(map(tuple, front)))


def test_what_cannot_be_thinned_is_refused() -> None:
    for costs, epsilon, delta in (([-1.0], 0.1, 0.1), ([1.0], -0.1, 0.1), ([1.0], 0.1, -0.1)):
        with pytest.raises(ValueError, match="at least 0"):
            pareto.thin(costs, [0.5], epsilon=epsilon, delta=delta)
    assert pareto.thin([], []).tolist() == []


def _exact_draws(seeds: list[dict[str, tuple[float, float]]]) -> list[float]:
    """Return the accuracy of each of the G^G * S^S equally likely resamples."""
    names = sorted(seeds[0])
    draws = []
    for groups in itertools.product(names, repeat=len(names)):
        accuracy = [sum(s[g][0] for g in groups) / sum(s[g][1] for g in groups) for s in seeds]
        picks = itertools.product(accuracy, repeat=len(seeds))
        draws += [float(np.mean(pick)) for pick in picks]
    return draws


THREE = {"s01": (40.0, 50.0), "s02": (21.0, 30.0), "s03": (55.5, 60.0)}


def test_three_groups_give_the_27_resamples() -> None:
    draws = pareto.resample_accuracies([[THREE]], num_resamples=20_000)[:, 0]
    exact = np.array(_exact_draws([THREE]))
    assert len(exact) == 27
    for value in np.unique(exact.round(12)):
        expected = np.mean(np.isclose(exact, value))
        sd = np.sqrt(expected * (1 - expected) / 20_000)
        assert np.mean(np.isclose(draws, value)) == pytest.approx(expected, abs=5 * sd)
    # One resample in 27 repeats one subject, more than 2.5 %: the interval is their range.
    assert pareto.percentile_interval(draws) == pytest.approx((0.7, 0.925), abs=1e-12)


def test_two_seeds_and_three_groups_agree_with_enumeration() -> None:
    other = {"s01": (44.0, 50.0), "s02": (25.0, 30.0), "s03": (50.0, 60.0)}
    draws = pareto.resample_accuracies([[THREE, other]], num_resamples=40_000)[:, 0]
    exact = _exact_draws([THREE, other])
    assert len(exact) == 27 * 4
    assert draws.mean() == pytest.approx(np.mean(exact), abs=5 * np.std(exact) / 200)
    assert draws.std() == pytest.approx(np.std(exact), rel=0.02)
    low, high = pareto.percentile_interval(draws)
    assert low == pytest.approx(np.quantile(exact, 0.025), abs=0.005)
    assert high == pytest.approx(np.quantile(exact, 0.975), abs=0.005)


def test_the_difference_is_paired_by_group() -> None:
    """A constant lead over groups of very different difficulty is certain: its interval a point."""
    hard_and_easy = {f"s{i:02d}": (float(10 * i), 100.0) for i in range(1, 10)}
    better = {name: (correct + 2, count) for name, (correct, count) in hard_and_easy.items()}
    draws = pareto.resample_accuracies([[better], [hard_and_easy]])
    low, high = pareto.percentile_interval(draws[:, 0] - draws[:, 1])
    assert (low, high) == pytest.approx((0.02, 0.02), abs=1e-12)
    low, high = pareto.percentile_interval(draws[:, 0])
    assert high - low > 0.2


def test_the_differences_of_three_groups_agree_with_enumeration() -> None:
    other = {"s01": (44.0, 50.0), "s02": (15.0, 30.0), "s03": (57.0, 60.0)}
    draws = pareto.resample_accuracies([[THREE], [other]], num_resamples=20_000)
    exact = np.array(_exact_draws([THREE])) - np.array(_exact_draws([other]))
    sampled = draws[:, 0] - draws[:, 1]
    assert set(sampled.round(9)) == set(exact.round(9))
    assert sampled.mean() == pytest.approx(exact.mean(), abs=5 * exact.std() / np.sqrt(20_000))


@pytest.mark.medium
def test_many_equal_groups_agree_with_the_normal_law() -> None:
    """The mean of G equal groups has variance sd^2 / G: 1.96 standard errors each side."""
    generator = np.random.default_rng(3)
    correct = generator.integers(50, 100, 400).astype(float)
    groups = {f"g{i:03d}": (c, 100.0) for i, c in enumerate(correct)}
    draws = pareto.resample_accuracies([[groups]], num_resamples=20_000)[:, 0]
    half = 1.959964 * np.std(correct / 100) / np.sqrt(400)
    mean = correct.mean() / 100
    assert pareto.percentile_interval(draws) == pytest.approx((mean - half, mean + half), abs=5e-4)


def test_seeds_and_groups_both_add_variance() -> None:
    """With no interaction the variances of a group's and of a seed's mean add up."""
    generator = np.random.default_rng(4)
    hardness, luck = generator.normal(0, 0.05, 60), generator.normal(0, 0.03, 8)
    seeds = [
        {f"g{g:02d}": (1000 * (0.7 + hardness[g] + luck[s]), 1000.0) for g in range(60)}
        for s in range(8)
    ]
    draws = pareto.resample_accuracies([seeds], num_resamples=20_000)[:, 0]
    expected = np.sqrt(hardness.var() / 60 + luck.var() / 8)
    assert draws.std() == pytest.approx(expected, rel=0.02)


def _folds(
    generator: np.random.Generator, shape: tuple[int, int, int], sds: tuple[float, float, float]
) -> list[dict[str, tuple[float, float]]]:
    """Return replicates of a configuration whose mean accuracy is 0.7.

    Args:
        generator: draws the effects.
        shape: number of folds, groups a fold, seeds a fold.
        sds: of groups, of replicates, and of a replicate on a group.
    """
    num_folds, num_groups, num_seeds = shape
    hardness = generator.normal(0, sds[0], (num_folds, num_groups))
    replicates = []
    for k, _ in itertools.product(range(num_folds), range(num_seeds)):
        shifts = hardness[k] + generator.normal(0, sds[1])
        shifts = shifts + generator.normal(0, sds[2], num_groups)
        replicates.append(
            {f"k{k}g{g}": (100 * (0.7 + shift), 100.0) for g, shift in enumerate(shifts)}
        )
    return replicates


@pytest.mark.medium
@pytest.mark.parametrize(
    ("shape", "sds", "low", "high"),
    [
        ((20, 1, 1), (0.05, 0.01, 0.02), 0.9, 1.1),  # leave one group out
        ((20, 1, 1), (0.01, 0.05, 0.02), 0.9, 1.1),
        ((10, 1, 3), (0.05, 0.01, 0.02), 0.9, 1.1),
        ((10, 1, 3), (0.01, 0.05, 0.02), 0.9, 1.1),
        ((5, 4, 3), (0.05, 0.01, 0.02), 1.0, 1.25),  # the groups' part is somewhat too wide
        ((5, 4, 3), (0.01, 0.05, 0.02), 0.85, 1.1),
    ],
)
def test_draws_of_folds_spread_as_the_mean_does(
    shape: tuple[int, int, int], sds: tuple[float, float, float], low: float, high: float
) -> None:
    """Against the variance of the mean of all cells, known since the effects are drawn here."""
    generator = np.random.default_rng(8)
    studies = [_folds(generator, shape, sds) for _ in range(150)]
    draws = [pareto.resample_accuracies([study], num_resamples=500)[:, 0] for study in studies]
    num_folds, num_groups, num_seeds = shape
    parts = (num_folds * num_groups, num_folds * num_seeds, num_folds * num_groups * num_seeds)
    expected = sum(sd**2 / n for sd, n in zip(sds, parts, strict=True))
    ratio = np.sqrt(np.mean([d.var() for d in draws]) / expected)
    assert low < ratio < high
    assert np.mean(draws) == pytest.approx(0.7, abs=5 * float(np.sqrt(expected / 150)))


def test_draws_of_folds_centre_on_correct_over_count() -> None:
    """Folds of different sizes: no draw is lost, and the ratio is where it should be."""
    replicates = [{f"s{k:02d}": (k * (0.5 + k / 100), float(k))} for k in range(10, 40)]
    correct, count = np.sum([next(iter(r.values())) for r in replicates], axis=0)
    draws = pareto.resample_accuracies([replicates], num_resamples=20_000)[:, 0]
    assert np.isfinite(draws).all()
    assert draws.mean() == pytest.approx(correct / count, abs=0.1 * float(draws.std()))


def test_one_replicate_of_one_group_is_all_that_is_known() -> None:
    """Each configuration saw another fold; no draw of either is empty."""
    draws = pareto.resample_accuracies([[{"s01": (40.0, 50.0)}], [{"s02": (21.0, 30.0)}]])
    assert draws[:, 0] == pytest.approx(0.8, abs=1e-12)
    assert draws[:, 1] == pytest.approx(0.7, abs=1e-12)


def test_folds_are_paired_by_group() -> None:
    """As with equal groups: a constant lead over the same two folds is certain."""
    hard = [{"s01": (10.0, 100.0), "s02": (50.0, 100.0)}, {"s03": (60.0, 100.0)}]
    better = [{name: (c + 2, n) for name, (c, n) in groups.items()} for groups in hard]
    # With one seed a fold, of which the weights are not paired, only a single fold is exact.
    whole = [{"s01": (1.0, 2.0), "s02": (1.0, 2.0), "s03": (1.0, 2.0)}]
    draws = pareto.resample_accuracies([hard[:1], better[:1], whole])
    assert draws[:, 1] - draws[:, 0] == pytest.approx(0.02, abs=1e-12)
    assert np.ptp(draws[:, 0]) > 0.2
    both = pareto.resample_accuracies([hard, better])
    paired = np.std(both[:, 1] - both[:, 0])
    assert paired < 0.75 * np.sqrt(2) * np.std(both[:, 0])


def test_a_group_without_samples_is_one_that_was_not_seen() -> None:
    absent = [{"s01": (3.0, 5.0)}, {"s02": (4.0, 5.0)}]
    empty = [{"s01": (3.0, 5.0), "s02": (0.0, 0.0)}, {"s02": (4.0, 5.0)}]
    draws = pareto.resample_accuracies([absent])
    assert np.array_equal(draws, pareto.resample_accuracies([empty]))


@pytest.mark.parametrize("size", [2, 3, 10])
def test_weights_have_the_moments_of_counts(size: int) -> None:
    """Multinomial shares of `size` draws: mean 1 / size, variance (1 - 1 / size) / size^2."""
    generator = np.random.default_rng(9)
    weights = pareto._draw_weights(generator, 200_000, np.zeros(size))
    shares = weights / weights.sum(axis=1, keepdims=True)
    assert shares.min() > 0
    assert shares.mean(axis=0) == pytest.approx(1 / size, rel=0.02)
    assert shares.var(axis=0) == pytest.approx((1 - 1 / size) / size**2, rel=0.03)


def test_equal_groups_still_give_the_same_numbers() -> None:
    """Reports are compared with what they were: these draws are from before there were folds."""
    other = {"s01": (44.0, 50.0), "s02": (25.0, 30.0), "s03": (50.0, 60.0)}
    draws = pareto.resample_accuracies([[THREE, other], [other]], num_resamples=3, seed=1)
    assert draws.tolist() == [
        [0.7454545454545455, 0.8545454545454545],
        [0.7666666666666666, 0.8333333333333334],
        [0.8410714285714286, 0.85],
    ]


def test_draws_are_deterministic_and_fast() -> None:
    generator = np.random.default_rng(5)
    configurations = [
        [{f"s{g}": (float(generator.integers(40, 90)), 90.0) for g in range(20)} for _ in range(2)]
        for _ in range(50)
    ]
    started = time.perf_counter()
    draws = pareto.resample_accuracies(configurations)
    [pareto.percentile_interval(draws[:, n]) for n in range(50)]
    assert time.perf_counter() - started < 1.0
    assert np.array_equal(draws, pareto.resample_accuracies(configurations))


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ([[]], "at least one"),
        ([[{}]], "at least one group"),
        ([[THREE], []], "at least one seed"),
        ([[THREE], [THREE, {}]], "count of 0"),
        ([[{"s01": (0.0, 0.0)}]], "count of 0"),
    ],
)
def test_groups_that_cannot_be_resampled_are_refused(
    configurations: list[list[dict[str, tuple[float, float]]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pareto.resample_accuracies(configurations)


def test_no_configurations_have_no_draws() -> None:
    assert pareto.resample_accuracies([], num_resamples=7).shape == (7, 0)


def test_membership_agrees_with_the_front_of_every_draw() -> None:
    generator = np.random.default_rng(6)
    draws = generator.integers(0, 6, (300, 9)) / 6
    costs = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 5.0, 7.0, 9.0])
    slow = np.mean(
        [pareto.non_dominated(np.column_stack([row, costs]), MAX_MIN) for row in draws], axis=0
    )
    assert pareto.membership(draws, costs).tolist() == slow.tolist()


@pytest.mark.parametrize(("num_groups", "expected"), [(3, 0.77), (5, 0.87), (20, 0.93)])
def test_few_groups_make_intervals_too_narrow(num_groups: int, expected: float) -> None:
    """Reports warn of this with these figures: how often a 95 % interval holds the truth.

    Groups differ with sd 0.05, seeds with 0.01, a seed on a group with 0.02; 2 seeds.
    """
    generator = np.random.default_rng(num_groups)
    hits = 0
    for repeat in range(600):
        groups = generator.normal(0, 0.05, num_groups)
        seeds = [
            {f"s{g:02d}": (100 * (0.7 + shift), 100.0) for g, shift in enumerate(luck + groups)}
            for luck in generator.normal(0, 0.01, (2, 1))
            + generator.normal(0, 0.02, (2, num_groups))
        ]
        draws = pareto.resample_accuracies([seeds], num_resamples=1000, seed=repeat)[:, 0]
        low, high = pareto.percentile_interval(draws)
        hits += low <= 0.7 <= high
    assert hits / 600 == pytest.approx(expected, abs=0.045)  # 2.6 sd of 600 repeats at 77 %
