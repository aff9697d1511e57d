"""Test the solvers of linear models against scikit-learn and normal equations.

Shapes: N samples, P features, C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, RidgeCV

from sftsearch.trainables.solvers import (
    LinearMap,
    calibrate,
    choose_ridge,
    rotate,
    solve_logistic,
    solve_ridge,
)

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = [(120, 7), (30, 50)]
"""(N, P): more samples than features, and the reverse."""


def features(num_samples: int, num_features: int) -> Tensor:
    random = torch.Generator().manual_seed(num_samples)
    scales = torch.linspace(0.2, 3.0, num_features, dtype=torch.float64)
    shape = (num_samples, num_features)
    return 1.0 + scales * torch.randn(shape, generator=random, dtype=torch.float64)


def classes(x: Tensor, num: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(2)
    weights = torch.randn(x.shape[1], num, generator=random, dtype=torch.float64)
    noise = torch.randn(len(x), num, generator=random, dtype=torch.float64)
    return ((x - 1) @ weights + 2 * noise).argmax(dim=1)


@pytest.mark.medium
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-3])
def test_class_probabilities_are_those_of_scikit_learn(shape: tuple[int, int], l2: float) -> None:
    """Its penalty is |W|^2 / (2 C N) beside the mean loss."""
    x = features(*shape)
    labels = classes(x)
    found, _ = solve_logistic(rotate(x), labels, 4, task="classification", l2=l2)
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=10_000)
    expected = reference.fit(x.numpy(), labels.numpy()).predict_proba(x.numpy())
    probabilities = found.outputs(x).double().softmax(dim=1)
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_independent_logistic_regressions(shape: tuple[int, int]) -> None:
    x = features(*shape)
    labels = F.one_hot(classes(x), 4).float()
    found, _ = solve_logistic(rotate(x), labels, 4, task="multilabel", l2=0.02)
    for label in range(4):
        reference = LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-9, max_iter=10_000)
        reference.fit(x.numpy(), labels[:, label].numpy())
        expected = reference.predict_proba(x.numpy())[:, 1]
        probabilities = found.outputs(x)[:, label].double().sigmoid().numpy()
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)


def test_start_does_not_change_the_solution() -> None:
    x = features(60, 5)
    labels = classes(x)
    _, start = solve_logistic(rotate(x), labels, 4, task="classification", l2=1.0)
    first, _ = solve_logistic(rotate(x), labels, 4, task="classification", l2=0.01)
    again, _ = solve_logistic(rotate(x), labels, 4, task="classification", l2=0.01, start=start)
    torch.testing.assert_close(first.weight, again.weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_solves_its_normal_equations(shape: tuple[int, int]) -> None:
    x, l2 = features(*shape), 0.3
    targets = torch.stack([x.sum(dim=1), x[:, 0].square()], dim=1)
    found = solve_ridge(rotate(x), targets, l2=l2)
    residual = x @ found.weight + found.bias - targets
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(residual.mean(dim=0), zero, rtol=0, atol=1e-9)
    slope = x.T @ residual / len(x) + l2 * found.weight
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


def without(x: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Return the prediction of each sample by a ridge regression on the others, (N, C)."""
    rows = torch.arange(len(x))
    found = []
    for row in rows.tolist():
        kept = rows != row
        fitted = solve_ridge(rotate(x[kept]), targets[kept], l2=penalty / (len(x) - 1))
        found.append(x[row] @ fitted.weight + fitted.bias)
    return torch.stack(found)


@pytest.mark.parametrize("shape", [(25, 4), (12, 20)])
def test_ridge_penalty_has_the_lowest_error_without_each_sample(shape: tuple[int, int]) -> None:
    x = features(*shape)
    random = torch.Generator().manual_seed(3)
    noise = torch.randn(len(x), 1, generator=random, dtype=torch.float64)
    targets = torch.cat([x[:, :1] + noise, -x[:, :1] + 2 * x[:, 1:2]], dim=1)
    penalties = (0.01, 1.0, 10.0, 1000.0)
    chosen, left_out = choose_ridge(rotate(x), targets, penalties)
    by_hand = [without(x, targets, penalty) for penalty in penalties]
    errors = [(one - targets).square().mean().item() for one in by_hand]
    assert chosen == penalties[int(np.argmin(errors))]
    torch.testing.assert_close(left_out, by_hand[int(np.argmin(errors))], rtol=1e-8, atol=1e-8)


def test_ridge_penalty_is_that_of_scikit_learn() -> None:
    x = features(40, 6)
    targets = (x[:, :1] - x[:, 1:2]).sign()
    penalties = tuple(np.logspace(-3, 3, 10).tolist())
    chosen, _ = choose_ridge(rotate(x), targets, penalties)
    assert chosen == pytest.approx(RidgeCV(penalties).fit(x.numpy(), targets.numpy()).alpha_)


def test_calibrated_scores_have_the_lowest_cross_entropy() -> None:
    """Logits of half the size need the factor two, up to the noise of drawn labels."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=random)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=random)[:, 0]
    assert calibrate(logits / 2, labels, "classification") == pytest.approx(2.0, rel=0.05)
    tags = torch.bernoulli(logits.sigmoid(), generator=random)
    assert calibrate(4 * logits, tags, "multilabel") == pytest.approx(0.25, rel=0.05)


def test_a_map_adds_its_bias() -> None:
    found = LinearMap(torch.tensor([[2.0], [3.0]]).double(), torch.tensor([0.5]).double())
    assert found.outputs(torch.tensor([[1.0, 10.0]])).tolist() == [[32.5]]
