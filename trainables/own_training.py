"""Train by a function of a plug-in, which has a thread of its own and reports after each epoch.

The thread and its caller take turns, so only one of them runs at any time: the function between two
reports, and the evaluation, the checkpoint and the decision to stop while it waits in a report.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import torch

from sftsearch.trainables.checkpoint import OWN
from sftsearch.trainables.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt
    from torch import Tensor, nn

    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.models.fusion import Batch

    BatchOf = Callable[[npt.NDArray[np.int64], np.random.Generator], Batch]
    Train = Callable[["TrainConfig", "TrainingData", "Report"], None]


class TrainingEndedError(BaseException):
    """Ends a training function in its report; not an `Exception`, so that it is not caught."""


class TrainingData:
    """What a training function trains, and on what."""

    model: nn.Module
    """The model to train, on the device and in training mode, from inputs {modality: (B, T, F)} and
    lengths {modality: (B,)} to outputs (B, C). A resume restores its weights of the last report."""
    num_samples: int
    """Of the training split."""

    def __init__(
        self,
        model: nn.Module,
        num_samples: int,
        batch_of: BatchOf,
        losses: Callable[[Tensor, Tensor], Tensor],
        batch_size: int,
        seed: int,
    ) -> None:
        self.model, self.num_samples, self._batch_of = model, num_samples, batch_of
        self._losses, self._batch_size, self._seed = losses, batch_size, seed

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the training samples once: inputs, lengths and labels, all on the device.

        The order and the augmentation depend only on the trial's seed and the epoch, from 0.
        """
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(self.num_samples)
        for start in range(0, len(order), self._batch_size):
            yield self._batch_of(order[start : start + self._batch_size], random)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the configured training loss of each sample, (B,)."""
        return self._losses(outputs, labels)


class Report:
    """What a training function calls at the end of each epoch."""

    epoch: int = 0
    """Epochs that were reported, also before a resume."""

    def __init__(self, hand_over: Callable[[float], None]) -> None:
        self._hand_over = hand_over
        self.state: dict[str, Tensor] = {}
        """The tensors that the last report stored; empty at the start."""

    def __call__(self, train_loss: float, state: Mapping[str, Tensor] | None = None) -> None:
        """End an epoch: evaluate the model, write a checkpoint, and stop if the study decides so.

        Args:
            train_loss: mean over the epoch.
            state: tensors by name to continue from after an interruption, such as moments; the
                weights of the model are stored without them.
        """
        self.state = {name: t.detach().clone() for name, t in (state or {}).items()}
        self.epoch += 1
        self._hand_over(float(train_loss))


class OwnTraining:
    """Runs a training function an epoch at a time."""

    def __init__(self, train: Train, config: TrainConfig, data: TrainingData) -> None:
        self._train, self._config, self._data = train, config, data
        self.report = Report(self._hand_over)
        self._thread: threading.Thread | None = None
        self._its_turn, self._our_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._loss, self._is_ending = 0.0, False
        self._error: BaseException | None = None

    def run_epoch(self) -> float:
        """Let the function train until its next report, and return the loss it reported.

        Raises:
            Exception: of the function, or it returned without a report.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(torch.get_num_threads(),), daemon=True
            )
            self._thread.start()
        else:
            self._its_turn.release()
        self._our_turn.acquire()
        if self._error is not None:
            raise self._error
        return self._loss

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the last report by their names in a checkpoint."""
        return {f"{OWN}{name}": tensor for name, tensor in self.report.state.items()}

    def restore(self, epoch: int, tensors: Mapping[str, Tensor], device: str) -> None:
        """Continue after an epoch, from the tensors of a checkpoint; before the first epoch."""
        self.report.epoch = epoch
        self.report.state = {
            name.removeprefix(OWN): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith(OWN)
        }

    def close(self) -> None:
        """End the function, which waits in its report."""
        self._is_ending = True
        if self._thread is not None and self._thread.is_alive():
            self._its_turn.release()
            self._thread.join(timeout=10)

    def _run(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)  # OpenMP has a setting for each thread
        try:
            self._train(self._config, self._data, self.report)
            self._error = RuntimeError(
                f"The training function '{self._config.trainer}' returned after "
                f"{self.report.epoch} reports, but must report {self._config.epochs} epochs."
            )
        except TrainingEndedError:
            pass
        except BaseException as error:  # raised where the epoch was asked for
            self._error = error
        finally:
            self._our_turn.release()

    def _hand_over(self, loss: float) -> None:
        self._loss = loss
        self._our_turn.release()
        self._its_turn.acquire()
        if self._is_ending:
            raise TrainingEndedError


def check_trainer(config: TrainConfig, *, workers: int = 1) -> None:
    """Check that the options of a training configuration apply to its training function.

    Raises:
        ConfigError: an option is set that only the default training carries out, or the trial has
            several workers.
    """
    if config.trainer == "default":
        return
    for name, default in (("average_weights", None), ("mixup", "none"), ("accumulate", 1)):
        if getattr(config, name) != default:
            raise ConfigError(
                f"`{name}` is carried out by the default training, but `trainer` is "
                f"'{config.trainer}': remove it, and do this in the training function.",
                name,
                "trainer",
            )
    if workers > 1:
        raise ConfigError(
            f"`trainer` needs a single worker, but got (trainer={config.trainer}, "
            f"workers={workers}).",
            "trainer",
        )
