"""Fronts of several objectives, what they enclose, and how sure their members are. Numpy only.

Shapes: N points or configurations, D objectives, R resamples, G groups (subjects), S seeds.
An objective's direction is `maximize` or `minimize`, Optuna's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]
    Seeds = Sequence[Mapping[str, tuple[float, float]]]

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
    kept = np.zeros(len(losses), dtype=bool)
    front = np.empty((0, losses.shape[1]))
    # In lexicographic order a point can only be beaten by one before it, and if it is, then also
    # by one of the front found so far.
    for i in np.lexsort(losses.T[::-1]):
        loss = losses[i]
        no_worse = np.all(front <= loss, axis=1)
        kept[i] = not np.any(no_worse & np.any(front < loss, axis=1))
        if kept[i]:
            front = np.vstack([front, loss])
    return kept


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
    return _area(inside, worst) if len(worst) == 2 else _volume(inside, worst)


def knee(points: ArrayLike, directions: Sequence[str]) -> int | None:
    """Return the index of the point where a front of two objectives bends most, or None.

    Both objectives are scaled to [0, 1] over the points; the knee lies farthest beyond the line
    from one end of the front to the other. A front of fewer than three points, or one that is
    nowhere beyond that line, has none.

    Args:
        points: the front, (N, 2), in any order; give a cost's logarithm where ratios count.
        directions: `maximize` or `minimize` for both objectives.

    Source: Das 1999, "On characterizing the knee of the Pareto curve".
    """
    losses = _to_losses(points, directions)
    if losses.shape[1] != 2:
        raise ValueError(f"A knee needs 2 objectives, but got {losses.shape[1]}.")
    if len(losses) < 3:
        return None
    span = np.ptp(losses, axis=0)
    if not np.all(span > 0):
        return None
    # Scaled, the ends of a front are (0, 1) and (1, 0): the line between them is x + y = 1.
    beyond = 1 - np.sum((losses - losses.min(axis=0)) / span, axis=1)
    best = int(np.argmax(beyond))
    return best if beyond[best] > 1e-12 else None


def resample_accuracies(
    configurations: Sequence[Seeds], *, num_resamples: int = 10_000, seed: int = 0
) -> Floats:
    """Return bootstrap draws of every configuration's mean accuracy, (R, N).

    Two ways at once: a draw takes G groups with replacement, the same ones for all
    configurations, and for each configuration its number of seeds with replacement. The groups
    are paired, so the difference of two columns is a draw of the difference between two
    configurations, free of how hard the drawn subjects were. Seeds are not paired: equal seeds of
    two models share no weight.

    Args:
        configurations: for each, its seeds, each {group: (correct samples, samples)}.
        num_resamples: R, the number of draws.
        seed: of the generator; equal arguments give equal draws.

    Raises:
        ValueError: a configuration has no seed, the groups differ, or one has no sample.

    Source: Owen 2007, "The pigeonhole bootstrap", resampling both factors of a crossed design.
    """
    generator = np.random.default_rng(seed)
    names = sorted(configurations[0][0]) if configurations and configurations[0] else []
    num_groups = len(names)
    if configurations and not num_groups:
        raise ValueError("A bootstrap needs at least one group and one seed, but got none.")
    draws = np.empty((num_resamples, len(configurations)))
    if not configurations:
        return draws
    weights_RG = generator.multinomial(
        num_groups, np.full(num_groups, 1 / num_groups), num_resamples
    ).astype(float)
    for n, seeds in enumerate(configurations):
        correct_SG, count_SG = _to_arrays(seeds, names)
        accuracy_RS = (weights_RG @ correct_SG.T) / (weights_RG @ count_SG.T)
        num_seeds = len(seeds)
        picks_RS = generator.multinomial(
            num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples
        )
        draws[:, n] = np.sum(picks_RS * accuracy_RS, axis=1) / num_seeds
    return draws


def percentile_interval(draws: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the middle `level` of the draws."""
    tail = 50 * (1 - level)
    low, high = np.percentile(np.asarray(draws, dtype=float), [tail, 100 - tail])
    return float(low), float(high)


def membership(draws: Floats, costs: ArrayLike) -> Floats:
    """Return in which share of the draws each configuration is on the front, (N,).

    Args:
        draws: accuracies to maximize, (R, N), from `resample_accuracies`.
        costs: what each configuration costs, to minimize, (N,); known, so not resampled.
    """
    levels, level_of = np.unique(np.asarray(costs, dtype=float), return_inverse=True)
    best_RL = np.full((len(draws), len(levels)), -np.inf)
    for n, level in enumerate(level_of):
        np.maximum(best_RL[:, level], draws[:, n], out=best_RL[:, level])
    cheaper_RL = np.maximum.accumulate(best_RL, axis=1)
    cheaper_RL = np.hstack([np.full((len(draws), 1), -np.inf), cheaper_RL[:, :-1]])
    member = (draws >= best_RL[:, level_of]) & (draws > cheaper_RL[:, level_of])
    share: Floats = member.mean(axis=0)
    return share


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


def _area(losses: Floats, worst: Floats) -> float:
    """Return `_volume` of two objectives, in one sweep."""
    losses = losses[np.argsort(losses[:, 0], kind="stable")]
    widths = np.diff(np.append(losses[:, 0], worst[0]))
    heights = worst[1] - np.minimum.accumulate(losses[:, 1])
    return float(widths @ heights)


def _volume(losses: Floats, worst: Floats) -> float:
    """Return the volume between points and the worst corner, slab by slab of the last objective."""
    if len(losses) == 0:
        return 0.0
    if losses.shape[1] == 1:
        return float(worst[0] - losses.min())
    losses = losses[np.argsort(losses[:, -1], kind="stable")]
    depths = np.diff(np.append(losses[:, -1], worst[-1]))
    slabs = (
        depth * _volume(losses[: i + 1, :-1], worst[:-1])
        for i, depth in enumerate(depths)
        if depth > 0
    )
    return float(sum(slabs))


def _to_arrays(seeds: Seeds, names: list[str]) -> tuple[Floats, Floats]:
    """Return correct and counted samples, each (S, G), with the groups in the order of `names`."""
    if not seeds:
        raise ValueError("A bootstrap needs at least one seed of each configuration, but got none.")
    for groups in seeds:
        if sorted(groups) != names:
            raise ValueError(
                f"All seeds must have the same groups, but got {sorted(groups)} and {names}."
            )
    table = np.array([[groups[name] for name in names] for groups in seeds], dtype=float)
    if not np.all(table[..., 1] > 0):
        raise ValueError("Every group must have a sample, but one has a count of 0.")
    return table[..., 0], table[..., 1]
