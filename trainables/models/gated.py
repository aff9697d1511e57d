"""The base class of gated models, in which a gate chooses a route for each sample.

Training has two stages: in stage I the routes learn without the gate, in stage II with it, on the
loss `L + lambda sum_i g_i C(route i)`. C are multiply-adds relative to the most expensive route, so
that `resource_weight` means the same at any size.

Source: Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102, sec. 3.

Shapes: B batch, C outputs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import (
    ConfigError,
    TransformerConfig,
    check_choice,
    check_integer,
    check_number,
)
from sftsearch.trainables.layers.gating import (
    MLPGate,
    TransformerGate,
    harden,
    mlp_gate_part,
    relax,
    temperature,
    transformer_gate_part,
)
from sftsearch.trainables.models.fusion import FusionModel, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.models.fusion import Batch, Losses

DYNMM_PAPER = "Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102"
MAX_CLASSES = 30
"""Largest number of classes with route shares per class, which are metrics of every epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedConfig(TransformerConfig):
    """Fields of gated models.

    The gate reads the samples of all `modalities`, in patches of `patch`.
    """

    gate: Literal["mlp", "transformer"] = "mlp"
    """Two layers on the mean patch of every modality, or a small transformer on all patches."""
    gate_dim: int = 32
    """Width of the gate."""
    gate_heads: int = 2
    """Attention heads of a `transformer` gate."""
    gate_layers: int = 1
    """Layers of a `transformer` gate."""
    straight_through: bool = True
    """Train stage II on one-hot choices, which evaluation makes too, with the gradient of the
    relaxation (the paper's second method). A one-hot choice trains only the chosen expert. False:
    train on the relaxation itself (the first method); `tau_end` must then be low."""
    noise: bool = True
    """Add Gumbel noise to the gate's scores in training (the paper) or not (its code)."""
    tau_start: float = 1.0
    """Temperature of the relaxation in the first epoch of stage II."""
    tau_end: float = 0.001
    """Final temperature, reached geometrically; a low one makes the relaxation nearly one-hot. The
    paper's is 0.0001; the best run of its code has 0.001."""
    resource_weight: float = 0.1
    """Lambda: weight in the loss of the cost relative to the most expensive route."""
    alone: float = 0.5
    """Share of the epochs in stage I; the gate learns in the rest."""
    soft_inference: bool = False
    """Run all routes in evaluation, too, weighted by the softmax of the scores at `tau_start`
    (DynMM-d of the paper). Training is then soft at that temperature, without a cost of routes:
    `straight_through`, `tau_end` and `resource_weight` are not read."""
    joint_learning_rate: float | None = None
    """Initial learning rate of stage II; None: `learning_rate`."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_choice("gate", self.gate, ("mlp", "transformer"))
        for name in ("gate_dim", "gate_heads", "gate_layers"):
            check_integer(name, getattr(self, name), at_least=1)
        if self.gate == "transformer" and self.gate_dim % self.gate_heads:
            got = f"gate_heads={self.gate_heads}, gate_dim={self.gate_dim}"
            raise ConfigError(
                f"`gate_heads` must divide `gate_dim`, but got ({got}).", "gate_heads", "gate_dim"
            )
        for name in ("straight_through", "noise", "soft_inference"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"`{name}` must be true or false, but got {getattr(self, name)!r}.", name
                )
        check_number("tau_start", self.tau_start, least=0, below=math.inf, open_=True)
        check_number("tau_end", self.tau_end, least=0, below=math.inf, open_=True)
        check_number("resource_weight", self.resource_weight, least=0, below=math.inf)
        check_number("alone", self.alone, least=0, below=1)
        if self.joint_learning_rate is not None:
            rate = self.joint_learning_rate
            check_number("joint_learning_rate", rate, least=0, below=math.inf, open_=True)

    def num_stage_one(self, num_epochs: int) -> int:
        """Return the number of epochs of stage I; stage II has at least one."""
        return min(round(self.alone * num_epochs), num_epochs - 1)

    def gate_config(self) -> TransformerConfig:
        """Return the gate's configuration: modalities, tokens and sizes."""
        return TransformerConfig(
            modalities=self.modalities,
            patch=self.patch,
            segments=self.segments,
            tokenizer=self.tokenizer,
            dim=self.gate_dim,
            num_heads=self.gate_heads if self.gate == "transformer" else 1,
        )

    def build_gate(self, spec: DatasetSpec, num_routes: int) -> nn.Module:
        """Build a gate with `num_routes` routes."""
        config = self.gate_config()
        if self.gate == "mlp":
            return MLPGate(spec, config, hidden=self.gate_dim, num_routes=num_routes)
        return TransformerGate(spec, config, num_layers=self.gate_layers, num_routes=num_routes)

    def gate_part(self, spec: DatasetSpec, num_routes: int) -> cost.Part:
        """Return the cost of the gate."""
        config = self.gate_config()
        if self.gate == "mlp":
            return mlp_gate_part(spec, config, hidden=self.gate_dim, num_routes=num_routes)
        layers = self.gate_layers
        return transformer_gate_part(spec, config, num_layers=layers, num_routes=num_routes)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: fields that are not read are default."""
        same = TransformerConfig.canonical(self, spec)
        if self.soft_inference:
            same = dataclasses.replace(
                same, straight_through=True, tau_end=0.001, resource_weight=0.1
            )
        if self.gate == "mlp":
            return dataclasses.replace(same, gate_heads=2, gate_layers=1)
        return same


class GatedModel(FusionModel):
    """A model with a gate: stages, temperature, loss with the cost of routes, route metrics.

    A subclass defines the layers and `forward`; its training outputs are (B, C + routes) in stage
    II: the task's outputs, then the weights.
    """

    config: GatedConfig
    tau: Tensor
    relative_costs: Tensor

    def __init__(
        self, spec: DatasetSpec, config: GatedConfig, gate: cost.Part, routes: list[cost.Part]
    ) -> None:
        """Build the gate.

        Args:
            spec: the dataset.
            config: the configuration.
            gate: the cost of the gate.
            routes: the cost of each route, without the gate.
        """
        nn.Module.__init__(self)
        self.config, self.modalities = config, config.chosen(spec)
        self.num_outputs, self.num_weights = spec.num_outputs, len(routes)
        self.num_routes = 1 if config.soft_inference else len(routes)
        self.mixing_points = ()
        self.gate = config.build_gate(spec, len(routes))
        if not config.soft_inference:
            self.measured = ("gflops_expected", *(f"route_{i + 1}" for i in range(len(routes))))
        self._classes = _names_of_classes(spec)
        self._route_flops = [gate.flops + route.flops for route in routes]
        self.in_stage_one = config.alone > 0
        """Whether training is in stage I."""
        macs = torch.tensor([float(route.macs) for route in routes])
        self.register_buffer("relative_costs", macs / macs.max(), persistent=False)
        # A tensor: with a Python float a compiled model would recompile for each value.
        self.register_buffer("tau", torch.tensor(config.tau_start), persistent=False)

    def scores(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None) -> Tensor:
        """Return the gate's scores, (B, routes); without autocast, so that routes do not change."""
        device = next(iter(inputs.values())).device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.gate(inputs, lengths)  # type: ignore[no-any-return]
        return self.gate(inputs, lengths)  # type: ignore[no-any-return]

    def route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the outputs of one route, and run the gate; see `FusionModel.route`.

        With `soft_inference` the single route is all of them, weighted.
        """
        if self.config.soft_inference:
            return self.softly(inputs, lengths)
        self.scores(inputs, lengths)
        return self.on_route(number, inputs, lengths)

    def on_route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the outputs (B, C) of all samples by one route, without the gate."""
        raise NotImplementedError

    def softly(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None) -> Tensor:
        """Compute the outputs (B, C) of all routes, weighted by the gate (`soft_inference`)."""
        raise NotImplementedError

    def weights(self, scores: Tensor) -> Tensor:
        """Return the weights of the routes in training, (B, routes)."""
        soft = relax(scores, self.tau, noise=self.config.noise)
        is_hard = self.config.straight_through and not self.config.soft_inference
        return harden(soft) if is_hard else soft

    def soft_weights(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None) -> Tensor:
        """Return the weights of the routes in evaluation with `soft_inference`, (B, routes)."""
        return relax(self.scores(inputs, lengths), self.config.tau_start, noise=False)

    def stage(self, epoch: int, num_epochs: int) -> Stage:
        """Return the stage of an epoch; see `FusionModel.stage`.

        The gate that routes samples in evaluation does not learn in stage I, so its validation
        losses are not judged.
        """
        num_stage_one = self.config.num_stage_one(num_epochs)
        if epoch < num_stage_one:
            return Stage(0, num_stage_one, is_judged=False)
        length, rate = num_epochs - num_stage_one, self.config.joint_learning_rate
        return Stage(num_stage_one, length, rate)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Set stage and temperature; see `FusionModel.begin_epoch`."""
        num_stage_one = self.config.num_stage_one(num_epochs)
        self.in_stage_one = epoch < num_stage_one
        joint = max(epoch - num_stage_one, 0), num_epochs - num_stage_one
        start, end = self.config.tau_start, self.config.tau_end
        end = start if self.config.soft_inference else end
        self.tau.fill_(temperature(*joint, start=start, end=end))

    def joint_losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of stage II, (B,), from outputs (B, C + routes)."""
        task_losses = losses(outputs[:, : self.num_outputs], labels)
        if self.config.soft_inference:
            return task_losses  # the weights do not change what runs
        route_costs = outputs[:, self.num_outputs :] @ self.relative_costs.to(outputs.dtype)
        return task_losses + self.config.resource_weight * route_costs

    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the share of samples on each route, and their mean cost.

        The shares per class are `route_1/NAME`, ...; classes without samples are left out, and all
        classes if there are more than `MAX_CLASSES`. With `soft_inference` there is nothing to
        measure.
        """
        if self.config.soft_inference:
            return {}
        num_rows = max(len(self._classes), 1)
        counts = torch.zeros(num_rows, self.num_weights, dtype=torch.int64)  # by class and route
        for inputs, lengths, labels in batches:
            routes = self.scores(inputs, lengths).argmax(dim=1)
            cells = routes + self.num_weights * labels if self._classes else routes
            counts += cells.bincount(minlength=counts.numel()).cpu().view_as(counts)
        total = counts.sum(dim=0)
        flops = sum(n * cost_ for n, cost_ in zip(total.tolist(), self._route_flops, strict=True))
        expected, shares = flops / int(total.sum()) / cost.GIGA, (total / total.sum()).tolist()
        measures = dict(zip(self.measured, (expected, *shares), strict=True))
        for name, row in zip(self._classes, counts, strict=False):
            if row.sum():
                class_shares = (row / row.sum()).tolist()
                measures |= {f"route_{i}/{name}": x for i, x in enumerate(class_shares, start=1)}
        return measures


def _names_of_classes(spec: DatasetSpec) -> list[str]:
    """Return the class names for metrics; numbered if MLflow would not accept the real names."""
    if spec.task != "classification" or len(spec.classes) > MAX_CLASSES:
        return []
    if all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ .-]*", name) for name in spec.classes):
        return list(spec.classes)
    return [f"class {number}" for number in range(len(spec.classes))]
