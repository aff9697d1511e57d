"""Compare MAP hyperparameters with dense densities, and fit degenerate data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator.surrogate.gp import GaussianProcess, Hyperparameters
from sftsearch.orchestrator.surrogate.hyperparameters import (
    Standardized,
    fit_hyperparameters,
    negative_log_posterior,
)

from gaussian_model import TRUTH, draw, example, matern, pool_replicates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def _evidence(x: Floats, counts: Floats, replicates: list[Floats]) -> Standardized:
    means, pooled, dof = pool_replicates(replicates)
    return Standardized(x, means, counts, pooled, dof, -1.2)


def test_negative_log_posterior_is_that_of_every_replicate() -> None:
    """Compare differences, because constants are left out of the posterior."""
    x, counts, replicates = example()
    y = np.concatenate(replicates)
    pick = np.repeat(np.eye(len(x)), counts.astype(int), axis=0)

    def dense(theta: Floats) -> float:
        *_, amplitude, tau, sigma = np.exp(theta)
        parameters = Hyperparameters(
            lengthscales=np.exp(theta[:2]), amplitude=amplitude, tau=tau, sigma=sigma, mean=0.0
        )
        signal = matern(x, x, parameters) + tau**2 * np.eye(len(x))
        cov = pick @ signal @ pick.T + sigma**2 * np.eye(len(y))
        sums = np.linalg.solve(cov, np.ones(len(y)))
        mean = sums @ y / (sums.sum() + 1)  # a standard normal prior of the mean
        likelihood = stats.multivariate_normal(np.full(len(y), mean), cov).logpdf(y)
        # The density of a lengthscale, with its mode at exp(-1.2).
        prior = stats.lognorm(math.sqrt(3), scale=math.exp(-1.2 + 3)).logpdf(np.exp(theta[:2]))
        scales = stats.norm(np.log([1.0, 0.1, 0.3]), 1).logpdf(theta[2:])
        return float(-likelihood + 0.5 * mean**2 - prior.sum() - scales.sum())

    evidence = _evidence(x, counts, replicates)
    thetas = np.random.default_rng(3).normal([0, 0, -2, -3, -3], 0.7, (6, 5))
    ours = np.array([negative_log_posterior(theta, evidence)[0] for theta in thetas])
    theirs = np.array([dense(theta) for theta in thetas])
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_negative_log_posterior_gradient_agrees_with_finite_differences(seed: int) -> None:
    evidence = _evidence(*example(12))
    theta = np.random.default_rng(seed).normal([0, 0, -2, -3, -3], 0.7)
    _, gradient = negative_log_posterior(theta, evidence)
    for k, step in enumerate(1e-5 * np.eye(5)):
        above, _ = negative_log_posterior(theta + step, evidence)
        below, _ = negative_log_posterior(theta - step, evidence)
        assert gradient[k] == pytest.approx((above - below) / 2e-5, rel=1e-5, abs=1e-4)


@pytest.mark.medium
def test_fit_hyperparameters_recovers_the_true_model() -> None:
    generator = np.random.default_rng(5)
    x = generator.random((320, 2))
    counts = generator.integers(1, 4, 320).astype(float)
    means, replicates = draw(generator, x, counts, TRUTH)
    measured, pooled, dof = pool_replicates(replicates[:120])
    fitted = fit_hyperparameters(x[:120], measured, counts[:120], pooled_variance=pooled, dof=dof)
    assert fitted.sigma == pytest.approx(0.02, rel=0.15)
    assert fitted.tau == pytest.approx(0.01, rel=0.4)
    assert fitted.lengthscales[1] > 2 * fitted.lengthscales[0]
    model = GaussianProcess(x[:120], measured, counts[:120], fitted)
    for true, (mean, sd) in (
        (means[:120], model.observed()),
        (means[120:], model.predict(x[120:])),
    ):
        covered = np.mean(np.abs(true - mean) < 1.645 * sd)
        assert covered == pytest.approx(0.9, abs=0.07)  # 2.5 sd of 120 draws
    error = np.mean((model.observed()[0] - means[:120]) ** 2)
    assert error < 0.6 * np.mean((measured - means[:120]) ** 2)  # shrinkage helps


@pytest.mark.medium
def test_fit_hyperparameters_does_not_depend_on_units() -> None:
    x, counts, replicates = example(20)
    means, pooled, dof = pool_replicates(replicates)
    plain = fit_hyperparameters(x, means, counts, pooled_variance=pooled, dof=dof)
    percent = fit_hyperparameters(x, 100 * means - 7, counts, pooled_variance=1e4 * pooled, dof=dof)
    np.testing.assert_allclose(percent.lengthscales, plain.lengthscales, rtol=1e-5)
    for name in ("amplitude", "tau", "sigma"):
        assert getattr(percent, name) == pytest.approx(100 * getattr(plain, name), rel=1e-5)
    assert percent.mean == pytest.approx(100 * plain.mean - 7, rel=1e-6)


@pytest.mark.medium
def test_fit_hyperparameters_from_a_warm_start_reaches_the_same_optimum() -> None:
    x, counts, replicates = example(40)
    means, pooled, dof = pool_replicates(replicates)
    evidence = _evidence(x, counts, replicates)

    def loss(start: Hyperparameters | None, max_iterations: int) -> float:
        fitted = fit_hyperparameters(
            x,
            means,
            counts,
            pooled_variance=pooled,
            dof=dof,
            start=start,
            max_iterations=max_iterations,
        )
        scales = [fitted.amplitude, fitted.tau, fitted.sigma]
        theta = np.log([*fitted.lengthscales, *scales])
        return negative_log_posterior(theta, evidence)[0]

    earlier = fit_hyperparameters(x[:-1], means[:-1], counts[:-1])
    assert loss(earlier, 10) == pytest.approx(loss(None, 200), abs=0.3)
    extreme = Hyperparameters(
        lengthscales=np.full(2, 1e-9), amplitude=1e9, tau=0.0, sigma=1e-9, mean=0.0
    )
    assert loss(extreme, 200) == pytest.approx(loss(None, 200), abs=0.3)
    assert loss(extreme, 1) == loss(None, 1)  # the prior mode is the better start


@pytest.mark.parametrize("dof", [0, 10])
@pytest.mark.parametrize(
    ("x", "means"),
    [
        ([[0.3, 0.6]], [0.5]),
        ([[0.3, 0.6], [0.4, 0.6]], [0.5, 0.7]),
        ([[0.1, 0.2], [0.5, 0.5], [0.9, 0.1]], [0.1, 0.1, 0.1]),  # not exact in binary
        ([[0.3, 0.6]] * 6, [0.5, 0.7, 0.5, 0.6, 0.4, 0.6]),
        ([[0.3, 0.6]] * 3, [0.5] * 3),
        ([[0.0, 0.6], [0.0, 0.6 + 1e-12], [1.0, 0.6]], [0.5, 0.7, 0.2]),
        ([[0.2, 0.1], [0.8, 0.3]], [1e6, 1e6 + 1e-7]),
    ],
)
def test_fit_hyperparameters_of_degenerate_data_gives_a_finite_posterior(
    x: list[list[float]], means: list[float], dof: int
) -> None:
    counts = np.ones(len(means))
    fitted = fit_hyperparameters(x, means, counts, pooled_variance=1e-4, dof=dof)
    model = GaussianProcess(x, means, counts, fitted)
    unseen = np.random.default_rng(0).random((10, 2))
    for mean, sd in (model.observed(), model.predict(unseen)):
        assert np.all(np.isfinite(mean))
        assert np.all(sd > 0)
        assert np.all(np.abs(mean - np.mean(means)) < np.ptp(means) + 1e-6)


def test_fit_hyperparameters_works_without_features() -> None:
    fitted = fit_hyperparameters(np.empty((3, 0)), [0.4, 0.5, 0.6], [2, 2, 2])
    mean, _ = GaussianProcess(np.empty((3, 0)), [0.4, 0.5, 0.6], [2, 2, 2], fitted).observed()
    assert 0.4 < mean[0] < mean[1] < mean[2] < 0.6


@pytest.mark.medium
def test_fit_hyperparameters_keeps_the_prior_of_a_feature_that_never_varies() -> None:
    """The lengthscale stays at the prior mode, exp(sqrt(2) - 3) sqrt(D)."""
    x, counts, replicates = example(20)
    means = pool_replicates(replicates)[0]
    x = np.column_stack([x, np.full(20, 0.5)])
    fitted = fit_hyperparameters(x, means, counts)
    assert fitted.lengthscales[2] == pytest.approx(math.exp(math.sqrt(2) - 3) * math.sqrt(3))


@pytest.mark.medium
def test_fit_hyperparameters_takes_sigma_from_many_replicates() -> None:
    """200 degrees of freedom outweigh the weak prior for any spread of the means."""
    x = np.linspace(0, 1, 10)[:, None]
    for sigma in (0.003, 0.3):
        fitted = fit_hyperparameters(
            x, np.sin(5 * x[:, 0]), np.full(10, 21.0), pooled_variance=sigma**2, dof=200
        )
        assert fitted.sigma == pytest.approx(sigma, rel=0.05)


def test_fit_hyperparameters_uses_the_noise_scale_for_equal_means() -> None:
    """Equal means of replicates with sd 0.01 show that configurations hardly differ."""
    x = np.array([[0.2, 0.1], [0.8, 0.3]])
    fitted = fit_hyperparameters(x, [0.5, 0.5], [6, 6], pooled_variance=1e-4, dof=10)
    assert fitted.sigma == pytest.approx(0.01, rel=0.2)
    assert GaussianProcess(x, [0.5, 0.5], [6, 6], fitted).predict([[0.9, 0.9]])[1] < 0.02


@pytest.mark.parametrize(
    ("x", "means"), [([[0.1]], [math.nan]), ([[math.inf]], [0.5]), (np.empty((0, 1)), [])]
)
def test_fit_hyperparameters_refuses_non_finite_and_empty_data(
    x: list[list[float]], means: list[float]
) -> None:
    with pytest.raises(ValueError, match="but got"):
        fit_hyperparameters(x, means, np.ones(len(means)))
