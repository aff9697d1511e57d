"""Compare the posterior with dense conditioning on all replicates."""

from __future__ import annotations

import numpy as np
import pytest

from sftsearch.orchestrator.surrogate import gp
from sftsearch.orchestrator.surrogate.gp import GaussianProcess, Hyperparameters

from gaussian_model import TRUTH, example, matern, pool_replicates


def test_gaussian_process_agrees_with_conditioning_on_every_replicate() -> None:
    """Means and counts are sufficient statistics of the replicates."""
    x, counts, replicates = example()
    unseen = np.vstack([np.random.default_rng(1).random((5, 2)), x[:1]])
    everyone = np.vstack([x, unseen])
    signal = matern(everyone, everyone, TRUTH) + TRUTH.tau**2 * np.eye(len(everyone))
    pick = np.repeat(np.eye(len(everyone))[: len(x)], counts.astype(int), axis=0)
    noisy = pick @ signal @ pick.T + TRUTH.sigma**2 * np.eye(len(pick))
    gain = np.linalg.solve(noisy, pick @ signal).T
    mean = TRUTH.mean + gain @ (np.concatenate(replicates) - TRUTH.mean)
    cov = signal - gain @ pick @ signal

    model = GaussianProcess(x, pool_replicates(replicates)[0], counts, TRUTH)
    seen = slice(None, len(x)), slice(None, len(x))
    rest = slice(len(x), None), slice(len(x), None)
    joint_mean, joint_cov = model.observed_joint()
    np.testing.assert_allclose(joint_mean, mean[seen[0]], rtol=1e-9)
    np.testing.assert_allclose(joint_cov, cov[seen], atol=1e-12)
    for got, where in ((model.observed(), seen), (model.predict(unseen), rest)):
        np.testing.assert_allclose(got[0], mean[where[0]], rtol=1e-9)
        np.testing.assert_allclose(got[1], np.sqrt(np.diag(cov[where])), rtol=1e-7)
    assert model.predict(unseen)[1].min() > TRUTH.tau


def test_gaussian_process_predicts_blocks_like_single_rows() -> None:
    x, counts, replicates = example()
    model = GaussianProcess(x, pool_replicates(replicates)[0], counts, TRUTH)
    unseen = np.random.default_rng(2).random((300, 2))  # more than a block
    mean, sd = model.predict(unseen)
    for i in (0, 127, 128, 299):
        one_mean, one_sd = model.predict(unseen[i])
        assert mean[i] == pytest.approx(one_mean[0], rel=1e-12)
        assert sd[i] == pytest.approx(one_sd[0], rel=1e-9)


def test_gaussian_process_without_features_shrinks_by_the_textbook_ratio() -> None:
    """Normal means: tau^2 / (tau^2 + sigma^2 / n) of the way from the mean to the measured."""
    flat = Hyperparameters(lengthscales=np.ones(1), amplitude=0.0, tau=0.02, sigma=0.04, mean=0.5)
    counts, values = np.array([1.0, 4.0, 100.0]), np.array([0.6, 0.6, 0.4])
    mean, sd = GaussianProcess(np.zeros((3, 1)), values, counts, flat).observed()
    kept = 0.02**2 / (0.02**2 + 0.04**2 / counts)
    np.testing.assert_allclose(mean, 0.5 + kept * (values - 0.5), rtol=1e-12)
    np.testing.assert_allclose(sd, 0.02 * np.sqrt(1 - kept), rtol=1e-12)


def test_gaussian_process_without_noise_interpolates_exactly() -> None:
    x = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.1]])
    exact = Hyperparameters(lengthscales=np.ones(2), amplitude=0.1, tau=0.0, sigma=0.0, mean=0.0)
    model = GaussianProcess(x, [0.3, 0.5, 0.4], [1, 1, 1], exact)
    assert model.observed()[0].tolist() == [0.3, 0.5, 0.4]
    assert model.observed()[1].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(model.predict(x)[0], [0.3, 0.5, 0.4], rtol=1e-9)
    np.testing.assert_allclose(model.predict(x)[1], 0.0, atol=1e-8)
    repeated = GaussianProcess(
        x[[0, 0, 1]], [0.3, 0.3, 0.5], [1, 1, 1], exact
    )  # singular without jitter
    np.testing.assert_allclose(repeated.predict(x[:2])[0], [0.3, 0.5], rtol=1e-4)


def test_cholesky_factor_refuses_an_indefinite_matrix() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not positive"):
        gp.cholesky_factor(np.array([[1.0, 2.0], [2.0, 1.0]]))


def test_gaussian_process_conditions_on_shared_errors() -> None:
    x, counts, replicates = example()
    means = np.array([r.mean() for r in replicates])
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(x))
    shared = weights @ np.diag([0.0, 0.02, 0.03]) ** 2 @ weights.T
    process = GaussianProcess(x, means, counts, TRUTH, shared)
    signal = matern(x, x, TRUTH) + TRUTH.tau**2 * np.eye(len(x))
    noise = np.diag(TRUTH.sigma**2 / counts) + shared
    gain = signal @ np.linalg.inv(signal + noise)
    mean, covariance = process.observed_joint()
    np.testing.assert_allclose(mean, TRUTH.mean + gain @ (means - TRUTH.mean), atol=1e-10)
    np.testing.assert_allclose(covariance, signal - gain @ signal, atol=1e-10)
    new = np.random.default_rng(1).random((5, 2))
    between = matern(new, x, TRUTH) @ np.linalg.inv(signal + noise)
    expected = TRUTH.mean + between @ (means - TRUTH.mean)
    np.testing.assert_allclose(process.predict(new)[0], expected, atol=1e-10)
