"""Configurations' means, freed of how hard the folds are that each ran on.

Shapes: C configurations, R replicates, K folds. Numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


class AdditiveFit(NamedTuple):
    """Configurations' means, and the effects of the folds they ran on."""

    means: Floats
    """(C,), NaN where nothing ran."""
    counts: Floats
    """(C,)."""
    variance: float
    """Of replicates around what is fitted."""
    dof: int
    """Its degrees of freedom; at 0 the variance is 0 and means nothing."""
    effects: Floats
    """(K,), 0 where they cannot be told from noise."""
    covariance: Floats
    """Of what is not known of the effects, (K, K), each less that of the fold that ran most."""
    weights: Floats
    """Share of each configuration's replicates by fold, (C, K)."""


def additive_means(values_CR: ArrayLike, fold_of_R: ArrayLike) -> AdditiveFit:
    """Return the configurations' means, freed of how hard the folds they ran on are.

    Fits y_cr = a_c + b_k + e_cr, k the fold of replicate r: a as it is, b as a random effect, so
    least squares with b shrunken by sigma^2 / sd(b)^2, which the data give. A fold's effect can
    only be told from noise where several configurations share folds; else it is 0, and the
    differences between folds count as noise. Folds that no configuration links are not compared:
    effects sum to zero over each linked set. That effects are estimates is in `covariance` alone,
    for which their spread is taken as at least half of the noise's: of folds alike one cannot be
    sure.

    Args:
        values_CR: value of each replicate, NaN where it did not run, (C, R).
        fold_of_R: fold of each replicate, 0 to K - 1, (R,).

    Source: Searle, Casella and McCulloch 1992, Variance Components: Henderson's method III for
    the two variances, best linear prediction for the shrunken effects.
    """
    values_CR = np.atleast_2d(np.asarray(values_CR, dtype=float))
    fold_of_R = np.asarray(fold_of_R, dtype=int)
    ran_CR = ~np.isnan(values_CR)
    counts_C: Floats = ran_CR.sum(axis=1).astype(float)
    raw_C = _row_means(values_CR, counts_C)
    residuals_CR = np.where(ran_CR, values_CR - raw_C[:, None], 0.0)
    within = float(np.sum(residuals_CR**2))
    dof = round(float(np.sum(counts_C - 1, where=counts_C > 0)))

    in_fold_RK = np.eye(int(fold_of_R.max(initial=-1)) + 1)[fold_of_R]
    shared_CK = ran_CR @ in_fold_RK
    # Normal equations of the effects once each configuration's own mean is taken out.
    normal_KK = np.diag(shared_CK.sum(axis=0)) - shared_CK.T @ (
        shared_CK / np.maximum(counts_C, 1)[:, None]
    )
    size_K, basis_KK = np.linalg.eigh(normal_KK)
    seen_K = size_K > 1e-9 * max(1.0, float(counts_C.sum()))
    projected_K = np.where(seen_K, basis_KK.T @ (residuals_CR.sum(axis=0) @ in_fold_RK), 0.0)
    size_K = np.where(seen_K, size_K, 1.0)

    effects_K = np.zeros(len(size_K))
    covariance_KK = np.zeros((len(size_K), len(size_K)))
    rest = dof - int(seen_K.sum())
    if seen_K.any() and rest > 0:
        explained = float(np.sum(projected_K**2 / size_K))
        within, dof = max(within - explained, 0.0), rest
        noise = within / dof
        spread = (explained - noise * seen_K.sum()) / float(np.trace(normal_KK))
        if spread > 0:
            effects_K = basis_KK @ (projected_K / (size_K + noise / spread))
        covariance_KK = _relative_covariance(
            normal_KK, noise, max(spread, noise / 4), int(shared_CK.sum(axis=0).argmax())
        )
    means_C = _row_means(values_CR - effects_K[fold_of_R], counts_C)
    weights_CK = shared_CK / np.maximum(counts_C, 1)[:, None]
    variance = within / dof if dof else 0.0
    return AdditiveFit(means_C, counts_C, variance, dof, effects_K, covariance_KK, weights_CK)


def _relative_covariance(normal_KK: Floats, noise: float, spread: float, base: int) -> Floats:
    """Return the posterior covariance of the effects, each less that of fold `base`, (K, K).

    Args:
        normal_KK: normal equations of the effects.
        noise: variance of a replicate.
        spread: variance of the effects.
        base: the fold whose effect is the common level, which no comparison needs.
    """
    if not spread > 0:
        return np.zeros_like(normal_KK)
    precision_KK = normal_KK / noise if noise > 0 else normal_KK * 1e12
    covariance_KK = np.linalg.inv(precision_KK + np.eye(len(normal_KK)) / spread)
    less_KK = np.eye(len(normal_KK))
    less_KK[:, base] -= 1
    relative: Floats = less_KK @ covariance_KK @ less_KK.T
    return relative


def _row_means(values_CR: Floats, counts_C: Floats) -> Floats:
    """Return the mean of what is not NaN in each row, NaN where nothing is, (C,)."""
    sums_C = np.nansum(values_CR, axis=1)
    means_C: Floats = np.where(counts_C > 0, sums_C / np.maximum(counts_C, 1), np.nan)
    return means_C
