"""Compare bootstrapped accuracies with closed forms, enumeration and slow references."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from sftsearch.orchestrator import bootstrap, pareto

MAX_MIN = ("maximize", "minimize")


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


def test_resample_accuracies_of_three_groups_gives_the_27_resamples() -> None:
    draws = bootstrap.resample_accuracies([[THREE]], num_resamples=20_000)[:, 0]
    exact = np.array(_exact_draws([THREE]))
    assert len(exact) == 27
    for value in np.unique(exact.round(12)):
        expected = np.mean(np.isclose(exact, value))
        sd = np.sqrt(expected * (1 - expected) / 20_000)
        assert np.mean(np.isclose(draws, value)) == pytest.approx(expected, abs=5 * sd)
    # Each extreme has probability 1/27, more than 2.5 %, so the interval is the full range.
    assert bootstrap.percentile_interval(draws) == pytest.approx((0.7, 0.925), abs=1e-12)


def test_resample_accuracies_of_two_seeds_agrees_with_enumeration() -> None:
    other = {"s01": (44.0, 50.0), "s02": (25.0, 30.0), "s03": (50.0, 60.0)}
    draws = bootstrap.resample_accuracies([[THREE, other]], num_resamples=40_000)[:, 0]
    exact = _exact_draws([THREE, other])
    assert len(exact) == 27 * 4
    assert draws.mean() == pytest.approx(np.mean(exact), abs=5 * np.std(exact) / 200)
    assert draws.std() == pytest.approx(np.std(exact), rel=0.02)
    low, high = bootstrap.percentile_interval(draws)
    assert low == pytest.approx(np.quantile(exact, 0.025), abs=0.005)
    assert high == pytest.approx(np.quantile(exact, 0.975), abs=0.005)


def test_resample_accuracies_pairs_differences_by_group() -> None:
    """A constant lead over groups of different difficulty has an interval of length 0."""
    hard_and_easy = {f"s{i:02d}": (float(10 * i), 100.0) for i in range(1, 10)}
    better = {name: (correct + 2, count) for name, (correct, count) in hard_and_easy.items()}
    draws = bootstrap.resample_accuracies([[better], [hard_and_easy]])
    low, high = bootstrap.percentile_interval(draws[:, 0] - draws[:, 1])
    assert (low, high) == pytest.approx((0.02, 0.02), abs=1e-12)
    low, high = bootstrap.percentile_interval(draws[:, 0])
    assert high - low > 0.2


def test_resample_accuracies_differences_agree_with_enumeration() -> None:
    other = {"s01": (44.0, 50.0), "s02": (15.0, 30.0), "s03": (57.0, 60.0)}
    draws = bootstrap.resample_accuracies([[THREE], [other]], num_resamples=20_000)
    exact = np.array(_exact_draws([THREE])) - np.array(_exact_draws([other]))
    sampled = draws[:, 0] - draws[:, 1]
    assert set(sampled.round(9)) == set(exact.round(9))
    assert sampled.mean() == pytest.approx(exact.mean(), abs=5 * exact.std() / np.sqrt(20_000))


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


def test_resample_accuracies_adds_variance_of_seeds_and_groups() -> None:
    """Without interaction the variances of the groups' and the seeds' means add up."""
    generator = np.random.default_rng(4)
    hardness, luck = generator.normal(0, 0.05, 60), generator.normal(0, 0.03, 8)
    seeds = [
        {f"g{g:02d}": (1000 * (0.7 + hardness[g] + luck[s]), 1000.0) for g in range(60)}
        for s in range(8)
    ]
    draws = bootstrap.resample_accuracies([seeds], num_resamples=20_000)[:, 0]
    expected = np.sqrt(hardness.var() / 60 + luck.var() / 8)
    assert draws.std() == pytest.approx(expected, rel=0.02)


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
        ((20, 1, 1), (0.05, 0.01, 0.02), 0.9, 1.1),  # leave one group out
        ((20, 1, 1), (0.01, 0.05, 0.02), 0.9, 1.1),
        ((10, 1, 3), (0.05, 0.01, 0.02), 0.9, 1.1),
        ((10, 1, 3), (0.01, 0.05, 0.02), 0.9, 1.1),
        ((5, 4, 3), (0.05, 0.01, 0.02), 1.0, 1.25),  # the part of the groups is slightly too wide
        ((5, 4, 3), (0.01, 0.05, 0.02), 0.85, 1.1),
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


def test_resample_accuracies_of_one_replicate_of_one_group_is_constant() -> None:
    """Each configuration saw another fold; no draw is empty."""
    draws = bootstrap.resample_accuracies([[{"s01": (40.0, 50.0)}], [{"s02": (21.0, 30.0)}]])
    assert draws[:, 0] == pytest.approx(0.8, abs=1e-12)
    assert draws[:, 1] == pytest.approx(0.7, abs=1e-12)


def test_resample_accuracies_pairs_folds_by_group() -> None:
    """As with equal groups, a constant lead on the same fold has an interval of length 0."""
    hard = [{"s01": (10.0, 100.0), "s02": (50.0, 100.0)}, {"s03": (60.0, 100.0)}]
    better = [{name: (c + 2, n) for name, (c, n) in groups.items()} for groups in hard]
    # Weights of seeds are not paired, so with one seed per fold only a single fold is exact.
    all_groups = [{"s01": (1.0, 2.0), "s02": (1.0, 2.0), "s03": (1.0, 2.0)}]
    draws = bootstrap.resample_accuracies([hard[:1], better[:1], all_groups])
    assert draws[:, 1] - draws[:, 0] == pytest.approx(0.02, abs=1e-12)
    assert np.ptp(draws[:, 0]) > 0.2
    both = bootstrap.resample_accuracies([hard, better])
    paired = np.std(both[:, 1] - both[:, 0])
    assert paired < 0.75 * np.sqrt(2) * np.std(both[:, 0])


def test_resample_accuracies_treats_a_group_without_samples_as_unseen() -> None:
    absent = [{"s01": (3.0, 5.0)}, {"s02": (4.0, 5.0)}]
    empty = [{"s01": (3.0, 5.0), "s02": (0.0, 0.0)}, {"s02": (4.0, 5.0)}]
    draws = bootstrap.resample_accuracies([absent])
    assert np.array_equal(draws, bootstrap.resample_accuracies([empty]))


@pytest.mark.parametrize("size", [2, 3, 10])
def test_draw_weights_has_multinomial_moments(size: int) -> None:
    """Multinomial shares of `size` draws: mean 1 / size, variance (1 - 1 / size) / size^2."""
    generator = np.random.default_rng(9)
    weights = bootstrap.draw_weights(generator, 200_000, np.zeros(size))
    shares = weights / weights.sum(axis=1, keepdims=True)
    assert shares.min() > 0
    assert shares.mean(axis=0) == pytest.approx(1 / size, rel=0.02)
    assert shares.var(axis=0) == pytest.approx((1 - 1 / size) / size**2, rel=0.03)


def test_resample_accuracies_of_equal_groups_has_pinned_draws() -> None:
    """Reports of old studies must not change: these draws predate the support of folds."""
    other = {"s01": (44.0, 50.0), "s02": (25.0, 30.0), "s03": (50.0, 60.0)}
    draws = bootstrap.resample_accuracies([[THREE, other], [other]], num_resamples=3, seed=1)
    assert draws.tolist() == [
        [0.7454545454545455, 0.8545454545454545],
        [0.7666666666666666, 0.8333333333333334],
        [0.8410714285714286, 0.85],
    ]


def test_resample_accuracies_is_deterministic_and_fast() -> None:
    generator = np.random.default_rng(5)
    configurations = [
        [{f"s{g}": (float(generator.integers(40, 90)), 90.0) for g in range(20)} for _ in range(2)]
        for _ in range(50)
    ]
    started = time.perf_counter()
    draws = bootstrap.resample_accuracies(configurations)
    [bootstrap.percentile_interval(draws[:, n]) for n in range(50)]
    assert time.perf_counter() - started < 1.0
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


@pytest.mark.parametrize(("num_groups", "expected"), [(3, 0.77), (5, 0.87), (20, 0.93)])
def test_percentile_interval_of_few_groups_is_too_narrow(num_groups: int, expected: float) -> None:
    """Check the coverage of 95 % intervals that reports state in a warning.

    The sd of groups is 0.05, of seeds 0.01, of a seed on a group 0.02; there are 2 seeds.
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
        draws = bootstrap.resample_accuracies([seeds], num_resamples=1000, seed=repeat)[:, 0]
        low, high = bootstrap.percentile_interval(draws)
        hits += low <= 0.7 <= high
    assert hits / 600 == pytest.approx(expected, abs=0.045)  # 2.6 sd of 600 repeats at 77 %
