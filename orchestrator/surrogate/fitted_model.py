"""Fit the surrogate: from the measurements of a study to the posterior of its true means.

`fit` is a pure function of the measurements and the last fit. Its result is immutable.

Shapes: C measured configurations, N of the study, I imported, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sftsearch.orchestrator.surrogate.anchor import (
    MAX_IMPORTED,
    MAX_OBSERVED,
    Anchor,
    best_and_spread,
    make_anchor,
    sample_far,
    select_held,
)
from sftsearch.orchestrator.surrogate.gp import GaussianProcess
from sftsearch.orchestrator.surrogate.hyperparameters import fit_hyperparameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.surrogate.gp import Hyperparameters
    from sftsearch.orchestrator.surrogate.observations import Measurements
    from sftsearch.orchestrator.surrogate.transforms import OutcomeTransform

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

REFIT = 1.15
"""Growth in the number of configurations with a value that makes a new fit due."""


@dataclass(frozen=True, slots=True, eq=False)
class StudyData:
    """A snapshot of a study's data."""

    measurements: Measurements
    x: Floats
    """Features of all configurations, by row, (N, D)."""
    u: Floats
    """Their scaled costs, (N, costs)."""
    x_imported: Floats
    """Features of the imported configurations, in the order of their import, (I, D)."""
    transform: OutcomeTransform
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fit of the hyperparameters, from which the next fit starts."""

    hyperparameters: Hyperparameters
    num: int
    """Number of configurations that had a value, including imported ones."""
    fitted_on: Measurements
    """The measurements at that time."""


def is_fit_due(measurements: Measurements, last: Fit) -> bool:
    """Return whether enough was measured since the last fit for a new one."""
    return measurements.num_known >= REFIT * last.num


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """The posterior of the configurations with a value, in the order of `Measurements`."""

    means: Floats
    """Posterior means of the true means, (C,)."""
    deviations: Floats
    """Posterior standard deviations of the true means, (C,)."""
    u: Floats
    """Scaled costs, (C, costs)."""
    sigmas: Floats
    """Standard deviation of one replicate around its configuration's true mean, (C,)."""


class Held(NamedTuple):
    """The configurations that the surrogate holds, imported ones last."""

    x: Floats
    means: Floats
    counts: Floats
    shared: Floats | None
    """Covariance of errors that the means share; None if they share none."""


@dataclass(frozen=True, slots=True, eq=False)
class FittedModel:
    """The surrogate, fitted to the measurements."""

    data: StudyData
    fit: Fit
    """The last fit, or a new one if that was due."""
    kept: Indices
    """Indices of the measurements that the process holds."""
    held: Held
    process: GaussianProcess
    posterior: Posterior
    anchor: Anchor | None
    """None if the process holds all measurements."""

    @property
    def measurements(self) -> Measurements:
        """The measurements that the model is fitted to."""
        return self.data.measurements

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of the process."""
        return self.fit.hyperparameters

    def affordable(self, cost: float) -> float | None:
        """Return the best posterior mean at a cost or below; None if nothing is affordable.

        `cost` has the unit of the study's cost.
        """
        within = self.measurements.costs <= cost
        return float(self.posterior.means[within].max()) if within.any() else None

    def front(self) -> list[str]:
        """Return the ids on the front of the posterior means, by rising cost."""
        measurements, means = self.measurements, self.posterior.means
        order = np.lexsort((-means, measurements.costs))
        best_before = np.append(-np.inf, np.maximum.accumulate(means[order])[:-1])
        return [measurements.ids[i] for i in order[means[order] > best_before]]

    def draws(self, number: int, seed: int = 0) -> Floats:
        """Draw the true means of all measured configurations, (number, C).

        The draws are joint for the configurations that the process holds, independent for others.
        """
        size = len(self.measurements.ids)
        random_ = np.random.default_rng([seed, size])
        drawn = random_.normal(self.posterior.means, self.posterior.deviations, (number, size))
        mean, covariance = self.process.observed_joint()
        own = slice(len(self.kept))  # without imported ones
        mean, covariance = mean[own], covariance[own, own]
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(values.clip(min=0.0))
        latent = mean + random_.standard_normal((number, len(self.kept))) @ root.T
        drawn[:, self.kept] = self.to_values(latent)
        return drawn

    def to_values(self, latent: Floats) -> Floats:
        """Transform means from the scale of the process to accuracies."""
        return self.data.transform.to_values(latent, _spread(self.data, self.fit))

    def as_values(self, latent: Floats, deviations: Floats) -> tuple[Floats, Floats]:
        """Transform means and deviations from the scale of the process to accuracies."""
        return _as_values(self.data, self.fit, latent, deviations)


def fit(data: StudyData, last: Fit | None, previous: FittedModel | None = None) -> FittedModel:
    """Fit the surrogate to the measurements.

    The hyperparameters of the last fit are reused until a new fit is due (`is_fit_due`).

    Args:
        data: a snapshot in which at least one configuration has a value.
        last: the last fit, if any.
        previous: an earlier model of the study, whose predictions are reused.
    """
    measurements = data.measurements
    if last is None or is_fit_due(measurements, last):
        last = _fit_hyperparameters(data, last)
    every = np.arange(len(measurements.ids))
    anchor, kept = None, every
    if len(every) > MAX_OBSERVED:
        anchor = _anchor(data, last, None if previous is None else previous.anchor)
        kept = select_held(measurements, data.u, anchor.far)
        anchor = anchor.covering(measurements.rows[np.delete(every, kept)], data.x)
    held = _hold(data, kept)
    process = GaussianProcess(
        held.x, held.means, held.counts, last.hyperparameters, shared_CC=held.shared
    )
    posterior = _posterior(data, last, kept, process, anchor)
    return FittedModel(data, last, kept, held, process, posterior, anchor)


def _fit_hyperparameters(data: StudyData, last: Fit | None) -> Fit:
    measurements = data.measurements
    far = sample_far(measurements, data.u, data.seed)
    held = _hold(data, select_held(measurements, data.u, far))
    hyperparameters = fit_hyperparameters(
        held.x,
        held.means,
        held.counts,
        shared_CC=held.shared,
        pooled_variance=measurements.pooled_variance,
        dof=measurements.dof,
        start=None if last is None else last.hyperparameters,
    )
    return Fit(hyperparameters, measurements.num_known, measurements)


def _anchor(data: StudyData, last: Fit, known: Anchor | None) -> Anchor:
    """Return the anchor of the last fit, from an earlier model if it has it."""
    if known is not None and known.fitted_on is last.fitted_on:
        return known
    far = sample_far(last.fitted_on, data.u, data.seed)
    return make_anchor(last.fitted_on, far, data.x, data.u, last.hyperparameters)


def _hold(data: StudyData, kept: Indices) -> Held:
    """Return the observations for the process: own configurations, then imported ones."""
    measurements = data.measurements
    x, means, counts = (
        data.x[measurements.rows[kept]],
        measurements.means[kept],
        measurements.counts[kept],
    )
    if not len(measurements.imported):
        return Held(x, means, counts, _shared_errors(measurements, kept))
    some = best_and_spread(measurements.imported_means, MAX_IMPORTED)
    x_imported = data.x_imported[measurements.imported[some]]
    return Held(
        np.vstack([x.reshape(len(kept), x_imported.shape[1]), x_imported]),
        np.concatenate([means, measurements.imported_means[some]]),
        np.concatenate([counts, measurements.imported_counts[some]]),
        _shared_errors(measurements, np.append(kept, len(measurements.ids) + some)),
    )


def _shared_errors(measurements: Measurements, rows: Indices) -> Floats | None:
    """Return the covariance that the means share through uncertain fold effects, or None.

    Configurations that ran on the same folds have the same error in common.
    """
    weights = measurements.fold_weights[rows]
    if not measurements.fold_covariance.any():
        return None
    shared: Floats = weights @ measurements.fold_covariance @ weights.T
    return shared


def _posterior(
    data: StudyData, last: Fit, kept: Indices, process: GaussianProcess, anchor: Anchor | None
) -> Posterior:
    measurements, sigma = data.measurements, last.hyperparameters.sigma
    number = len(measurements.ids)
    means, deviations = np.empty(number), np.empty(number)
    observed_means, observed_deviations = process.observed()
    means[kept] = observed_means[: len(kept)]
    deviations[kept] = observed_deviations[: len(kept)]
    if anchor is not None:  # combine leave-one-out predictions with the own values
        others = np.delete(np.arange(number), kept)
        rows = measurements.rows[others]
        mean, sd = anchor.means[rows], anchor.deviations[rows]
        own = sigma**2 / measurements.counts[others]
        weight = sd**2 / (sd**2 + own)
        means[others] = mean + weight * (measurements.means[others] - mean)
        deviations[others] = sd * np.sqrt(1 - weight)
    slopes = data.transform.slopes(means, _spread(data, last))
    u = data.u[measurements.rows]
    return Posterior(*_as_values(data, last, means, deviations), u, sigma * slopes)


def _as_values(
    data: StudyData, last: Fit, latent: Floats, deviations: Floats
) -> tuple[Floats, Floats]:
    transform, spread = data.transform, _spread(data, last)
    return transform.to_values(latent, spread), deviations * transform.slopes(latent, spread)


def _spread(data: StudyData, last: Fit) -> float:
    """Return the standard deviation of a replicate around its mean over all folds."""
    return math.hypot(last.hyperparameters.sigma, data.measurements.fold_spread)
