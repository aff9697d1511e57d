"""Compare bootstrapped accuracies with closed forms, enumeration and slow references."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator import bootstrap, pareto

MAX_MIN = ("maximize", "minimize")


THREE = {"s01": (40.0, 50.0), "s02": (21.0, 30.0), "s03": (55.5, 60.0)}
OTHER = {"s01": (44.0, 50.0), "s02": (15.0, 30.0), "s03": (57.0, 60.0)}


def _t_interval(groups: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Return the t-interval of a ratio, linearized (Cochran 1977, eq. 6.9)."""
    correct, count = np.array(list(groups.values())).T
    ratio, number = correct.sum() / count.sum(), len(count)
    residual = correct - ratio * count
    error = np.sqrt(residual @ residual / (number - 1) * number) / count.sum()
    half = stats.t.ppf(0.975, number - 1) * error
    return ratio - half, ratio + half


def test_interval_of_three_people_is_the_t_interval_of_the_ratio() -> None:
    people = {name: (c / 2, n) for name, (c, n) in THREE.items()}  # far from the limits 0 and 1
    draws = bootstrap.resample_accuracies([[people]], num_resamples=200_000)[:, 0]
    low, high = bootstrap.percentile_interval(draws)
    assert (low, high) == pytest.approx(_t_interval(people), abs=0.004)
    assert np.median(draws) == pytest.approx(116.5 / 2 / 140, abs=0.001)


def test_interval_stays_between_0_and_1() -> None:
    draws = bootstrap.resample_accuracies([[THREE]])[:, 0]
    low, high = bootstrap.share_interval(draws)
    assert (low, high) == pytest.approx((_t_interval(THREE)[0], 1.0), abs=0.02)
    assert bootstrap.percentile_interval(draws)[1] > 1  # differences need the whole


def test_interval_of_a_difference_is_the_paired_t_interval() -> None:
    """With equal numbers of samples this is the t-test of paired values."""
    first, second = np.array([0.6, 0.5, 0.45, 0.62]), np.array([0.55, 0.5, 0.42, 0.5])
    sides = [{f"s{g}": (200 * a, 200.0) for g, a in enumerate(side)} for side in (first, second)]
    draws = bootstrap.resample_accuracies([[side] for side in sides], num_resamples=200_000)
    found = bootstrap.percentile_interval(draws[:, 0] - draws[:, 1])
    expected = stats.ttest_rel(first, second).confidence_interval()
    assert found == pytest.approx((expected.low, expected.high), abs=0.003)


def test_resample_accuracies_pairs_differences_by_group() -> None:
    """A constant lead over groups of different difficulty has an interval of length 0."""
    hard_and_easy = {f"s{i:02d}": (float(10 * i), 100.0) for i in range(2, 8)}
    better = {name: (correct + 2, count) for name, (correct, count) in hard_and_easy.items()}
    draws = bootstrap.resample_accuracies([[better], [hard_and_easy]])
    low, high = bootstrap.percentile_interval(draws[:, 0] - draws[:, 1])
    assert (low, high) == pytest.approx((0.02, 0.02), abs=1e-12)
    low, high = bootstrap.percentile_interval(draws[:, 0])
    assert high - low > 0.2


@pytest.mark.medium
def test_percentile_interval_of_many_groups_agrees_with_the_normal_distribution() -> None:
    """The mean of G equal groups has variance sd^2 / G; the interval is +- 1.96 standard errors."""
    generator = np.random.default_rng(3)
    correct = generator.integers(50, 100, 400).astype(float)
    groups = {f"g{i:03d}": (c, 100.0) for i, c in enumerate(correct)}
    draws = bootstrap.resample_accuracies([[groups]], num_resamples=20_000)[:, 0]
    half = 1.959964 * np.std(correct / 100) / np.sqrt(400)
    mean = correct.mean() / 100
    assert bootstrap.percentile_interval(draws) == pytest.approx(
        (mean - half, mean + half), abs=5e-4
    )


def _seeds(
    generator: np.random.Generator,
    num_groups: int,
    num_seeds: int,
    sds: tuple[float, float, float],
    hardness: np.ndarray | None = None,
) -> list[dict[str, tuple[float, float]]]:
    """Return seeds with mean accuracy 0.7; sds of groups, of seeds and of a seed on a group."""
    hardness = generator.normal(0, sds[0], num_groups) if hardness is None else hardness
    shifts = hardness + generator.normal(0, sds[1], (num_seeds, 1))
    shifts = shifts + generator.normal(0, sds[2], (num_seeds, num_groups))
    return [
        {f"s{g:02d}": (100 * (0.7 + shift), 100.0) for g, shift in enumerate(row)} for row in shifts
    ]


def test_resample_accuracies_adds_variance_of_seeds_and_groups() -> None:
    """Without interaction the variances of the means add up; t with d has variance d / (d - 2)."""
    generator = np.random.default_rng(4)
    hardness, luck = generator.normal(0, 0.05, 60), generator.normal(0, 0.03, 8)
    seeds = [
        {f"g{g:02d}": (1000 * (0.7 + hardness[g] + luck[s]), 1000.0) for g in range(60)}
        for s in range(8)
    ]
    draws = bootstrap.resample_accuracies([seeds], num_resamples=50_000)[:, 0]
    people = hardness.var(ddof=1) / 60 * 59 / 57
    expected = np.sqrt(people + luck.var(ddof=1) / 8 * 7 / 5)
    assert draws.std() == pytest.approx(expected, rel=0.03)


def test_variance_of_seeds_is_pooled_over_configurations() -> None:
    """Two seeds each: 200 configurations together know the deviation that one does not."""
    generator = np.random.default_rng(5)
    people = np.zeros(10)
    study = [_seeds(generator, 10, 2, (0.0, 0.03, 0.0), people) for _ in range(200)]
    draws = bootstrap.resample_accuracies(study, num_resamples=4000)
    spreads = draws.std(axis=0)
    assert spreads == pytest.approx(0.03 / np.sqrt(2), rel=0.15)
    # A configuration with a single seed has the same deviation, without dividing by two.
    single = bootstrap.resample_accuracies([*study, study[0][:1]], num_resamples=4000)[:, -1]
    assert single.std() == pytest.approx(0.03, rel=0.15)


def test_interaction_is_not_counted_twice() -> None:
    """Errors on single groups alone: the groups' deviations contain them, the seeds have none."""
    generator = np.random.default_rng(6)
    studies = [_seeds(generator, 10, 3, (0.0, 0.0, 0.05)) for _ in range(100)]
    draws = bootstrap.resample_accuracies(studies, num_resamples=4000)
    ratio = np.sqrt(np.mean(draws.var(axis=0)) / (0.05**2 / 30))
    assert 1.0 < ratio < 1.3  # t with 9 degrees alone gives 1.13


def _folds(
    generator: np.random.Generator, shape: tuple[int, int, int], sds: tuple[float, float, float]
) -> list[dict[str, tuple[float, float]]]:
    """Return replicates of a configuration whose mean accuracy is 0.7.

    Args:
        generator: draws the effects.
        shape: number of folds, groups per fold, seeds per fold.
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


@pytest.mark.parametrize(
    ("shape", "sds", "low", "high"),
    [
        ((20, 1, 1), (0.05, 0.01, 0.02), 0.95, 1.15),  # leave one group out; t alone gives 1.06
        ((20, 1, 1), (0.01, 0.05, 0.02), 0.95, 1.15),
        ((10, 1, 3), (0.05, 0.01, 0.02), 1.0, 1.25),  # t alone gives 1.13
        ((10, 1, 3), (0.01, 0.05, 0.02), 1.0, 1.25),
        ((5, 4, 3), (0.05, 0.01, 0.02), 0.95, 1.2),
        ((5, 4, 3), (0.01, 0.05, 0.02), 0.95, 1.2),
    ],
)
def test_resample_accuracies_of_folds_has_the_variance_of_the_mean(
    shape: tuple[int, int, int], sds: tuple[float, float, float], low: float, high: float
) -> None:
    """Compare with the variance of the mean of all cells, known from the drawn effects."""
    generator = np.random.default_rng(8)
    studies = [_folds(generator, shape, sds) for _ in range(150)]
    draws = [bootstrap.resample_accuracies([study], num_resamples=500)[:, 0] for study in studies]
    num_folds, num_groups, num_seeds = shape
    parts = (num_folds * num_groups, num_folds * num_seeds, num_folds * num_groups * num_seeds)
    expected = sum(sd**2 / n for sd, n in zip(sds, parts, strict=True))
    ratio = np.sqrt(np.mean([d.var() for d in draws]) / expected)
    assert low < ratio < high
    assert np.mean(draws) == pytest.approx(0.7, abs=5 * float(np.sqrt(expected / 150)))


def test_resample_accuracies_of_folds_is_centered_at_correct_over_count() -> None:
    """With folds of different sizes every draw is finite and the mean is unbiased."""
    replicates = [{f"s{k:02d}": (k * (0.5 + k / 100), float(k))} for k in range(10, 40)]
    correct, count = np.sum([next(iter(r.values())) for r in replicates], axis=0)
    draws = bootstrap.resample_accuracies([replicates], num_resamples=20_000)[:, 0]
    assert np.isfinite(draws).all()
    assert draws.mean() == pytest.approx(correct / count, abs=0.1 * float(draws.std()))


def test_resample_accuracies_pairs_folds_by_group() -> None:
    """As with equal groups, a constant lead on the same fold has an interval of length 0."""
    hard = [{"s01": (10.0, 100.0), "s02": (50.0, 100.0)}, {"s03": (60.0, 100.0)}]
    better = [{name: (c + 2, n) for name, (c, n) in groups.items()} for groups in hard]
    draws = bootstrap.resample_accuracies([hard, better], num_resamples=2000)
    assert draws[:, 1] - draws[:, 0] == pytest.approx(0.02, abs=1e-12)
    assert np.ptp(draws[:, 0]) > 0.2


# ---------------------------------------------------------------------- one or two people


def test_blocks_of_two_people_vary_within_each_person() -> None:
    """The people differ by 40 points, which the interval does not contain; it has 4 degrees."""
    blocks = {"a": [20, 22, 24], "b": [60, 61, 65]}
    groups = {
        f"{name} block {n:02d}": (float(correct), 100.0)
        for name, found in blocks.items()
        for n, correct in enumerate(found)
    }
    draws = bootstrap.resample_accuracies([[groups]], num_resamples=100_000)[:, 0]
    # Each person's mean has variance s^2 / 3, and the accuracy is the mean of both.
    variance = sum(np.var(found, ddof=1) / 3 for found in blocks.values()) / 4 / 100**2
    half = stats.t.ppf(0.975, 4) * np.sqrt(variance)
    assert bootstrap.percentile_interval(draws) == pytest.approx(
        (0.42 - half, 0.42 + half), abs=5e-4
    )


def test_blocks_of_three_people_are_merged() -> None:
    """Folds of one person each are counted by block; together there are three people."""
    people = {name: (c / 2, n) for name, (c, n) in THREE.items()}
    blocks = {
        f"{name} block {n}": (c / 2, k / 2) for name, (c, k) in people.items() for n in range(2)
    }
    merged = bootstrap.resample_accuracies([[blocks]])
    assert merged == pytest.approx(bootstrap.resample_accuracies([[people]]))


def test_samples_of_two_people_without_blocks_are_independent() -> None:
    """Binomial variance within each person: 100 samples of 0.5, 300 of 0.8, in both seeds."""
    groups = {"a": (50.0, 100.0), "b": (240.0, 300.0)}
    draws = bootstrap.resample_accuracies([[groups, groups]], num_resamples=50_000)[:, 0]
    expected = np.sqrt(100 * 0.25 + 300 * 0.16) / 400
    assert draws.std() == pytest.approx(expected, rel=0.02)
    assert draws.mean() == pytest.approx(290 / 400, abs=0.001)


def test_resample_accuracies_treats_a_group_without_samples_as_unseen() -> None:
    absent = [{"s01": (3.0, 5.0)}, {"s02": (4.0, 5.0)}]
    empty = [{"s01": (3.0, 5.0), "s02": (0.0, 0.0)}, {"s02": (4.0, 5.0)}]
    draws = bootstrap.resample_accuracies([absent])
    assert np.array_equal(draws, bootstrap.resample_accuracies([empty]))


def test_resample_accuracies_is_deterministic_and_fast() -> None:
    generator = np.random.default_rng(5)
    configurations = [
        [{f"s{g}": (float(generator.integers(40, 90)), 90.0) for g in range(20)} for _ in range(2)]
        for _ in range(50)
    ]
    started = time.process_time()
    draws = bootstrap.resample_accuracies(configurations)
    [bootstrap.percentile_interval(draws[:, n]) for n in range(50)]
    assert time.process_time() - started < 1.0
    assert np.array_equal(draws, bootstrap.resample_accuracies(configurations))


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
def test_resample_accuracies_refuses_missing_seeds_groups_and_samples(
    configurations: list[list[dict[str, tuple[float, float]]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap.resample_accuracies(configurations)


def test_resample_accuracies_of_no_configurations_is_empty() -> None:
    assert bootstrap.resample_accuracies([], num_resamples=7).shape == (7, 0)


def test_share_on_front_agrees_with_the_front_of_every_draw() -> None:
    generator = np.random.default_rng(6)
    draws = generator.integers(0, 6, (300, 9)) / 6
    costs = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 5.0, 7.0, 9.0])
    slow = np.mean(
        [pareto.non_dominated(np.column_stack([row, costs]), MAX_MIN) for row in draws], axis=0
    )
    assert bootstrap.share_on_front(draws, costs).tolist() == slow.tolist()


@pytest.mark.medium
@pytest.mark.parametrize("num_groups", [3, 5, 10])
def test_intervals_contain_the_true_mean_at_their_rate(num_groups: int) -> None:
    """95 % of 400 repeats, less three binomial standard errors; two seeds of six configurations.

    Of one configuration, and of the difference between two.
    """
    generator = np.random.default_rng(num_groups)
    alone, differences = 0, 0
    for _ in range(400):
        hardness = generator.normal(0, 0.05, num_groups)
        study = [
            _seeds(
                generator, num_groups, 2, (0.0, 0.01, 0.02),
                hardness + generator.normal(0, 0.02, num_groups),
            )
            for _ in range(6)
        ]  # fmt: skip
        draws = bootstrap.resample_accuracies(study, num_resamples=1000)
        low, high = bootstrap.percentile_interval(draws[:, 0])
        alone += low <= 0.7 <= high
        low, high = bootstrap.percentile_interval(draws[:, 0] - draws[:, 1])
        differences += low <= 0 <= high
    assert 0.917 < alone / 400 <= 0.985
    assert 0.917 < differences / 400 <= 0.995
