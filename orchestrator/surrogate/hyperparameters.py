"""Fit the hyperparameters of the Gaussian process by maximum a posteriori (MAP).

Shapes: C observed configurations, D features. Numpy and scipy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]

from sftsearch.orchestrator.surrogate.gp import (
    Hyperparameters,
    add_to_diagonal,
    cholesky_factor,
    invert_factored,
    matern,
    to_observations,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

# Priors for values of mean 0 and sd 1 and features in [0, 1]. A lengthscale's log-normal prior,
# location sqrt(2) + log(D) / 2 and scale sqrt(3), has its mode at exp(sqrt(2) - 3) sqrt(D).
_LOG_LENGTHSCALE_MODE, _LOG_LENGTHSCALE_SD = math.sqrt(2) - 3, math.sqrt(3)
# log(amplitude), log(tau), log(sigma): weak priors, one sd is a factor of e.
_LOG_SCALE_MODES, _LOG_SCALE_SDS = np.log([1.0, 0.1, 0.3]), np.ones(3)
_MEAN_SD = 1.0
_LENGTHSCALE_BOUNDS = (1e-2, 1e4)
_SCALE_BOUNDS = ((1e-2, 1e2), (1e-3, 1e1), (1e-3, 1e1))


@dataclass(frozen=True, slots=True)
class Standardized:
    """Standardized observations, and the prior mode of each log lengthscale."""

    x: Floats
    y: Floats
    counts: Floats
    pooled_variance: float
    dof: float
    log_lengthscale_mode: float
    shared: Floats | float = 0.0
    center: float = 0.0
    """Subtracted from the means before they were divided by `scale`."""
    scale: float = 1.0


def fit_hyperparameters(
    x_CD: ArrayLike,
    means_C: ArrayLike,
    counts_C: ArrayLike,
    *,
    pooled_variance: float = 0.0,
    dof: float = 0,
    shared_CC: Floats | None = None,
    start: Hyperparameters | None = None,
    max_iterations: int = 30,
) -> Hyperparameters:
    """Return the most probable hyperparameters given the observations (MAP).

    The likelihood is that of all replicates: the configurations' means are normal, and the pooled
    variance times dof / sigma^2 is chi-squared. With a weak prior the pooled variance determines
    sigma; without any second replicate only the prior separates sigma from tau.

    Args:
        x_CD: features, scaled to [0, 1], (C, D).
        means_C: mean of each configuration's replicates, (C,).
        counts_C: number of those replicates, at least one, (C,).
        pooled_variance: variance of replicates around their configuration's mean.
        dof: its degrees of freedom; 0 if no configuration has two replicates.
        shared_CC: see `GaussianProcess`.
        start: hyperparameters of an earlier fit, used as the start if more probable than the mode.
        max_iterations: of L-BFGS-B; each evaluates the likelihood once, rarely twice.

    Raises:
        ValueError: a value is not finite, or there is no configuration.

    Source: Hvarfner et al. 2024, "Vanilla Bayesian optimization performs great in high dimensions"
    (lengthscales grow with the square root of the number of features).
    """
    x_CD, means_C, counts_C = to_observations(x_CD, means_C, counts_C)
    evidence = _standardize(x_CD, means_C, counts_C, pooled_variance, dof, shared_CC)
    bounds = np.log([_LENGTHSCALE_BOUNDS] * x_CD.shape[1] + list(_SCALE_BOUNDS))
    theta = _first_theta(evidence, start, bounds)
    found = minimize(
        negative_log_posterior,
        theta,
        args=(evidence,),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        # A finer optimum would change little compared with the width of the posterior.
        options={"maxiter": max_iterations, "maxfun": 2 * max_iterations, "ftol": 1e-5},
    )
    amplitude, tau, sigma = (float(v) for v in evidence.scale * np.exp(found.x[-3:]))
    inverse_CC = invert_factored(cholesky_factor(_covariance(found.x, evidence)[0]))
    return Hyperparameters(
        lengthscales=np.exp(found.x[:-3]),
        amplitude=amplitude,
        tau=tau,
        sigma=sigma,
        mean=float(evidence.center + evidence.scale * _mean(inverse_CC, evidence.y)),
    )


def _standardize(
    x_CD: Floats,
    means_C: Floats,
    counts_C: Floats,
    pooled_variance: float,
    dof: float,
    shared_CC: Floats | None,
) -> Standardized:
    center, scale = _location_and_scale(means_C, pooled_variance if dof else 0.0)
    return Standardized(
        x_CD,
        (means_C - center) / scale,
        counts_C,
        pooled_variance / scale**2,
        dof,
        _LOG_LENGTHSCALE_MODE + 0.5 * math.log(max(x_CD.shape[1], 1)),
        0.0 if shared_CC is None else shared_CC / scale**2,
        center,
        scale,
    )


def _location_and_scale(means_C: Floats, pooled_variance: float) -> tuple[float, float]:
    """Return the center and scale of the means; the scale is at least that of the noise."""
    center = float(means_C.mean())
    scale = math.sqrt(max(float(means_C.var()), pooled_variance))
    # For equal values the scale is only rounding error, so use 1.
    return center, scale if scale > 1e-10 * max(1.0, abs(center)) else 1.0


def _first_theta(evidence: Standardized, start: Hyperparameters | None, bounds: Floats) -> Floats:
    """Return the logs of the prior mode or the earlier hyperparameters, the more probable."""
    num_features = evidence.x.shape[1]
    mode = np.append(np.full(num_features, evidence.log_lengthscale_mode), _LOG_SCALE_MODES)
    if start is None:
        return mode
    assert start.lengthscales.shape == (num_features,)
    scales = np.array([start.amplitude, start.tau, start.sigma]) / evidence.scale
    theta = np.log(np.append(start.lengthscales, scales).clip(*np.exp(bounds.T)))
    candidates = (theta.clip(*bounds.T), mode)
    best: Floats = min(candidates, key=lambda theta: negative_log_posterior(theta, evidence)[0])
    return best


def negative_log_posterior(theta: Floats, evidence: Standardized) -> tuple[float, Floats]:
    """Return the negative log posterior, up to a constant, and its gradient, (D + 3,).

    Args:
        theta: logs of the lengthscales, amplitude, tau and sigma, standardized, (D + 3,).
        evidence: the standardized observations.
    """
    amplitude2, tau2, sigma2 = np.exp(2 * theta[-3:])
    z_CD = evidence.x / np.exp(theta[:-3])
    total_CC, kernel_CC, slope_CC = _covariance(theta, evidence)
    factor_CC = cholesky_factor(total_CC)
    inverse_CC = invert_factored(factor_CC)
    mean = _mean(inverse_CC, evidence.y)
    centered_C = evidence.y - mean
    weights_C = inverse_CC @ centered_C

    value = 0.5 * float(centered_C @ weights_C) + float(np.log(np.diag(factor_CC)).sum())
    value += 0.5 * (mean / _MEAN_SD) ** 2
    # The mean is at its optimum, so it does not contribute to the gradient.
    pull_CC = inverse_CC
    pull_CC -= np.outer(weights_C, weights_C)
    gradient = np.empty_like(theta)
    gradient[-3] = amplitude2 * np.vdot(pull_CC, kernel_CC)
    gradient[-2] = tau2 * np.trace(pull_CC)
    gradient[-1] = sigma2 * np.sum(np.diag(pull_CC) / evidence.counts)
    # sum_ij P_ij (z_id - z_jd)^2, without one matrix per feature.
    pull_CC *= slope_CC
    squares_D = np.sum(pull_CC.sum(axis=1)[:, None] * z_CD**2, axis=0)
    gradient[:-3] = amplitude2 * (squares_D - np.sum(z_CD * (pull_CC @ z_CD), axis=0))

    # Chi-squared likelihood of the pooled variance.
    ratio = evidence.pooled_variance / float(sigma2)
    value += evidence.dof * (float(theta[-1]) + 0.5 * ratio)
    gradient[-1] += evidence.dof * (1 - ratio)
    return _add_prior(value, gradient, theta, evidence)


def _add_prior(
    value: float, gradient: Floats, theta: Floats, evidence: Standardized
) -> tuple[float, Floats]:
    """Add the normal priors of the logs to the value and its gradient."""
    modes = np.full(len(theta), evidence.log_lengthscale_mode)
    modes[-3:] = _LOG_SCALE_MODES
    sds = np.full(len(theta), _LOG_LENGTHSCALE_SD)
    sds[-3:] = _LOG_SCALE_SDS
    off = (theta - modes) / sds
    return value + 0.5 * float(off @ off), gradient + off / sds


def _covariance(theta: Floats, evidence: Standardized) -> tuple[Floats, Floats, Floats]:
    """Return covariance of the standardized means, kernel of f and its slope, each (C, C)."""
    z_CD = evidence.x / np.exp(theta[:-3])
    amplitude2, tau2, sigma2 = np.exp(2 * theta[-3:])
    kernel_CC, slope_CC = matern(z_CD, z_CD)
    total_CC: Floats = amplitude2 * kernel_CC + evidence.shared
    add_to_diagonal(total_CC, tau2 + sigma2 / evidence.counts)
    return total_CC, kernel_CC, slope_CC


def _mean(inverse_CC: Floats, y_C: Floats) -> float:
    """Return the most probable mean of standardized values, by generalized least squares."""
    sums_C = inverse_CC.sum(axis=0)
    return float(sums_C @ y_C / (sums_C.sum() + _MEAN_SD**-2))
