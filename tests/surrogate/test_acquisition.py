"""Compare expected improvement with sampled hypervolume gains, closed forms and limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.surrogate import acquisition

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FLOOR = 0.1


def _gained(u_NC: Floats, values_N: Floats, u_C: Floats, value: float) -> float:
    """Return the hypervolume gained by one more point, bounded by cost 1 and the floor."""
    directions = ["minimize"] * u_NC.shape[1] + ["maximize"]
    corner = [1.0] * u_NC.shape[1] + [FLOOR]
    before = np.column_stack([u_NC, values_N])
    after = np.vstack([before, [*u_C, value]])
    return pareto.hypervolume(after, corner, directions) - pareto.hypervolume(
        before, corner, directions
    )


def _draw_front(generator: np.random.Generator, num: int, num_costs: int) -> tuple[Floats, Floats]:
    """Return points with ties; some are dominated, on the border or below the floor."""
    u_NC = generator.integers(0, 9, (num, num_costs)) / 8
    return u_NC, generator.integers(0, 17, num) / 16


@pytest.mark.parametrize("num_costs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_expected_improvement_is_the_mean_gain_of_drawn_values(num_costs: int, seed: int) -> None:
    """Draw from 100 equally likely strata of the value, so that few draws suffice."""
    generator = np.random.default_rng((num_costs, seed))
    u_NC, values_N = _draw_front(generator, 6, num_costs)
    stairs = acquisition.staircase(u_NC, values_N, floor=FLOOR)
    u_MC = generator.random((3, num_costs))
    u_MC[0] = u_NC[0]  # costs as much as a point of the front
    mu_M, sd_M = generator.uniform(0.0, 1.0, 3), np.array([0.02, 0.1, 0.3])
    got_M = acquisition.expected_improvement(u_MC, mu_M, sd_M, stairs)
    strata = (np.arange(100) + generator.random(100)) / 100
    for u_C, mu, sd, got in zip(u_MC, mu_M, sd_M, got_M, strict=True):
        drawn = mu + sd * special.ndtri(strata)
        gains = [_gained(u_NC, values_N, u_C, value) for value in drawn]
        assert got == pytest.approx(np.mean(gains), abs=4e-3 * sd)


@pytest.mark.parametrize("num_costs", [1, 2, 3])
def test_expected_improvement_with_sd_0_is_the_exact_hypervolume_gain(num_costs: int) -> None:
    generator = np.random.default_rng(num_costs)
    for num in (0, 1, 5, 12):
        u_NC, values_N = _draw_front(generator, num, num_costs)
        stairs = acquisition.staircase(u_NC, values_N, floor=FLOOR)
        u_MC, mu_M = _draw_front(generator, 20, num_costs)
        u_MC[10:] = generator.random((10, num_costs))
        got_M = acquisition.expected_improvement(u_MC, mu_M, 0.0, stairs)
        expected = [_gained(u_NC, values_N, u, mu) for u, mu in zip(u_MC, mu_M, strict=True)]
        np.testing.assert_allclose(got_M, expected, atol=1e-12)


def test_expected_improvement_of_one_cost_is_the_sum_over_its_steps() -> None:
    """Evaluate the formula step by step, for more candidates than fit in a block."""
    generator = np.random.default_rng(4)
    u_N = generator.random(30)
    values_N = 0.3 + 0.5 * np.sqrt(u_N) + 0.02 * generator.normal(size=30)
    stairs = acquisition.staircase(u_N, values_N, floor=FLOOR)
    u_M, mu_M, sd_M = generator.random((3, 10_000))
    expected = np.zeros(10_000)
    (edges,) = stairs.edges
    for low, high, level in zip(edges[:-1], edges[1:], stairs.levels, strict=True):
        width = np.maximum(0, high - np.maximum(low, u_M))
        z = (mu_M - level) / sd_M
        expected += width * ((mu_M - level) * stats.norm.cdf(z) + sd_M * stats.norm.pdf(z))
    got_M = acquisition.expected_improvement(u_M, mu_M, sd_M, stairs)
    np.testing.assert_allclose(got_M, expected, atol=1e-13)


def test_staircase_starts_at_the_floor_and_ends_at_one() -> None:
    stairs = acquisition.staircase(
        [0.2, 0.5, 0.5, 0.6, 0.8, 1.0, 1.5, 0.1],
        [0.4, 0.6, 0.5, 0.55, 0.9, 0.98, 0.99, 0.05],
        floor=FLOOR,
    )
    assert stairs.edges[0].tolist() == [0.0, 0.2, 0.5, 0.8, 1.0]
    assert stairs.levels.tolist() == [0.1, 0.4, 0.6, 0.9]
    cheap = acquisition.staircase([-0.5, -0.2], [0.4, 0.6], floor=FLOOR)
    assert cheap.edges[0].tolist() == [0.0, 1.0]
    assert cheap.levels.tolist() == [0.6]


def test_staircase_of_two_costs_is_a_grid_of_the_best_affordable() -> None:
    stairs = acquisition.staircase([[0.0, 0.5], [0.5, 0.0]], [0.6, 0.8], floor=FLOOR)
    assert [edges.tolist() for edges in stairs.edges] == [[0.0, 0.5, 1.0]] * 2
    assert stairs.levels.tolist() == [[0.1, 0.6], [0.8, 0.8]]


def test_staircase_of_no_points_is_the_floor_everywhere() -> None:
    stairs = acquisition.staircase(np.empty((0, 2)), [], floor=FLOOR)
    got = acquisition.expected_improvement([[0.5, 0.5], [-3.0, 0.0], [1.0, 0.0]], 0.6, 0.0, stairs)
    np.testing.assert_allclose(got, [0.125, 0.5, 0.0], rtol=1e-12)


def test_expected_improvement_of_a_certainly_worse_candidate_is_zero() -> None:
    stairs = acquisition.staircase([0.2, 0.6], [0.5, 0.7], floor=FLOOR)
    got = acquisition.expected_improvement([0.2, 0.3, 0.9, 1.0, 1.2], 0.5, 0.0, stairs)
    assert got.tolist() == [0.0] * 5


def test_expected_improvement_is_never_negative() -> None:
    """Far below the front the two terms cancel; rounding must not make the sum negative."""
    stairs = acquisition.staircase([0.0], [0.9], floor=FLOOR)
    got = acquisition.expected_improvement(np.zeros(2000), np.linspace(-1, 1, 2000), 0.02, stairs)
    assert np.all(got >= 0)
    assert np.all(np.diff(got) >= -1e-15)


front = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=0, max_size=8
)
candidate = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))


@pytest.mark.medium
@settings(max_examples=60, deadline=None, derandomize=True)
@given(front, candidate, st.floats(0, 1), st.floats(0, 1), st.randoms(use_true_random=False))
def test_expected_improvement_is_monotone_and_ignores_order(
    points: list[tuple[float, float, float]],
    own: tuple[float, float, float, float],
    more: float,
    costlier: float,
    order: random.Random,
) -> None:
    """It rises with mean and sd and falls with cost; order and duplicates have no effect."""

    def gain(
        points: list[tuple[float, float, float]], u: list[float], mu: float, sd: float
    ) -> float:
        table = np.array(points, dtype=float).reshape(-1, 3)
        stairs = acquisition.staircase(table[:, :2], table[:, 2], floor=FLOOR)
        return float(acquisition.expected_improvement([u], mu, sd, stairs)[0])

    first, second, mu, sd = own
    u = [first, second]
    plain = gain(points, u, mu, sd)
    assert plain >= 0
    assert gain(points, u, mu + more, sd) >= plain - 1e-12
    assert gain(points, u, mu, sd + more) >= plain - 1e-12
    assert gain(points, [first, second + costlier * (1 - second)], mu, sd) <= plain + 1e-12
    shuffled = points * 2
    order.shuffle(shuffled)
    assert gain(shuffled, u, mu, sd) == pytest.approx(plain, abs=1e-12)
    assert gain([*points, (first, second, mu)], u, mu, 0.0) == pytest.approx(0, abs=1e-12)


def test_staircase_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        acquisition.staircase([0.5], [math.nan], floor=FLOOR)


def test_expected_improvement_vectorized_agrees_with_the_general_algorithm() -> None:
    """A candidate with sd 0 selects the general algorithm for all."""
    random_ = np.random.default_rng(0)
    for number in (0, 1, 7, 60):
        stairs = acquisition.staircase(random_.random(number), random_.random(number), floor=0.1)
        u, mu, sd = random_.random(200), random_.random(200), random_.random(200) + 1e-6
        found = acquisition.expected_improvement(u, mu, sd, stairs)
        general = acquisition.expected_improvement(
            np.append(u, 0.5), np.append(mu, 0.5), np.append(sd, 0.0), stairs
        )
        np.testing.assert_allclose(found, general[:-1], rtol=1e-9, atol=1e-12)
        assert (found >= 0).all()
