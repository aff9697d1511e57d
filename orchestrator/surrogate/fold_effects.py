"""Estimate configuration means that are adjusted for the difficulty of the folds.

Shapes: C configurations, R replicates, K folds. Numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


class AdditiveFit(NamedTuple):
    """Adjusted configuration means and the effects of the folds."""

    means: Floats
    """(C,), NaN where nothing ran."""
    counts: Floats
    """Number of replicates, (C,)."""
    variance: float
    """Residual variance of the replicates."""
    dof: int
    """Degrees of freedom of the variance; at 0 the variance is 0 and has no meaning."""
    effects: Floats
    """(K,), 0 where they cannot be distinguished from noise."""
    covariance: Floats
    """Posterior covariance of the effects relative to the most used fold, (K, K)."""
    weights: Floats
    """Share of each configuration's replicates by fold, (C, K)."""


def additive_means(values_CR: ArrayLike, fold_of_R: ArrayLike) -> AdditiveFit:
    """Estimate configuration means that are adjusted for the difficulty of the folds.

    Fits y_cr = a_c + b_k + e_cr, where k is the fold of replicate r, a is a fixed effect and b a
    random effect: least squares with b shrunk by sigma^2 / sd(b)^2, estimated from the data. A
    fold's effect can be distinguished from noise only if several configurations share folds;
    otherwise it is 0 and differences between folds count as noise. Folds that no configuration
    links are not compared: effects sum to zero over each linked set. Only `covariance` accounts
    for the uncertainty of the effects. It assumes that their standard deviation is at least half
    that of the noise, because the data cannot show that folds are equal.

    Args:
        values_CR: value of each replicate, NaN where it did not run, (C, R).
        fold_of_R: fold of each replicate, 0 to K - 1, (R,).

    Source: Searle, Casella and McCulloch 1992, Variance Components: Henderson's method III for
    the two variances, best linear unbiased prediction for the effects.
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
    # Normal equations of the effects after subtracting each configuration's own mean.
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
    """Return the posterior covariance of the effects relative to fold `base`, (K, K).

    Args:
        normal_KK: normal equations of the effects.
        noise: variance of a replicate.
        spread: variance of the effects.
        base: the reference fold; a common level cancels in every comparison.
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
    """Return the mean of each row without NaNs, NaN for rows without values, (C,)."""
    sums_C = np.nansum(values_CR, axis=1)
    means_C: Floats = np.where(counts_C > 0, sums_C / np.maximum(counts_C, 1), np.nan)
    return means_C
