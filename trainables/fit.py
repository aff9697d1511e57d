"""One trial's training, an epoch at a time, and the evaluation of a model.

Shapes: N samples of a split, B of a batch, T tokens, F features, C outputs.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from sftsearch.trainables.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.metrics import METRICS, TOP_K, num_absent_classes, score
from sftsearch.trainables.mixup import Mixup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from sftsearch.datasets.spec import DatasetSpec, Task
    from sftsearch.datasets.store import Split, Store
    from sftsearch.trainables.mixup import Inputs, Lengths, Mix
    from sftsearch.trainables.models.fusion import FusionModel

    Batch = tuple[Inputs, Lengths, Tensor]

EVALUATION_BATCH = 512
"""Samples at once where no gradient is needed."""

LAST_EPOCHS = 3
"""Epochs whose mean is the value of a trial; one alone is as noisy as its batch order."""

NUM_GROUPS = 100
"""Most groups a split is counted in."""

COUNTED: dict[Task, str] = {"classification": "top1", "regression": "acc2"}
"""By task, the metric that is a share of right decisions, one a sample: groups count these.

A multi-label task has none. Its average precisions and F1s are functions of a whole split, which
no sums over samples give back; and the share of labels decided right, which could be counted, is
no metric of ours: an interval for it would be read as one for them.
"""

LOWER_IS_BETTER = ("loss", "mae")
"""Metrics whose best epoch is the lowest."""


class TrainingDiverged(RuntimeError):  # noqa: N818  (a fate of a trial, not an error in it)
    """A loss or a logit is no longer finite; the trial failed and cannot go on."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over a split."""

    metrics: dict[str, float]
    """`loss` and the metrics of `metrics.score`."""
    groups: dict[str, list[float]]
    """Subject (or one of a hundred fixed parts) -> [right decisions, samples]; see `COUNTED`."""
    num_absent_classes: int
    """Classes (or labels) without a sample, which the means over them leave out."""


class Batches:
    """A split as z-scored batches on a device; the split itself is never copied."""

    def __init__(self, store: Store, split: Split, names: tuple[str, ...], device: str) -> None:
        self.device, self.size = device, len(split)
        self._labels = split.labels
        self._sources = {name: split.modalities[name] for name in names}
        self._lengths = {name: split.lengths[name] for name in names if name in split.lengths}
        self._scales = {
            name: tuple(torch.tensor(values, device=device) for values in store.statistics[name])
            for name in names
        }

    def __call__(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Return inputs {modality: (B, T, F)}, lengths {modality: (B,)} and labels of some rows.

        Lengths are those of the modalities that vary in it; behind them the inputs are zeros.
        """
        lengths = {name: self._on_device(source[rows]) for name, source in self._lengths.items()}
        inputs = {}
        for name, source in self._sources.items():
            mean_F, std_F = self._scales[name]
            x_BTF = self._on_device(source[rows]).sub_(mean_F).div_(std_F)  # indexing has copied
            if name in lengths:
                places = torch.arange(x_BTF.shape[1], device=self.device)
                x_BTF.masked_fill_((places >= lengths[name][:, None]).unsqueeze(-1), 0.0)
            inputs[name] = x_BTF
        return inputs, lengths, self._on_device(self._labels[rows])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield the whole split, front to back."""
        for start in range(0, self.size, batch_size):
            yield self(np.arange(start, min(start + batch_size, self.size)))

    def _on_device(self, rows: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(rows).to(self.device)


class CompileError(ConfigError):
    """`compile` is asked for where nothing can be compiled."""

    def __init__(self, device: str, error: Exception) -> None:
        why = str(error).strip().split("\n", 1)[0].rstrip(".")
        super().__init__(
            f"`compile` needs a C++ compiler, and Triton on GPUs, but got (compile=True, "
            f"device={device}: {why}). Install them, or leave `compile` out."
        )


class Network:
    """A model as its training runs it: in its precision, compiled or not."""

    def __init__(
        self,
        model: FusionModel,
        config: TrainConfig,
        device: str,
        compiled_sizes: Sequence[int] = (),
    ) -> None:
        """Prepare, but compile nothing yet.

        Args:
            model: the model.
            config: its training's; `precision` and `compile` are used.
            device: where it runs.
            compiled_sizes: B of the batches that are compiled, if any are. The last ones of an
                epoch are best left out: a graph of their own would cost more than it saves.
        """
        self.model, self._device, self._sizes = model, torch.device(device).type, compiled_sizes
        self._is_half = config.precision == "bfloat16"
        self._compiled: Callable[..., Tensor] | None = None
        if config.compile and compiled_sizes:
            # A worker's models share the code that is compiled: the graphs of the last would count.
            torch.compiler.reset()
            # With shapes as they are: a graph for any shape would be made or not, by what was seen
            # before, and a resumed run would not repeat the undisturbed one bit by bit.
            self._compiled = torch.compile(model, dynamic=False)

    def __call__(self, inputs: Inputs, lengths: Lengths, mix: Mix | None = None) -> Tensor:
        """Return outputs (B, C) in float32; `mix` mixes the latents.

        Raises:
            CompileError: there is no compiler.
        """
        size = len(next(iter(inputs.values())))
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._is_half):
            if self._compiled is None or size not in self._sizes:
                outputs: Tensor = self.model(inputs, lengths, mix.after_layer if mix else None)
                return outputs.float()
            after_layer = mix.after_every_layer if mix and mix.layer is not None else None
            try:
                return self._compiled(inputs, lengths, after_layer).float()
            except torch._dynamo.exc.BackendCompilerFailed as error:
                raise CompileError(self._device, error) from error


def evaluate(
    model: FusionModel,
    store: Store,
    split: Split,
    config: TrainConfig | None = None,
    *,
    device: str = "cpu",
    batch_size: int = EVALUATION_BATCH,
) -> Evaluation:
    """Score a model, which must be on `device`, on a split.

    Args:
        model: the model.
        store: of its data set.
        split: one of the store's.
        config: how it was trained: its precision and its loss are used; never compiled.
        device: where it runs.
        batch_size: samples at once.

    Raises:
        TrainingDiverged: an output is not finite.
    """
    config = config or TrainConfig()
    network = Network(model, config, device)
    outputs = _predict(network, Batches(store, split, model.modalities, device), batch_size)
    groups = _Groups(store, split)
    correct = groups.count(_is_right(store.spec.task, outputs, split))
    return Evaluation(
        _metrics(store.spec.task, config, outputs, split),
        groups.by_name(correct),
        num_absent_classes(store.spec.task, split.labels, outputs.shape[1]),
    )


@torch.inference_mode()
def _predict(network: Network, batches: Batches, batch_size: int) -> Tensor:
    """Return outputs (N, C) on the CPU."""
    network.model.eval()
    return torch.cat(
        [network(inputs, lengths).cpu() for inputs, lengths, _ in batches.in_order(batch_size)]
    )


def _losses(task: Task, config: TrainConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample, (B,).

    Cross-entropy; the mean binary cross-entropy of the labels; absolute or squared error.
    """
    if task == "classification":
        return F.cross_entropy(outputs, labels, reduction="none")
    if task == "multilabel":
        entropies = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        return entropies.mean(dim=1)
    errors = outputs[:, 0] - labels
    return errors.abs() if config.regression_loss == "l1" else errors.square()


def _metrics(task: Task, config: TrainConfig, outputs: Tensor, split: Split) -> dict[str, float]:
    loss = _losses(task, config, outputs, torch.tensor(split.labels)).mean()
    if not (outputs.isfinite().all() and loss.isfinite()):
        raise TrainingDiverged(f"Outputs or loss on the {split.name} split are not finite.")
    return {"loss": loss.item(), **score(task, outputs.numpy(), split.labels)}


def _is_right(task: Task, outputs: Tensor, split: Split) -> npt.NDArray[np.bool_]:
    """Return whether each sample was decided right, (N,), as `COUNTED` says."""
    right: npt.NDArray[np.bool_] = np.zeros(len(split), dtype=bool)
    if task == "classification":
        right = outputs.numpy().argmax(axis=1) == split.labels
    elif task == "regression":
        right = (outputs[:, 0].numpy() >= 0) == (split.labels >= 0)
    return right


class _Groups:
    """By whom samples are counted: subjects, or parts of the split where none are known.

    There are none where the task has nothing to count.
    """

    def __init__(self, store: Store, split: Split) -> None:
        names = store.spec.subjects[split.name]
        known = len(names) > 0 and bool((split.subjects >= 0).all())
        codes = split.subjects if known else np.arange(len(split))
        if known and len(names) <= NUM_GROUPS:
            self.names = list(names)
        else:
            codes = codes % NUM_GROUPS
            self.names = [f"{group:02d}" for group in range(NUM_GROUPS)]
        if store.spec.task not in COUNTED:
            self.names = []
        self._codes = codes
        self.sizes = self.count(np.ones(len(split), dtype=bool))

    def count(self, right: npt.NDArray[np.bool_]) -> list[int]:
        """Count right decisions (N,) by group."""
        counts = np.bincount(self._codes[right], minlength=len(self.names))
        return [int(n) for n in counts[: len(self.names)]]

    def by_name(self, correct: npt.NDArray[np.float64] | list[int]) -> dict[str, list[float]]:
        """Return {group: [correct, samples]} of the groups that have samples."""
        return {
            name: [float(right), float(size)]
            for name, right, size in zip(self.names, correct, self.sizes, strict=True)
            if size
        }


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
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
        self._task, self._fingerprint = store.spec.task, store.spec.fingerprint
        self._metric_names = _metric_names(store.spec)
        self._validation = store.split("validation")
        self._groups = _Groups(store, self._validation)
        self._train_batches = Batches(store, store.split("train"), model.modalities, device)
        self.validation_batches = Batches(store, self._validation, model.modalities, device)
        train, validation = self._train_batches.size, self.validation_batches.size
        sizes = (min(config.batch_size, train), min(EVALUATION_BATCH, validation))
        self.network = Network(self.model, config, device, sizes)
        inputs, lengths, _ = self._train_batches(np.arange(1))
        self._mixup = Mixup(config, self.model, inputs, lengths)
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
        outputs = _predict(self.network, self.validation_batches, EVALUATION_BATCH)
        metrics = _metrics(self._task, self.config, outputs, self._validation)
        self._plateau.step(metrics["loss"])
        right = _is_right(self._task, outputs, self._validation)
        self._correct.append(self._groups.count(right))
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
        mixes = self.config.mixup != "none" and self.epoch >= self.config.mixup_warmup
        self.model.train()
        losses, sizes = [], []
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            torch.manual_seed(int(random.integers(2**63)))
            for start in range(0, len(order), self.config.batch_size):
                rows = order[start : start + self.config.batch_size]
                mix = self._mixup.draw(len(rows), random) if mixes else None
                losses.append(self._train_step(self._train_batches(rows), mix))
                sizes.append(len(rows))
        # One transfer an epoch: asking for each loss would make a GPU wait after every step.
        values = torch.stack(losses).tolist()
        for step, value in enumerate(values, start=1):
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"The training loss of epoch {self.epoch + 1}, step {step} is {value}."
                )
        return float(np.average(values, weights=sizes))

    def _train_step(self, batch: Batch, mix: Mix | None) -> Tensor:
        """Return the loss of the batch before the step."""
        inputs, lengths, labels = batch
        losses = partial(_losses, self._task, self.config)
        if mix is None:
            loss = losses(self.network(inputs, lengths), labels).mean()
        else:
            loss = mix.loss(losses, self.network(*mix.inputs(inputs, lengths), mix), labels)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self._optimizer.step()
        return loss.detach()

    def seconds_a_step(self, *, repeats: int = 3) -> float:
        """Return the median seconds of a training step, after one more to warm up.

        It trains on the first batch, mixed if batches are, so this fit is of no other use
        afterwards.
        """
        batch = next(self._train_batches.in_order(self.config.batch_size))
        random, mixes = np.random.default_rng(self.seed), self.config.mixup != "none"
        self.model.train()
        times = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            mix = self._mixup.draw(len(batch[2]), random) if mixes else None
            self._train_step(batch, mix).item()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))

    def result(self) -> dict[str, float]:
        """Return the metrics that count: of the last three epochs, or of the best one."""
        chosen = [self.history[epoch] for epoch in self._epochs_that_count()]
        names = [name for name in chosen[0] if name not in _NO_METRICS]
        return {name: float(np.mean([entry[name] for entry in chosen])) for name in names}

    def groups(self) -> dict[str, list[float]]:
        """Return {subject: [right decisions, samples]}, means over the epochs that count.

        Where no subjects are known, sample i of the split belongs to group i % 100. What counts as
        a decision says `COUNTED`.
        """
        chosen = [self._correct[epoch] for epoch in self._epochs_that_count()]
        return self._groups.by_name(np.mean(chosen, axis=0))

    def _epochs_that_count(self) -> list[int]:
        if not self.history:
            raise RuntimeError("No epoch has been run yet.")
        if self.config.value == "best":
            name = METRICS[self._task][0]
            sign = -1 if name in LOWER_IS_BETTER else 1
            return [max(range(self.epoch), key=lambda epoch: sign * self.history[epoch][name])]
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
        names = {*self._metric_names, *_NO_METRICS}
        if not _is_history(history, names, self.config.epochs, len(self._groups.names), correct):
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


def _metric_names(spec: DatasetSpec) -> set[str]:
    """Return the names that an evaluation gives on this data set."""
    names = {"loss", *METRICS[spec.task]}
    return names if spec.num_outputs > TOP_K else names - {"top5"}


def _is_history(
    history: object, names: set[str], epochs: int, num_groups: int, correct: object
) -> bool:
    """Say whether `history` and `correct` are those of at most `epochs` epochs."""
    if not isinstance(history, list) or not isinstance(correct, list):
        return False
    if not len(history) == len(correct) <= epochs:
        return False
    return all(
        isinstance(entry, dict)
        and entry.keys() == names
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
