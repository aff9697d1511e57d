"""Train one trial, one epoch at a time.

Shapes: N samples of a split, B of a batch, T tokens, F features, C outputs.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftsearch.trainables.augmentation import Augmentation
from sftsearch.trainables.checkpoint import read_checkpoint, write_checkpoint
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.distributed import ALONE
from sftsearch.trainables.evaluation import (
    EVALUATION_BATCH,
    Batches,
    Groups,
    InOrder,
    Network,
    TrainingDiverged,
    is_right,
    losses_of,
    measures_of,
    metrics_of,
    predict,
)
from sftsearch.trainables.metrics import METRICS, metrics_of_dataset
from sftsearch.trainables.mixup import Mixup
from sftsearch.trainables.models.fusion import solved_training
from sftsearch.trainables.optimization import Optimization
from sftsearch.trainables.training_loss import training_losses
from sftsearch.trainables.training_record import check_record, epochs_that_count

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from sftsearch.datasets.spec import Task
    from sftsearch.datasets.store import Store
    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.distributed import Workers
    from sftsearch.trainables.evaluation import Batch
    from sftsearch.trainables.mixup import Mix
    from sftsearch.trainables.models.fusion import FusionModel

_NO_METRICS = ("epoch", "train_loss", "learning_rate", "seconds")


class Fit:
    """Train one model with one seed.

    All random numbers of an epoch depend only on the seed and the epoch's number: the same
    configuration, seed and number of threads give bit-equal losses, also after a resume.
    """

    def __init__(
        self,
        model: FusionModel,
        store: Store,
        config: TrainConfig,
        *,
        seed: int,
        device: str = "cpu",
        workers: Workers = ALONE,
    ) -> None:
        if config.compile and workers.count > 1:
            raise ConfigError(
                f"`compile` needs a single worker, but got (compile=True, workers={workers.count})",
                "compile",
            )
        self.model = model.to(device)
        config = solved_training(config) if model.is_solved else config
        self.config, self.seed, self.device = config, seed, device
        self.workers = workers
        self.history: list[dict[str, float]] = []
        self.right: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)
        """Whether each validation decision was correct after the last epoch run here, (N,)."""
        self._correct: list[list[int]] = []  # by epoch and group
        self._best: dict[str, Tensor] = {}  # weights of the best epoch, with `score_epoch: best`
        if config.score_epoch == "best":
            self._best = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.task, self._fingerprint = store.spec.task, store.spec.fingerprint
        self._classes = store.spec.classes
        self._metric_names = {"loss", *metrics_of_dataset(store.spec), *model.measured}
        self._validation = store.split("validation")
        self._groups = Groups(store, self._validation)
        self._train_batches = Batches(store, store.split("train"), model.modalities, device)
        self.validation_batches = Batches(store, self._validation, model.modalities, device)
        train, validation = self._train_batches.size, self.validation_batches.size
        num_batches = math.ceil(train / config.batch_size)
        self._optimization = Optimization(self.model, config, num_batches)
        sizes = (min(config.batch_size, train), min(EVALUATION_BATCH, validation))
        self.network = Network(self.model, config, device, sizes, workers.replicate(self.model))
        inputs, lengths, _ = self._train_batches(np.arange(1))
        self._mixup = Mixup(config, self.model, inputs, lengths)
        self._augmentation = Augmentation(config, store, model.config.cuts(store.spec))
        labels = store.split("train").labels
        self._losses = training_losses(self.task, config, labels, store.spec.num_outputs)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or `patience` ended the training."""
        return self._optimization.is_over(self._validation_losses())

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, evaluate on the validation split, and return the entry of `history`.

        Raises:
            TrainingDiverged: a loss is not finite; the model is then unusable.
        """
        start = time.perf_counter()
        self._optimization.begin_epoch(self._validation_losses())
        learning_rate = self._optimization.learning_rate
        train_loss = self._train_epoch()
        self._end_training()
        self._optimization.end_epoch(self.workers)
        outputs = predict(self.network, self.validation_batches, EVALUATION_BATCH, self.workers)
        metrics = metrics_of(self.task, self.config, outputs, self._validation, self._classes)
        metrics |= measures_of(self.model, self.validation_batches)
        # Machines may round differently; all workers must agree when to end.
        metrics = json.loads(self.workers.from_first(json.dumps(metrics)))
        self.right = is_right(self.task, outputs, self._validation)
        self._correct.append(self._groups.count(self.right))
        self.history.append(
            {
                "epoch": float(self.epoch + 1),
                "train_loss": train_loss,
                **metrics,
                "learning_rate": learning_rate,
                "seconds": time.perf_counter() - start,
            }
        )
        if self._best and self._epochs_that_count() == [self.epoch - 1]:
            for name, tensor in self.model.state_dict().items():
                self._best[name].copy_(tensor)
        return self.history[-1]

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the last epoch, or with `score_epoch: best` of the best one."""
        return self._best or self.model.state_dict()

    def _validation_losses(self) -> list[float]:
        return [entry["loss"] for entry in self.history]

    def _train_epoch(self) -> float:
        """Train on every sample once and return the mean loss."""
        batches, workers = self._train_batches, self.workers
        if self.epoch == 0:
            loss = begin_training(self.model, self.task, self.config, batches, workers)
            if loss is not None:
                return loss
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self._train_batches.size)
        mixes = self.config.mixup != "none" and self.epoch >= self.config.mixup_warmup
        self.model.begin_epoch(self.epoch, self.config.epochs)
        self.model.train()
        losses, sizes = [], []
        with torch.random.fork_rng(devices=cuda_devices(self.device)):
            torch.manual_seed(int(random.integers(2**63)) + self.workers.rank)
            if self.workers.rank:
                random = np.random.default_rng([self.seed, self.epoch, self.workers.rank])
            for rows, share, is_last in _batches_of_steps(order, self.config):
                own, weight = self.workers.part(rows), self.workers.weight(len(rows))
                batch = augmented(batches(own), self._augmentation, random)
                mix = self._mixup.draw(len(own), random) if mixes else None
                losses.append(self._backward(batch, mix, weight, share))
                sizes.append(len(rows))
                if is_last:
                    self._optimization.step()
        # One transfer per epoch: reading each loss would make a GPU wait after every step.
        values = self.workers.mean(torch.stack(losses)).tolist()
        check_finite(values, self.epoch + 1)
        return float(np.average(values, weights=sizes))

    def _backward(self, batch: Batch, mix: Mix | None, weight: float, share: float) -> Tensor:
        """Add a batch's gradients, and return its mean loss.

        Args:
            batch: the samples of this worker.
            mix: None: the batch is not mixed.
            weight: for the mean over workers; see `Workers.weight`.
            share: the batch's share of the samples of the optimizer step.
        """
        inputs, lengths, labels = batch
        losses = partial(self.model.losses, self._losses)
        if mix is None:
            loss = losses(self.network(inputs, lengths), labels).mean()
        else:
            loss = mix.loss(losses, self.network(*mix.inputs(inputs, lengths), mix), labels)
        if self.workers.count > 1:
            loss = weight * loss
        (loss if share == 1 else share * loss).backward()
        return loss.detach()

    @torch.no_grad()
    def _end_training(self) -> None:
        """Call the model's `end_epoch` in evaluation mode."""
        self.model.eval()
        self.model.end_epoch(
            self.epoch,
            partial(losses_of, self.task, self.config),
            InOrder(self._train_batches),
            InOrder(self.validation_batches),
        )

    def seconds_a_step(self, *, repeats: int = 3) -> float:
        """Return the median seconds of a training step, after one warm-up step.

        It trains on the first batch, with mixup if configured, so do not use this fit afterwards.
        """
        batch = next(self._train_batches.in_order(self.config.batch_size))
        random, mixes = np.random.default_rng(self.seed), self.config.mixup != "none"
        self._optimization.begin_epoch([])
        self.model.train()
        times = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            changed = augmented(batch, self._augmentation, random)
            mix = self._mixup.draw(len(batch[2]), random) if mixes else None
            self._backward(changed, mix, 1.0, 1.0).item()
            self._optimization.step()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))

    def result(self) -> dict[str, float]:
        """Return the mean metrics of the last three epochs, or those of the best epoch."""
        chosen = [self.history[epoch] for epoch in self._epochs_that_count()]
        names = [name for name in chosen[0] if name not in _NO_METRICS]
        return {name: float(np.mean([entry[name] for entry in chosen])) for name in names}

    def groups(self) -> dict[str, list[float]]:
        """Return {subject: [correct decisions, samples]}, means over the epochs that count.

        If subjects are unknown, sample i of the split belongs to group i % 100. `COUNTED` defines
        the decisions.
        """
        chosen = [self._correct[epoch] for epoch in self._epochs_that_count()]
        return self._groups.by_name(np.mean(chosen, axis=0))

    def _epochs_that_count(self) -> list[int]:
        return epochs_that_count(self.history, self.config.score_epoch, METRICS[self.task][0])

    def save(self, path: Path) -> None:
        """Write everything that `load` needs into one file, atomically."""
        write_checkpoint(path, self._tensors(), self._record())

    def _record(self) -> dict[str, Any]:
        return {
            "run": self._identity(),
            "history": self.history,
            "correct": self._correct,
        }

    def load(self, path: Path) -> None:
        """Continue from a saved run; on an error this run does not change.

        Raises:
            CheckpointError: the file is missing, damaged, or belongs to another run.
        """
        own = self._tensors()
        tensors, record = read_checkpoint(path, own)
        check_record(
            path,
            record,
            identity=self._identity(),
            metric_names={*self._metric_names, *_NO_METRICS},
            epochs=self.config.epochs,
            num_groups=len(self._groups.names),
        )
        with torch.no_grad():
            for name in own:
                own[name].copy_(tensors[name])
        self._restore(record)

    def follow_first(self) -> None:
        """Copy the state of the first worker, which alone reads checkpoints; all call it."""
        if self.workers.count > 1:
            self._restore(json.loads(self.workers.from_first(json.dumps(self._record()))))
            with torch.no_grad():
                self.workers.copy_from_first(self._tensors().values())

    def _restore(self, record: dict[str, Any]) -> None:
        self.history, self._correct = record["history"], record["correct"]

    def _tensors(self) -> dict[str, Tensor]:
        """Return weights, moments and averages by name, not copied."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self._best.items()}
        return tensors | self._optimization.tensors()

    def _identity(self) -> dict[str, Any]:
        return _identity(self.model, self.config, self.seed, self._fingerprint)


def _identity(
    model: FusionModel, config: TrainConfig, seed: int, fingerprint: str
) -> dict[str, Any]:
    """Return what must be equal in a checkpoint of a run, besides tensor shapes."""
    identity = {
        "model": type(model).__name__,
        "configuration": asdict(model.config),
        "training": asdict(config),
        "seed": seed,
        "data": fingerprint,
    }
    as_read: dict[str, Any] = json.loads(json.dumps(identity))  # JSON has no tuples
    return as_read


def begin_training(
    model: FusionModel, task: Task, config: TrainConfig, batches: Batches, workers: Workers
) -> float | None:
    """Call the model's `begin_training` in evaluation mode.

    Returns:
        of a solved model, its mean loss on the training split.
    """
    model.eval()
    outputs = model.begin_training(task, InOrder(batches))
    workers.copy_from_first(model.state_dict().values())  # machines may round differently
    if outputs is None:
        return None
    labels = torch.cat([labels.cpu() for _, _, labels in InOrder(batches)])
    loss = workers.mean(losses_of(task, config, outputs, labels).mean()).item()
    check_finite([loss], 1)
    return loss


def _batches_of_steps(
    order: npt.NDArray[np.int64], config: TrainConfig
) -> Iterator[tuple[npt.NDArray[np.int64], float, bool]]:
    """Yield the rows of each batch of an epoch, and when to step.

    An optimizer step takes `accumulate` batches, the last one of an epoch those that are left. A
    batch counts by its share of the step's samples, so the gradient is that of their mean loss.

    Yields:
        rows (B,), share of the samples of the step, whether the batch is the last of the step.
    """
    size = config.batch_size
    for first in range(0, len(order), size * config.accumulate):
        of_step = order[first : first + size * config.accumulate]
        for start in range(0, len(of_step), size):
            rows = of_step[start : start + size]
            yield rows, len(rows) / len(of_step), start + size >= len(of_step)


def augmented(batch: Batch, augmentation: Augmentation, random: np.random.Generator) -> Batch:
    """Return a batch with augmented inputs and lengths."""
    inputs, lengths, labels = batch
    return *augmentation(inputs, lengths, random), labels


def check_finite(losses: list[float], epoch: int) -> None:
    """Raise TrainingDiverged if the loss of a step of an epoch is not finite."""
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            raise TrainingDiverged(f"The training loss of epoch {epoch}, step {step} is {loss}.")


def cuda_devices(device: str) -> list[int]:
    """Return the indices of the GPUs whose random state training changes."""
    found = torch.device(device)
    return [found.index or 0] if found.type == "cuda" else []
