"""The training loss: the task's loss with label smoothing and class weights.

Validation and test losses stay plain, so that they can be compared between configurations.

Shapes: N samples of a split, B of a batch, C outputs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.evaluation import losses_of
from sftsearch.trainables.plugin_functions import function_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import Tensor

    from sftsearch.datasets.spec import Task
    from sftsearch.trainables.config import TrainConfig


def check_loss(config: TrainConfig, task: Task, *, own_loss: bool = False) -> None:
    """Check that the options of the training loss apply.

    Args:
        config: the training configuration.
        task: of the dataset.
        own_loss: whether the model replaces the task's loss; see `ModelEntry`.

    Raises:
        ConfigError: `label_smoothing` or `class_weights` is set, but the model does not train on
            the cross-entropy of a classification; or two losses replace the task's.
    """
    if config.training_loss != "task" and own_loss:
        raise ConfigError(
            f"`training_loss` is '{config.training_loss}', but this model has a training loss of "
            "its own: remove it.",
            "training_loss",
        )
    own_loss = own_loss or config.training_loss != "task"
    for name, default in (("label_smoothing", 0.0), ("class_weights", "none")):
        value = getattr(config, name)
        if value != default and (own_loss or task != "classification"):
            why = "the training has a loss of its own" if own_loss else f"the task is {task}"
            raise ConfigError(
                f"`{name}` changes the cross-entropy of a classification, but {why}, and got "
                f"{value!r}. Remove it.",
                name,
            )


def training_losses(
    task: Task, config: TrainConfig, labels: npt.NDArray[np.generic], num_outputs: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function from outputs (B, C) and labels to the training loss of each sample, (B,).

    Args:
        task: of the dataset.
        config: the training configuration.
        labels: of the training split, (N,) or (N, C); class weights count them.
        num_outputs: C.

    Raises:
        ConfigError: see `check_loss`.
    """
    check_loss(config, task)
    if config.training_loss != "task":
        return partial(_own_losses, config.training_loss)
    if config.label_smoothing == 0 and config.class_weights == "none":
        return partial(losses_of, task, config)
    weights_C: Tensor | None = None
    if config.class_weights == "balanced":
        weights_C = balanced_weights(labels, num_outputs)

    def losses(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            outputs,
            labels,
            weight=None if weights_C is None else weights_C.to(outputs),
            label_smoothing=config.label_smoothing,
            reduction="none",
        )

    return losses


def _own_losses(name: str, outputs: Tensor, labels: Tensor) -> Tensor:
    losses_B: Tensor = function_of("training_loss", name)(outputs, labels)
    if losses_B.shape != (len(outputs),):
        raise ConfigError(
            f"The loss '{name}' must return one number per sample, (B,), but returned "
            f"{tuple(losses_B.shape)} for {len(outputs)} samples: do not reduce over the batch.",
            "training_loss",
        )
    return losses_B


def balanced_weights(labels: npt.NDArray[np.generic], num_classes: int) -> Tensor:
    """Return n / (classes x samples of the class) for each class, (C,), in float64.

    Only classes with samples are counted, so the mean over the samples is 1. A class without
    samples has weight 0: label smoothing then does not push towards it.

    Source: the rule that scikit-learn calls `balanced`, after King and Zeng 2001, "Logistic
    regression in rare events data".
    """
    counts = np.bincount(labels.astype(np.int64), minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return torch.from_numpy(weights)
