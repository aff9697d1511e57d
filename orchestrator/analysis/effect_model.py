"""Estimate what switching one parameter changes, by a Gaussian process over the others.

Samplers choose configurations, so the values of a parameter occur with different values of the
others, and plain means of the values are confounded. The surrogate's process explains the other
parameters. Its posterior for the parameter itself would be too certain: a parameter with a small
effect gets a long lengthscale, and its effect shrinks to 0. So each value also has a main effect
with a wide prior, whose uncertainty is that of generalized least squares.

Shapes: N measured configurations, R replicates, D features, M points.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.surrogate.features import features_of
from sftsearch.orchestrator.surrogate.fold_effects import additive_means
from sftsearch.orchestrator.surrogate.gp import (
    add_to_diagonal,
    cholesky_factor,
    matern,
    solve_lower,
)
from sftsearch.orchestrator.surrogate.hyperparameters import fit_hyperparameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.surrogate.transforms import OutcomeTransform

    Floats = NDArray[np.float64]
    Row = dict[str, object]

NORMAL_95 = 1.959964
"""Standard normal quantile of two-sided 95 % intervals."""


class EffectModel:
    """A Gaussian process over the parameters of measured configurations.

    The value of a configuration is f + b + g plus noise, with f a process over all parameters, b
    the main effect of the value of the parameter in question, and g what the parameters do not
    explain; see `surrogate.gp`.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, sec. 2.7 (a
    process with explicit basis functions).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        values_NR: Floats,
        *,
        num_folds: int | None,
        transform: OutcomeTransform,
        uncertainty_N: Floats | None = None,
    ) -> None:
        """Fit the process.

        Args:
            rows: parameters of each configuration by name; a missing one has no effect in it.
            values_NR: values of the replicates, more is better; NaN where one did not run. Every
                row has one.
            num_folds: replicate r was validated on fold r modulo this; None: all on one split.
            transform: maps values to the scale of the process.
            uncertainty_N: variance of each mean on that scale, in addition to the replicates'
                noise, such as that of a predicted value, (N,); None: all are measured.
        """
        self._features = [
            feature
            for name in dict.fromkeys(name for row in rows for name in row)
            for feature in features_of(name, rows)
        ]
        self._x_ND = self._encode(rows)
        folds_R = np.arange(values_NR.shape[1]) % (num_folds or 1)
        fit = additive_means(transform.to_latent(values_NR), folds_R)
        shared_NN = fit.weights @ fit.covariance @ fit.weights.T
        if uncertainty_N is not None:
            add_to_diagonal(shared_NN, uncertainty_N)
        self._hyperparameters = fit_hyperparameters(
            self._x_ND,
            fit.means,
            fit.counts,
            pooled_variance=fit.variance,
            dof=fit.dof,
            shared_CC=shared_NN,
        )
        h = self._hyperparameters
        noise_N = h.sigma**2 / fit.counts + h.tau**2
        self._covariance_NN = add_to_diagonal(
            self._kernel(self._x_ND, self._x_ND) + shared_NN, noise_N
        )
        self._centered_N = fit.means - h.mean
        self._prior_variance = max(float(np.var(fit.means)), h.sigma**2)
        self._transform = transform
        self._spread = math.hypot(h.sigma, float(np.std(fit.effects)))

    def difference(
        self,
        levels_N: Sequence[int | None],
        switched: tuple[Sequence[Row], int],
        reference: tuple[Sequence[Row], int],
    ) -> tuple[float, float, float]:
        """Return the difference of the mean value of two sets of points, with its 95 % interval.

        Posterior means are transformed to values; around them the transformation is linearized, so
        that the difference is normal.

        Args:
            levels_N: number of each measured configuration's value of the parameter; None if the
                parameter has no effect in it.
            switched: parameters of the first points, and the number of their value.
            reference: the same points with the other value.

        Returns:
            mean, lower and upper end.
        """
        level_N = np.array([-1 if level is None else level for level in levels_N])
        same_NN = (level_N[:, None] == level_N) & (level_N >= 0)
        factor_NN = cholesky_factor(self._covariance_NN + self._prior_variance * same_NN)
        x_MD = self._encode([*switched[0], *reference[0]])
        first = len(switched[0])
        level_M = np.repeat([switched[1], reference[1]], [first, len(x_MD) - first])
        prior_MN = self._kernel(x_MD, self._x_ND)
        prior_MN += self._prior_variance * (level_M[:, None] == level_N)
        whitened_N = solve_lower(factor_NN, self._centered_N[:, None].copy(order="F"))
        explained_NM = solve_lower(factor_NN, np.asfortranarray(prior_MN.T))
        mean_M = self._hyperparameters.mean + (explained_NM.T @ whitened_N).ravel()

        is_first_M = np.arange(len(x_MD)) < first
        share_M = np.where(is_first_M, 1 / first, -1 / (len(x_MD) - first))
        mean = float(share_M @ self._transform.to_values(mean_M, self._spread))
        weight_M = share_M * self._transform.slopes(mean_M, self._spread)
        prior = weight_M @ self._kernel(x_MD, x_MD) @ weight_M + self._prior_variance * (
            weight_M[is_first_M].sum() ** 2 + weight_M[~is_first_M].sum() ** 2
        )
        variance = prior - float(np.sum((explained_NM @ weight_M) ** 2))
        half = NORMAL_95 * math.sqrt(max(variance, 0.0))
        return mean, mean - half, mean + half

    def _encode(self, rows: Sequence[Row]) -> Floats:
        encoded = [[feature(row) for feature in self._features] for row in rows]
        return np.array(encoded, dtype=float).reshape(len(rows), len(self._features))

    def _kernel(self, a_MD: Floats, b_ND: Floats) -> Floats:
        lengthscales = self._hyperparameters.lengthscales
        kernel_MN, _ = matern(a_MD / lengthscales, b_ND / lengthscales)
        return kernel_MN * self._hyperparameters.amplitude**2
