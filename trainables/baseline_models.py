"""Fit the models of baselines to statistics that are already computed.

Shapes: N samples, P statistics, C outputs, R = min(N, P).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.optimization import build_optimizer, factor_at
from sftsearch.trainables.solvers import rotate, solve_logistic, solve_ridge
from sftsearch.trainables.training_loss import training_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sftsearch.datasets.spec import Task
    from sftsearch.trainables.solvers import LinearMap, Rotated

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""Values of `l2`, from strong to weak: each solution starts at the one before."""
HIDDEN: dict[str, Any] = {"hidden_dim": 128, "num_layers": 1, "dropout": 0.3}
"""Parameters of the MLP."""
MLP_STEPS, MLP_BATCH = 1500, 32
MLP_TRAINING = TrainConfig(
    epochs=1, batch_size=MLP_BATCH, learning_rate=3e-3, weight_decay=0.05, schedule="cosine"
)
MLP_SMOOTHING = 0.1
"""Label smoothing in classification."""

_TOLERANCE = 1e-4
_READ = 8e-8
"""Seconds to read one number and to compute its part of all statistics, on one CPU core."""
_START = 0.03
"""Seconds of a fit, whatever its size."""
_FACTORIZATION, _GRADIENT, _LAYER = 2e10, 4e9, 5e10
"""Operations per second in the rotation, the gradients of `solve_logistic`, and layers."""
_STEP = 6e-4
"""Seconds of a step of the MLP, whatever its size."""


def constant_outputs(task: Task, labels: Tensor, num_outputs: int) -> Tensor:
    """Return the outputs of a model without inputs, (1, C).

    Classification: logarithms of the class frequencies. Multi-label: logits of the label
    frequencies. Regression: the mean. One sample of each class is added, so that all are finite.
    """
    if task == "regression":
        return labels.double().mean().float().view(1, 1)
    if task == "multilabel":
        shares = (labels.double().sum(dim=0) + 0.5) / (len(labels) + 1)
        return shares.logit().float().unsqueeze(0)
    counts = torch.bincount(labels, minlength=num_outputs).double()
    return ((counts + 1) / (counts + 1).sum()).log().float().unsqueeze(0)


def read_seconds(num_values: int) -> float:
    """Return a rough estimate of the seconds to compute the statistics of a modality."""
    return _READ * num_values


def linear_seconds(x: Tensor, num_outputs: int) -> float:
    """Return a rough estimate of the seconds that `linear_path` takes on x (N, P)."""
    num_samples, num_statistics = x.shape
    rank = min(x.shape)
    rotation = 4.0 * num_samples * num_statistics * rank + 20.0 * rank**3
    steps = 50 * len(PENALTIES)
    gradients = steps * 4.0 * num_samples * rank * num_outputs
    return _START + rotation / _FACTORIZATION + gradients / _GRADIENT


def mlp_seconds(x: Tensor, num_outputs: int) -> float:
    """Return a rough estimate of the seconds that `fit_mlp` takes on x (N, P)."""
    hidden = HIDDEN["hidden_dim"]
    step: float = 6.0 * MLP_BATCH * hidden * (x.shape[1] + num_outputs)
    return _START + MLP_STEPS * (_STEP + step / _LAYER)


def linear_path(
    x: Tensor, labels: Tensor, num_outputs: int, task: Task
) -> Iterator[tuple[float, LinearMap]]:
    """Yield each penalty and its linear model.

    Args:
        x: (N, P), normalized.
        labels: (N,) or (N, C).
        num_outputs: C.
        task: of the dataset.
    """
    rotated, start = rotate(x), None
    for l2 in PENALTIES:
        found, start = _solve(rotated, labels, num_outputs, task, l2, start)
        yield l2, found


def fit_linear(x: Tensor, labels: Tensor, num_outputs: int, task: Task, *, l2: float) -> LinearMap:
    """Fit one linear model in the same way as `linear_path`, so that its weights are equal."""
    return next(
        found for penalty, found in linear_path(x, labels, num_outputs, task) if penalty == l2
    )


def _solve(
    x: Rotated, labels: Tensor, num_outputs: int, task: Task, l2: float, start: Tensor | None
) -> tuple[LinearMap, Tensor | None]:
    if task == "regression":
        return solve_ridge(x, labels[:, None], l2=l2), None
    return solve_logistic(
        x, labels, num_outputs, task=task, l2=l2, start=start, tolerance=_TOLERANCE
    )


def fit_mlp(
    x: Tensor, labels: Tensor, num_outputs: int, task: Task, *, seed: int
) -> Callable[[Tensor], Tensor]:
    """Train an MLP and return it as a function from (M, P) to outputs (M, C).

    1,500 steps of AdamW on batches of 32, with a learning rate that falls as half a cosine. The
    layers are those of the catalog's `mlp`. The labels of a regression are normalized meanwhile.

    Args:
        x: (N, P), normalized.
        labels: (N,) or (N, C).
        num_outputs: C.
        task: of the dataset.
        seed: of weights, batches and dropout; torch's random state changes.
    """
    torch.manual_seed(seed)
    center, scale = torch.zeros(()), torch.ones(())
    if task == "regression":
        center, scale = labels.mean(), labels.std(correction=0).clamp(min=1e-6)
        labels = (labels - center) / scale
    smoothing = MLP_SMOOTHING if task == "classification" else 0.0
    config = dataclasses.replace(MLP_TRAINING, label_smoothing=smoothing, regression_loss="l2")
    losses = training_losses(task, config, labels.numpy(), num_outputs)
    hidden = HIDDEN["hidden_dim"]
    network = nn.Sequential(
        nn.Linear(x.shape[1], hidden),
        nn.ReLU(),
        nn.Dropout(HIDDEN["dropout"]),
        nn.Linear(hidden, num_outputs),
    )
    optimizer = build_optimizer(network, config)
    for step, rows in enumerate(_batches(len(x))):
        rate = config.learning_rate * factor_at(step, MLP_STEPS, 1, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses(network(x[rows]), labels[rows]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()

    @torch.inference_mode()
    def outputs(x_MP: Tensor) -> Tensor:
        found: Tensor = network(x_MP) * scale + center
        return found

    return outputs


def _batches(num_samples: int) -> Iterator[Tensor]:
    """Yield the rows of each step, from permutations of all rows."""
    step = 0
    while step < MLP_STEPS:
        for rows in torch.randperm(num_samples).split(MLP_BATCH):
            if step < MLP_STEPS:
                yield rows
            step += 1
