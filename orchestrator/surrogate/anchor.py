"""Limit the surrogate to a subset of the measured configurations, and predict the others.

Beyond `MAX_OBSERVED` configurations the process holds those nearest the front and a sample of the
rest. The others are predicted from the process at the last fit of the hyperparameters.

Shapes: C measured configurations, N of the study, D features.
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
"""Maximum number of measured configurations in the surrogate."""
MAX_IMPORTED = 150
"""Maximum number of additional configurations of a warm-start study."""


def sample_far(measurements: Measurements, u: Floats, seed: int) -> Indices:
    """Sample the rows of configurations that are not near the front.

    Args:
        measurements: those that the hyperparameters were fitted to.
        u: scaled costs of the study's configurations, by row.
        seed: the sampler's seed.
    """
    far = measurements.rows[_near(measurements, u)[MAX_OBSERVED // 2 :]]
    random_ = np.random.default_rng([seed, len(measurements.ids)])
    return random_.permutation(far)[: MAX_OBSERVED - MAX_OBSERVED // 2]


def select_held(measurements: Measurements, u: Floats, far: Indices) -> Indices:
    """Return the indices of the measurements that the surrogate holds; half are near the front.

    Args:
        measurements: the current ones.
        u: scaled costs of the study's configurations, by row.
        far: the other half, from `sample_far`; the same until the next fit.
    """
    if len(measurements.ids) <= MAX_OBSERVED:
        return np.arange(len(measurements.ids))
    near = _near(measurements, u)[: MAX_OBSERVED // 2]
    return np.union1d(near, np.flatnonzero(np.isin(measurements.rows, far)))


def _near(measurements: Measurements, u: Floats) -> Indices:
    """Return the order by distance below the best mean that is as cheap, nearest first, (C,)."""
    order = np.argsort(u[measurements.rows].sum(axis=1), kind="stable")
    affordable = np.empty(len(order))
    affordable[order] = np.maximum.accumulate(measurements.means[order])
    near: Indices = np.argsort(affordable - measurements.means, kind="stable")
    return near


def best_and_spread(values: Floats, most: int) -> Indices:
    """Return the indices of at most `most` values: half the best, half evenly from the rest."""
    order = np.argsort(-values, kind="stable")
    if len(order) <= most:
        return np.arange(len(order))
    best, rest = order[: most // 2], order[most // 2 :]
    evenly = np.linspace(0, len(rest) - 1, most - len(best)).round().astype(np.int64)
    return np.concatenate([best, rest[evenly]])


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """The process at the last fit of the hyperparameters, with its predictions.

    Predicting all measured configurations after every trial would take too long. Those that the
    surrogate does not hold are far from the front or newer than the fit, so their predictions are
    cached here.
    """

    fitted_on: Measurements
    far: Indices
    """See `sample_far`."""
    process: GaussianProcess
    means: Floats
    """Predicted true means of the study's configurations, by row; NaN where not predicted."""
    deviations: Floats

    def covering(self, rows: Indices, x: Floats) -> Anchor:
        """Return a copy that also predicts the given configurations, without their own values.

        Args:
            rows: of the configurations in the study, ascending.
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
    """Return the anchor of a fit of the hyperparameters.

    Args:
        fitted_on: the measurements of the fit.
        far: see `sample_far`.
        x: features of the study's configurations, by row, (N, D).
        u: their scaled costs, (N, costs).
        hyperparameters: the result of the fit.
    """
    kept = select_held(fitted_on, u, far)
    rows, values, counts = fitted_on.rows[kept], fitted_on.means[kept], fitted_on.counts[kept]
    process = GaussianProcess(x[rows], values, counts, hyperparameters)
    means, deviations = np.full((2, 1 + int(fitted_on.rows.max())), np.nan)
    found = _without_own(*process.observed(), values, counts, hyperparameters)
    means[rows], deviations[rows] = found
    return Anchor(fitted_on, far, process, means, deviations)


def _without_own(
    mean: Floats, sd: Floats, values: Floats, counts: Floats, hyperparameters: Hyperparameters
) -> tuple[Floats, Floats]:
    """Return leave-one-out mean and sd of the true means.

    The posterior is the leave-one-out density times the normal density of the own value, so
    precisions and precision-weighted means subtract.
    """
    own = counts / hyperparameters.sigma**2
    widest = hyperparameters.amplitude**2 + hyperparameters.tau**2
    known = 1 / np.maximum(sd**2, 1e-12 / own)  # rounding may give a variance of 0
    precision = np.maximum(known - own, 1 / widest)
    return (known * mean - own * values) / precision, 1 / np.sqrt(precision)
