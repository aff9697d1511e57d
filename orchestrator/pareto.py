"""Find fronts of several objectives, what they enclose, their knee and the fewest points for them.

Numpy only. Shapes: N points, D objectives.
An objective's direction is `maximize` or `minimize`, Optuna's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]
    Ranks = NDArray[np.intp]

_SIGNS = {"minimize": 1.0, "maximize": -1.0}


def non_dominated(points: ArrayLike, directions: Sequence[str]) -> Mask:
    """Return which points no other point beats, (N,) bool.

    A point beats another when it is nowhere worse and somewhere better; so equal points do not
    beat each other, and both are kept.

    Args:
        points: objective values, (N, D).
        directions: `maximize` or `minimize` for every objective.

    Raises:
        ValueError: a value is NaN, which no order can place, or a direction is unknown.
    """
    losses = _to_losses(points, directions)
    return _sweep(losses) if losses.shape[1] == 2 else _eliminate(losses)


def hypervolume(points: ArrayLike, reference: ArrayLike, directions: Sequence[str]) -> float:
    """Return the volume that the points beat, bounded by the reference; exact for every D.

    Points that are not better than the reference in every objective enclose nothing.

    Args:
        points: objective values, (N, D).
        reference: the point that bounds the volume, (D,).
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

    All objectives are scaled to [0, 1] over the front; the knee lies farthest beyond the line (or
    plane) through the front's ends, the points that are best in one objective each. A front that
    is nowhere beyond it, or whose ends span none because an objective is constant or one point is
    best in two, has no knee. Points off the front count for nothing.

    Args:
        points: objective values, (N, D), D at least 2, in any order; give a cost's logarithm
            where ratios count.
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
    """Return the fewest points that stand for a whole front, (N,) bool.

    Every point has a kept one that costs at most (1 + epsilon) times as much and whose value is
    at most delta lower; no smaller set has this property. Only points of the front are kept, of
    equal ones the first. With epsilon and delta 0 that is the front without its duplicates.

    From the cheapest point on: the most expensive front point within (1 + epsilon) of its cost
    stands for it, and for every point of a higher cost that is no more than delta better; then so
    on from the first point that is.

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
        raise ValueError("Thinning needs costs, `epsilon` and `delta` of at least 0.")
    (members,) = np.nonzero(non_dominated(points, ("minimize", "maximize")))
    # Along a front both rise, and points of equal cost are equal.
    cost, first = np.unique(points[members, 0], return_index=True)
    members = members[first]
    value = points[members, 1]
    kept = np.zeros(len(points), dtype=bool)
    i = 0
    while i < len(members):
        stand_in = np.searchsorted(cost, (1 + epsilon) * cost[i], side="right") - 1
        kept[members[stand_in]] = True
        # The same subtraction as a reader would do to check the promise: no rounding between.
        i = int(np.searchsorted(value - delta, value[stand_in], side="right"))
    return kept


def _to_losses(points: ArrayLike, directions: Sequence[str]) -> Floats:
    """Return the points with every objective turned so that less is better, (N, D)."""
    unknown = [direction for direction in directions if direction not in _SIGNS]
    if unknown:
        raise ValueError(f"A direction is `maximize` or `minimize`, but got {unknown[0]!r}.")
    values = np.asarray(points, dtype=float).reshape(-1, len(directions))
    if np.isnan(values).any():
        raise ValueError("Points cannot be ordered: a value is NaN.")
    losses: Floats = values * np.array([_SIGNS[direction] for direction in directions])
    return losses


def _sweep(losses: Floats) -> Mask:
    """Return `non_dominated` of two objectives, (N,) bool: sort, then one running minimum."""
    order = np.argsort(losses[:, 0])
    x, y = losses[order, 0], losses[order, 1]
    is_new = np.ones(len(x), dtype=bool)
    is_new[1:] = x[1:] != x[:-1]
    level_of = np.cumsum(is_new) - 1
    # On the front are the lowest of each level of x, where that is below all levels before it.
    lowest = np.minimum.reduceat(y, np.flatnonzero(is_new))
    is_below = np.ones(len(lowest), dtype=bool)
    is_below[1:] = lowest[1:] < np.minimum.accumulate(lowest)[:-1]
    kept = np.empty(len(x), dtype=bool)
    kept[order] = is_below[level_of] & (y == lowest[level_of])
    return kept


def _eliminate(losses: Floats) -> Mask:
    """Return `non_dominated` of any number of objectives, (N,) bool.

    What beats a point has a lesser sum of ranks. So of the points left, in that order, those of a
    first block that no other of the block beats are on the front, and whatever they beat leaves.
    The time is that of N times the front's size at worst, and much less where few points beat most
    others; the first blocks are small, because there they are the few.
    """
    ranks = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    ranks_DN = np.stack([*ranks, np.sum(ranks, axis=0)])
    left = np.argsort(ranks_DN[-1], kind="stable")
    kept = np.zeros(len(losses), dtype=bool)
    size = 1
    while len(left):
        block, left = left[:size], left[size:]
        block = block[~_are_beaten(ranks_DN[:, block], ranks_DN[:, block])]
        kept[block] = True
        left = left[~_are_beaten(ranks_DN[:, left], ranks_DN[:, block])]
        size = min(2 * size, 256)
    return kept


def _are_beaten(points_DN: Ranks, rivals_DM: Ranks) -> Mask:
    """Return which points some rival beats, (N,) bool.

    Args:
        points_DN: a row of ranks for every objective, and one of their sums.
        rivals_DM: the same of M rivals.
    """
    beaten = np.zeros(points_DN.shape[1], dtype=bool)
    for rival in rivals_DM.T:
        beaten_now = points_DN[-1] > rival[-1]  # not equal, then, if nowhere better
        for rank, other in zip(points_DN[:-1], rival[:-1], strict=True):
            beaten_now &= rank >= other
        beaten |= beaten_now
    return beaten


def _plane_through_ends(scaled: Floats) -> Floats | None:
    """Return the normal n of the plane n x = 1 through a front's ends, (D,), or None.

    An end is the point that is best in one objective; of several, the one best in the next.

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
    """Return `volume` of two objectives, in one sweep."""
    losses = losses[np.argsort(losses[:, 0], kind="stable")]
    widths = np.diff(np.append(losses[:, 0], worst[0]))
    heights = worst[1] - np.minimum.accumulate(losses[:, 1])
    return float(widths @ heights)


def volume(losses: Floats, worst: Floats) -> float:
    """Return the volume between points and the worst corner, slab by slab of the last objective."""
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
