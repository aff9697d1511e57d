"""Evaluate a model on a split: batches, outputs, losses, metrics, correct decisions by subject.

Shapes: N samples of a split, B of a batch, T tokens, F features, C outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from sftsearch.datasets.samples import views
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.distributed import ALONE
from sftsearch.trainables.metrics import num_absent_classes, score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.spec import Task
    from sftsearch.datasets.store import Store
    from sftsearch.trainables.distributed import Workers
    from sftsearch.trainables.mixup import Inputs, Lengths, Mix
    from sftsearch.trainables.models.fusion import FusionModel

    Batch = tuple[Inputs, Lengths, Tensor]

SMALL = 4096
"""Most numbers of a sample at which a whole batch is scaled together, within the cache."""
EVALUATION_BATCH = 512
"""Batch size without gradients."""

NUM_GROUPS = 100
"""Largest number of groups of a split."""
NUM_BLOCKS = 20
"""Blocks of consecutive samples of a split with unknown or fewer than `FEWEST_SUBJECTS` subjects.
"""
FEWEST_SUBJECTS = 3
"""With fewer, samples are grouped by block: one or two subjects say nothing about others."""

COUNTED: dict[Task, str] = {"classification": "top1", "regression": "acc2"}
"""For each task, the metric that is the share of correct decisions; groups count these.

A multi-label task has none: its average precisions and F1s are not sums over samples. The share of
correct labels could be counted, but is not a metric here, and its interval would be mistaken for
theirs.
"""


class TrainingDiverged(RuntimeError):  # noqa: N818  (an outcome of a trial, not a bug)
    """A loss or a logit is no longer finite; the trial has failed."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One pass over a split."""

    metrics: dict[str, float]
    """`loss`, the metrics of `metrics.score`, and those of `model.measure`."""
    groups: dict[str, list[float]]
    """Subject (or block of samples, see `Groups`) -> [correct, samples]; see `COUNTED`."""
    num_absent_classes: int
    """Classes (or labels) without samples, which means over classes leave out."""
    outputs: Tensor = field(compare=False, repr=False)
    """(N, C), in the order of the split."""


class Batches:
    """A split as z-scored batches on a device; the split itself is never copied."""

    def __init__(self, store: Store, split: Split, names: tuple[str, ...], device: str) -> None:
        self.device, self.size = device, len(split)
        self._labels = split.labels
        self._sources = {name: split.modalities[name] for name in names}
        self._lengths = {name: split.lengths[name] for name in names if name in split.lengths}
        # Tiled to a whole sample: one long row is scaled several times faster than rows of F.
        self._scales = {
            name: [np.tile(values_F, split.modalities[name].shape[1]) for values_F in statistics]
            for name, statistics in store.statistics.items()
            if name in names
        }

    def __call__(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Return inputs {modality: (B, T, F)}, lengths {modality: (B,)} and labels of some rows.

        Only modalities of variable length have lengths; after its length an input is zero.
        """
        lengths = {name: source[rows] for name, source in self._lengths.items()}
        inputs = {name: self.on_device(self._scaled(name, rows)) for name in self._sources}
        on_device = {name: self.on_device(length_B) for name, length_B in lengths.items()}
        return inputs, on_device, self.on_device(self._labels[rows])

    def _scaled(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return z-scored samples (B, T, F), padded with zeros."""
        source, (mean, std) = self._sources[name], self._scales[name]
        x_BTF = np.empty((len(rows), *source.shape[1:]), dtype=np.float32)
        flat, found = x_BTF.reshape(len(rows), -1), views(source, rows)
        if flat.shape[1] <= SMALL:
            if name in self._lengths:  # pad with the mean, which becomes zero
                num_tokens, pad = source.shape[1], mean.reshape(source.shape[1:])
                found = [x for view in found for x in (view, pad[: num_tokens - len(view)])]
            np.concatenate(found, out=x_BTF.reshape(-1, source.shape[2]), casting="same_kind")
            flat -= mean
            flat /= std
            return x_BTF
        for one, view in zip(flat, found, strict=True):
            end = view.size
            valid = one[:end]
            np.subtract(view.reshape(-1), mean[:end], out=valid)
            valid /= std[:end]
            one[end:] = 0.0
        return x_BTF

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield the whole split in order."""
        for start in range(0, self.size, batch_size):
            yield self(np.arange(start, min(start + batch_size, self.size)))

    def on_device(self, rows: npt.NDArray[Any]) -> Tensor:
        """Copy values of samples to the device."""
        return torch.from_numpy(rows).to(self.device)


@dataclass(frozen=True, slots=True)
class InOrder:
    """The batches of a split in order; every loop starts from the first."""

    batches: Batches

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.in_order(EVALUATION_BATCH)


class CompileError(ConfigError):
    """`compile` is set, but torch.compile does not work on this machine."""

    def __init__(self, device: str, error: Exception) -> None:
        why = str(error).strip().split("\n", 1)[0].rstrip(".")
        super().__init__(
            f"`compile` needs a C++ compiler, and Triton on GPUs, but got (compile=True, "
            f"device={device}: {why}). Install them, or remove `compile`."
        )


class Network:
    """Run a model in its precision, compiled or not."""

    def __init__(
        self,
        model: FusionModel,
        config: TrainConfig,
        device: str,
        compiled_sizes: Sequence[int] = (),
        replica: nn.Module | None = None,
    ) -> None:
        """Prepare the model; compilation happens on the first call.

        Args:
            model: the model.
            config: its training configuration; `precision` and `compile` are read.
            device: where it runs.
            compiled_sizes: batch sizes B to compile. Leave out the last, smaller batch of an
                epoch: its own graph would cost more than it saves.
            replica: runs the model in training on several workers; see `Workers.replicate`.
        """
        self.model, self._device, self._sizes = model, torch.device(device).type, compiled_sizes
        self._is_half, self._replica = config.precision == "bfloat16", replica
        self._compiled: Callable[..., Tensor] | None = None
        if config.compile and compiled_sizes:
            # Models of one worker share compiled code: graphs of the last model would be reused.
            torch.compiler.reset()
            # Static shapes: whether torch makes a dynamic graph depends on the shapes it has seen,
            # so a resumed run would not be bit-equal to an uninterrupted one.
            self._compiled = torch.compile(model, dynamic=False)

    def __call__(self, inputs: Inputs, lengths: Lengths, mix: Mix | None = None) -> Tensor:
        """Return outputs (B, C) in float32 or float64; `mix` mixes the latents.

        Raises:
            CompileError: torch.compile failed, e.g. without a C++ compiler.
        """
        size = len(next(iter(inputs.values())))
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._is_half):
            if self._compiled is None or size not in self._sizes:
                run = self._replica if self._replica and self.model.training else self.model
                outputs: Tensor = run(inputs, lengths, mix.after_layer if mix else None)
                return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
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
    """Evaluate a model, which must be on `device`, on a split.

    Args:
        model: the model.
        store: of its dataset.
        split: one of the store's.
        config: its training configuration: precision and loss are used; `compile` is ignored.
        device: where it runs.
        batch_size: samples per forward pass.

    Raises:
        TrainingDiverged: an output is not finite.
    """
    config = config or TrainConfig()
    network, batches = (
        Network(model, config, device),
        Batches(store, split, model.modalities, device),
    )
    found = score_outputs(predict(network, batches, batch_size), store, split, config)
    return replace(found, metrics=found.metrics | measures_of(model, batches))


def score_outputs(outputs: Tensor, store: Store, split: Split, config: TrainConfig) -> Evaluation:
    """Score the outputs (N, C) of a split; see `evaluate`."""
    task, groups = store.spec.task, Groups(store, split)
    return Evaluation(
        metrics=metrics_of(task, config, outputs, split, store.spec.classes),
        groups=groups.by_name(groups.count(is_right(task, outputs, split))),
        num_absent_classes=num_absent_classes(task, split.labels, outputs.shape[1]),
        outputs=outputs,
    )


def average_outputs(task: Task, members: Sequence[Tensor]) -> Tensor:
    """Return outputs (N, C) with the mean of the members' probabilities, or of their numbers."""
    stacked = torch.stack(list(members))
    if task == "regression":
        return stacked.mean(dim=0)
    if task == "multilabel":
        return stacked.sigmoid().mean(dim=0).logit(eps=1e-7)
    return stacked.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(stacked))


@torch.inference_mode()
def predict(
    network: Network, batches: Batches, batch_size: int, workers: Workers = ALONE
) -> Tensor:
    """Return outputs (N, C) on the CPU; several workers share the batches."""
    network.model.eval()
    starts = range(0, batches.size, batch_size)
    parts: list[Tensor | None] = []
    for i, start in enumerate(starts):
        own = i % workers.count == workers.rank
        rows = np.arange(start, min(start + batch_size, batches.size))
        parts.append(network(*batches(rows)[:2]).cpu() if own else None)
    return torch.cat(workers.exchange(parts))


@torch.inference_mode()
def measures_of(model: FusionModel, batches: Batches) -> dict[str, float]:
    """Return `model.measure` of a split, in evaluation mode."""
    if not model.measured:
        return {}
    model.eval()
    return model.measure(InOrder(batches))


def losses_of(task: Task, config: TrainConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample, (B,).

    Classification: cross-entropy. Multi-label: mean binary cross-entropy. Regression: absolute or
    squared error.
    """
    if task == "classification":
        return F.cross_entropy(outputs, labels, reduction="none")
    if task == "multilabel":
        entropies = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        return entropies.mean(dim=1)
    errors = outputs[:, 0] - labels
    return errors.abs() if config.regression_loss == "l1" else errors.square()


def metrics_of(
    task: Task,
    config: TrainConfig,
    outputs: Tensor,
    split: Split,
    classes: tuple[str, ...] = (),
) -> dict[str, float]:
    """Return the mean loss and the task's metrics of a split, from its outputs (N, C).

    Raises:
        TrainingDiverged: an output or the loss is not finite.
    """
    loss = losses_of(task, config, outputs, torch.tensor(split.labels)).mean()
    if not (outputs.isfinite().all() and loss.isfinite()):
        raise TrainingDiverged(f"Outputs or loss on the {split.name} split are not finite.")
    return {"loss": loss.item(), **score(task, outputs.numpy(), split.labels, classes)}


def is_right(task: Task, outputs: Tensor, split: Split) -> npt.NDArray[np.bool_]:
    """Return whether each decision is correct, (N,), by the metric in `COUNTED`."""
    right: npt.NDArray[np.bool_] = np.zeros(len(split), dtype=bool)
    if task == "classification":
        right = outputs.numpy().argmax(axis=1) == split.labels
    elif task == "regression":
        right = (outputs[:, 0].numpy() >= 0) == (split.labels >= 0)
    return right


class Groups:
    """Count samples by subject, or by block of consecutive samples if there are fewer than three.

    Consecutive samples may be of one recording, so they belong to the same group. A task that is
    not in `COUNTED` has no groups.
    """

    def __init__(self, store: Store, split: Split) -> None:
        names = store.spec.subjects[split.name]
        known = len(names) > 0 and bool((split.subjects >= 0).all())
        if not known:
            codes = blocks_of(split, np.zeros(len(split), dtype=np.int64), NUM_BLOCKS)
            self.names = [f"{block:02d}" for block in range(NUM_BLOCKS)]
        elif len(names) < FEWEST_SUBJECTS:
            number = NUM_BLOCKS // len(names)
            codes = split.subjects * number + blocks_of(split, split.subjects, number)
            self.names = [f"{name} block {block:02d}" for name in names for block in range(number)]
        elif len(names) <= NUM_GROUPS:
            codes, self.names = split.subjects, list(names)
        else:
            codes = split.subjects % NUM_GROUPS
            self.names = [f"{group:02d}" for group in range(NUM_GROUPS)]
        if store.spec.task not in COUNTED:
            self.names = []
        self._codes = codes
        self.sizes = self.count(np.ones(len(split), dtype=bool))

    def count(self, right: npt.NDArray[np.bool_]) -> list[int]:
        """Count correct decisions (N,) by group."""
        counts = np.bincount(self._codes[right], minlength=len(self.names))
        return [int(n) for n in counts[: len(self.names)]]

    def by_name(self, correct: npt.NDArray[np.float64] | list[int]) -> dict[str, list[float]]:
        """Return {group: [correct, samples]} for the groups with samples."""
        return {
            name: [float(right), float(size)]
            for name, right, size in zip(self.names, correct, self.sizes, strict=True)
            if size
        }


def blocks_of(split: Split, subjects: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """Return the block of each sample, from 0 to `number` - 1, (N,).

    Each subject's samples of a class, in the order of the split, are cut into equal blocks; a block
    then has all classes, also in a split that is sorted by class.

    Args:
        split: the samples.
        subjects: of the samples, (N,).
        number: blocks of a subject.
    """
    is_class = np.issubdtype(split.labels.dtype, np.integer)
    labels = split.labels if is_class else np.zeros(len(split), dtype=np.int64)
    blocks = np.empty(len(split), dtype=np.int64)
    for subject, label in {*zip(subjects.tolist(), labels.tolist(), strict=True)}:
        (rows,) = np.nonzero((subjects == subject) & (labels == label))
        blocks[rows] = np.arange(len(rows)) * number // len(rows)
    return blocks
