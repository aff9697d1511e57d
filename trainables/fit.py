"""One trial's training, an epoch at a time, and the evaluation of a model.

Shapes: N samples of a split, B of a batch, T tokens, F features, C classes.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from sftsearch.trainables.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from sftsearch.trainables.metrics import num_absent_classes, score

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from sftsearch.datasets.store import Split, Store
    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.models.fusion import FusionModel

EVALUATION_BATCH = 512
"""Samples at once where no gradient is needed."""

LAST_EPOCHS = 3
"""Epochs whose mean is the value of a trial; one alone is as noisy as its batch order."""

NUM_GROUPS = 100
"""Most groups a split is counted in."""


class TrainingDiverged(RuntimeError):  # noqa: N818  (a fate of a trial, not an error in it)
    """A loss or a logit is no longer finite; the trial failed and cannot go on."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over a split."""

    metrics: dict[str, float]
    """`loss` and the metrics of `metrics.score`."""
    groups: dict[str, list[float]]
    """Subject (or one of a hundred fixed parts) -> [right guesses, samples]."""
    num_absent_classes: int
    """Classes without a sample, which the means over classes leave out."""


class Batches:
    """A split as z-scored batches on a device; the split itself is never copied."""

    def __init__(self, store: Store, split: Split, names: tuple[str, ...], device: str) -> None:
        self.device, self.size = device, len(split)
        self._labels = split.labels
        self._sources = {name: split.modalities[name] for name in names}
        self._scales = {
            name: tuple(torch.tensor(values, device=device) for values in store.statistics[name])
            for name in names
        }

    def __call__(self, rows: npt.NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs {modality: (B, T, F)} and labels (B,) of some rows."""
        inputs = {}
        for name, source in self._sources.items():
            mean_F, std_F = self._scales[name]
            x_BTF = torch.from_numpy(source[rows]).to(self.device)  # indexing has copied them
            inputs[name] = x_BTF.sub_(mean_F).div_(std_F)
        return inputs, torch.from_numpy(self._labels[rows]).to(self.device)

    def in_order(self, batch_size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield the whole split, front to back."""
        for start in range(0, self.size, batch_size):
            yield self(np.arange(start, min(start + batch_size, self.size)))


def evaluate(
    model: FusionModel,
    store: Store,
    split: Split,
    *,
    device: str = "cpu",
    batch_size: int = EVALUATION_BATCH,
) -> Evaluation:
    """Score a model, which must be on `device`, on a split.

    Raises:
        TrainingDiverged: a logit is not finite.
    """
    logits = _predict(model, Batches(store, split, model.modalities, device), batch_size)
    groups = _Groups(store, split)
    correct = groups.count(_is_right(logits, split))
    return Evaluation(
        _metrics(logits, split),
        groups.by_name(correct),
        num_absent_classes("classification", split.labels, logits.shape[1]),
    )


@torch.inference_mode()
def _predict(model: FusionModel, batches: Batches, batch_size: int) -> Tensor:
    """Return logits (N, C) on the CPU."""
    model.eval()
    return torch.cat([model(inputs).cpu() for inputs, _ in batches.in_order(batch_size)])


def _metrics(logits: Tensor, split: Split) -> dict[str, float]:
    loss = F.cross_entropy(logits, torch.tensor(split.labels))
    if not (logits.isfinite().all() and loss.isfinite()):
        raise TrainingDiverged(f"Logits or loss on the {split.name} split are not finite.")
    return {"loss": loss.item(), **score("classification", logits.numpy(), split.labels)}


def _is_right(logits: Tensor, split: Split) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = logits.numpy().argmax(axis=1) == split.labels
    return right


class _Groups:
    """By whom samples are counted: subjects, or parts of the split where none are known."""

    def __init__(self, store: Store, split: Split) -> None:
        names = store.spec.subjects[split.name]
        known = len(names) > 0 and bool((split.subjects >= 0).all())
        codes = split.subjects if known else np.arange(len(split))
        if known and len(names) <= NUM_GROUPS:
            self.names = list(names)
        else:
            codes = codes % NUM_GROUPS
            self.names = [f"{group:02d}" for group in range(NUM_GROUPS)]
        self._codes = codes
        self.sizes = self.count(np.ones(len(split), dtype=bool))

    def count(self, right: npt.NDArray[np.bool_]) -> list[int]:
        """Count right guesses (N,) by group."""
        return [int(n) for n in np.bincount(self._codes[right], minlength=len(self.names))]

    def by_name(self, correct: npt.NDArray[np.float64] | list[int]) -> dict[str, list[float]]:
        """Return {group: [correct, samples]} of the groups that have samples."""
        return {
            name: [float(right), float(size)]
            for name, right, size in zip(self.names, correct, self.sizes, strict=True)
            if size
        }


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_METRICS = ("loss", "top1", "map", "balanced_accuracy")
_NO_METRICS = ("epoch", "train_loss", "learning_rate", "seconds")


class Fit:
    """The training of one model with one seed.

    Everything random of an epoch follows from the seed and the epoch's number. So an equal
    configuration, seed and number of threads gives bit-equal losses, resumed or not.
    """

    def __init__(
        self,
        model: FusionModel,
        store: Store,
        config: TrainConfig,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.model = model.to(device)
        self.config, self.seed, self.device = config, seed, device
        self.history: list[dict[str, float]] = []
        self._correct: list[list[int]] = []  # by epoch and group
        self._best: dict[str, Tensor] = {}  # weights of the best epoch, where that one counts
        if config.value == "best":
            self._best = {name: t.clone() for name, t in self.model.state_dict().items()}
        self._fingerprint = store.spec.fingerprint
        self._validation = store.split("validation")
        self._groups = _Groups(store, self._validation)
        self._train_batches = Batches(store, store.split("train"), model.modalities, device)
        self.validation_batches = Batches(store, self._validation, model.modalities, device)
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        _start_moments(self._optimizer)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer,
            factor=config.plateau_factor,
            patience=config.plateau_patience,
            eps=0.0,  # or it would not lower rates below 1e-8
        )

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def done(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.config.epochs

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, evaluate on the validation split, return what `history` gains.

        Raises:
            TrainingDiverged: a loss was not finite; nothing can be done with the model then.
        """
        start = time.perf_counter()
        learning_rate = self._optimizer.param_groups[0]["lr"]
        train_loss = self._train_epoch()
        logits = _predict(self.model, self.validation_batches, EVALUATION_BATCH)
        metrics = _metrics(logits, self._validation)
        self._plateau.step(metrics["loss"])
        self._correct.append(self._groups.count(_is_right(logits, self._validation)))
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
        """Return the weights that count: of the last epoch, or of the best as `value` says."""
        return self._best or self.model.state_dict()

    def _train_epoch(self) -> float:
        """Return the mean loss of the epoch's samples."""
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self._train_batches.size)
        self.model.train()
        losses, sizes = [], []
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            torch.manual_seed(int(random.integers(2**63)))
            for start in range(0, len(order), self.config.batch_size):
                rows = order[start : start + self.config.batch_size]
                losses.append(self._train_step(*self._train_batches(rows)))
                sizes.append(len(rows))
        # One transfer an epoch: asking for each loss would make a GPU wait after every step.
        values = torch.stack(losses).tolist()
        for step, value in enumerate(values, start=1):
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"The training loss of epoch {self.epoch + 1}, step {step} is {value}."
                )
        return float(np.average(values, weights=sizes))

    def _train_step(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(inputs), labels)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self._optimizer.step()
        return loss.detach()

    def seconds_a_step(self, *, repeats: int = 3) -> float:
        """Return the median seconds of a training step, after one more to warm up.

        It trains on the first batch, so this fit is of no other use afterwards.
        """
        inputs, labels = next(self._train_batches.in_order(self.config.batch_size))
        self.model.train()
        times = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            self._train_step(inputs, labels).item()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))

    def result(self) -> dict[str, float]:
        """Return the metrics that count: of the last three epochs, or of the best by top1."""
        chosen = [self.history[epoch] for epoch in self._epochs_that_count()]
        names = [name for name in chosen[0] if name not in _NO_METRICS]
        return {name: float(np.mean([entry[name] for entry in chosen])) for name in names}

    def groups(self) -> dict[str, list[float]]:
        """Return {subject: [right guesses, samples]}; guesses are means over epochs that count.

        Where no subjects are known, sample i of the split belongs to group i % 100.
        """
        chosen = [self._correct[epoch] for epoch in self._epochs_that_count()]
        return self._groups.by_name(np.mean(chosen, axis=0))

    def _epochs_that_count(self) -> list[int]:
        if not self.history:
            raise RuntimeError("No epoch has been run yet.")
        if self.config.value == "best":
            return [max(range(self.epoch), key=lambda epoch: self.history[epoch]["top1"])]
        return list(range(max(0, self.epoch - LAST_EPOCHS), self.epoch))

    def save(self, path: Path) -> None:
        """Write all that `load` needs into one file, whole or not at all."""
        record = {
            "run": self._identity(),
            "history": self.history,
            "correct": self._correct,
            "best_loss": self._plateau.best if self.history else None,
            "num_bad_epochs": self._plateau.num_bad_epochs,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
        }
        write_checkpoint(path, self._tensors(), record)

    def load(self, path: Path) -> None:
        """Go on from a saved run; on an error this run is as it was.

        Raises:
            CheckpointError: the file is missing, damaged, or of another run.
        """
        own = self._tensors()
        tensors, record = read_checkpoint(path, own)
        self._check_record(path, record)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        self.history, self._correct = record["history"], record["correct"]
        self._plateau.best = record["best_loss"] if self.history else math.inf
        self._plateau.num_bad_epochs = record["num_bad_epochs"]
        self._plateau.last_epoch = self.epoch
        for group in self._optimizer.param_groups:
            group["lr"] = record["learning_rate"]

    def _check_record(self, path: Path, record: dict[str, Any]) -> None:
        """Raise unless a record that was read is one that this run could have written."""
        run, own = record.get("run"), self._identity()
        if not isinstance(run, dict):
            raise CheckpointError(path, "it does not say of which run it is")
        for key, value in own.items():
            if run.get(key) != value:
                why = f"its {key} is {run.get(key)!r:.80}, this run's is {value!r:.80}"
                raise CheckpointError(path, why)
        history, correct = record.get("history"), record.get("correct")
        if not _is_history(history, self.config.epochs, len(self._groups.names), correct):
            raise CheckpointError(path, "its history is damaged")
        numbers: list[Any] = [record.get("num_bad_epochs"), record.get("learning_rate")]
        if history:
            numbers.append(record.get("best_loss"))
        sound = all(_is_number(number) and number >= 0 for number in numbers)
        if not sound or not isinstance(numbers[0], int):
            raise CheckpointError(path, "the state of its learning rate is damaged")

    def _tensors(self) -> dict[str, Tensor]:
        """Return weights and moments, by name, as they are (not copies)."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self._best.items()}
        for name, parameter in self.model.named_parameters():
            moments: Mapping[str, Tensor] = self._optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{key}": moments[key] for key in _MOMENTS}
        return tensors

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree on, beside the shapes of its tensors."""
        identity = {
            "model": type(self.model).__name__,
            "configuration": asdict(self.model.config),
            "training": asdict(self.config),
            "seed": self.seed,
            "data": self._fingerprint,
        }
        as_read: dict[str, Any] = json.loads(json.dumps(identity))  # JSON has no tuples
        return as_read


def _start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the moments AdamW would at its first step, so that all can be saved."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e300 < value < 1e300  # `isfinite` cannot take a whole number of 400 digits


def _is_history(history: object, epochs: int, num_groups: int, correct: object) -> bool:
    """Say whether `history` and `correct` are those of at most `epochs` epochs."""
    if not isinstance(history, list) or not isinstance(correct, list):
        return False
    if not len(history) == len(correct) <= epochs:
        return False
    return all(
        isinstance(entry, dict)
        and {*_METRICS, *_NO_METRICS} <= entry.keys() == history[0].keys()
        and all(map(_is_number, entry.values()))
        and entry["epoch"] == number
        and isinstance(counts, list)
        and len(counts) == num_groups
        and all(map(_is_number, counts))
        for number, (entry, counts) in enumerate(zip(history, correct, strict=True), start=1)
    )


def _cuda_devices(device: str) -> list[int]:
    """Return the GPUs whose random state an epoch changes."""
    found = torch.device(device)
    return [found.index or 0] if found.type == "cuda" else []
