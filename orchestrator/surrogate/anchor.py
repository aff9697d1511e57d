"""Which of many measured configurations the surrogate holds, and what it says of the others.

Beyond `MAX_OBSERVED` it holds those next to the front and some others. The others are predicted
from what it held when its hyperparameters were fitted.

Shapes: C configurations that were measured, N of the study, M to be predicted, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.surrogate.gp import GaussianProcess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.surrogate.gp import Hyperparameters
    from sftsearch.orchestrator.surrogate.observations import Measurements

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

MAX_OBSERVED = 300
"""Measured configurations the surrogate holds; beyond, those near the front and some others."""
MAX_IMPORTED = 150
"""Configurations of another study it holds besides."""


def draw_far(measurements: Measurements, u: Floats, seed: int) -> Indices:
    """Return the rows of some configurations that are not next to the front.

    Args:
        measurements: what was measured when the hyperparameters were fitted.
        u: scaled costs of the study's configurations, by row.
        seed: of the study's sampler.
    """
    far = measurements.rows[_near(measurements, u)[MAX_OBSERVED // 2 :]]
    random_ = np.random.default_rng([seed, len(measurements.ids)])
    return random_.permutation(far)[: MAX_OBSERVED - MAX_OBSERVED // 2]


def most_telling(measurements: Measurements, u: Floats, far: Indices) -> Indices:
    """Return which of what was measured the surrogate holds: half of it next to the front.

    Args:
        measurements: what was measured.
        u: scaled costs of the study's configurations, by row.
        far: from `draw_far`: the other half, the same until the next fit.
    """
    if len(measurements.ids) <= MAX_OBSERVED:
        return np.arange(len(measurements.ids))
    near = _near(measurements, u)[: MAX_OBSERVED // 2]
    return np.union1d(near, np.flatnonzero(np.isin(measurements.rows, far)))


def _near(measurements: Measurements, u: Floats) -> Indices:
    """Return the order by what each lacks of the best that its costs afford, (C,)."""
    order = np.argsort(u[measurements.rows].sum(axis=1), kind="stable")
    affordable = np.empty(len(order))
    affordable[order] = np.maximum.accumulate(measurements.means[order])
    near: Indices = np.argsort(affordable - measurements.means, kind="stable")
    return near


def best_and_some(values: Floats, most: int) -> Indices:
    """Return the places of at most so many values: half of them the best, the rest from all."""
    order = np.argsort(-values, kind="stable")
    if len(order) <= most:
        return np.arange(len(order))
    best, rest = order[: most // 2], order[most // 2 :]
    evenly = np.linspace(0, len(rest) - 1, most - len(best)).round().astype(np.int64)
    return np.concatenate([best, rest[evenly]])


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """What was known when the hyperparameters were fitted, and what it says of the study.

    To predict all that was measured after every trial would take too long; what the surrogate does
    not hold is far from the front, or was measured since. So predictions are handed on.
    """

    fitted_on: Measurements
    far: Indices
    """See `draw_far`."""
    process: GaussianProcess
    means: Floats
    """Of the true means of the study's configurations, by row; NaN where not predicted."""
    deviations: Floats

    def covering(self, rows: Indices, x: Floats) -> Anchor:
        """Return this one with the mean and sd of configurations by all values but their own.

        Args:
            rows: their places in the study, ascending.
            x: features of the study's configurations, by row, (N, D).
        """
        means, deviations = (
            np.append(known, np.full(max(0, int(rows[-1]) + 1 - len(known)), np.nan))
            for known in (self.means, self.deviations)
        )
        unknown = rows[np.isnan(means[rows])]
        if len(unknown):
            means[unknown], deviations[unknown] = self.process.predict(x[unknown])
        return replace(self, means=means, deviations=deviations)


def make_anchor(
    fitted_on: Measurements, far: Indices, x: Floats, u: Floats, hyperparameters: Hyperparameters
) -> Anchor:
    """Return what was known when hyperparameters were fitted.

    Args:
        fitted_on: what was measured then.
        far: see `draw_far`.
        x: features of the study's configurations, by row, (N, D).
        u: scaled costs of them, (N, costs).
        hyperparameters: that were fitted on it.
    """
    kept = most_telling(fitted_on, u, far)
    rows, values, counts = fitted_on.rows[kept], fitted_on.means[kept], fitted_on.counts[kept]
    process = GaussianProcess(x[rows], values, counts, hyperparameters)
    means, deviations = np.full((2, 1 + int(fitted_on.rows.max())), np.nan)
    found = _without_own(*process.observed(), values, counts, hyperparameters)
    means[rows], deviations[rows] = found
    return Anchor(fitted_on, far, process, means, deviations)


def _without_own(
    mean: Floats, sd: Floats, values: Floats, counts: Floats, hyperparameters: Hyperparameters
) -> tuple[Floats, Floats]:
    """Return mean and sd of true means by what others say: the own value's factor taken out.

    The posterior is the product of that and the normal density of the own value: precisions and
    precision-weighted means subtract.
    """
    own = counts / hyperparameters.sigma**2
    widest = hyperparameters.amplitude**2 + hyperparameters.tau**2
    known = 1 / np.maximum(sd**2, 1e-12 / own)  # a variance that is lost to rounding
    precision = np.maximum(known - own, 1 / widest)
    return (known * mean - own * values) / precision, 1 / np.sqrt(precision)
