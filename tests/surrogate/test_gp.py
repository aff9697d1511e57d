"""The hierarchical model against dense references over all replicates, and on awkward data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import special, stats

from sftsearch.orchestrator.surrogate import gp
from sftsearch.orchestrator.surrogate.gp import Hyperparameters, Surrogate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def _matern(a: Floats, b: Floats, hyperparameters: Hyperparameters) -> Floats:
    """Return the covariance of f by the general Matern with smoothness 5/2."""
    nu = 2.5
    r = np.linalg.norm((a[:, None] - b) / hyperparameters.lengthscales, axis=2)
    s = np.sqrt(2 * nu) * np.where(r > 0, r, 1.0)
    cov = 2 ** (1 - nu) / special.gamma(nu) * s**nu * special.kv(nu, s)
    return hyperparameters.amplitude**2 * np.where(r > 0, cov, 1.0)


def _draw(
    generator: np.random.Generator, x: Floats, counts: Floats, truth: Hyperparameters
) -> tuple[Floats, list[Floats]]:
    """Return true means and every configuration's replicates, drawn from the model."""
    cov = _matern(x, x, truth) + truth.tau**2 * np.eye(len(x))
    means = generator.multivariate_normal(np.full(len(x), truth.mean), cov, method="cholesky")
    return means, [
        m + truth.sigma * generator.normal(size=int(n)) for m, n in zip(means, counts, strict=True)
    ]


def _pooled(replicates: list[Floats]) -> tuple[Floats, float, int]:
    """Return means, pooled variance and degrees of freedom."""
    means = np.array([r.mean() for r in replicates])
    dof = sum(len(r) - 1 for r in replicates)
    squares = sum(float(np.sum((r - r.mean()) ** 2)) for r in replicates)
    return means, squares / dof if dof else 0.0, dof


TRUTH = Hyperparameters(
    lengthscales=np.array([0.4, 1.5]), amplitude=0.05, tau=0.01, sigma=0.02, mean=0.7
)


def _example(num: int = 8) -> tuple[Floats, Floats, list[Floats]]:
    generator = np.random.default_rng(num)
    x = generator.random((num, 2))
    x[-1] = x[0]  # two configurations that the features do not tell apart
    counts = generator.integers(1, 5, num).astype(float)
    return x, counts, _draw(generator, x, counts, TRUTH)[1]


def test_the_posterior_agrees_with_conditioning_on_every_replicate() -> None:
    """Means and counts say all that single replicates say of the true means."""
    x, counts, replicates = _example()
    unseen = np.vstack([np.random.default_rng(1).random((5, 2)), x[:1]])
    everyone = np.vstack([x, unseen])
    signal = _matern(everyone, everyone, TRUTH) + TRUTH.tau**2 * np.eye(len(everyone))
    pick = np.repeat(np.eye(len(everyone))[: len(x)], counts.astype(int), axis=0)
    noisy = pick @ signal @ pick.T + TRUTH.sigma**2 * np.eye(len(pick))
    gain = np.linalg.solve(noisy, pick @ signal).T
    mean = TRUTH.mean + gain @ (np.concatenate(replicates) - TRUTH.mean)
    cov = signal - gain @ pick @ signal

    model = Surrogate(x, _pooled(replicates)[0], counts, TRUTH)
    seen = slice(None, len(x)), slice(None, len(x))
    rest = slice(len(x), None), slice(len(x), None)
    for got, where in ((model.observed_joint(), seen), (model.joint(unseen), rest)):
        np.testing.assert_allclose(got[0], mean[where[0]], rtol=1e-9)
        np.testing.assert_allclose(got[1], cov[where], atol=1e-12)
    for got, where in ((model.observed(), seen), (model.predict(unseen), rest)):
        np.testing.assert_allclose(got[0], mean[where[0]], rtol=1e-9)
        np.testing.assert_allclose(got[1], np.sqrt(np.diag(cov[where])), rtol=1e-7)
    assert model.predict(unseen)[1].min() > TRUTH.tau


def test_many_candidates_agree_with_one_at_a_time() -> None:
    x, counts, replicates = _example()
    model = Surrogate(x, _pooled(replicates)[0], counts, TRUTH)
    unseen = np.random.default_rng(2).random((300, 2))  # more than a block
    mean, sd = model.predict(unseen)
    for i in (0, 127, 128, 299):
        one_mean, one_cov = model.joint(unseen[i])
        assert mean[i] == pytest.approx(one_mean[0], rel=1e-12)
        assert sd[i] ** 2 == pytest.approx(one_cov[0, 0], rel=1e-9)


def test_without_features_means_shrink_by_the_textbook_ratio() -> None:
    """Normal means: tau^2 / (tau^2 + sigma^2 / n) of the way from the mean to the measured."""
    flat = Hyperparameters(lengthscales=np.ones(1), amplitude=0.0, tau=0.02, sigma=0.04, mean=0.5)
    counts, values = np.array([1.0, 4.0, 100.0]), np.array([0.6, 0.6, 0.4])
    mean, sd = Surrogate(np.zeros((3, 1)), values, counts, flat).observed()
    kept = 0.02**2 / (0.02**2 + 0.04**2 / counts)
    np.testing.assert_allclose(mean, 0.5 + kept * (values - 0.5), rtol=1e-12)
    np.testing.assert_allclose(sd, 0.02 * np.sqrt(1 - kept), rtol=1e-12)


def test_measured_without_noise_is_known_exactly() -> None:
    x = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.1]])
    exact = Hyperparameters(lengthscales=np.ones(2), amplitude=0.1, tau=0.0, sigma=0.0, mean=0.0)
    model = Surrogate(x, [0.3, 0.5, 0.4], [1, 1, 1], exact)
    assert model.observed()[0].tolist() == [0.3, 0.5, 0.4]
    assert model.observed()[1].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(model.predict(x)[0], [0.3, 0.5, 0.4], rtol=1e-9)
    np.testing.assert_allclose(model.predict(x)[1], 0.0, atol=1e-8)
    repeated = Surrogate(x[[0, 0, 1]], [0.3, 0.3, 0.5], [1, 1, 1], exact)  # singular without jitter
    np.testing.assert_allclose(repeated.predict(x[:2])[0], [0.3, 0.5], rtol=1e-4)


def test_what_is_no_covariance_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not positive"):
        gp._factor(np.array([[1.0, 2.0], [2.0, 1.0]]))


def _evidence(x: Floats, counts: Floats, replicates: list[Floats]) -> gp._Evidence:
    means, pooled, dof = _pooled(replicates)
    return gp._Evidence(x, means, counts, pooled, dof, -1.2)


def test_the_posterior_of_hyperparameters_is_that_of_every_replicate() -> None:
    """Between any two hyperparameters; what does not depend on them is left out."""
    x, counts, replicates = _example()
    y = np.concatenate(replicates)
    pick = np.repeat(np.eye(len(x)), counts.astype(int), axis=0)

    def dense(theta: Floats) -> float:
        *_, amplitude, tau, sigma = np.exp(theta)
        given = Hyperparameters(
            lengthscales=np.exp(theta[:2]), amplitude=amplitude, tau=tau, sigma=sigma, mean=0.0
        )
        signal = _matern(x, x, given) + tau**2 * np.eye(len(x))
        cov = pick @ signal @ pick.T + sigma**2 * np.eye(len(y))
        sums = np.linalg.solve(cov, np.ones(len(y)))
        mean = sums @ y / (sums.sum() + 1)  # a standard normal prior of the mean
        likelihood = stats.multivariate_normal(np.full(len(y), mean), cov).logpdf(y)
        # The density of a lengthscale, with the location that puts its mode at exp(-1.2).
        prior = stats.lognorm(math.sqrt(3), scale=math.exp(-1.2 + 3)).logpdf(np.exp(theta[:2]))
        scales = stats.norm(np.log([1.0, 0.1, 0.3]), 1).logpdf(theta[2:])
        return float(-likelihood + 0.5 * mean**2 - prior.sum() - scales.sum())

    evidence = _evidence(x, counts, replicates)
    thetas = np.random.default_rng(3).normal([0, 0, -2, -3, -3], 0.7, (6, 5))
    ours = np.array([gp._negative_log_posterior(theta, evidence)[0] for theta in thetas])
    theirs = np.array([dense(theta) for theta in thetas])
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_agrees_with_differences(seed: int) -> None:
    evidence = _evidence(*_example(12))
    theta = np.random.default_rng(seed).normal([0, 0, -2, -3, -3], 0.7)
    _, gradient = gp._negative_log_posterior(theta, evidence)
    for k, step in enumerate(1e-5 * np.eye(5)):
        above, _ = gp._negative_log_posterior(theta + step, evidence)
        below, _ = gp._negative_log_posterior(theta - step, evidence)
        assert gradient[k] == pytest.approx((above - below) / 2e-5, rel=1e-5, abs=1e-4)


@pytest.mark.medium
def test_it_learns_the_model_that_made_the_data() -> None:
    generator = np.random.default_rng(5)
    x = generator.random((320, 2))
    counts = generator.integers(1, 4, 320).astype(float)
    means, replicates = _draw(generator, x, counts, TRUTH)
    measured, pooled, dof = _pooled(replicates[:120])
    fitted = gp.fit_hyperparameters(
        x[:120], measured, counts[:120], pooled_variance=pooled, dof=dof
    )
    assert fitted.sigma == pytest.approx(0.02, rel=0.15)
    assert fitted.tau == pytest.approx(0.01, rel=0.4)
    assert fitted.lengthscales[1] > 2 * fitted.lengthscales[0]
    model = Surrogate(x[:120], measured, counts[:120], fitted)
    for true, (mean, sd) in (
        (means[:120], model.observed()),
        (means[120:], model.predict(x[120:])),
    ):
        covered = np.mean(np.abs(true - mean) < 1.645 * sd)
        assert covered == pytest.approx(0.9, abs=0.07)  # 2.5 sd of 120 draws
    error = np.mean((model.observed()[0] - means[:120]) ** 2)
    assert error < 0.6 * np.mean((measured - means[:120]) ** 2)  # shrinking pays


@pytest.mark.medium
def test_a_fit_is_free_of_units() -> None:
    x, counts, replicates = _example(20)
    means, pooled, dof = _pooled(replicates)
    plain = gp.fit_hyperparameters(x, means, counts, pooled_variance=pooled, dof=dof)
    percent = gp.fit_hyperparameters(
        x, 100 * means - 7, counts, pooled_variance=1e4 * pooled, dof=dof
    )
    np.testing.assert_allclose(percent.lengthscales, plain.lengthscales, rtol=1e-5)
    for name in ("amplitude", "tau", "sigma"):
        assert getattr(percent, name) == pytest.approx(100 * getattr(plain, name), rel=1e-5)
    assert percent.mean == pytest.approx(100 * plain.mean - 7, rel=1e-6)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    x, counts, replicates = _example(40)
    means, pooled, dof = _pooled(replicates)
    evidence = _evidence(x, counts, replicates)

    def badness(start: Hyperparameters | None, max_iterations: int) -> float:
        fitted = gp.fit_hyperparameters(
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
        return gp._negative_log_posterior(theta, evidence)[0]

    few = gp.fit_hyperparameters(x[:-1], means[:-1], counts[:-1])
    assert badness(few, 10) == pytest.approx(badness(None, 200), abs=0.3)
    lost = Hyperparameters(
        lengthscales=np.full(2, 1e-9), amplitude=1e9, tau=0.0, sigma=1e-9, mean=0.0
    )
    assert badness(lost, 200) == pytest.approx(badness(None, 200), abs=0.3)
    assert badness(lost, 1) == badness(None, 1)  # the prior's mode is the better start


@pytest.mark.parametrize("dof", [0, 10])
@pytest.mark.parametrize(
    ("x", "means"),
    [
        ([[0.3, 0.6]], [0.5]),
        ([[0.3, 0.6], [0.4, 0.6]], [0.5, 0.7]),
        ([[0.1, 0.2], [0.5, 0.5], [0.9, 0.1]], [0.1, 0.1, 0.1]),  # not one binary fraction
        ([[0.3, 0.6]] * 6, [0.5, 0.7, 0.5, 0.6, 0.4, 0.6]),
        ([[0.3, 0.6]] * 3, [0.5] * 3),
        ([[0.0, 0.6], [0.0, 0.6 + 1e-12], [1.0, 0.6]], [0.5, 0.7, 0.2]),
        ([[0.2, 0.1], [0.8, 0.3]], [1e6, 1e6 + 1e-7]),
    ],
)
def test_awkward_data_give_finite_beliefs(
    x: list[list[float]], means: list[float], dof: int
) -> None:
    counts = np.ones(len(means))
    fitted = gp.fit_hyperparameters(x, means, counts, pooled_variance=1e-4, dof=dof)
    model = Surrogate(x, means, counts, fitted)
    unseen = np.random.default_rng(0).random((10, 2))
    for mean, sd in (model.observed(), model.predict(unseen)):
        assert np.all(np.isfinite(mean))
        assert np.all(sd > 0)
        assert np.all(np.abs(mean - np.mean(means)) < np.ptp(means) + 1e-6)


def test_no_features_are_a_model_too() -> None:
    fitted = gp.fit_hyperparameters(np.empty((3, 0)), [0.4, 0.5, 0.6], [2, 2, 2])
    mean, _ = Surrogate(np.empty((3, 0)), [0.4, 0.5, 0.6], [2, 2, 2], fitted).observed()
    assert 0.4 < mean[0] < mean[1] < mean[2] < 0.6


def test_a_feature_that_never_varies_keeps_its_prior() -> None:
    """Its lengthscale stays at the mode of the log-normal, exp(sqrt(2) - 3) sqrt(D)."""
    x, counts, replicates = _example(20)
    means = _pooled(replicates)[0]
    x = np.column_stack([x, np.full(20, 0.5)])
    fitted = gp.fit_hyperparameters(x, means, counts)
    assert fitted.lengthscales[2] == pytest.approx(math.exp(math.sqrt(2) - 3) * math.sqrt(3))


def test_many_replicates_decide_sigma() -> None:
    """The prior is weak: 200 degrees of freedom outweigh it, whatever the spread of the means."""
    x = np.linspace(0, 1, 10)[:, None]
    for sigma in (0.003, 0.3):
        fitted = gp.fit_hyperparameters(
            x, np.sin(5 * x[:, 0]), np.full(10, 21.0), pooled_variance=sigma**2, dof=200
        )
        assert fitted.sigma == pytest.approx(sigma, rel=0.05)


def test_the_noise_gives_the_scale_where_means_do_not() -> None:
    """Equal means of replicates with sd 0.01 say that configurations hardly differ."""
    x = np.array([[0.2, 0.1], [0.8, 0.3]])
    fitted = gp.fit_hyperparameters(x, [0.5, 0.5], [6, 6], pooled_variance=1e-4, dof=10)
    assert fitted.sigma == pytest.approx(0.01, rel=0.2)
    assert Surrogate(x, [0.5, 0.5], [6, 6], fitted).predict([[0.9, 0.9]])[1] < 0.02


@pytest.mark.parametrize(
    ("x", "means"), [([[0.1]], [math.nan]), ([[math.inf]], [0.5]), (np.empty((0, 1)), [])]
)
def test_what_is_not_finite_is_refused(x: list[list[float]], means: list[float]) -> None:
    with pytest.raises(ValueError, match="but got"):
        gp.fit_hyperparameters(x, means, np.ones(len(means)))


def _dense_additive(values: Floats, folds: NDArray[np.int_]) -> tuple[Floats, Floats, float, int]:
    """Return effects, means, noise and its degrees of freedom by dense projections."""
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
    means, counts, pooled, dof, got, *_ = gp.additive_means(values, folds)
    expected_effects, expected_means, expected_noise, expected_dof = _dense_additive(values, folds)
    np.testing.assert_allclose(got, expected_effects, atol=1e-10)
    np.testing.assert_allclose(means, expected_means, atol=1e-10)
    assert (pooled, dof) == (pytest.approx(expected_noise, rel=1e-9), expected_dof)
    assert counts.tolist() == np.sum(~np.isnan(values), axis=1).tolist()
    assert got.sum() == pytest.approx(0, abs=1e-12)


def test_without_noise_effects_are_exact() -> None:
    """A configuration seen on the easy fold only is compared as if it had run on all."""
    effects, own = np.array([0.1, 0.0, -0.1]), np.array([0.5, 0.6, 0.7])
    values = own[:, None] + effects
    values[2, 1:] = np.nan
    means, counts, pooled, dof, got, *_ = gp.additive_means(values, [0, 1, 2])
    np.testing.assert_allclose(got, effects, atol=1e-12)
    np.testing.assert_allclose(means, own, atol=1e-12)
    assert counts.tolist() == [3, 3, 1]
    assert (pooled, dof) == (pytest.approx(0, abs=1e-12), 2)


@pytest.mark.parametrize(
    ("values", "folds"),
    [
        ([[0.5, 0.6], [0.7, np.nan]], [0, 0]),  # one fold
        ([[0.5, 0.6], [0.7, np.nan]], [0, 1]),  # nothing to tell an effect from noise
        ([[0.5, 0.6, 0.4]], [0, 1, 2]),  # one configuration
    ],
)
def test_effects_that_cannot_be_told_are_zero(values: list[list[float]], folds: list[int]) -> None:
    means, _, pooled, dof, effects, *_ = gp.additive_means(values, folds)
    assert not effects.any()
    np.testing.assert_allclose(means, np.nanmean(values, axis=1))
    expected = np.nanvar(values[0], ddof=1)
    assert (pooled, dof) == (pytest.approx(expected), len(values[0]) - 1)


def test_nothing_run_twice_has_no_pooled_variance() -> None:
    values = [[0.5, np.nan], [np.nan, 0.7], [np.nan, np.nan]]
    means, counts, pooled, dof, effects, *_ = gp.additive_means(values, [0, 1])
    np.testing.assert_equal(means, [0.5, 0.7, np.nan])
    assert counts.tolist() == [1, 1, 0]
    assert (pooled, dof, effects.tolist()) == (0.0, 0, [0.0, 0.0])


def test_folds_that_nothing_links_are_not_compared() -> None:
    """Of two pairs of folds each keeps its own zero; levels of the pairs are configurations'."""
    generator = np.random.default_rng(7)
    values = np.full((8, 4), np.nan)
    values[:4, :2] = 0.5 + np.array([0.05, -0.05]) + generator.normal(0, 0.001, (4, 2))
    values[4:, 2:] = 0.9 + np.array([0.02, -0.02]) + generator.normal(0, 0.001, (4, 2))
    effects = gp.additive_means(values, [0, 1, 2, 3]).effects
    assert effects[:2].sum() == pytest.approx(0, abs=1e-12)
    assert effects[2:].sum() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(effects, [0.05, -0.05, 0.02, -0.02], atol=0.002)


# ------------------------------------------------------------------ what the means share


def test_errors_that_means_share_are_conditioned_on_densely() -> None:
    x, counts, replicates = _example()
    means = np.array([r.mean() for r in replicates])
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(x))
    shared = weights @ np.diag([0.0, 0.02, 0.03]) ** 2 @ weights.T
    made = Surrogate(x, means, counts, TRUTH, shared)
    signal = _matern(x, x, TRUTH) + TRUTH.tau**2 * np.eye(len(x))
    noise = np.diag(TRUTH.sigma**2 / counts) + shared
    gain = signal @ np.linalg.inv(signal + noise)
    mean, covariance = made.observed_joint()
    np.testing.assert_allclose(mean, TRUTH.mean + gain @ (means - TRUTH.mean), atol=1e-10)
    np.testing.assert_allclose(covariance, signal - gain @ signal, atol=1e-10)
    new = np.random.default_rng(1).random((5, 2))
    between = _matern(new, x, TRUTH) @ np.linalg.inv(signal + noise)
    expected = TRUTH.mean + between @ (means - TRUTH.mean)
    np.testing.assert_allclose(made.predict(new)[0], expected, atol=1e-10)


def test_what_is_not_known_of_effects_is_their_posterior_covariance() -> None:
    """Against the normal equations of all replicates: means are free, effects normal."""
    generator = np.random.default_rng(3)
    folds = np.arange(6) % 3
    effects = np.array([0.2, -0.3, 0.1])
    values = generator.normal(0.5, 0.2, (10, 1)) + effects[folds]
    values += generator.normal(0, 0.05, values.shape)
    values[generator.random(values.shape) < 0.4] = np.nan
    values[:, 0] = np.where(np.isnan(values[:, 0]), 0.5, values[:, 0])
    fit = gp.additive_means(values, folds)
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


def _spread_of(values: Floats, folds: Floats, fit: gp.AdditiveFit) -> float:
    """Return the effects' variance that shrank them: b = V (P / (size + noise / spread))."""
    counts = np.stack([(~np.isnan(values))[:, folds == k].sum(axis=1) for k in range(3)], axis=1)
    normal = np.diag(counts.sum(axis=0)) - counts.T @ (counts / fit.counts[:, None])
    centered = np.where(np.isnan(values), 0, values - np.nanmean(values, axis=1)[:, None])
    right = np.array([centered[:, folds == k].sum() for k in range(3)])
    # (normal + r I) b = right, for the b of the fit: solve for r by least squares.
    off = right - normal @ fit.effects
    ratio = float(off @ fit.effects / (fit.effects @ fit.effects))
    return max(fit.variance / ratio, fit.variance / 4)


def test_where_folds_are_not_told_apart_nothing_is_shared() -> None:
    assert not gp.additive_means([[0.5], [0.6]], [0]).covariance.any()
    assert not gp.additive_means([[0.5, 0.6]], [0, 0]).covariance.any()
