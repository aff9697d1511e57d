"""Update the weights in training: optimizer, learning rate, averaged weights, and when to end.

The moments and the averages are the only state. Everything else depends only on the epoch, the step
and the validation losses so far, so a resumed run needs no state of a schedule.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.distributed import Workers
    from sftsearch.trainables.models.fusion import FusionModel, Stage


class Optimization:
    """Updates the weights of one model.

    Between epochs the model has the weights to evaluate and to save: with `average_weights` the
    averages, and the trained weights wait in the copy.
    """

    def __init__(self, model: FusionModel, config: TrainConfig, num_batches: int) -> None:
        """Build the optimizer.

        Args:
            model: the model, on its device.
            config: the training configuration.
            num_batches: batches of an epoch.
        """
        self._model, self._config = model, config
        self._num_steps = math.ceil(num_batches / config.accumulate)
        """Optimizer steps of an epoch."""
        self._optimizer = build_optimizer(model, config)
        self._averages: AveragedModel | None = None
        if config.average_weights is not None:
            average = averaging(config.average_weights)
            self._averages = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self._stage: Stage = model.stage(0, config.epochs)
        self._step = 0
        """Optimizer steps done in this stage."""
        self._rate = 0.0
        """Learning rate of this epoch before warm-up, cosine and steps."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._rate * factor_at(self._step, self._num_steps, self._stage.length, self._config)

    def begin_epoch(self, losses: Sequence[float]) -> None:
        """Prepare for the next epoch; a new stage starts with zero moments.

        Args:
            losses: the validation loss of each epoch so far.
        """
        epoch = len(losses)
        self._swap()
        self._stage = self._model.stage(epoch, self._config.epochs)
        if epoch == self._stage.first:
            for moments in self._optimizer.state.values():
                for tensor in moments.values():
                    tensor.zero_()
        self._step = (epoch - self._stage.first) * self._num_steps
        self._rate = self._rate_after(losses)

    def step(self) -> None:
        """Clip the gradients, update the weights and their averages, and clear the gradients."""
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        self._set_rate(self.learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        if self._averages is not None:
            self._averages.update_parameters(self._model)

    def end_epoch(self, workers: Workers) -> None:
        """Put the averages, if there are any, into the model."""
        self._swap()
        if self._averages is not None:
            # Batch normalization differs between workers; a checkpoint has the first one's.
            workers.copy_from_first(self._model.state_dict().values())

    def is_over(self, losses: Sequence[float]) -> bool:
        """Return whether training ends after these epochs: the last one, or by `patience`.

        Args:
            losses: the validation loss of each epoch so far.
        """
        patience, num_epochs = self._config.patience, self._config.epochs
        if patience is None or not losses or len(losses) >= num_epochs:
            return len(losses) >= num_epochs
        stage = self._model.stage(len(losses) - 1, num_epochs)
        own = losses[stage.first :]
        return stage.is_judged and len(own) - 1 - own.index(min(own)) >= patience

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments and the trained weights beside the averages by name, not copied."""
        tensors = {
            f"optimizer.{name}.{key}": moment
            for name, parameter in self._model.named_parameters()
            for key, moment in self._optimizer.state[parameter].items()
        }
        if self._averages is not None:
            trained = self._averages.module.state_dict()
            tensors |= {f"trained.{name}": tensor for name, tensor in trained.items()}
            tensors["num_averaged"] = self._averages.n_averaged
        return tensors

    def _rate_after(self, losses: Sequence[float]) -> float:
        """Return the stage's learning rate, reduced on plateaus of the losses of its epochs."""
        rate = self._stage.learning_rate or self._config.learning_rate
        if self._config.schedule != "plateau" or not self._stage.is_judged:
            return rate
        self._set_rate(rate)
        plateau = ReduceLROnPlateau(
            self._optimizer,
            factor=self._config.plateau_factor,
            patience=self._config.plateau_patience,
            eps=0.0,  # the default would stop reductions at 1e-8
        )
        for loss in losses[self._stage.first :]:
            plateau.step(loss)
        reduced: float = self._optimizer.param_groups[0]["lr"]
        return reduced

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights and buffers of the model and of the copy."""
        if self._averages is None:
            return
        pairs = zip(_tensors_of(self._model), _tensors_of(self._averages.module), strict=True)
        for ours, theirs in pairs:
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build the optimizer with zero moments, so that they can be saved before the first step."""
    parameters, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    moments: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    optimizer: Optimizer
    if config.optimizer == "sgd":
        momentum = config.momentum
        moments = ("momentum_buffer",) if momentum else ()
        optimizer = torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, fused=True)
    elif config.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
    else:
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {key: torch.zeros_like(parameter) for key in moments}
            if config.optimizer != "sgd":
                state["step"] = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = state
    return optimizer


def factor_at(step: int, num_steps: int, num_epochs: int, config: TrainConfig) -> float:
    """Return the learning rate of a step relative to the one that warm-up reaches.

    Warm-up has W steps, `warmup_epochs` rounded to whole steps: step t < W has the factor
    (t + 1) / W. `cosine` then falls from 1 to 0: (1 + cos(pi (t - W) / (T - W))) / 2 with T steps
    in all. `step` counts epochs from the first one, warm-up included.

    These are the values of torch's LinearLR, CosineAnnealingLR and StepLR. In closed form they
    depend only on the step and need no state.

    Args:
        step: optimizer steps done in this stage.
        num_steps: optimizer steps of an epoch.
        num_epochs: of the stage.
        config: the training configuration.

    Source: Loshchilov and Hutter 2017, "SGDR", eq. 5 (cosine); Goyal et al. 2017, "Accurate, Large
    Minibatch SGD", sec. 2.2 (gradual warm-up).
    """
    warmup = round(config.warmup_epochs * num_steps)
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if config.schedule == "cosine" and step >= warmup:
        progress = (step - warmup) / (num_epochs * num_steps - warmup)
        factor = (1 + math.cos(math.pi * progress)) / 2
    elif config.schedule == "step":
        factor *= config.plateau_factor ** (step // (config.step_epochs * num_steps))
    return factor


def averaging(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Return the update of averages; tensors of whole numbers or truth values are copied.

    Rounding would change averages of indices and counts, even if all values are equal.
    """
    ema = get_ema_multi_avg_fn(decay)

    def update(averages: Sequence[Tensor], current: Sequence[Tensor], num: Tensor | int) -> None:
        if averages[0].is_floating_point():
            ema(averages, current, num)
        else:
            for average, tensor in zip(averages, current, strict=True):
                average.copy_(tensor)

    return update


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
