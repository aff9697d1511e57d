"""Dense reference of the hierarchical Gaussian model: covariance, draws and examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from sftsearch.orchestrator.surrogate.gp import Hyperparameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def matern(a: Floats, b: Floats, hyperparameters: Hyperparameters) -> Floats:
    """Return the covariance of f by the general Matern formula with smoothness 5/2."""
    nu = 2.5
    r = np.linalg.norm((a[:, None] - b) / hyperparameters.lengthscales, axis=2)
    s = np.sqrt(2 * nu) * np.where(r > 0, r, 1.0)
    cov = 2 ** (1 - nu) / special.gamma(nu) * s**nu * special.kv(nu, s)
    return hyperparameters.amplitude**2 * np.where(r > 0, cov, 1.0)


def draw(
    generator: np.random.Generator, x: Floats, counts: Floats, truth: Hyperparameters
) -> tuple[Floats, list[Floats]]:
    """Return true means and every configuration's replicates, drawn from the model."""
    cov = matern(x, x, truth) + truth.tau**2 * np.eye(len(x))
    means = generator.multivariate_normal(np.full(len(x), truth.mean), cov, method="cholesky")
    return means, [
        m + truth.sigma * generator.normal(size=int(n)) for m, n in zip(means, counts, strict=True)
    ]


def pool_replicates(replicates: list[Floats]) -> tuple[Floats, float, int]:
    """Return means, pooled variance and degrees of freedom."""
    means = np.array([r.mean() for r in replicates])
    dof = sum(len(r) - 1 for r in replicates)
    squares = sum(float(np.sum((r - r.mean()) ** 2)) for r in replicates)
    return means, squares / dof if dof else 0.0, dof


TRUTH = Hyperparameters(
    lengthscales=np.array([0.4, 1.5]), amplitude=0.05, tau=0.01, sigma=0.02, mean=0.7
)


def example(num: int = 8) -> tuple[Floats, Floats, list[Floats]]:
    generator = np.random.default_rng(num)
    x = generator.random((num, 2))
    x[-1] = x[0]  # two configurations with equal features
    counts = generator.integers(1, 5, num).astype(float)
    return x, counts, draw(generator, x, counts, TRUTH)[1]
