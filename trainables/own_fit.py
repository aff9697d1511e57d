"""Train a model by the training function of a plug-in; everything else is as in `Fit`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftsearch.trainables.checkpoint import read_checkpoint
from sftsearch.trainables.fit import Fit, augmented, begin_training, check_finite, cuda_devices
from sftsearch.trainables.own_training import OwnTraining, TrainingData, check_trainer
from sftsearch.trainables.plugin_functions import function_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from sftsearch.datasets.store import Store
    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.models.fusion import Batch, FusionModel


def begin_fit(model: FusionModel, store: Store, config: TrainConfig, **options: Any) -> Fit:
    """Return the training that a configuration describes; see `Fit` for the arguments."""
    is_own = config.trainer != "default" and not model.is_solved
    return (OwnFit if is_own else Fit)(model, store, config, **options)


class OwnFit(Fit):
    """Train one model with one seed by a training function."""

    def __init__(
        self, model: FusionModel, store: Store, config: TrainConfig, **options: Any
    ) -> None:
        super().__init__(model, store, config, **options)
        check_trainer(config, workers=self.workers.count)
        losses, train = partial(self.model.losses, self._losses), self._train_batches.size
        data = TrainingData(self.model, train, self._batch, losses, config.batch_size, self.seed)
        self._own = OwnTraining(function_of("trainer", config.trainer), config, data)

    def close(self) -> None:
        """End the training function."""
        self._own.close()

    def load(self, path: Path) -> None:
        """Continue from a saved run; see `Fit.load`."""
        super().load(path)
        tensors, _ = read_checkpoint(path, super()._tensors())
        self._own.restore(self.epoch, tensors, self.device)

    def _train_epoch(self) -> float:
        if self.epoch == 0:
            begin_training(self.model, self.task, self.config, self._train_batches, self.workers)
        self.model.begin_epoch(self.epoch, self.config.epochs)
        self.model.train()
        with torch.random.fork_rng(devices=cuda_devices(self.device)):
            random = np.random.default_rng([self.seed, self.epoch, 1])
            torch.manual_seed(int(random.integers(2**63)))
            loss = self._own.run_epoch()
        check_finite([loss], self.epoch + 1)
        return loss

    def _batch(self, rows: npt.NDArray[np.int64], random: np.random.Generator) -> Batch:
        return augmented(self._train_batches(rows), self._augmentation, random)

    def _tensors(self) -> dict[str, Tensor]:
        return super()._tensors() | self._own.tensors()
