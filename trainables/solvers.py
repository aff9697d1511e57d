"""Solve linear models exactly: logistic regression and ridge regression, in float64.

All features are normalized, and the intercept is not penalized.

Shapes: N samples, P features, C outputs, R = min(N, P).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from sftsearch.datasets.spec import Task

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-3, 3, 10))
"""Ridge penalties to choose from (Dempster et al. 2020, ROCKET, sec. 3.3)."""

_MAX_STEPS = 2000


class LinearMap(NamedTuple):
    """Outputs x W + b, in float64."""

    weight: Tensor
    """(P, C)."""
    bias: Tensor
    """(C,)."""

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs (N, C) in float32 for features (N, P)."""
        return torch.addmm(self.bias, x.double(), self.weight).float()


class Rotated(NamedTuple):
    """Features in the coordinates of their principal axes: x = mean + z V^T.

    A ridge penalty is the same in these coordinates, and there are only R of them.
    """

    z: Tensor
    """(N, R)."""
    factors: tuple[Tensor, ...]
    """Matrices whose product is V, (P, R), with orthonormal columns."""
    mean: Tensor
    """(P,)."""

    def back(self, weight_RC: Tensor, bias_C: Tensor) -> LinearMap:
        """Return a map of rotated features as one of the features."""
        weight_PC = weight_RC
        for factor in reversed(self.factors):
            weight_PC = factor @ weight_PC
        return LinearMap(weight_PC, bias_C - self.mean @ weight_PC)


def rotate(x: Tensor) -> Rotated:
    """Return features (N, P) in the coordinates of their principal axes."""
    x = x.double()
    mean_P = x.mean(dim=0)
    centered = x - mean_P
    if x.shape[0] < x.shape[1]:
        values_R, left_NR = torch.linalg.eigh(centered @ centered.T)
        kept = values_R > 1e-12 * values_R[-1].clamp(min=1e-300)
        scale_R = values_R[kept].sqrt()
        z_NR = left_NR[:, kept] * scale_R
        return Rotated(z_NR, (centered.T, left_NR[:, kept] / scale_R), mean_P)
    _, axes_PP = torch.linalg.eigh(centered.T @ centered)
    return Rotated(centered @ axes_PP, (axes_PP,), mean_P)


def solve_logistic(
    x: Rotated,
    labels: Tensor,
    num_outputs: int,
    *,
    task: Task,
    l2: float,
    start: Tensor | None = None,
    tolerance: float = 1e-7,
) -> tuple[LinearMap, Tensor]:
    """Minimize mean cross-entropy + l2 / 2 |W|^2 by L-BFGS.

    Multi-label: the sum over labels of the mean binary cross-entropies, which are independent
    problems.

    Args:
        x: the features.
        labels: classes (N,), or 0 and 1 (N, C).
        num_outputs: C.
        task: classification or multilabel.
        l2: the penalty.
        start: (C, R + 1), from another penalty; None: zeros.
        tolerance: largest entry of the gradient at the end.

    Returns:
        the map, and the solution in rotated coordinates, (C, R + 1), a start for other penalties.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # takes long to import

    num, width = x.z.shape
    targets_CN = labels.T if task == "multilabel" else F.one_hot(labels, num_outputs).T
    # A feature of ones gives the intercept.
    z_NR = torch.cat([x.z, torch.ones(num, 1, dtype=torch.float64)], dim=1)
    wanted_CR = targets_CN.double() @ z_NR / num
    z_RN, penalty_R = z_NR.T.contiguous(), torch.full((width + 1,), l2, dtype=torch.float64)
    penalty_R[-1] = 0.0
    # In these units the problem is well conditioned: the rotated features are orthogonal, so the
    # Hessian is nearly diagonal, and p (1 - p) is about its value for equal probabilities.
    spread = 0.25 if task == "multilabel" else (num_outputs - 1) / num_outputs**2
    unit_R = (spread * z_NR.square().mean(dim=0) + penalty_R).rsqrt()
    slopes = _binary_slopes if task == "multilabel" else _class_slopes

    def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weight_CR = torch.from_numpy(flat).view(num_outputs, -1) * unit_R
        losses, p_CN = slopes(weight_CR @ z_RN)
        shrink_CR = penalty_R * weight_CR
        value = losses / num + (weight_CR * (shrink_CR / 2 - wanted_CR)).sum().item()
        gradient_CR = (p_CN @ z_NR / num - wanted_CR + shrink_CR) * unit_R
        return value, gradient_CR.numpy().ravel()

    first = np.zeros(num_outputs * (width + 1))
    if start is not None:
        first = (start / unit_R).numpy().ravel()
    options = {"maxiter": _MAX_STEPS, "maxfun": 2 * _MAX_STEPS, "gtol": tolerance, "ftol": 0.0}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    solution = torch.from_numpy(found.x).view(num_outputs, -1) * unit_R
    return x.back(solution[:, :-1].T, solution[:, -1]), solution


def _class_slopes(logits_CN: Tensor) -> tuple[float, Tensor]:
    """Return the sum of the logarithms of the softmax's denominators, and its gradient (C, N)."""
    top_N = logits_CN.amax(dim=0)
    e_CN = (logits_CN - top_N).exp()
    total_N = e_CN.sum(dim=0)
    return (total_N.log() + top_N).sum().item(), e_CN / total_N


def _binary_slopes(logits_CN: Tensor) -> tuple[float, Tensor]:
    """Return the sum of log(1 + exp(x)), and its gradient (C, N)."""
    return F.softplus(logits_CN, threshold=1e9).sum().item(), logits_CN.sigmoid()


def solve_ridge(x: Rotated, targets: Tensor, *, l2: float) -> LinearMap:
    """Minimize mean |x W + b - y|^2 / 2 + l2 / 2 |W|^2; targets y are (N, C)."""
    targets = targets.double()
    mean_C = targets.mean(dim=0)
    square_R = x.z.square().sum(dim=0)  # the rotated features are orthogonal
    weight_RC = (x.z.T @ (targets - mean_C)) / (square_R + l2 * len(x.z)).clamp(min=1e-300)[:, None]
    return x.back(weight_RC, mean_C)


def choose_ridge(
    x: Rotated, targets: Tensor, penalties: Sequence[float] = PENALTIES
) -> tuple[float, Tensor]:
    """Choose the sum-of-squares penalty with the lowest leave-one-out error.

    Minimizes sum |x W + b - y|^2 + penalty |W|^2 without each sample in turn, in closed form: the
    residual without a sample is its residual divided by 1 - h, with h the diagonal of the matrix
    that maps targets to predictions.

    Args:
        x: the features.
        targets: y, (N, C).
        penalties: to choose from; of equal ones the first.

    Returns:
        the penalty, and the prediction of each sample by the others, (N, C).

    Source: Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical Learning", sec.
    7.10.1.
    """
    targets = targets.double()
    square_R, num = x.z.square().sum(dim=0), len(x.z)
    centered = targets - targets.mean(dim=0)
    projected = x.z.T @ centered
    best: tuple[float, float, Tensor] | None = None
    for penalty in penalties:
        shrunk_R = 1 / (square_R + penalty)
        residual = centered - (x.z * shrunk_R) @ projected
        leverage_N = 1 / num + (x.z.square() * shrunk_R).sum(dim=1)
        residual = residual / (1 - leverage_N).clamp(min=1e-9)[:, None]
        error = residual.square().mean().item()
        if best is None or error < best[0]:
            best = (error, penalty, targets - residual)
    assert best is not None, "no penalty"
    return best[1], best[2]


def calibrate(scores: Tensor, labels: Tensor, task: Task) -> float:
    """Return the factor of scores (N, C) with the lowest cross-entropy as logits.

    Ridge scores of targets -1 and 1 are no logits: without a factor their probabilities are nearly
    uniform.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_factor: float) -> float:
        logits = scores * float(np.exp(log_factor))
        if task == "classification":
            return F.cross_entropy(logits, labels).item()
        return F.binary_cross_entropy_with_logits(logits, labels.double()).item()

    found = minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
