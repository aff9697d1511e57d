"""Fronts, hypervolumes and intervals against closed forms, enumeration and slow references."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from sftsearch.orchestrator import pareto

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
        ([[THREE], [{"s01": (1.0, 2.0)}]], "same groups"),
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
