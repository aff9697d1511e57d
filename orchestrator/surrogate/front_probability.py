"""Which configurations are on the front, how sure that is, and whose next replicate tells most.

A configuration is on the (epsilon, delta)-front if its true mean exceeds the best true mean among
the configurations at cost up to (1 + epsilon) times its own, less delta. So a front point is not
lost to one that is hardly dearer, nor kept out by a difference nobody cares about. True means are
known as draws of their joint posterior, or as its means and variances.

Shapes: N configurations, R posterior draws, C configurations that may earn a replicate. u is the
logarithm of the cost, scaled to [0, 1] over the admitted space. Numpy and scipy only.
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
"""Costs less than 2 % apart are equal."""
DELTA = 0.005
"""Accuracies less than half a point apart are equal."""
DEAREST_STEP = 0.01
"""How far the front's last step reaches beyond u = 1: or the dearest configuration, whose step has
no length, would never earn a replicate."""
NEGLIGIBLE = 5.0
"""Standard deviations: where only a larger change matters, less than 6e-8 of one is expected."""


def front_probabilities(
    draws_RN: ArrayLike, costs_N: ArrayLike, *, epsilon: float = EPSILON, delta: float = DELTA
) -> Floats:
    """Return the probability that each configuration is on the (epsilon, delta)-front, (N,).

    The best configuration at cost up to (1 + epsilon) times its own is on it whatever delta is.

    Args:
        draws_RN: joint posterior draws of the true means, to maximize.
        costs_N: what each costs, to minimize, not negative; known exactly.
        epsilon: how much dearer a rival may be, as a share of the cost.
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
    """Return the probability that what was chosen is good enough at every budget.

    Good enough: the best of the chosen configurations that a budget affords is at most delta worse
    than the best of all that it affords. A budget that affords none is; one that affords some, but
    none that was chosen, is not.

    Args:
        draws_RN: joint posterior draws of the true means, to maximize.
        costs_N: what each costs, to minimize, not negative; known exactly.
        chosen_N: whether each is reported, bool.
        delta: how much worse is good enough, in the units of the means.
        low: the least budget, a cost.
        high: the greatest.

    Raises:
        ValueError: as `front_probabilities`.
    """
    draws, costs = _check(draws_RN, costs_N, 0.0, delta)
    order = np.argsort(costs, kind="stable")
    chosen = np.asarray(chosen_N, dtype=bool)[order]
    best_RN = np.maximum.accumulate(draws[:, order], axis=1)
    own_RN = np.maximum.accumulate(np.where(chosen, draws[:, order], -np.inf), axis=1)
    # Between two costs nothing changes: these are all the budgets there are.
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
    s. What it changes is the front's mean, where this makes the configuration the best or has it
    lose that place, integrated over u: the sum over stretches of u of

        w s [phi(z) + z Phi(z)],  z = -|mu - M| / s,

    w the stretch's length, mu the configuration's mean and M the best mean of the others affordable
    there. The span of a configuration begins at its own u. Where it is the best affordable, M is
    the runner-up, which changes at each dearer rival below it; elsewhere M is the front. A stretch
    ends where M changes, so nothing is approximated, and the far steps of the front, being higher,
    count for less by themselves.

    s^2 = V^2 / (V + noise) with V the posterior variance; where a mean is that of its n replicates
    alone, V = noise / n and s^2 = noise / (n (n + 1)). A replicate that is running counts as
    finished with the value expected: it lowers V and leaves the mean.

    Args:
        means_C: posterior means of the true means, to maximize.
        variances_C: their posterior variances.
        noise_variance: of one replicate about its configuration's true mean; one for all, or (C,).
        costs_u_C: u of each.
        running_C: replicates of each that have been started and have not finished.

    Returns:
        Units of the means, times u.

    Source: Frazier, Powell & Dayanik 2009, "The knowledge-gradient policy for correlated normal
    beliefs", for one mean at a time and a front in place of a maximum.
    """
    if not len(means_C):
        return np.empty(0)
    sd_C = _sd_of_change(variances_C, noise_variance, np.asarray(running_C))
    order = np.lexsort((-means_C, costs_u_C))
    ends = np.append(costs_u_C[order][1:], max(1.0, costs_u_C.max()) + DEAREST_STEP)
    widths = ends - costs_u_C[order]
    best = np.maximum.accumulate(means_C[order])
    is_step = np.append(True, best[1:] > best[:-1])
    (steps,) = np.nonzero(is_step)
    owners = order[steps]
    # The second best so far is the greatest of what was passed over or overtaken.
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
        raise ValueError("Draws must be numbers and costs at least 0, but one is not.")
    if min(epsilon, delta) < 0:
        raise ValueError(f"`epsilon, delta >= 0` must hold, but got ({epsilon=}, {delta=}).")
    return draws, costs


def _sd_of_change(variances_C: Floats, noise_variance: ArrayLike, running_C: ArrayLike) -> Floats:
    """Return the standard deviation of what another replicate adds to each mean, (C,)."""
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

    Steps that end before its own u are not affordable; its own step is another matter.

    Args:
        means_C: posterior means.
        sd_C: of the change by a replicate.
        costs_u_C: u of each configuration.
        heights: the front's mean on each step, rising.
        step_ends: u where each ends.
        owners: the configuration that each step belongs to.
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
    """Return w s [phi(z) + z Phi(z)] with z = -gap / s, and 0 where that is negligible."""
    changes = np.zeros(len(widths))
    (near,) = np.nonzero((widths > 0) & (sds > 0) & (gaps < NEGLIGIBLE * sds))
    z = -gaps[near] / sds[near]
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    changes[near] = widths[near] * sds[near] * (density + z * special.ndtr(z))
    return changes
