"""Front probabilities, and the replicate that is expected to change the front most.

A configuration is on the (epsilon, delta)-front if its true mean exceeds the best true mean among
the configurations at cost up to (1 + epsilon) times its own, minus delta. Negligible differences
in cost or accuracy therefore do not remove a point. True means are given as joint posterior draws,
or as posterior means and variances.

Shapes: N configurations, R posterior draws, C configurations that may get a replicate. u is the
log cost, scaled to [0, 1] over the admitted space. Numpy and scipy only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import special  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

EPSILON = 0.02
"""Costs less than 2 % apart count as equal."""
DELTA = 0.005
"""Accuracies less than half a percentage point apart count as equal."""
LAST_STEP = 0.01
"""Length of the front's last step beyond u = 1. Without it the step of the most expensive
configuration would have no length, and it would never get a replicate."""
NEGLIGIBLE = 5.0
"""Standard deviations beyond which a change is ignored: less than 6e-8 of one is expected there."""


def front_probabilities(
    draws_RN: ArrayLike, costs_N: ArrayLike, *, epsilon: float = EPSILON, delta: float = DELTA
) -> Floats:
    """Return the probability that each configuration is on the (epsilon, delta)-front, (N,).

    The best configuration at cost up to (1 + epsilon) times its own is on it for every delta.

    Args:
        draws_RN: joint posterior draws of the true means, to maximize.
        costs_N: exact costs, to minimize, not negative.
        epsilon: how much more expensive a rival may be, as a share of the cost.
        delta: how much better a rival may be, in the units of the means.

    Raises:
        ValueError: shapes differ, there is no draw, a value is NaN, or a cost, epsilon or delta is
            negative.
    """
    draws, costs = _check(draws_RN, costs_N, epsilon, delta)
    order = np.argsort(costs, kind="stable")
    best_RN = np.maximum.accumulate(draws[:, order], axis=1)
    last_N = np.searchsorted(costs[order], (1 + epsilon) * costs, side="right") - 1
    rival_RN = best_RN[:, last_N]
    probabilities: Floats = np.mean((draws > rival_RN - delta) | (draws == rival_RN), axis=0)
    return probabilities


def within_delta_everywhere(
    draws_RN: ArrayLike,
    costs_N: ArrayLike,
    chosen_N: ArrayLike,
    *,
    delta: float = DELTA,
    low: float = 0.0,
    high: float = math.inf,
) -> float:
    """Return the probability that the chosen configurations are good enough at every budget.

    They are good enough at a budget if the best affordable chosen configuration is at most delta
    worse than the best affordable one. A budget that affords nothing passes; a budget that affords
    configurations, but none of the chosen ones, fails.

    Args:
        draws_RN: joint posterior draws of the true means, to maximize.
        costs_N: exact costs, to minimize, not negative.
        chosen_N: whether each is chosen, bool.
        delta: how much worse is good enough, in the units of the means.
        low: the lowest budget, a cost.
        high: the highest budget.

    Raises:
        ValueError: see `front_probabilities`.
    """
    draws, costs = _check(draws_RN, costs_N, 0.0, delta)
    order = np.argsort(costs, kind="stable")
    chosen = np.asarray(chosen_N, dtype=bool)[order]
    best_RN = np.maximum.accumulate(draws[:, order], axis=1)
    own_RN = np.maximum.accumulate(np.where(chosen, draws[:, order], -np.inf), axis=1)
    # Between two costs nothing changes, so these budgets are enough.
    budgets = np.append(low, costs[(costs > low) & (costs <= high)])
    last = np.searchsorted(costs[order], np.unique(budgets), side="right") - 1
    last = last[last >= 0]
    good_R = np.all(own_RN[:, last] >= best_RN[:, last] - delta, axis=1)
    return float(np.mean(good_R))


def knowledge_gradient(
    means_C: Floats,
    variances_C: Floats,
    noise_variance: ArrayLike,
    costs_u_C: Floats,
    running_C: ArrayLike = 0,
) -> Floats:
    """Return how much another replicate of each is expected to change the front, (C,).

    A replicate moves its configuration's posterior mean by a normal variable of standard deviation
    s. This changes the front's mean where it makes the configuration the best affordable one, or
    makes it lose that rank. Integrated over u, the change is the sum over intervals of u of

        w s [phi(z) + z Phi(z)],  z = -|mu - M| / s,

    where w is the length of the interval, mu the configuration's mean and M the best mean of the
    other configurations affordable there. The intervals start at the configuration's own u and end
    where M changes, so nothing is approximated. Where the configuration is the best affordable
    one, M is the runner-up, which changes at more expensive rivals; otherwise M is the front.

    s^2 = V^2 / (V + noise), where V is the posterior variance. If a mean depends on its n
    replicates alone, V = noise / n and s^2 = noise / (n (n + 1)). A running replicate counts as
    finished with the expected value: it lowers V and keeps the mean.

    Args:
        means_C: posterior means of the true means, to maximize.
        variances_C: their posterior variances.
        noise_variance: of a replicate around its configuration's true mean; scalar or (C,).
        costs_u_C: u of each.
        running_C: number of running replicates of each.

    Returns:
        In the units of the means, times u.

    Source: Frazier, Powell & Dayanik 2009, "The knowledge-gradient policy for correlated normal
    beliefs", for one mean at a time and a front in place of a maximum.
    """
    if not len(means_C):
        return np.empty(0)
    sd_C = _sd_of_change(variances_C, noise_variance, np.asarray(running_C))
    order = np.lexsort((-means_C, costs_u_C))
    ends = np.append(costs_u_C[order][1:], max(1.0, costs_u_C.max()) + LAST_STEP)
    widths = ends - costs_u_C[order]
    best = np.maximum.accumulate(means_C[order])
    is_step = np.append(True, best[1:] > best[:-1])
    (steps,) = np.nonzero(is_step)
    owners = order[steps]
    # The second best so far is the maximum over all that are not, or no longer, the best.
    second = np.append(-np.inf, np.minimum(means_C[order][1:], best[:-1]))
    second = np.maximum.accumulate(second)
    owner_of = owners[np.cumsum(is_step) - 1]
    contests = _expected_change(widths, best - second, sd_C[owner_of])
    changes = np.bincount(owner_of, contests, len(means_C)).astype(float)
    step_ends = np.append(costs_u_C[owners][1:], ends[-1])
    rows, columns = _reachable(means_C, sd_C, costs_u_C, best[steps], step_ends, owners)
    starts = np.maximum(costs_u_C[owners][columns], costs_u_C[rows])
    gaps = best[steps][columns] - means_C[rows]
    gains = _expected_change(step_ends[columns] - starts, gaps, sd_C[rows])
    return changes + np.bincount(rows, gains, len(means_C))


def _check(
    draws_RN: ArrayLike, costs_N: ArrayLike, epsilon: float, delta: float
) -> tuple[Floats, Floats]:
    draws, costs = np.asarray(draws_RN, dtype=float), np.asarray(costs_N, dtype=float)
    if draws.ndim != 2 or not len(draws) or draws.shape[1:] != costs.shape:
        raise ValueError(
            f"Draws must be (R, N) and costs (N,), but got {draws.shape} and {costs.shape}."
        )
    if np.isnan(draws).any() or not np.all(costs >= 0):
        raise ValueError("Draws must not be NaN and costs must be at least 0, but one is not.")
    if min(epsilon, delta) < 0:
        raise ValueError(f"`epsilon, delta >= 0` must hold, but got ({epsilon=}, {delta=}).")
    return draws, costs


def _sd_of_change(variances_C: Floats, noise_variance: ArrayLike, running_C: ArrayLike) -> Floats:
    """Return the standard deviation by which another replicate moves each mean, (C,)."""
    noise_variance = np.asarray(noise_variance, dtype=float)
    if not (noise_variance > 0).all():
        raise ValueError(f"`noise_variance > 0` must hold, but got {noise_variance}.")
    after_C = variances_C / (1 + np.asarray(running_C) * variances_C / noise_variance)
    sd_C: Floats = after_C / np.sqrt(after_C + noise_variance)
    return sd_C


def _reachable(
    means_C: Floats,
    sd_C: Floats,
    costs_u_C: Floats,
    heights: Floats,
    step_ends: Floats,
    owners: Indices,
) -> tuple[Indices, Indices]:
    """Return the pairs of a configuration and a step of the front that it may rise above.

    Steps that end before its own u are excluded, and so are its own step and those before it.

    Args:
        means_C: posterior means.
        sd_C: of the change by a replicate.
        costs_u_C: u of each configuration.
        heights: the front's mean on each step, rising.
        step_ends: u where each step ends.
        owners: the configuration of each step.
    """
    reach = np.searchsorted(heights, means_C + NEGLIGIBLE * sd_C)
    first = np.searchsorted(step_ends, costs_u_C, side="right")
    own = np.full(len(means_C), -1)
    own[owners] = np.arange(len(owners))
    first = np.where(own >= 0, own + 1, first)
    lengths = np.maximum(reach - first, 0)
    rows = np.repeat(np.arange(len(means_C)), lengths)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths - first, lengths)
    return rows, columns


def _expected_change(widths: Floats, gaps: Floats, sds: Floats) -> Floats:
    """Return w s [phi(z) + z Phi(z)] with z = -gap / s, or 0 where it is negligible."""
    changes = np.zeros(len(widths))
    (near,) = np.nonzero((widths > 0) & (sds > 0) & (gaps < NEGLIGIBLE * sds))
    z = -gaps[near] / sds[near]
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    changes[near] = widths[near] * sds[near] * (density + z * special.ndtr(z))
    return changes
