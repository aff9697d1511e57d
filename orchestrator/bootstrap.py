"""Draw accuracies, differences and fronts over people and seeds, by a multiplier bootstrap.

Shapes: N configurations, R draws, G groups (people, or blocks of their samples), S seeds, K sets of
groups (folds).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from scipy import special  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Cells = tuple[Floats, Floats]
    Seeds = Sequence[Mapping[str, tuple[float, float]]]

BLOCK = " block "
"""Between a person and the number of a block of consecutive samples, in the name of a group."""
FEWEST_PEOPLE = 3
"""With fewer, nothing is said about new people: intervals hold for these people only."""
LEAST_SLOPE = 0.01
"""Least p (1 - p), so that an accuracy p of 1 does not seem exact."""


def resample_accuracies(
    configurations: Sequence[Seeds], *, num_resamples: int = 10_000, seed: int = 0
) -> Floats:
    """Return draws of every configuration's mean accuracy over people and seeds, (R, N).

    A draw adds two errors to the measured accuracy. The error of the people multiplies the
    deviation of each group by a normal variable, the same one for all configurations, so that the
    difference of two columns is a draw of the difference, in which the difficulty of a person
    cancels. A common factor per draw makes it Student's t with one degree of freedom less than
    there are groups. So an interval of draws is the t-interval of the linearized ratio of correct
    samples to samples, and that of a difference the paired one. The error of the seeds is
    independent for each configuration; its variance is pooled over all of them in log odds, because
    two or three seeds do not determine it.

    With blocks of one or two people (`merge_blocks`), deviations are from the mean of the person,
    so draws hold for these people only; without blocks, samples then count as independent.

    Accuracies of configurations that saw different groups, as with folds, are not adjusted for the
    difficulty of the people.

    Args:
        configurations: for each, its seeds, each {group: (correct samples, samples)}; a group that
            is absent or has no samples was not seen.
        num_resamples: R, the number of draws.
        seed: of the generator; equal arguments give equal draws.

    Raises:
        ValueError: a configuration has no seed, or a seed saw no group.

    Source: Cochran 1977, Sampling Techniques, sec. 6.3 (ratio of two sums); Liu 1988, "Bootstrap
    procedures under some non-i.i.d. models" (multipliers); Searle, Casella and McCulloch 1992,
    Variance Components, sec. 4.3 (seeds crossed with groups).
    """
    generator = np.random.default_rng(seed)
    draws = np.empty((num_resamples, len(configurations)))
    if not configurations:
        return draws
    configurations = merge_blocks(configurations)
    names = sorted({name for seeds in configurations for groups in seeds for name in groups})
    cells = [_to_arrays(seeds, names) for seeds in configurations]
    has_blocks = all(BLOCK in name for name in names)
    person_G = _people(names) if has_blocks else np.zeros(len(names), dtype=np.intp)
    normal_RG = generator.standard_normal((num_resamples, len(names)))
    chance_R, seed_chance_R = generator.random((2, num_resamples))
    deviation, dof = _seed_deviation(cells)
    seed_factor = _student(seed_chance_R, dof)
    factor_of = functools.cache(lambda degrees: _student(chance_R, degrees))  # it is slow
    for n, (correct_SG, count_SG) in enumerate(cells):
        accuracy = _accuracy(correct_SG, count_SG)
        own_R = generator.standard_normal((2, num_resamples))
        if has_blocks or len(names) >= FEWEST_PEOPLE:
            error_G, degrees = _errors_of_groups(correct_SG, count_SG, person_G)
            people_R = (normal_RG @ error_G) * factor_of(degrees)
        else:
            people_R = _sampling_error(correct_SG, count_SG) * own_R[0]
        slope = max(accuracy * (1 - accuracy), LEAST_SLOPE)
        spread = deviation * slope * np.sqrt(_seed_share(count_SG))
        seeds_R = spread * own_R[1] * seed_factor
        draws[:, n] = accuracy + people_R + seeds_R
    return draws


def merge_blocks(configurations: Sequence[Seeds]) -> Sequence[Seeds]:
    """Return the counts by person, if they are by block and of at least three people.

    A split of one or two people is counted by blocks, but folds may have more together.
    """
    names = {name for seeds in configurations for groups in seeds for name in groups}
    people = {name.partition(BLOCK)[0] for name in names}
    if len(people) < FEWEST_PEOPLE or not all(BLOCK in name for name in names):
        return configurations
    return [[_by_person(groups) for groups in seeds] for seeds in configurations]


def _people(names: Sequence[str]) -> NDArray[np.intp]:
    """Return the number of the person of each block, (G,)."""
    people = [name.partition(BLOCK)[0] for name in names]
    return np.array([people.index(person) for person in people], dtype=np.intp)


def _by_person(groups: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    merged: dict[str, tuple[float, float]] = {}
    for name, (correct, count) in groups.items():
        person = name.partition(BLOCK)[0]
        before, total = merged.get(person, (0.0, 0.0))
        merged[person] = (before + correct, total + count)
    return merged


def percentile_interval(draws: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that contains the share `level` of the draws."""
    tail = 50 * (1 - level)
    low, high = np.percentile(np.asarray(draws, dtype=float), [tail, 100 - tail])
    return float(low), float(high)


def share_interval(draws: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of draws of a share, within 0 and 1.

    The draws themselves may exceed these limits, so that differences are not distorted.
    """
    low, high = percentile_interval(draws)
    return min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)


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


def _accuracy(correct_SG: Floats, count_SG: Floats) -> float:
    """Return the mean accuracy of the seeds; with folds, correct samples over samples."""
    if np.all(count_SG > 0):
        return float(np.mean(correct_SG.sum(axis=1) / count_SG.sum(axis=1)))
    return float(correct_SG.sum() / count_SG.sum())


def _errors_of_groups(
    correct_SG: Floats, count_SG: Floats, person_G: NDArray[np.intp]
) -> tuple[Floats, int]:
    """Return what each group contributes to the error of the accuracy, and degrees of freedom.

    Multiplied by independent normal variables, the sum of the contributions has the variance of
    the ratio of correct samples to samples, with groups drawn within each person (or at random, if
    `person_G` is equal).
    """
    correct_G, count_G = correct_SG.sum(axis=0), count_SG.sum(axis=0)
    error_G, degrees = np.zeros(len(count_G)), 0
    for person in np.unique(person_G):
        own = (person_G == person) & (count_G > 0)
        number = int(own.sum())
        if number > 1:
            ratio = correct_G[own].sum() / count_G[own].sum()
            residual = correct_G[own] - ratio * count_G[own]
            error_G[own] = residual / count_G.sum() * np.sqrt(number / (number - 1))
            degrees += number - 1
    return error_G, degrees


def _sampling_error(correct_SG: Floats, count_SG: Floats) -> float:
    """Return the standard error of the accuracy on these people, if samples are independent."""
    num_seeds = np.maximum((count_SG > 0).sum(axis=0), 1)
    count_G = count_SG.sum(axis=0) / num_seeds
    share_G = correct_SG.sum(axis=0) / np.maximum(count_SG.sum(axis=0), 1)
    variance = float(np.sum(count_G * share_G * (1 - share_G)))
    return float(np.sqrt(variance) / count_G.sum())


def _student(chance_R: Floats, degrees: int) -> Floats | float:
    """Return the factors that make normal variables Student's t, (R,).

    Args:
        chance_R: uniform in [0, 1); equal ones give the same quantile whatever the degrees.
        degrees: of freedom; at 0 the variables have no variance, and the factor is 1.
    """
    if degrees == 0:
        return 1.0
    factor_R: Floats = np.sqrt(degrees / (2 * special.gammaincinv(degrees / 2, chance_R)))
    return factor_R


def _seed_share(count_SG: Floats) -> float:
    """Return the variance of the mean error of the seeds, for errors of variance 1.

    With folds, groups that only some seeds saw vary with the mean of these seeds, too, so a part
    of the variance is in the deviations of the groups.
    """
    num_seeds = len(count_SG)
    if np.all(count_SG > 0):
        return 1 / num_seeds
    # The sum over groups of the number of seeds that saw each is G times their mean number.
    return max(1 / num_seeds - 1 / int((count_SG > 0).sum()), 0.0)


def _seed_deviation(cells: Sequence[Cells]) -> tuple[float, int]:
    """Return the standard deviation of a seed's error in log odds, and its degrees of freedom.

    Seeds of a configuration are compared after subtracting the mean of their set of groups. What
    they differ by on single groups is subtracted: the groups' deviations contain it.
    """
    repeated = [cell for cell in cells if len(cell[0]) > 1]
    if not repeated:
        return 0.0, 0
    values, rows, sets = [], [], []
    expected, interaction = 0.0, 0.0
    known: dict[bytes, int] = {}
    for n, (correct_SG, count_SG) in enumerate(repeated):
        accuracy, extra = _accuracy(correct_SG, count_SG), len(count_SG) - 1
        expected += extra * max(accuracy * (1 - accuracy), LEAST_SLOPE) ** 2
        values += (correct_SG.sum(axis=1) / count_SG.sum(axis=1)).tolist()
        rows += [n] * len(count_SG)
        sets += [known.setdefault(row.tobytes(), len(known)) for row in count_SG > 0]
        interaction += extra * _interaction(correct_SG, count_SG)
    columns = np.hstack([np.eye(len(repeated))[rows], np.eye(len(known))[sets][:, 1:]])
    solution, _, rank, _ = np.linalg.lstsq(columns, np.array(values), rcond=None)
    left = len(values) - int(rank)
    if left == 0:
        return 0.0, 0
    square = float(np.sum((np.array(values) - columns @ solution) ** 2))
    # Estimating the sets' means takes the same share from the squares as from the degrees.
    share = left / (len(values) - len(repeated))
    return float(np.sqrt(max(square / share - interaction, 0.0) / expected)), left


def _interaction(correct_SG: Floats, count_SG: Floats) -> float:
    """Return the variance of a seed's mean due to its errors on single groups; 0 with folds."""
    num_seeds, num_groups = count_SG.shape
    if num_groups < 2 or not np.all(count_SG > 0):
        return 0.0
    residual_SG = correct_SG - _accuracy(correct_SG, count_SG) * count_SG
    residual_SG = residual_SG / count_SG.mean()
    residual_SG = residual_SG - residual_SG.mean(axis=0) - residual_SG.mean(axis=1)[:, None]
    centered_SG = residual_SG - residual_SG.mean()
    square = float(np.sum(centered_SG**2)) / ((num_seeds - 1) * (num_groups - 1))
    return float(square / num_groups)
