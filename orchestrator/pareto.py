"""Compute Pareto fronts, their hypervolume, knee and smallest approximation. Numpy only.

Shapes: N points, D objectives. An objective's direction is `maximize` or `minimize`, as in Optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.metrics import DIRECTIONS, sign_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]
    Ranks = NDArray[np.intp]


def non_dominated(points: ArrayLike, directions: Sequence[str]) -> Mask:
    """Return which points are non-dominated, (N,) bool.

    A point dominates another if it is nowhere worse and somewhere better. Equal points do not
    dominate each other, so both are kept.

    Args:
        points: objective values, (N, D).
        directions: `maximize` or `minimize` for every objective.

    Raises:
        ValueError: a value is NaN, or a direction is unknown.
    """
    losses = _to_losses(points, directions)
    return _sweep(losses) if losses.shape[1] == 2 else _eliminate(losses)


def hypervolume(points: ArrayLike, reference: ArrayLike, directions: Sequence[str]) -> float:
    """Return the exact volume that the points dominate, bounded by the reference point.

    Points that are not better than the reference in every objective are ignored.

    Args:
        points: objective values, (N, D).
        reference: the reference point, (D,).
        directions: `maximize` or `minimize` for every objective.

    Raises:
        ValueError: a value is NaN, or a direction is unknown.

    Source: slicing objectives, While et al. 2006, "A faster algorithm for calculating hypervolume".
    """
    losses = _to_losses(points, directions)
    worst = _to_losses(np.asarray(reference, dtype=float)[None], directions)[0]
    inside = losses[np.all(losses < worst, axis=1)]
    inside = inside[non_dominated(inside, ["minimize"] * len(worst))]
    return area(inside, worst) if len(worst) == 2 else volume(inside, worst)


def knee(points: ArrayLike, directions: Sequence[str]) -> int | None:
    """Return the index of the point where a front bends most, or None.

    All objectives are scaled to [0, 1] over the front. The knee is the point farthest beyond the
    line (or plane) through the front's ends, which are the points best in one objective each. There
    is no knee if no point is beyond it, or if the ends span no plane because an objective is
    constant or one point is best in two. Dominated points are ignored.

    Args:
        points: objective values, (N, D), D at least 2, in any order; pass the logarithm of a cost
            if ratios matter.
        directions: `maximize` or `minimize` for every objective.

    Raises:
        ValueError: there is one objective, a value is NaN, or a direction is unknown.

    Source: Das 1999, "On characterizing the knee of the Pareto curve".
    """
    losses = _to_losses(points, directions)
    if losses.shape[1] < 2:
        raise ValueError(f"A knee needs at least 2 objectives, but got {losses.shape[1]}.")
    (members,) = np.nonzero(non_dominated(losses, ["minimize"] * losses.shape[1]))
    if len(members) < 3:
        return None
    front = losses[members]
    span = np.ptp(front, axis=0)
    if not np.all(span > 0):
        return None
    scaled = (front - front.min(axis=0)) / span
    normal = _plane_through_ends(scaled)
    if normal is None:
        return None
    beyond = (1 - scaled @ normal) / np.linalg.norm(normal)
    best = int(np.argmax(beyond))
    return int(members[best]) if beyond[best] > 1e-12 else None


def thin(
    costs: ArrayLike, values: ArrayLike, *, epsilon: float = 0.02, delta: float = 0.005
) -> Mask:
    """Return the smallest subset that approximates a front, (N,) bool.

    Every point has a kept point that costs at most (1 + epsilon) times as much and whose value is
    at most delta lower; no smaller set has this property. Only points of the front are kept, and
    the first of equal ones. With epsilon and delta 0 this is the front without duplicates.

    The algorithm is greedy. It starts at the cheapest front point and keeps the most expensive one
    within (1 + epsilon) of its cost. This covers all costlier points that are at most delta better;
    the first one that is not covered is the next start.

    Args:
        costs: to minimize, (N,), not negative.
        values: to maximize, (N,), such as accuracies.
        epsilon: how much more expensive, as a share of the cost.
        delta: how much worse, in the units of the values.

    Raises:
        ValueError: a cost, epsilon or delta is negative, or a value is NaN.

    Source: Vassilvitskii & Yannakakis 2005, "Efficiently computing succinct trade-off curves":
    with two objectives the greedy set is the smallest.
    """
    points = np.column_stack([np.asarray(costs, dtype=float), np.asarray(values, dtype=float)])
    if min(epsilon, delta) < 0 or (points[:, 0] < 0).any():
        raise ValueError("Costs, `epsilon` and `delta` must be at least 0.")
    (members,) = np.nonzero(non_dominated(points, ("minimize", "maximize")))
    # Along a front both cost and value rise, and points of equal cost are equal.
    cost, first = np.unique(points[members, 0], return_index=True)
    members = members[first]
    value = points[members, 1]
    kept = np.zeros(len(points), dtype=bool)
    i = 0
    while i < len(members):
        last = np.searchsorted(cost, (1 + epsilon) * cost[i], side="right") - 1
        kept[members[last]] = True
        # The subtraction is that of the property above, so rounding cannot break it.
        i = int(np.searchsorted(value - delta, value[last], side="right"))
    return kept


def _to_losses(points: ArrayLike, directions: Sequence[str]) -> Floats:
    """Return the points with every objective to be minimized, (N, D)."""
    unknown = [direction for direction in directions if direction not in DIRECTIONS]
    if unknown:
        raise ValueError(f"A direction is `maximize` or `minimize`, but got {unknown[0]!r}.")
    values = np.asarray(points, dtype=float).reshape(-1, len(directions))
    if np.isnan(values).any():
        raise ValueError("Points must not contain NaN.")
    losses: Floats = values * np.array([-sign_of(direction) for direction in directions])
    return losses


def _sweep(losses: Floats) -> Mask:
    """Return `non_dominated` for two objectives, (N,) bool, by sorting and a running minimum."""
    order = np.argsort(losses[:, 0])
    x, y = losses[order, 0], losses[order, 1]
    is_new = np.ones(len(x), dtype=bool)
    is_new[1:] = x[1:] != x[:-1]
    level_of = np.cumsum(is_new) - 1
    # The front has the minimum of each level of x, if it is below those of all earlier levels.
    lowest = np.minimum.reduceat(y, np.flatnonzero(is_new))
    is_below = np.ones(len(lowest), dtype=bool)
    is_below[1:] = lowest[1:] < np.minimum.accumulate(lowest)[:-1]
    kept = np.empty(len(x), dtype=bool)
    kept[order] = is_below[level_of] & (y == lowest[level_of])
    return kept


def _eliminate(losses: Floats) -> Mask:
    """Return `non_dominated` for any number of objectives, (N,) bool.

    A point can only be dominated by points with a smaller sum of ranks. So the points are processed
    in blocks by rising sum: those that are non-dominated within the block are on the front, and the
    points that they dominate are removed. The time is at most proportional to N times the size of
    the front. The first blocks are small, because few points usually dominate most others.
    """
    ranks = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    ranks_DN = np.stack([*ranks, np.sum(ranks, axis=0)])
    left = np.argsort(ranks_DN[-1], kind="stable")
    kept = np.zeros(len(losses), dtype=bool)
    size = 1
    while len(left):
        block, left = left[:size], left[size:]
        block = block[~_are_dominated(ranks_DN[:, block], ranks_DN[:, block])]
        kept[block] = True
        left = left[~_are_dominated(ranks_DN[:, left], ranks_DN[:, block])]
        size = min(2 * size, 256)
    return kept


def _are_dominated(points_DN: Ranks, rivals_DM: Ranks) -> Mask:
    """Return which points any rival dominates, (N,) bool.

    Args:
        points_DN: a row of ranks for every objective, and one of their sums.
        rivals_DM: the same for M rivals.
    """
    dominated = np.zeros(points_DN.shape[1], dtype=bool)
    for rival in rivals_DM.T:
        by_rival = points_DN[-1] > rival[-1]  # excludes equal points
        for rank, other in zip(points_DN[:-1], rival[:-1], strict=True):
            by_rival &= rank >= other
        dominated |= by_rival
    return dominated


def _plane_through_ends(scaled: Floats) -> Floats | None:
    """Return the normal n of the plane n x = 1 through a front's ends, (D,), or None.

    An end is the point best in one objective; ties are broken by the next objective.

    Args:
        scaled: the front, every objective from 0 (best) to 1, (N, D).
    """
    num_objectives = scaled.shape[1]
    ends = np.stack(
        [scaled[np.lexsort(np.roll(scaled, -d, axis=1).T[::-1])[0]] for d in range(num_objectives)]
    )
    if np.linalg.matrix_rank(ends) < num_objectives:
        return None
    normal: Floats = np.linalg.solve(ends, np.ones(num_objectives))
    return normal if np.all(normal > 0) else None


def area(losses: Floats, worst: Floats) -> float:
    """Return `volume` for two objectives, in one sweep."""
    losses = losses[np.argsort(losses[:, 0], kind="stable")]
    widths = np.diff(np.append(losses[:, 0], worst[0]))
    heights = worst[1] - np.minimum.accumulate(losses[:, 1])
    return float(widths @ heights)


def volume(losses: Floats, worst: Floats) -> float:
    """Return the volume between points and the worst corner, by slices of the last objective."""
    if len(losses) == 0:
        return 0.0
    if losses.shape[1] == 1:
        return float(worst[0] - losses.min())
    losses = losses[np.argsort(losses[:, -1], kind="stable")]
    depths = np.diff(np.append(losses[:, -1], worst[-1]))
    slabs = (
        depth * volume(losses[: i + 1, :-1], worst[:-1])
        for i, depth in enumerate(depths)
        if depth > 0
    )
    return float(sum(slabs))
