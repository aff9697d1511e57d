"""Compare front probabilities and knowledge gradients with enumeration and Monte Carlo."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats  # type: ignore[import-untyped, unused-ignore]

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.surrogate import front_probability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@st.composite
def draws_and_costs(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Return a few draws of up to 6 configurations and their costs, with many ties."""
    size = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 5), min_size=size, max_size=size)
    draws = draw(st.lists(row, min_size=1, max_size=4))
    costs = draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))
    return np.array(draws, dtype=float), np.array(costs, dtype=float)


@given(
    case=draws_and_costs(),
    epsilon=st.sampled_from([0.0, 0.3, 1.0]),
    delta=st.sampled_from([0.5, 1.5]),
)
def test_front_probabilities_follow_the_definition(
    case: tuple[Floats, Floats], epsilon: float, delta: float
) -> None:
    draws, costs = case
    expected = [
        np.mean([row[n] > max(row[costs <= (1 + epsilon) * costs[n]]) - delta for row in draws])
        for n in range(len(costs))
    ]
    found = front_probability.front_probabilities(draws, costs, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected, abs=1e-12)


def test_front_probabilities_without_tolerances_agree_with_share_on_front() -> None:
    """The definitions differ only for ties, which continuous draws do not have."""
    generator = np.random.default_rng(0)
    draws, costs = generator.normal(size=(500, 12)), generator.permutation(12) + 1.0
    found = front_probability.front_probabilities(draws, costs, epsilon=0, delta=0)
    assert found.tolist() == bootstrap.share_on_front(draws, costs).tolist()


def test_front_probabilities_use_both_tolerances() -> None:
    costs = [1.0, 1.01, 1.01 * 1.03]
    found = front_probability.front_probabilities([[0.70, 0.71, 0.713]], costs)
    assert found.tolist() == [0.0, 1.0, 1.0]
    found = front_probability.front_probabilities([[0.70, 0.704, 0.713]], costs)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_front_probabilities_of_two_independent_normals() -> None:
    """The costlier one has probability P(Y - X > -delta), Y - X normal with variance 2."""
    generator = np.random.default_rng(1)
    draws = generator.normal([0.0, 0.5], 1.0, (100_000, 2))
    found = front_probability.front_probabilities(draws, [1.0, 2.0], delta=0.3)
    assert found[0] == 1.0
    assert found[1] == pytest.approx(stats.norm.cdf(0.8 / math.sqrt(2)), abs=0.007)


@pytest.mark.medium
@given(case=draws_and_costs(), delta=st.sampled_from([0.0, 1.0]), data=st.data())
def test_within_delta_everywhere_follows_the_definition(
    case: tuple[Floats, Floats], delta: float, data: st.DataObject
) -> None:
    """Check every budget of a fine grid that contains all costs."""
    draws, costs = case
    size = len(costs)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    low, high = sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6))))
    good = []
    for row in draws:
        budgets = [b for b in np.arange(low, high + 0.25, 0.25) if np.any(costs <= b)]
        own = [max(row[chosen & (costs <= b)], default=-math.inf) for b in budgets]
        best = [max(row[costs <= b]) for b in budgets]
        good.append(all(o >= b - delta for o, b in zip(own, best, strict=True)))
    found = front_probability.within_delta_everywhere(
        draws, costs, chosen, delta=delta, low=low, high=high
    )
    assert found == np.mean(good)


def test_within_delta_everywhere_is_1_for_all_and_0_for_none() -> None:
    draws, costs = np.random.default_rng(2).normal(size=(50, 4)), np.arange(1.0, 5.0)
    assert front_probability.within_delta_everywhere(draws, costs, np.ones(4, bool)) == 1.0
    assert front_probability.within_delta_everywhere(draws, costs, np.zeros(4, bool)) == 0.0
    # Below the cheapest configuration nothing is affordable, so nothing is missed.
    assert (
        front_probability.within_delta_everywhere(draws, costs, np.zeros(4, bool), high=0.5) == 1.0
    )


@pytest.mark.parametrize(
    ("draws", "costs", "options", "message"),
    [
        ([[0.1, 0.2]], [1.0], {}, r"\(1, 2\) and \(1,\)"),
        (np.empty((0, 1)), [1.0], {}, r"\(0, 1\)"),
        ([[math.nan]], [1.0], {}, "must not be NaN"),
        ([[0.1]], [-1.0], {}, "at least 0"),
        ([[0.1]], [math.nan], {}, "at least 0"),
        ([[0.1]], [1.0], {"delta": -0.1}, r"delta=-0.1"),
    ],
)
def test_front_probabilities_refuse_invalid_arguments(
    draws: Any, costs: Any, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        front_probability.front_probabilities(draws, costs, **options)


def _slow_gradient(means: Floats, sds: Floats, u: Floats) -> list[float]:
    """Return the expected change of the front's integral when each mean moves, by quadrature."""
    end = max(1.0, u.max()) + front_probability.LAST_STEP
    edges = np.unique(np.append(u, end))
    changes = []
    for i, sd in enumerate(sds):
        total = 0.0
        for left, right in itertools.pairwise(edges):
            others = [m for j, m in enumerate(means) if j != i and u[j] <= left]
            if u[i] > left or not others or sd == 0:
                continue
            rival, now = max(others), max(*others, means[i])

            def gain(
                t: float, i: int = i, sd: float = sd, rival: float = rival, now: float = now
            ) -> float:
                return float((max(rival, means[i] + sd * t) - now) * stats.norm.pdf(t))

            kink = (rival - means[i]) / sd
            parts = [-12.0, *([kink] if abs(kink) < 12 else []), 12.0]
            total += (right - left) * sum(
                integrate.quad(gain, a, b)[0] for a, b in itertools.pairwise(parts)
            )
        changes.append(total)
    return changes


@pytest.mark.parametrize("seed", range(4))
def test_knowledge_gradient_agrees_with_quadrature(seed: int) -> None:
    generator = np.random.default_rng(seed)
    u = generator.integers(0, 8, 9) / 7  # some cost the same
    means = generator.integers(0, 8, 9) / 40 + generator.random(9) * (seed % 2) / 100
    variances = generator.random(9) / 400
    variances[0] = 0.0
    found = front_probability.knowledge_gradient(means, variances, 0.002, u)
    sds = variances / np.sqrt(variances + 0.002)
    assert found == pytest.approx(_slow_gradient(means, sds, u), rel=1e-6, abs=1e-9)


def test_knowledge_gradient_agrees_with_monte_carlo() -> None:
    """Draw a replicate, update the posterior, and measure how far the front rises."""
    generator = np.random.default_rng(5)
    means, u = np.array([0.60, 0.66, 0.655, 0.70]), np.array([0.0, 0.3, 0.5, 0.8])
    variances, noise = np.array([4e-4, 9e-4, 4e-4, 2e-4]), 1e-3
    found = front_probability.knowledge_gradient(means, variances, noise, u)
    widths = np.diff(np.append(u, 1.01))
    for i in range(4):
        true = generator.normal(means[i], np.sqrt(variances[i]), 200_000)
        replicate = generator.normal(true, np.sqrt(noise))
        moved = np.tile(means, (200_000, 1))
        moved[:, i] += variances[i] / (variances[i] + noise) * (replicate - means[i])
        rise = np.maximum.accumulate(moved, axis=1) - np.maximum.accumulate(means)
        drawn_rise = rise @ widths
        # Without a rival a move changes the front by zero on average.
        assert found[i] == pytest.approx(
            drawn_rise.mean(), abs=5 * drawn_rise.std() / np.sqrt(200_000)
        )


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_knowledge_gradient_of_a_mean_of_n_replicates_is_the_closed_form(n: int) -> None:
    """For equal means and costs: w s phi(0), s^2 = noise / (n (n + 1)), u up to 1.01."""
    noise = 0.03
    s = math.sqrt(noise / (n * (n + 1)))
    found = front_probability.knowledge_gradient(
        np.zeros(2), np.full(2, noise / n), noise, np.full(2, 0.25)
    )
    assert found == pytest.approx([0.76 * s / math.sqrt(2 * math.pi)] * 2, rel=1e-12)


def test_knowledge_gradient_counts_running_replicates_as_finished_at_their_mean() -> None:
    noise, means, u = 0.03, np.array([0.5, 0.51, 0.52]), np.array([0.0, 0.1, 0.5])
    two = front_probability.knowledge_gradient(means, np.full(3, noise / 2), noise, u, [1, 0, 3])
    later = front_probability.knowledge_gradient(means, noise / np.array([3, 2, 5]), noise, u)
    assert two == pytest.approx(later, rel=1e-12)


def _gradient(**changes: Any) -> Floats:
    arguments: dict[str, Any] = {
        "means_C": np.array([0.60, 0.70, 0.699, 0.40]),
        "variances_C": np.full(4, 1e-4),
        "noise_variance": 2e-4,
        "costs_u_C": np.array([0.0, 0.4, 0.45, 0.9]),
    }
    return front_probability.knowledge_gradient(**arguments | changes)


def test_knowledge_gradient_is_greatest_for_close_rivals() -> None:
    """Configurations 1 and 2 are rivals from u = 0.45 on."""
    found = _gradient()
    assert min(found[1:3]) > 100 * max(found[0], found[3])
    unsure = _gradient(variances_C=np.array([1e-4, 1e-4, 3e-4, 1e-4]))
    assert unsure.argmax() == 2


def test_knowledge_gradient_of_certain_means_is_zero() -> None:
    assert not _gradient(variances_C=np.zeros(4)).any()
    assert not _gradient(means_C=np.array([0.1, 0.5, 0.3, 0.2])).any()


def test_knowledge_gradient_of_nothing_is_empty() -> None:
    nothing = {"means_C": np.empty(0), "variances_C": np.empty(0), "costs_u_C": np.empty(0)}
    assert len(_gradient(**nothing)) == 0


def test_knowledge_gradient_of_the_most_expensive_is_above_zero() -> None:
    """At u = 1 only the extension `LAST_STEP` gives its step a length."""
    means, u = np.array([0.1, 0.5, 0.3, 0.501]), np.array([0.0, 0.4, 0.45, 1.0])
    assert _gradient(means_C=means, costs_u_C=u)[3] > 0


def test_knowledge_gradient_does_not_depend_on_order() -> None:
    generator = np.random.default_rng(6)
    means, variances, u = (
        generator.random(40) / 10,
        generator.random(40) / 1e3,
        generator.random(40),
    )
    order = generator.permutation(40)
    found = front_probability.knowledge_gradient(means, variances, 1e-3, u)
    moved = front_probability.knowledge_gradient(means[order], variances[order], 1e-3, u[order])
    assert moved == pytest.approx(found[order], rel=1e-12)


def test_knowledge_gradient_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_variance > 0"):
        _gradient(noise_variance=0.0)


def test_knowledge_gradient_of_ten_thousand_takes_milliseconds() -> None:
    """Accuracy rises with cost, so the front has many steps; the limit allows for a busy CPU."""
    generator = np.random.default_rng(7)
    u = generator.random(10_000)
    arguments: dict[str, Any] = {
        "means_C": 0.5 + 0.3 * u + generator.normal(0, 0.03, 10_000),
        "variances_C": np.full(10_000, 5e-5),
        "noise_variance": 1e-4,
        "costs_u_C": u,
        "running_C": np.zeros(10_000, int),
    }
    seconds = []
    for _ in range(5):
        started = time.process_time()
        assert front_probability.knowledge_gradient(**arguments).any()
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05
