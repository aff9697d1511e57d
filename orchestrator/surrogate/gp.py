"""Gaussian-process posterior of the true means of measured and unmeasured configurations.

The model is hierarchical. The value of replicate r of configuration c (higher is better) is

    y_cr = mean + f(x_c) + g_c + e_cr

where f is a Gaussian process over the features (Matern 5/2, one lengthscale per feature), g_c (sd
tau) is the part of a configuration that the features do not explain, and e_cr (sd sigma) is the
noise of a replicate. The true mean of a configuration is mean + f + g. A configuration is observed
through its number of replicates n_c and their mean; sigma through the pooled variance of the
replicates.

Shapes: C observed configurations, M others, D features.
Everything but the features is in the units of y. Numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import blas, lapack  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

_BLOCK = 128  # candidates per block, so that 128 x 400 observed ones fit in a core's cache


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Hyperparameters:
    """Hyperparameters of the hierarchical model."""

    lengthscales: Floats
    """Lengthscale of each feature, in units of the feature, (D,)."""
    amplitude: float
    """Standard deviation of f."""
    tau: float
    """Standard deviation of g, the part that the features do not explain."""
    sigma: float
    """Standard deviation of a replicate around its configuration's true mean."""
    mean: float
    """Expected value of a configuration unlike all others."""


class GaussianProcess:
    """The posterior of true means, given observations and hyperparameters.

    Args:
        x_CD: features of the observed configurations, (C, D); equal rows may repeat.
        means_C: mean of each configuration's replicates, (C,).
        counts_C: number of those replicates, at least one, (C,).
        hyperparameters: from `fit_hyperparameters`, in the units of `means_C`.
        shared_CC: covariance of errors that the means share, such as those of their folds, in
            addition to the replicates' noise, (C, C); None if they share none.

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
        self._x_CD, self._means_C, counts_C = to_observations(x_CD, means_C, counts_C)
        self._hyperparameters = hyperparameters
        noise_C = hyperparameters.sigma**2 / counts_C
        self._noise_CC = np.diag(noise_C) if shared_CC is None else np.diag(noise_C) + shared_CC
        prior_CC = self._prior(self._x_CD, self._x_CD)
        prior_CC += self._noise_CC
        self._factor_CC = cholesky_factor(add_to_diagonal(prior_CC, hyperparameters.tau**2))
        centered_C = self._means_C - hyperparameters.mean
        self._weights_C: Floats = lapack.dpotrs(self._factor_CC.T, centered_C)[0].ravel()

    def observed(self) -> tuple[Floats, Floats]:
        """Return mean and sd of the true means of the observed configurations, each (C,)."""
        mean_C, cov_CC = self.observed_joint()
        return mean_C, np.sqrt(np.diag(cov_CC).clip(min=0.0))

    def observed_joint(self) -> tuple[Floats, Floats]:
        """Return mean (C,) and covariance (C, C) of the true means of observed configurations."""
        # With signal S, noise N and A = S + N: S - S A^-1 S = N - N A^-1 N. In the second form a
        # configuration measured without noise has exactly its value, and sd 0.
        mean_C: Floats = self._means_C - self._noise_CC @ self._weights_C
        scaled_CC = solve_lower(self._factor_CC, self._noise_CC.copy(order="F"))
        cov_CC: Floats = self._noise_CC - scaled_CC.T @ scaled_CC
        return mean_C, cov_CC

    def predict(self, x_MD: ArrayLike) -> tuple[Floats, Floats]:
        """Return mean and sd of the true means of unseen configurations, each (M,).

        A row equal to an observed one is another configuration with equal features and its own g,
        so the variance of an unseen configuration is never below tau^2.
        """
        x_MD = self._to_features(x_MD)
        mean_M, explained_M = np.empty(len(x_MD)), np.empty(len(x_MD))
        for i in range(0, len(x_MD), _BLOCK):
            block = slice(i, i + _BLOCK)
            prior_MC = self._prior(x_MD[block], self._x_CD)
            mean_M[block] = self._hyperparameters.mean + prior_MC @ self._weights_C
            explained_CM = solve_lower(self._factor_CC, prior_MC.T)
            explained_M[block] = np.einsum("cm,cm->m", explained_CM, explained_CM)
        rest_M = (self._hyperparameters.amplitude**2 - explained_M).clip(min=0.0)
        return mean_M, np.sqrt(rest_M + self._hyperparameters.tau**2)

    def _prior(self, a_MD: Floats, b_CD: Floats) -> Floats:
        """Return the prior covariance of f between two sets of features, (M, C)."""
        lengthscales = self._hyperparameters.lengthscales
        kernel_MC, _ = matern(a_MD / lengthscales, b_CD / lengthscales)
        kernel_MC *= self._hyperparameters.amplitude**2
        return kernel_MC

    def _to_features(self, x_MD: ArrayLike) -> Floats:
        return np.asarray(x_MD, dtype=float).reshape(-1, self._x_CD.shape[1])


def to_observations(
    x_CD: ArrayLike, means_C: ArrayLike, counts_C: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Check the observations and return them as float arrays."""
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


def matern(a_MD: Floats, b_CD: Floats) -> tuple[Floats, Floats]:
    """Return the Matern 5/2 kernel of features divided by lengthscales, and its slope, each (M, C).

    At distance r the kernel is (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r). The slope is its
    derivative by a log lengthscale, divided by the squared difference of that feature.

    Source: Rasmussen and Williams 2006, eq. 4.17.
    """
    # In place, because allocating memory takes as long as the arithmetic.
    square_MC = a_MD @ (-10 * b_CD.T)
    square_MC += 5 * np.sum(a_MD**2, axis=1)[:, None]
    square_MC += 5 * np.sum(b_CD**2, axis=1)
    np.maximum(square_MC, 0.0, out=square_MC)  # rounding may give less than 0 for equal rows
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


def cholesky_factor(matrix_CC: Floats) -> Floats:
    """Return the lower Cholesky factor of a covariance, with the least jitter that is needed.

    Raises:
        numpy.linalg.LinAlgError: jitter of a hundredth of the mean diagonal is not enough.
    """
    unit = float(np.trace(matrix_CC)) / len(matrix_CC)
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2):
        try:
            factor_CC = np.linalg.cholesky(add_to_diagonal(matrix_CC, jitter * unit))
        except np.linalg.LinAlgError:
            continue
        return np.asarray(factor_CC, dtype=np.float64)
    raise np.linalg.LinAlgError("A covariance matrix is not positive definite, even with jitter.")


def add_to_diagonal(matrix_CC: Floats, amount: float | Floats) -> Floats:
    """Add the amount to the matrix's diagonal in place, and return the matrix."""
    matrix_CC[np.diag_indices_from(matrix_CC)] += amount
    return matrix_CC


def invert_factored(factor_CC: Floats) -> Floats:
    """Return the inverse of a matrix from its lower Cholesky factor, (C, C)."""
    # The transposed factor is in Fortran order; its other triangle is 0 and stays 0.
    half_CC: Floats = lapack.dpotri(factor_CC.T, lower=0)[0]
    half_CC[np.diag_indices_from(half_CC)] *= 0.5
    return half_CC + half_CC.T


def solve_lower(factor_CC: Floats, right_CM: Floats) -> Floats:
    """Solve L x = b for a lower triangular L and M right-hand sides, which may be overwritten."""
    solved_CM: Floats = blas.dtrsm(1.0, factor_CC.T, right_CM, trans_a=1, overwrite_b=1)
    return solved_CM
