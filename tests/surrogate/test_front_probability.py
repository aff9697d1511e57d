"""Who is on the front and whose replicate tells most: enumeration, Monte Carlo, slow references."""

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
from sklearn.linear_model import LogisticRegression

from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.surrogate import front_probability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Return a few draws of up to 6 configurations, and their costs, all with many ties."""
    size = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 5), min_size=size, max_size=size)
    draws = draw(st.lists(row, min_size=1, max_size=4))
    costs = draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))
    return np.array(draws, dtype=float), np.array(costs, dtype=float)


@given(case=drawn(), epsilon=st.sampled_from([0.0, 0.3, 1.0]), delta=st.sampled_from([0.5, 1.5]))
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


def test_without_tolerances_it_is_the_share_of_plain_fronts() -> None:
    """Continuous draws have no ties, in which the two definitions differ."""
    generator = np.random.default_rng(0)
    draws, costs = generator.normal(size=(500, 12)), generator.permutation(12) + 1.0
    found = front_probability.front_probabilities(draws, costs, epsilon=0, delta=0)
    assert found.tolist() == pareto.membership(draws, costs).tolist()


def test_a_rival_hardly_dearer_counts_and_one_hardly_better_does_not() -> None:
    costs = [1.0, 1.01, 1.01 * 1.03]
    found = front_probability.front_probabilities([[0.70, 0.71, 0.713]], costs)
    assert found.tolist() == [0.0, 1.0, 1.0]
    found = front_probability.front_probabilities([[0.70, 0.704, 0.713]], costs)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_two_independent_normals() -> None:
    """The dearer is on the front with P(Y - X > -delta), Y - X normal of variance 2."""
    generator = np.random.default_rng(1)
    draws = generator.normal([0.0, 0.5], 1.0, (100_000, 2))
    found = front_probability.front_probabilities(draws, [1.0, 2.0], delta=0.3)
    assert found[0] == 1.0
    assert found[1] == pytest.approx(stats.norm.cdf(0.8 / math.sqrt(2)), abs=0.007)


@pytest.mark.medium
@given(case=drawn(), delta=st.sampled_from([0.0, 1.0]), data=st.data())
def test_within_delta_follows_the_definition(
    case: tuple[Floats, Floats], delta: float, data: st.DataObject
) -> None:
    """At every budget of a fine grid that holds all costs."""
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


def test_all_chosen_is_certain_and_none_chosen_is_not() -> None:
    draws, costs = np.random.default_rng(2).normal(size=(50, 4)), np.arange(1.0, 5.0)
    assert front_probability.within_delta_everywhere(draws, costs, np.ones(4, bool)) == 1.0
    assert front_probability.within_delta_everywhere(draws, costs, np.zeros(4, bool)) == 0.0
    # Nothing is affordable below the cheapest, so nothing is missed there.
    assert (
        front_probability.within_delta_everywhere(draws, costs, np.zeros(4, bool), high=0.5) == 1.0
    )


@pytest.mark.parametrize(
    ("draws", "costs", "options", "message"),
    [
        ([[0.1, 0.2]], [1.0], {}, r"\(1, 2\) and \(1,\)"),
        (np.empty((0, 1)), [1.0], {}, r"\(0, 1\)"),
        ([[math.nan]], [1.0], {}, "must be numbers"),
        ([[0.1]], [-1.0], {}, "at least 0"),
        ([[0.1]], [math.nan], {}, "at least 0"),
        ([[0.1]], [1.0], {"delta": -0.1}, r"delta=-0.1"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    draws: Any, costs: Any, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        front_probability.front_probabilities(draws, costs, **options)


def _slow_changes(means: Floats, sds: Floats, u: Floats) -> list[float]:
    """Return E[integral of the front with a moved mean] less that of the front, by quadrature."""
    end = max(1.0, u.max()) + front_probability.DEAREST_STEP
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
def test_changes_agree_with_quadrature(seed: int) -> None:
    generator = np.random.default_rng(seed)
    u = generator.integers(0, 8, 9) / 7  # some cost the same
    means = generator.integers(0, 8, 9) / 40 + generator.random(9) * (seed % 2) / 100
    variances = generator.random(9) / 400
    variances[0] = 0.0
    found = front_probability.front_changes(means, variances, 0.002, u)
    sds = variances / np.sqrt(variances + 0.002)
    assert found == pytest.approx(_slow_changes(means, sds, u), rel=1e-6, abs=1e-9)


def test_changes_agree_with_monte_carlo() -> None:
    """Draw a replicate, update the posterior by Bayes, look how far the front rose."""
    generator = np.random.default_rng(5)
    means, u = np.array([0.60, 0.66, 0.655, 0.70]), np.array([0.0, 0.3, 0.5, 0.8])
    variances, noise = np.array([4e-4, 9e-4, 4e-4, 2e-4]), 1e-3
    found = front_probability.front_changes(means, variances, noise, u)
    widths = np.diff(np.append(u, 1.01))
    for i in range(4):
        true = generator.normal(means[i], np.sqrt(variances[i]), 200_000)
        replicate = generator.normal(true, np.sqrt(noise))
        moved = np.tile(means, (200_000, 1))
        moved[:, i] += variances[i] / (variances[i] + noise) * (replicate - means[i])
        rise = np.maximum.accumulate(moved, axis=1) - np.maximum.accumulate(means)
        drawn_rise = rise @ widths
        # Where it has no rival it only shifts the front, up as far as down.
        assert found[i] == pytest.approx(
            drawn_rise.mean(), abs=5 * drawn_rise.std() / np.sqrt(200_000)
        )


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_a_mean_of_n_replicates_moves_by_the_closed_form(n: int) -> None:
    """Two of equal mean and cost: w s phi(0), s^2 = noise / (n (n + 1)), w up to 1.01."""
    noise = 0.03
    s = math.sqrt(noise / (n * (n + 1)))
    found = front_probability.front_changes(
        np.zeros(2), np.full(2, noise / n), noise, np.full(2, 0.25)
    )
    assert found == pytest.approx([0.76 * s / math.sqrt(2 * math.pi)] * 2, rel=1e-12)


def test_a_running_replicate_counts_as_finished_at_its_mean() -> None:
    noise, means, u = 0.03, np.array([0.5, 0.51, 0.52]), np.array([0.0, 0.1, 0.5])
    two = front_probability.front_changes(means, np.full(3, noise / 2), noise, u, [1, 0, 3])
    later = front_probability.front_changes(means, noise / np.array([3, 2, 5]), noise, u)
    assert two == pytest.approx(later, rel=1e-12)


def _next(**changes: Any) -> int | None:
    arguments: dict[str, Any] = {
        "means_C": [0.60, 0.70, 0.699, 0.40],
        "variances_C": [1e-4] * 4,
        "counts_C": [2] * 4,
        "noise_variance": 2e-4,
        "costs_u_C": [0.0, 0.4, 0.45, 0.9],
        "seconds_C": [1.0] * 4,
        "running_C": [0] * 4,
        "maximum": 5,
    }
    return front_probability.next_replicate(**arguments | changes)


def test_the_next_replicate_goes_where_two_are_close() -> None:
    """1 and 2 contest u from 0.45 on; equally sure and long, the first of them."""
    assert _next() in (1, 2)
    assert _next(variances_C=[1e-4, 1e-4, 3e-4, 1e-4]) == 2
    assert _next(seconds_C=[1.0, 3.0, 1.0, 1.0]) == 2
    assert _next(seconds_C=[1.0, 1.0, 3.0, 1.0]) == 1


def test_a_configuration_at_its_maximum_earns_none() -> None:
    assert _next(counts_C=[2, 5, 2, 2]) == 2
    assert _next(counts_C=[2, 3, 2, 2], running_C=[0, 2, 0, 0]) == 2
    assert _next(counts_C=[5, 5, 5, 5]) is None


def test_one_never_measured_is_neither_rival_nor_candidate() -> None:
    assert _next(counts_C=[2, 2, 0, 2]) is None  # the others are 10 points apart, s is half of one
    assert _next(counts_C=[0, 0, 0, 0]) is None


def test_what_is_certain_earns_none() -> None:
    assert _next(variances_C=[0.0] * 4) is None
    assert _next(means_C=[0.1, 0.5, 0.3, 0.2]) is None


def test_the_dearest_configuration_may_earn_one() -> None:
    """At u = 1 the front has no length left but what its last step reaches beyond."""
    contest = {"means_C": [0.1, 0.5, 0.3, 0.501], "costs_u_C": [0.0, 0.4, 0.45, 1.0]}
    assert _next(**contest, counts_C=[2, 5, 2, 2]) == 3


def test_order_does_not_matter() -> None:
    generator = np.random.default_rng(6)
    means, variances, u = (
        generator.random(40) / 10,
        generator.random(40) / 1e3,
        generator.random(40),
    )
    order = generator.permutation(40)
    found = front_probability.front_changes(means, variances, 1e-3, u)
    moved = front_probability.front_changes(means[order], variances[order], 1e-3, u[order])
    assert moved == pytest.approx(found[order], rel=1e-12)


def test_without_noise_there_is_no_change_to_expect() -> None:
    with pytest.raises(ValueError, match="noise_variance > 0"):
        _next(noise_variance=0.0)


def test_ten_thousand_configurations_take_milliseconds() -> None:
    """Accuracy rises with cost, so the front has many steps; the loose limit is for a busy CPU."""
    generator = np.random.default_rng(7)
    u = generator.random(10_000)
    arguments: dict[str, Any] = {
        "means_C": 0.5 + 0.3 * u + generator.normal(0, 0.03, 10_000),
        "variances_C": np.full(10_000, 5e-5),
        "counts_C": np.full(10_000, 2),
        "noise_variance": 1e-4,
        "costs_u_C": u,
        "seconds_C": generator.uniform(1, 10, 10_000),
        "running_C": np.zeros(10_000, int),
    }
    seconds = []
    for _ in range(5):
        started = time.process_time()
        assert front_probability.next_replicate(**arguments, maximum=5) is not None
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05


def test_brier_of_always_the_share() -> None:
    truths = np.arange(10) < 3
    assert front_probability.brier(np.full(10, 0.3), truths) == pytest.approx(0.3 * 0.7)
    assert front_probability.brier(truths, truths) == 0.0
    assert front_probability.brier(~truths, truths) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        front_probability.brier([], [])


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_slope_is_that_of_an_unpenalised_logistic_regression(factor: float) -> None:
    generator = np.random.default_rng(8)
    logits = generator.normal(0, 1.5, 400)
    truths = generator.random(400) < 1 / (1 + np.exp(-factor * logits))
    probabilities = 1 / (1 + np.exp(-logits))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(logits[:, None], truths)
    found = front_probability.recalibration_slope(probabilities, truths, clip=1e-6)
    assert found == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert found == pytest.approx(factor, rel=0.3)


def test_the_slope_of_two_probabilities_is_a_ratio_of_log_odds() -> None:
    """0.2 comes true 1 in 4 times, 0.8 3 in 4 times: log 3 over log 4."""
    probabilities, truths = (
        [0.2] * 4 + [0.8] * 4,
        [True, False, False, False] + [True] * 3 + [False],
    )
    found = front_probability.recalibration_slope(probabilities, truths)
    assert found == pytest.approx(math.log(3) / math.log(4), rel=1e-9)


def test_certain_probabilities_are_clipped() -> None:
    probabilities, truths = [0.0] * 10 + [1.0] * 10, [True] + [False] * 9 + [True] * 9 + [False]
    found = front_probability.recalibration_slope(probabilities, truths, clip=0.01)
    assert found == pytest.approx(math.log(9) / math.log(99), rel=1e-9)


def test_a_slope_may_be_infinite_or_none() -> None:
    assert front_probability.recalibration_slope([0.1, 0.9], [False, True]) == math.inf
    assert front_probability.recalibration_slope([0.1, 0.9], [True, False]) == -math.inf
    for probabilities, truths in (([0.1, 0.9], [True, True]), ([0.5, 0.5], [True, False])):
        with pytest.raises(ValueError, match="true and false"):
            front_probability.recalibration_slope(probabilities, truths)
