"""Compare means adjusted for fold effects with dense least squares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.orchestrator.surrogate.fold_effects import AdditiveFit, additive_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def _dense_additive(values: Floats, folds: NDArray[np.int_]) -> tuple[Floats, Floats, float, int]:
    """Return effects, means, noise variance and degrees of freedom by dense projections."""
    rows, columns = np.nonzero(~np.isnan(values))
    y = values[rows, columns]
    own = np.eye(len(values))[rows]
    fold = np.eye(folds.max() + 1)[folds[columns]]
    left = np.eye(len(y)) - own @ np.linalg.pinv(own)
    both = np.hstack([own, fold])
    rank = int(np.linalg.matrix_rank(both) - np.linalg.matrix_rank(own))
    residual = y - both @ np.linalg.lstsq(both, y)[0]
    dof = int(len(y) - np.linalg.matrix_rank(both))
    noise = float(residual @ residual) / dof
    explained = float(y @ left @ y - residual @ residual)
    spread = (explained - rank * noise) / float(np.trace(fold.T @ left @ fold))
    assert spread > 0
    ridge = math.sqrt(noise / spread) * np.eye(fold.shape[1])
    stacked = np.vstack([both, np.hstack([np.zeros((fold.shape[1], own.shape[1])), ridge])])
    solved = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros(fold.shape[1])]))[0]
    return solved[own.shape[1] :], solved[: own.shape[1]], noise, dof


@pytest.mark.parametrize("seed", range(4))
def test_additive_means_agree_with_dense_least_squares(seed: int) -> None:
    generator = np.random.default_rng(seed)
    folds = np.array([0, 1, 2, 3, 0, 1, 2, 3, 4])
    effects = generator.normal(0, 0.1, 5)
    values = generator.normal(0.7, 0.05, (12, 1)) + effects[folds]
    values += generator.normal(0, 0.02, values.shape)
    values[generator.random(values.shape) < 0.5] = np.nan
    values[:, 0] = np.where(np.isnan(values).all(axis=1), 0.5, values[:, 0])
    means, counts, pooled, dof, got, *_ = additive_means(values, folds)
    expected_effects, expected_means, expected_noise, expected_dof = _dense_additive(values, folds)
    np.testing.assert_allclose(got, expected_effects, atol=1e-10)
    np.testing.assert_allclose(means, expected_means, atol=1e-10)
    assert (pooled, dof) == (pytest.approx(expected_noise, rel=1e-9), expected_dof)
    assert counts.tolist() == np.sum(~np.isnan(values), axis=1).tolist()
    assert got.sum() == pytest.approx(0, abs=1e-12)


def test_additive_means_without_noise_are_exact() -> None:
    """A configuration that ran only on the easy fold is compared as if it had run on all."""
    effects, own = np.array([0.1, 0.0, -0.1]), np.array([0.5, 0.6, 0.7])
    values = own[:, None] + effects
    values[2, 1:] = np.nan
    means, counts, pooled, dof, got, *_ = additive_means(values, [0, 1, 2])
    np.testing.assert_allclose(got, effects, atol=1e-12)
    np.testing.assert_allclose(means, own, atol=1e-12)
    assert counts.tolist() == [3, 3, 1]
    assert (pooled, dof) == (pytest.approx(0, abs=1e-12), 2)


@pytest.mark.parametrize(
    ("values", "folds"),
    [
        ([[0.5, 0.6], [0.7, np.nan]], [0, 0]),  # one fold
        ([[0.5, 0.6], [0.7, np.nan]], [0, 1]),  # an effect and noise cannot be distinguished
        ([[0.5, 0.6, 0.4]], [0, 1, 2]),  # one configuration
    ],
)
def test_additive_means_set_unidentifiable_effects_to_zero(
    values: list[list[float]], folds: list[int]
) -> None:
    means, _, pooled, dof, effects, *_ = additive_means(values, folds)
    assert not effects.any()
    np.testing.assert_allclose(means, np.nanmean(values, axis=1))
    expected = np.nanvar(values[0], ddof=1)
    assert (pooled, dof) == (pytest.approx(expected), len(values[0]) - 1)


def test_additive_means_without_second_replicates_have_no_pooled_variance() -> None:
    values = [[0.5, np.nan], [np.nan, 0.7], [np.nan, np.nan]]
    means, counts, pooled, dof, effects, *_ = additive_means(values, [0, 1])
    np.testing.assert_equal(means, [0.5, 0.7, np.nan])
    assert counts.tolist() == [1, 1, 0]
    assert (pooled, dof, effects.tolist()) == (0.0, 0, [0.0, 0.0])


def test_additive_means_do_not_compare_unlinked_folds() -> None:
    """Effects sum to zero within each pair of folds; the levels go to the configurations."""
    generator = np.random.default_rng(7)
    values = np.full((8, 4), np.nan)
    values[:4, :2] = 0.5 + np.array([0.05, -0.05]) + generator.normal(0, 0.001, (4, 2))
    values[4:, 2:] = 0.9 + np.array([0.02, -0.02]) + generator.normal(0, 0.001, (4, 2))
    effects = additive_means(values, [0, 1, 2, 3]).effects
    assert effects[:2].sum() == pytest.approx(0, abs=1e-12)
    assert effects[2:].sum() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(effects, [0.05, -0.05, 0.02, -0.02], atol=0.002)


def test_additive_means_return_the_posterior_covariance_of_effects() -> None:
    """Compare with the normal equations of all replicates: means are free, effects normal."""
    generator = np.random.default_rng(3)
    folds = np.arange(6) % 3
    effects = np.array([0.2, -0.3, 0.1])
    values = generator.normal(0.5, 0.2, (10, 1)) + effects[folds]
    values += generator.normal(0, 0.05, values.shape)
    values[generator.random(values.shape) < 0.4] = np.nan
    values[:, 0] = np.where(np.isnan(values[:, 0]), 0.5, values[:, 0])
    fit = additive_means(values, folds)
    rows, columns = np.nonzero(~np.isnan(values))
    design = np.zeros((len(rows), 13))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), 10 + folds[columns]] = 1
    spread = _spread_of(values, folds, fit)
    precision = design.T @ design / fit.variance
    precision[10:, 10:] += np.eye(3) / spread
    posterior = np.linalg.inv(precision)[10:, 10:]
    base = int(np.bincount(folds[columns]).argmax())
    less = np.eye(3)
    less[:, base] -= 1
    np.testing.assert_allclose(fit.covariance, less @ posterior @ less.T, rtol=1e-6, atol=1e-12)
    assert not fit.covariance[base].any()
    shares = [[np.sum(~np.isnan(r[folds == k])) for k in range(3)] for r in values]
    np.testing.assert_allclose(fit.weights, np.array(shares) / fit.counts[:, None])


def _spread_of(values: Floats, folds: Floats, fit: AdditiveFit) -> float:
    """Recover the variance of the effects from how much the fit shrank them."""
    counts = np.stack([(~np.isnan(values))[:, folds == k].sum(axis=1) for k in range(3)], axis=1)
    normal = np.diag(counts.sum(axis=0)) - counts.T @ (counts / fit.counts[:, None])
    centered = np.where(np.isnan(values), 0, values - np.nanmean(values, axis=1)[:, None])
    right = np.array([centered[:, folds == k].sum() for k in range(3)])
    # (normal + r I) b = right, for the b of the fit: solve for r by least squares.
    off = right - normal @ fit.effects
    ratio = float(off @ fit.effects / (fit.effects @ fit.effects))
    return max(fit.variance / ratio, fit.variance / 4)


def test_additive_means_have_zero_covariance_without_identifiable_folds() -> None:
    assert not additive_means([[0.5], [0.6]], [0]).covariance.any()
    assert not additive_means([[0.5, 0.6]], [0, 0]).covariance.any()
