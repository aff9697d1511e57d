"""Expected improvements against the hypervolume of drawn values, closed forms and limits."""

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
    """Return by how much one more point raises the hypervolume over costs 1 and the floor."""
    directions = ["minimize"] * u_NC.shape[1] + ["maximize"]
    corner = [1.0] * u_NC.shape[1] + [FLOOR]
    before = np.column_stack([u_NC, values_N])
    after = np.vstack([before, [*u_C, value]])
    return pareto.hypervolume(after, corner, directions) - pareto.hypervolume(
        before, corner, directions
    )


def _draw_front(generator: np.random.Generator, num: int, num_costs: int) -> tuple[Floats, Floats]:
    """Return points with ties, some dominated, some on the border or under the floor."""
    u_NC = generator.integers(0, 9, (num, num_costs)) / 8
    return u_NC, generator.integers(0, 17, num) / 16


@pytest.mark.parametrize("num_costs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_the_mean_gain_of_drawn_values(num_costs: int, seed: int) -> None:
    """One draw in each of 100 equally likely strata of the value, so that few draws suffice."""
    generator = np.random.default_rng((num_costs, seed))
    u_NC, values_N = _draw_front(generator, 6, num_costs)
    stairs = acquisition.staircase(u_NC, values_N, floor=FLOOR)
    u_MC = generator.random((3, num_costs))
    u_MC[0] = u_NC[0]  # as dear as a point of the front
    mu_M, sd_M = generator.uniform(0.0, 1.0, 3), np.array([0.02, 0.1, 0.3])
    got_M = acquisition.expected_improvement(u_MC, mu_M, sd_M, stairs)
    strata = (np.arange(100) + generator.random(100)) / 100
    for u_C, mu, sd, got in zip(u_MC, mu_M, sd_M, got_M, strict=True):
        drawn = mu + sd * special.ndtri(strata)
        gains = [_gained(u_NC, values_N, u_C, value) for value in drawn]
        assert got == pytest.approx(np.mean(gains), abs=4e-3 * sd)


@pytest.mark.parametrize("num_costs", [1, 2, 3])
def test_a_certain_value_gains_its_plain_hypervolume(num_costs: int) -> None:
    generator = np.random.default_rng(num_costs)
    for num in (0, 1, 5, 12):
        u_NC, values_N = _draw_front(generator, num, num_costs)
        stairs = acquisition.staircase(u_NC, values_N, floor=FLOOR)
        u_MC, mu_M = _draw_front(generator, 20, num_costs)
        u_MC[10:] = generator.random((10, num_costs))
        got_M = acquisition.expected_improvement(u_MC, mu_M, 0.0, stairs)
        expected = [_gained(u_NC, values_N, u, mu) for u, mu in zip(u_MC, mu_M, strict=True)]
        np.testing.assert_allclose(got_M, expected, atol=1e-12)


def test_one_cost_is_the_sum_over_its_steps() -> None:
    """The formula as it is written, step by step, for as many candidates as take several blocks."""
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


def test_the_staircase_starts_at_the_floor_and_ends_at_one() -> None:
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


def test_two_costs_give_a_grid_of_the_best_affordable() -> None:
    stairs = acquisition.staircase([[0.0, 0.5], [0.5, 0.0]], [0.6, 0.8], floor=FLOOR)
    assert [edges.tolist() for edges in stairs.edges] == [[0.0, 0.5, 1.0]] * 2
    assert stairs.levels.tolist() == [[0.1, 0.6], [0.8, 0.8]]


def test_no_front_is_the_floor_everywhere() -> None:
    stairs = acquisition.staircase(np.empty((0, 2)), [], floor=FLOOR)
    got = acquisition.expected_improvement([[0.5, 0.5], [-3.0, 0.0], [1.0, 0.0]], 0.6, 0.0, stairs)
    np.testing.assert_allclose(got, [0.125, 0.5, 0.0], rtol=1e-12)


def test_worse_everywhere_and_certain_gains_nothing() -> None:
    stairs = acquisition.staircase([0.2, 0.6], [0.5, 0.7], floor=FLOOR)
    got = acquisition.expected_improvement([0.2, 0.3, 0.9, 1.0, 1.2], 0.5, 0.0, stairs)
    assert got.tolist() == [0.0] * 5


def test_it_never_falls_below_zero() -> None:
    """Far below the front the two terms cancel; what rounding leaves must not be negative."""
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
def test_properties(
    points: list[tuple[float, float, float]],
    own: tuple[float, float, float, float],
    more: float,
    dearer: float,
    order: random.Random,
) -> None:
    """Rises with mean and sd, falls with cost; order and duplicates of the front do not count."""

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
    assert gain(points, [first, second + dearer * (1 - second)], mu, sd) <= plain + 1e-12
    shuffled = points * 2
    order.shuffle(shuffled)
    assert gain(shuffled, u, mu, sd) == pytest.approx(plain, abs=1e-12)
    assert gain([*points, (first, second, mu)], u, mu, 0.0) == pytest.approx(0, abs=1e-12)


def test_costs_scale_by_their_logarithm() -> None:
    np.testing.assert_allclose(
        acquisition.scale_costs([1.0, 10.0, 1000.0], low=1.0, high=100.0), [0, 0.5, 1.5]
    )
    got = acquisition.scale_costs([[2.0, 7.0], [8.0, 7.0]], low=[2.0, 7.0], high=[8.0, 7.0])
    np.testing.assert_allclose(got, [[0, 0], [1, 0]], atol=1e-15)


@pytest.mark.parametrize(
    ("costs", "low", "high"),
    [([0.0, 1.0], 1.0, 2.0), ([1.0, math.nan], 1.0, 2.0), ([1.0], 0.0, 2.0), ([1.0], 3.0, 2.0)],
)
def test_costs_without_a_logarithm_are_refused(costs: list[float], low: float, high: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        acquisition.scale_costs(costs, low=low, high=high)


def test_a_value_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        acquisition.staircase([0.5], [math.nan], floor=FLOOR)


def test_expected_change_is_the_gain_of_crossing_the_rival() -> None:
    """By quadrature: how far the new mean lands beyond the rival, from either side."""
    noise = special.ndtri((np.arange(100_000) + 0.5) / 100_000)
    mu, sd = np.array([0.70, 0.72, 0.70]), np.array([0.01, 0.02, 0.03])
    rival, span = np.array([0.71, 0.70, 0.70]), np.array([0.3, 0.2, 0.1])
    got = acquisition.expected_change(mu, sd, rival, span)
    for k in range(3):
        beyond = np.sign(rival[k] - mu[k]) * (mu[k] + sd[k] * noise - rival[k])
        if mu[k] == rival[k]:
            beyond = sd[k] * noise
        assert got[k] == pytest.approx(span[k] * np.maximum(beyond, 0).mean(), rel=1e-3)
    assert got[2] == pytest.approx(0.1 * 0.03 / math.sqrt(2 * math.pi), rel=1e-12)


def test_what_is_certain_or_has_no_rival_does_not_change() -> None:
    got = acquisition.expected_change([0.5, 0.5, 0.5], [0.0, 0.0, 0.1], [0.5, 0.6, -np.inf], 1.0)
    assert got.tolist() == [0.0, 0.0, 0.0]


def test_all_steps_at_once_is_what_one_after_another_gives() -> None:
    """A candidate without uncertainty sends all of them the general way."""
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
