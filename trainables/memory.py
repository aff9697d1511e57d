"""Count the memory of a model without running it: bytes of live tensors, from shapes alone.

A training step and a forward pass run on fake tensors, which have shapes but no numbers. A storage
counts from the operation that creates it until its last reference is gone, and once, however many
tensors are views of it. Memory that an operation takes and returns while it runs is not counted.

Attention has two forms. `fused` holds its outputs and a logarithm of a sum for each query, as the
kernels do that run here; `math` also holds its weights, as an implementation without such a kernel
must. Each is set, not found, so a count is equal on every machine and in every process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sftsearch.trainables.augmentation_config import STRENGTHS
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.cost import Route
from sftsearch.trainables.evaluation import Network
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.mixup import Mix
from sftsearch.trainables.optimization import Optimization
from sftsearch.trainables.training_loss import training_losses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import ModelConfig, TrainConfig
    from sftsearch.trainables.models.fusion import Batch, FusionModel

MEGABYTE = 2**20
"""Bytes."""

Attention = Literal["fused", "math"]

_KERNELS = {
    # Where the fused kernel does not exist, `math` takes its place.
    "fused": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "math": [SDPBackend.MATH],
}
_WITHOUT_SHAPE = {
    # of models
    "resource_weight",
    "tau_start",
    "tau_end",
    "alone",
    "joint_learning_rate",
    "super_epoch",
    "equal_share",
    "l2",
    # of the training
    "epochs",
    "learning_rate",
    "weight_decay",
    "clip_norm",
    "schedule",
    "warmup_epochs",
    "plateau_patience",
    "plateau_factor",
    "step_epochs",
    "patience",
    "mixup_alpha",
    "mixup_warmup",
    "compile",
    "trainer",
    # augmentations change the batch before it is counted
    *set(STRENGTHS) - {"modality_dropout"},
    "rotate",
    "spectrograms",
}
"""Fields that change no tensor's shape; a field that is not listed is counted for each value."""
_ONLY_WHETHER = ("dropout", "momentum", "label_smoothing", "modality_dropout")
"""Fields of which only zero or not matters."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a configuration, in MB of 2^20 bytes."""

    train_memory_mb: float
    """Peak of a training step: weights, gradients, the optimizer's moments, batch, activations."""
    inference_memory_mb: float
    """Peak of a forward pass of one sample in evaluation, with weights."""
    weights_mb: float
    """Parameters and buffers."""

    def as_dict(self) -> dict[str, float]:
        """Return the metrics by name."""
        return dataclasses.asdict(self)


_counted: dict[str, Memory] = {}


def count_memory(
    name: str,
    spec: DatasetSpec,
    config: ModelConfig,
    training: TrainConfig,
    *,
    workers: int = 1,
    attention: Attention = "fused",
) -> Memory:
    """Count the memory of a configuration; counts are kept by shapes.

    Of several workers, this is the memory of the first, which has the largest part of a batch.

    Args:
        name: a name of the model catalog.
        spec: of the dataset.
        config: the model's configuration.
        training: batch size, mixup, precision and loss are read; `compile` is not counted.
        workers: number of workers that share a batch.
        attention: see the module.

    Raises:
        ConfigError: the configuration does not fit the dataset.
    """
    key = _key(name, spec, config, training, workers, attention)
    if key not in _counted:
        _counted[key] = _count(name, spec, config, training, workers, attention)
    return _counted[key]


def _key(
    name: str,
    spec: DatasetSpec,
    config: ModelConfig,
    training: TrainConfig,
    workers: int,
    attention: Attention,
) -> str:
    """Return everything that determines the shapes of all tensors, as text."""
    fields = dataclasses.asdict(config) | dataclasses.asdict(training)
    shaped = {field: value for field, value in fields.items() if field not in _WITHOUT_SHAPE}
    shaped |= {field: shaped[field] != 0 for field in _ONLY_WHETHER if field in shaped}
    shaped["average_weights"] = training.average_weights is not None
    shaped["accumulate"] = training.accumulate > 1
    return json.dumps(
        [
            [name, MODELS[name].source_hash],
            shaped,
            [dataclasses.asdict(modality) for modality in spec.modalities.values()],
            [list(spec.modalities), spec.task, spec.num_outputs, spec.num_samples["train"]],
            [workers, attention],
        ],
        sort_keys=True,
        default=dict,
    )


def _count(
    name: str,
    spec: DatasetSpec,
    config: ModelConfig,
    training: TrainConfig,
    workers: int,
    attention: Attention,
) -> Memory:
    from torch._subclasses.fake_tensor import FakeTensorMode

    size = math.ceil(min(training.batch_size, spec.num_samples["train"]) / workers)
    with FakeTensorMode(allow_non_fake_inputs=True), _steady(), sdpa_kernel(_KERNELS[attention]):
        model = build_model(name, spec, config, seed=0)
        with torch.no_grad():
            model.begin_epoch(training.epochs - 1, training.epochs)  # of gated models: stage II
        weights = _bytes_of(_tensors(model))
        inference = _inference_bytes(model, _batch(spec, model.modalities, 1), training)
        batch = _batch(spec, model.modalities, size, may_drop=training.modality_dropout > 0)
        train = _training_bytes(model, batch, spec, training, workers)
    return Memory(train / MEGABYTE, inference / MEGABYTE, weights / MEGABYTE)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages, their `peak` included.

    It sees the storages given to `add` and those that operations create while it is active.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._storages:
                self._follow(storage, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _follow(self, storage: torch.UntypedStorage, key: int, size: int) -> None:
        def forget(_: object) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.now += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it creates."""
        results = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mkldnn_rnn_layer.default:
            results = _with_workspace(args, results)
        self.add(one for one in tree_leaves(results) if isinstance(one, Tensor))
        return results


def _with_workspace(args: Sequence[Any], results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Replace the workspace of an LSTM layer, which is empty for fake tensors, by one of its size.

    In training oneDNN keeps, for each step and sample, two arrays of gates (4 D numbers each), the
    states of the cell (D) and two times three arrays of inputs and states (the larger of F and D);
    widths are rounded up to 16 numbers. Measured on an AVX2 and AVX-512 CPU: these are its sizes to
    6 %.
    """
    x, weight, is_training = args[0], args[2], args[15]
    outputs, *states, workspace = results
    if not is_training:
        return tuple(results)
    width, features = weight.shape[1], x.shape[2]
    numbers = 8 * width + _rounded(width) + 6 * _rounded(max(width, features))
    return outputs, *states, workspace.new_empty(4 * numbers * x.shape[0] * x.shape[1])


def _rounded(width: int) -> int:
    return -(-width // 16) * 16


@contextlib.contextmanager
def _steady() -> Iterator[None]:
    """Keep the garbage collector and this machine's libraries out of the count."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if was_enabled:
            gc.enable()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _batch(spec: DatasetSpec, names: Sequence[str], size: int, *, may_drop: bool = False) -> Batch:
    """Return a batch of fake tensors; modalities without padding have no lengths.

    `may_drop`: all have, of which 0 drops a modality in training.
    """
    shapes = {name: spec.modalities[name] for name in names}
    inputs = {m: torch.empty(size, one.num_tokens, one.num_features) for m, one in shapes.items()}
    lengths = {
        m: torch.empty(size, dtype=torch.int64)
        for m, one in shapes.items()
        if one.variable_length or (may_drop and len(names) > 1)
    }
    if spec.task == "classification":
        return inputs, lengths, torch.empty(size, dtype=torch.int64)
    shape = (size, spec.num_outputs) if spec.task == "multilabel" else (size,)
    return inputs, lengths, torch.empty(shape)


def _inference_bytes(model: FusionModel, batch: Batch, training: TrainConfig) -> int:
    """Return the peak of a forward pass; for gated models, of the route with the highest peak."""
    inputs, lengths, _ = batch
    model.eval()
    peaks = []
    for number in range(model.num_routes):
        one = Route(model, number)
        live = LiveBytes()
        live.add([*_tensors(model), *inputs.values(), *lengths.values()])
        with live, torch.no_grad(), _autocast(training):
            one(inputs, lengths)
        peaks.append(live.peak)
    return max(peaks)


def _autocast(training: TrainConfig) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.precision == "bfloat16")


def _training_state(model: FusionModel, training: TrainConfig, workers: int) -> list[Tensor]:
    """Return all that a training holds between two batches."""
    parameters = list(model.parameters())
    plain = dataclasses.replace(training, average_weights=None)
    held = [*_tensors(model), *Optimization(model, plain, 1).tensors().values()]
    if training.average_weights is not None:  # copied here: `deepcopy` reads addresses, fakes lack
        held += [torch.empty_like(t) for t in _tensors(model)]
        held.append(torch.empty((), dtype=torch.int64))
    if training.accumulate > 1:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        held += [p.grad for p in parameters if p.grad is not None]
    if workers > 1:  # DistributedDataParallel's copies of the gradients, for their exchange
        held += [torch.empty_like(p) for p in parameters]
    if training.score_epoch == "best":
        held += [torch.empty_like(t) for t in model.state_dict().values()]
    return held


def _training_bytes(
    model: FusionModel, batch: Batch, spec: DatasetSpec, training: TrainConfig, workers: int
) -> int:
    """Return the peak of a step, as in `Fit`; with `accumulate`, of one that adds gradients.

    The update of the weights, and the clipping of gradients before it, work in place.
    """
    inputs, lengths, labels = batch
    live, held = LiveBytes(), _training_state(model, training, workers)
    live.add([*held, *inputs.values(), *lengths.values(), labels])
    model.train()
    network = Network(model, dataclasses.replace(training, compile=False), "cpu")
    classes = np.arange(spec.num_outputs)  # the weights of classes do not matter
    losses = partial(model.losses, training_losses(spec.task, training, classes, spec.num_outputs))
    with live:
        if training.mixup == "none":
            loss = losses(network(inputs, lengths), labels).mean()
        else:
            mix = _mix(model, len(labels), training)
            loss = mix.loss(losses, network(*mix.inputs(inputs, lengths), mix), labels)
        loss.backward()
    return live.peak


def _mix(model: FusionModel, size: int, training: TrainConfig) -> Mix:
    """Return a mix of fake tensors; latents are mixed at the first point, where most are live."""
    layer = model.mixing_points[0] if training.mixup == "manifold" else None
    count = size if training.mixup_weights == "sample" else 1
    return Mix(
        torch.empty(size, dtype=torch.int64),
        {name: torch.empty(count) for name in (*model.modalities, FUSED)},
        torch.empty(count),
        layer,
        torch.empty((), dtype=torch.int64),
    )
