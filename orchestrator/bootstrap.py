"""Bootstrap accuracies, differences and fronts over subjects and seeds. Numpy only.

Shapes: N configurations, R resamples, G groups (subjects), S seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Seeds = Sequence[Mapping[str, tuple[float, float]]]


def resample_accuracies(
    configurations: Sequence[Seeds], *, num_resamples: int = 10_000, seed: int = 0
) -> Floats:
    """Return bootstrap draws of every configuration's mean accuracy, (R, N).

    Groups and seeds are both resampled with replacement: a draw takes G groups, the same for all
    configurations, and for each configuration as many seeds as it has. The groups are paired, so
    the difference of two columns is a draw of the difference between two configurations, in which
    the difficulty of the drawn subjects cancels. Seeds are not paired, because equal seeds of two
    models share no weights.

    With folds, a seed saw only the groups of its fold. A draw then weights every group and every
    seed, and its accuracy is the weighted number of correct samples over that of all samples.
    Multinomial counts would leave some configurations without samples in some draws, so the
    weights are gamma variables with the same mean and variance, which are never 0. Accuracies of
    configurations that saw different groups are not adjusted for the difficulty of the subjects.

    Args:
        configurations: for each, its seeds, each {group: (correct samples, samples)}; a group that
            is absent or has no samples was not seen.
        num_resamples: R, the number of draws.
        seed: of the generator; equal arguments give equal draws.

    Raises:
        ValueError: a configuration has no seed, or a seed saw no group.

    Source: Owen 2007, "The pigeonhole bootstrap", resampling both factors of a crossed design;
    Owen & Eckles 2012, "Bootstrapping data arrays of arbitrary order", weights for missing cells.
    """
    generator = np.random.default_rng(seed)
    draws = np.empty((num_resamples, len(configurations)))
    if not configurations:
        return draws
    names = sorted({name for seeds in configurations for groups in seeds for name in groups})
    cells = [_to_arrays(seeds, names) for seeds in configurations]
    if all(np.all(count_SG > 0) for _, count_SG in cells):
        weights_RG = _draw_counts(generator, num_resamples, len(names))
        for n, (correct_SG, count_SG) in enumerate(cells):
            accuracy_RS = (weights_RG @ correct_SG.T) / (weights_RG @ count_SG.T)
            picks_RS = _draw_counts(generator, num_resamples, len(count_SG))
            draws[:, n] = np.sum(picks_RS * accuracy_RS, axis=1) / len(count_SG)
        return draws
    weights_RG = draw_weights(generator, num_resamples, np.zeros(len(names)))
    for n, (correct_SG, count_SG) in enumerate(cells):
        weights_RS = draw_weights(generator, num_resamples, _own_groups(count_SG))
        correct_R = np.sum(weights_RS * (weights_RG @ correct_SG.T), axis=1)
        draws[:, n] = correct_R / np.sum(weights_RS * (weights_RG @ count_SG.T), axis=1)
    return draws


def percentile_interval(draws: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that contains the share `level` of the draws."""
    tail = 50 * (1 - level)
    low, high = np.percentile(np.asarray(draws, dtype=float), [tail, 100 - tail])
    return float(low), float(high)


def share_on_front(draws: Floats, costs: ArrayLike) -> Floats:
    """Return the share of draws in which each configuration is on the front, (N,).

    Args:
        draws: accuracies to maximize, (R, N), from `resample_accuracies`.
        costs: of each configuration, to minimize, (N,); exact, so not resampled.
    """
    levels, level_of = np.unique(np.asarray(costs, dtype=float), return_inverse=True)
    best_RL = np.full((len(draws), len(levels)), -np.inf)
    for n, level in enumerate(level_of):
        np.maximum(best_RL[:, level], draws[:, n], out=best_RL[:, level])
    cheaper_RL = np.maximum.accumulate(best_RL, axis=1)
    cheaper_RL = np.hstack([np.full((len(draws), 1), -np.inf), cheaper_RL[:, :-1]])
    on_front = (draws >= best_RL[:, level_of]) & (draws > cheaper_RL[:, level_of])
    share: Floats = on_front.mean(axis=0)
    return share


def _to_arrays(seeds: Seeds, names: list[str]) -> tuple[Floats, Floats]:
    """Return correct samples and all samples, each (S, G), with groups in the order of `names`.

    Both are 0 where a seed did not see a group.
    """
    if not seeds:
        raise ValueError("A bootstrap needs at least one seed of each configuration, but got none.")
    if not names:
        raise ValueError("A bootstrap needs at least one group and one seed, but got none.")
    table = np.array([[groups.get(name, (0, 0)) for name in names] for groups in seeds], float)
    if not np.all(table[..., 1].sum(axis=1) > 0):
        raise ValueError("Every seed must have a sample, but one has a count of 0.")
    return table[..., 0], table[..., 1]


def _draw_counts(generator: np.random.Generator, num_resamples: int, size: int) -> Floats:
    """Return how often each of `size` items occurs in `size` draws with replacement, (R, size)."""
    counts = generator.multinomial(size, np.full(size, 1 / size), num_resamples)
    return counts.astype(float)


def draw_weights(generator: np.random.Generator, num_resamples: int, damping: Floats) -> Floats:
    """Return positive weights of mean 1, (R, size), with the variance of `_draw_counts`.

    Normalized to a sum, gamma variables of shape 1 - 1/size have the mean, variance and covariance
    of multinomial shares, but they are never 0.

    Args:
        generator: draws the weights.
        num_resamples: R.
        damping: reduction of each variance, from 0 (none) to 1 (to a variance of 0), (size,).
    """
    shapes = (1 + damping) / np.maximum(1 - damping, 1e-6) - 1 / len(damping)
    # For size 1 the weight cancels, so any value will do.
    shapes = np.maximum(shapes, 0.5)
    return generator.gamma(shapes, 1 / shapes, (num_resamples, len(shapes)))


def _own_groups(count_SG: Floats) -> Floats:
    """Return the damping a of each seed, (S,): 0 if all seeds share its groups, near 1 if none.

    The weights of the groups already vary seeds that saw different groups. Varying these seeds
    fully again would make the intervals of leave-one-group-out folds 50 % too wide. The groups'
    weights give a seed the relative variance a; with a variance of (1 - a) / (1 + a) for its own
    weight, the product has variance 1, as a seed should.
    """
    share_SG = count_SG / count_SG.sum(axis=1, keepdims=True)
    spread_S: Floats = np.sum((share_SG - share_SG.mean(axis=0)) ** 2, axis=1)
    return spread_S
