"""What is believed of a configuration's true mean, measured or not: a hierarchical Gaussian model.

The value of replicate r of configuration c (higher is better) is

    y_cr = mean + f(x_c) + g_c + e_cr

with f a Gaussian process over the features (Matern 5/2, one lengthscale a feature), g_c what the
features do not explain of a configuration, sd tau, and e_cr the noise of a replicate, sd sigma.
The true mean of a configuration is mean + f + g. What is known of a configuration is the mean of
its n_c replicates and n_c; what the replicates say of sigma is their pooled variance.

Shapes: C observed configurations, M others, D features, R replicates, K folds.
Everything but the features is in the units of y. Numpy and scipy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import blas, lapack  # type: ignore[import-untyped]
from scipy.optimize import minimize  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

# Priors, for values of mean 0 and sd 1 and features in [0, 1]. A log-normal of a lengthscale with
# location sqrt(2) + log(D) / 2 and scale sqrt(3) has its mode at exp(sqrt(2) - 3) sqrt(D).
_LOG_LENGTHSCALE_MODE, _LOG_LENGTHSCALE_SD = math.sqrt(2) - 3, math.sqrt(3)
# log(amplitude), log(tau), log(sigma): weak, a factor of e either way is one sd.
_LOG_SCALE_MODES, _LOG_SCALE_SDS = np.log([1.0, 0.1, 0.3]), np.ones(3)
_MEAN_SD = 1.0
_LENGTHSCALE_BOUNDS = (1e-2, 1e4)
_SCALE_BOUNDS = ((1e-2, 1e2), (1e-3, 1e1), (1e-3, 1e1))

_BLOCK = 128  # candidates at once: a block against 400 observed stays in a core's cache


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hyperparameters:
    """What the model needs to know before it sees a value."""

    lengthscales: Floats
    """How far a feature must move for f to change much, in units of the feature, (D,)."""
    amplitude: float
    """Standard deviation of f."""
    tau: float
    """Standard deviation of g, what the features do not explain."""
    sigma: float
    """Standard deviation of a replicate around its configuration's true mean."""
    mean: float
    """What is expected of a configuration unlike all others."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Standardised observations, and the mode of the prior of each log lengthscale."""

    x: Floats
    y: Floats
    counts: Floats
    pooled_variance: float
    dof: float
    log_lengthscale_mode: float
    shared: Floats | float = 0.0


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

    The likelihood is that of all replicates: the configurations' means are normal, and apart from
    them the pooled variance times dof / sigma^2 is chi-squared. Together with a weak prior it
    gives sigma; without any second replicate the prior alone parts it from tau.

    Args:
        x_CD: features, scaled to [0, 1], (C, D).
        means_C: mean of each configuration's replicates, (C,).
        counts_C: how many replicates that is, at least one, (C,).
        pooled_variance: variance of replicates around their configuration's mean.
        dof: its degrees of freedom; 0 where nothing ran twice.
        shared_CC: see `Surrogate`.
        start: hyperparameters of an earlier fit, to begin from where they are the better start.
        max_iterations: of L-BFGS-B; each evaluates the likelihood once, seldom twice.

    Raises:
        ValueError: a value is not finite, or there is no configuration.

    Source: Hvarfner et al. 2024, "Vanilla Bayesian optimization performs great in high dimensions"
    (lengthscales grow with the root of the number of features).
    """
    x_CD, means_C, counts_C = _to_observations(x_CD, means_C, counts_C)
    num_features = x_CD.shape[1]
    center, scale = _location_and_scale(means_C, pooled_variance if dof else 0.0)
    evidence = _Evidence(
        x_CD,
        (means_C - center) / scale,
        counts_C,
        pooled_variance / scale**2,
        dof,
        _LOG_LENGTHSCALE_MODE + 0.5 * math.log(max(num_features, 1)),
        0.0 if shared_CC is None else shared_CC / scale**2,
    )
    bounds = np.log([_LENGTHSCALE_BOUNDS] * num_features + list(_SCALE_BOUNDS))
    theta = _first_theta(evidence, start, scale, bounds)
    found = minimize(
        _negative_log_posterior,
        theta,
        args=(evidence,),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        # The posterior of hyperparameters is far wider than what a finer optimum would change.
        options={"maxiter": max_iterations, "maxfun": 2 * max_iterations, "ftol": 1e-5},
    )
    amplitude, tau, sigma = (float(v) for v in scale * np.exp(found.x[-3:]))
    inverse_CC = _invert(_factor(_covariance(found.x, evidence)[0]))
    return Hyperparameters(
        lengthscales=np.exp(found.x[:-3]),
        amplitude=amplitude,
        tau=tau,
        sigma=sigma,
        mean=float(center + scale * _mean(inverse_CC, evidence.y)),
    )


class Surrogate:
    """The posterior of true means, given what was measured and the hyperparameters.

    Args:
        x_CD: features of the observed configurations, (C, D); equal rows may repeat.
        means_C: mean of each configuration's replicates, (C,).
        counts_C: how many replicates that is, at least one, (C,).
        hyperparameters: from `fit_hyperparameters`, in the units of `means_C`.
        shared_CC: covariance of errors that the means share beside the replicates' noise, as of the
            folds they ran on, (C, C); None: they share none.

    Raises:
        ValueError: a value is not finite, or there is no configuration.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, eq. 2.23, 2.24.
    """

    def __init__(
        self,
        x_CD: ArrayLike,
        means_C: ArrayLike,
        counts_C: ArrayLike,
        hyperparameters: Hyperparameters,
        shared_CC: Floats | None = None,
    ) -> None:
        self._x_CD, self._means_C, counts_C = _to_observations(x_CD, means_C, counts_C)
        self._hyperparameters = hyperparameters
        noise_C = hyperparameters.sigma**2 / counts_C
        self._noise_CC = np.diag(noise_C) if shared_CC is None else np.diag(noise_C) + shared_CC
        prior_CC = self._prior(self._x_CD, self._x_CD)
        prior_CC += self._noise_CC
        self._factor_CC = _factor(_add_to_diagonal(prior_CC, hyperparameters.tau**2))
        centered_C = self._means_C - hyperparameters.mean
        self._weights_C: Floats = lapack.dpotrs(self._factor_CC.T, centered_C)[0].ravel()

    def observed(self) -> tuple[Floats, Floats]:
        """Return mean and sd of the true means of the observed configurations, each (C,)."""
        mean_C, cov_CC = self.observed_joint()
        return mean_C, np.sqrt(np.diag(cov_CC).clip(min=0.0))

    def observed_joint(self) -> tuple[Floats, Floats]:
        """Return mean (C,) and covariance (C, C) of the true means of the observed."""
        # With signal S, noise N and A = S + N: S - S A^-1 S = N - N A^-1 N. So written, a
        # configuration measured without noise has its value exactly, and sd 0.
        mean_C: Floats = self._means_C - self._noise_CC @ self._weights_C
        scaled_CC = _solve(self._factor_CC, self._noise_CC.copy(order="F"))
        cov_CC: Floats = self._noise_CC - scaled_CC.T @ scaled_CC
        return mean_C, cov_CC

    def predict(self, x_MD: ArrayLike) -> tuple[Floats, Floats]:
        """Return mean and sd of the true means of unseen configurations, each (M,).

        A row equal to an observed one is another configuration of equal features, with a g of its
        own: the variance of an unseen one is never below tau^2.
        """
        x_MD = self._to_features(x_MD)
        mean_M, explained_M = np.empty(len(x_MD)), np.empty(len(x_MD))
        for i in range(0, len(x_MD), _BLOCK):
            block = slice(i, i + _BLOCK)
            prior_MC = self._prior(x_MD[block], self._x_CD)
            mean_M[block] = self._hyperparameters.mean + prior_MC @ self._weights_C
            explained_CM = _solve(self._factor_CC, prior_MC.T)
            explained_M[block] = np.einsum("cm,cm->m", explained_CM, explained_CM)
        rest_M = (self._hyperparameters.amplitude**2 - explained_M).clip(min=0.0)
        return mean_M, np.sqrt(rest_M + self._hyperparameters.tau**2)

    def joint(self, x_MD: ArrayLike) -> tuple[Floats, Floats]:
        """Return mean (M,) and covariance (M, M) of the true means of unseen configurations."""
        x_MD = self._to_features(x_MD)
        prior_MC = self._prior(x_MD, self._x_CD)
        mean_M: Floats = self._hyperparameters.mean + prior_MC @ self._weights_C
        explained_CM = _solve(self._factor_CC, prior_MC.T)
        cov_MM = self._prior(x_MD, x_MD) - explained_CM.T @ explained_CM
        return mean_M, _add_to_diagonal(cov_MM, self._hyperparameters.tau**2)

    def _prior(self, a_MD: Floats, b_CD: Floats) -> Floats:
        """Return the prior covariance of f between two sets of features, (M, C)."""
        lengthscales = self._hyperparameters.lengthscales
        kernel_MC, _ = _matern(a_MD / lengthscales, b_CD / lengthscales)
        kernel_MC *= self._hyperparameters.amplitude**2
        return kernel_MC

    def _to_features(self, x_MD: ArrayLike) -> Floats:
        return np.asarray(x_MD, dtype=float).reshape(-1, self._x_CD.shape[1])


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


def _to_observations(
    x_CD: ArrayLike, means_C: ArrayLike, counts_C: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Return the three as float arrays, checked."""
    x_CD = np.asarray(x_CD, dtype=float)
    means_C = np.asarray(means_C, dtype=float)
    counts_C = np.asarray(counts_C, dtype=float)
    assert x_CD.ndim == 2
    assert means_C.shape == counts_C.shape == (len(x_CD),)
    assert np.all(counts_C > 0)
    if not len(x_CD):
        raise ValueError("A surrogate needs at least one observed configuration, but got none.")
    if not (np.isfinite(x_CD).all() and np.isfinite(means_C).all()):
        raise ValueError("A surrogate needs finite features and means, but got one that is not.")
    return x_CD, means_C, counts_C


def _location_and_scale(means_C: Floats, pooled_variance: float) -> tuple[float, float]:
    """Return what standardises the means: theirs, or the noise's scale where that is larger."""
    center = float(means_C.mean())
    scale = math.sqrt(max(float(means_C.var()), pooled_variance))
    # Equal values leave a rounding error, not a scale; then the unit of y is as good as any.
    return center, scale if scale > 1e-10 * max(1.0, abs(center)) else 1.0


def _first_theta(
    evidence: _Evidence, start: Hyperparameters | None, scale: float, bounds: Floats
) -> Floats:
    """Return the more probable of the prior's mode and the earlier hyperparameters, as logs."""
    num_features = evidence.x.shape[1]
    mode = np.append(np.full(num_features, evidence.log_lengthscale_mode), _LOG_SCALE_MODES)
    if start is None:
        return mode
    assert start.lengthscales.shape == (num_features,)
    scales = np.array([start.amplitude, start.tau, start.sigma]) / scale
    theta = np.log(np.append(start.lengthscales, scales).clip(*np.exp(bounds.T)))
    candidates = (theta.clip(*bounds.T), mode)
    best: Floats = min(candidates, key=lambda theta: _negative_log_posterior(theta, evidence)[0])
    return best


def _negative_log_posterior(theta: Floats, evidence: _Evidence) -> tuple[float, Floats]:
    """Return the negative log posterior, up to a constant, and its gradient, (D + 3,).

    Args:
        theta: logs of the lengthscales, amplitude, tau and sigma, standardised, (D + 3,).
        evidence: the standardised observations.
    """
    amplitude2, tau2, sigma2 = np.exp(2 * theta[-3:])
    z_CD = evidence.x / np.exp(theta[:-3])
    total_CC, kernel_CC, slope_CC = _covariance(theta, evidence)
    factor_CC = _factor(total_CC)
    inverse_CC = _invert(factor_CC)
    mean = _mean(inverse_CC, evidence.y)
    centered_C = evidence.y - mean
    weights_C = inverse_CC @ centered_C

    value = 0.5 * float(centered_C @ weights_C) + float(np.log(np.diag(factor_CC)).sum())
    value += 0.5 * (mean / _MEAN_SD) ** 2
    # The mean is at its optimum, so its own change adds nothing to the gradient.
    pull_CC = inverse_CC
    pull_CC -= np.outer(weights_C, weights_C)
    gradient = np.empty_like(theta)
    gradient[-3] = amplitude2 * np.vdot(pull_CC, kernel_CC)
    gradient[-2] = tau2 * np.trace(pull_CC)
    gradient[-1] = sigma2 * np.sum(np.diag(pull_CC) / evidence.counts)
    # sum_ij P_ij (z_id - z_jd)^2, without a matrix for each feature.
    pull_CC *= slope_CC
    squares_D = np.sum(pull_CC.sum(axis=1)[:, None] * z_CD**2, axis=0)
    gradient[:-3] = amplitude2 * (squares_D - np.sum(z_CD * (pull_CC @ z_CD), axis=0))

    # Chi-squared of the pooled variance.
    ratio = evidence.pooled_variance / float(sigma2)
    value += evidence.dof * (float(theta[-1]) + 0.5 * ratio)
    gradient[-1] += evidence.dof * (1 - ratio)
    return _add_prior(value, gradient, theta, evidence)


def _add_prior(
    value: float, gradient: Floats, theta: Floats, evidence: _Evidence
) -> tuple[float, Floats]:
    """Return both with the normal priors of the logs added."""
    modes = np.full(len(theta), evidence.log_lengthscale_mode)
    modes[-3:] = _LOG_SCALE_MODES
    sds = np.full(len(theta), _LOG_LENGTHSCALE_SD)
    sds[-3:] = _LOG_SCALE_SDS
    off = (theta - modes) / sds
    return value + 0.5 * float(off @ off), gradient + off / sds


def _covariance(theta: Floats, evidence: _Evidence) -> tuple[Floats, Floats, Floats]:
    """Return covariance of the standardised means, kernel of f and its slope, each (C, C)."""
    z_CD = evidence.x / np.exp(theta[:-3])
    amplitude2, tau2, sigma2 = np.exp(2 * theta[-3:])
    kernel_CC, slope_CC = _matern(z_CD, z_CD)
    total_CC: Floats = amplitude2 * kernel_CC + evidence.shared
    _add_to_diagonal(total_CC, tau2 + sigma2 / evidence.counts)
    return total_CC, kernel_CC, slope_CC


def _mean(inverse_CC: Floats, y_C: Floats) -> float:
    """Return the most probable mean of standardised values, by generalised least squares."""
    sums_C = inverse_CC.sum(axis=0)
    return float(sums_C @ y_C / (sums_C.sum() + _MEAN_SD**-2))


def _matern(a_MD: Floats, b_CD: Floats) -> tuple[Floats, Floats]:
    """Return Matern 5/2 between features in units of the lengthscales, and its slope, each (M, C).

    With distance r it is (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r); the slope is its derivative
    by a log lengthscale, divided by that feature's squared difference.

    Source: Rasmussen and Williams 2006, eq. 4.17.
    """
    # In place, for fresh memory costs as much as the arithmetic.
    square_MC = a_MD @ (-10 * b_CD.T)
    square_MC += 5 * np.sum(a_MD**2, axis=1)[:, None]
    square_MC += 5 * np.sum(b_CD**2, axis=1)
    np.maximum(square_MC, 0.0, out=square_MC)  # equal rows differ by a rounding error
    slope_MC = np.sqrt(square_MC)
    decay_MC = np.negative(slope_MC)
    np.exp(decay_MC, out=decay_MC)
    slope_MC += 1
    slope_MC *= decay_MC
    square_MC *= decay_MC
    square_MC *= 1 / 3
    square_MC += slope_MC
    slope_MC *= 5 / 3
    return square_MC, slope_MC


def _factor(matrix_CC: Floats) -> Floats:
    """Return the lower Cholesky factor of a covariance, with as little jitter as it needs.

    Raises:
        numpy.linalg.LinAlgError: jitter of a hundredth of its diagonal is not enough.
    """
    unit = float(np.trace(matrix_CC)) / len(matrix_CC)
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2):
        try:
            factor_CC = np.linalg.cholesky(_add_to_diagonal(matrix_CC, jitter * unit))
        except np.linalg.LinAlgError:
            continue
        return np.asarray(factor_CC, dtype=np.float64)
    raise np.linalg.LinAlgError("A covariance is not positive, even with jitter.")


def _add_to_diagonal(matrix_CC: Floats, amount: float | Floats) -> Floats:
    """Return the matrix, with the amount added to its diagonal in place."""
    matrix_CC[np.diag_indices_from(matrix_CC)] += amount
    return matrix_CC


def _invert(factor_CC: Floats) -> Floats:
    """Return the inverse of the matrix whose lower Cholesky factor is given, (C, C)."""
    # Transposed, the factor is in Fortran's order; its other triangle is 0 and stays so.
    half_CC: Floats = lapack.dpotri(factor_CC.T, lower=0)[0]
    half_CC[np.diag_indices_from(half_CC)] *= 0.5
    return half_CC + half_CC.T


def _solve(factor_CC: Floats, right_CM: Floats) -> Floats:
    """Return what the lower factor maps to the right-hand sides, (C, M); may overwrite them."""
    solved_CM: Floats = blas.dtrsm(1.0, factor_CC.T, right_CM, trans_a=1, overwrite_b=1)
    return solved_CM
