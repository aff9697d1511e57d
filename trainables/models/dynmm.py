"""DynMM, modality level: a gate sends each sample to one of several experts, cheap ones and dear.

Experts are fusion systems of the catalogue on modalities of their own. One training has the two
stages of the paper: in stage I every expert learns alone, in stage II all of them learn with the
gate, on `y = sum_i g_i E_i(x)` and the loss `L(y) + lambda sum_i g_i C(E_i)`. In evaluation each
sample runs through the gate and one expert.

C(E_i) are multiply-adds relative to those of the dearest expert, so that one `resource_weight` says
the same at any size. The paper's lambda multiplies absolute numbers: it is `resource_weight` over
the largest C. The authors' code adds the mean of g_2 alone, of two experts; its lambda is
`resource_weight` (C_2 - C_1) / C_2, up to a constant of the loss.

Until stage II the gate is untrained and validation, which routes by it, says little: a study that
stops trials early judges them best behind it.

Source: Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102, sec. 3.

Shapes: B batch, E experts, C outputs, T samples of a modality, F features.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from sftsearch.datasets.errors import nearest
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
    choose,
    harden,
    mlp_gate_part,
    relax,
    temperature,
    transformer_gate_part,
)
from sftsearch.trainables.models.fusion import CATALOG, FusionModel, System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Batch, Losses

DYNMM_PAPER = "Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102"
MAX_CLASSES = 30
"""Most classes that routes are counted by: every share of theirs is a metric of each epoch."""


class Expert(NamedTuple):
    """An expert as it is configured."""

    kind: str
    system: System
    config: TransformerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedConfig(TransformerConfig):
    """What the systems share whose gate chooses what a sample runs through.

    The gate reads the samples of all `modalities`, in patches of `patch`.
    """

    gate: Literal["mlp", "transformer"] = "mlp"
    """Two layers on the mean patch of every modality, or a light transformer on all patches."""
    gate_dim: int = 32
    """Width of the gate."""
    gate_heads: int = 2
    """Attention heads of a `transformer` gate."""
    gate_layers: int = 1
    """Layers of a `transformer` gate."""
    straight_through: bool = False
    """Whether stage II trains on the choice itself, with the gradient of its relaxation (the
    paper's second way); else on the relaxation. A choice trains the experts it falls on alone."""
    noise: bool = True
    """Whether Gumbel noise is added to the gate's scores in training (the paper), or not (its
    code)."""
    tau_start: float = 1.0
    """Temperature of the relaxation in the first epoch of stage II."""
    tau_end: float = 1.0
    """Temperature it falls to geometrically; a low one makes the relaxation a choice."""
    resource_weight: float = 0.1
    """Lambda: how much of the loss is the price of what runs, relative to the dearest there is."""
    alone: float = 0.5
    """Stage I, as a share of the epochs; the gate learns in the rest of them."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_choice("gate", self.gate, ("mlp", "transformer"))
        for name in ("gate_dim", "gate_heads", "gate_layers"):
            check_integer(name, getattr(self, name), at_least=1)
        if self.gate == "transformer" and self.gate_dim % self.gate_heads:
            got = f"gate_heads={self.gate_heads}, gate_dim={self.gate_dim}"
            raise ConfigError(f"`gate_heads` must divide `gate_dim`, but got ({got}).")
        for name in ("straight_through", "noise"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"`{name}` must be true or false, but got {getattr(self, name)!r}."
                )
        check_number("tau_start", self.tau_start, least=0, below=math.inf, open_=True)
        check_number("tau_end", self.tau_end, least=0, below=math.inf, open_=True)
        check_number("resource_weight", self.resource_weight, least=0, below=math.inf)
        check_number("alone", self.alone, least=0, below=1)

    def num_alone(self, num_epochs: int) -> int:
        """Return the epochs of stage I; stage II has one at least."""
        return min(round(self.alone * num_epochs), num_epochs - 1)

    def gate_config(self) -> TransformerConfig:
        """Return the gate's modalities, patch and sizes."""
        heads = self.gate_heads if self.gate == "transformer" else 1
        return TransformerConfig(
            modalities=self.modalities, patch=self.patch, dim=self.gate_dim, num_heads=heads
        )

    def build_gate(self, spec: DatasetSpec, num_routes: int) -> nn.Module:
        """Build the gate of so many routes."""
        config = self.gate_config()
        if self.gate == "mlp":
            return MLPGate(spec, config, hidden=self.gate_dim, num_routes=num_routes)
        return TransformerGate(spec, config, num_layers=self.gate_layers, num_routes=num_routes)

    def gate_part(self, spec: DatasetSpec, num_routes: int) -> cost.Part:
        """Price the gate."""
        config = self.gate_config()
        if self.gate == "mlp":
            return mlp_gate_part(spec, config, hidden=self.gate_dim, num_routes=num_routes)
        layers = self.gate_layers
        return transformer_gate_part(spec, config, num_layers=layers, num_routes=num_routes)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: an `mlp` gate has neither heads nor layers."""
        same = TransformerConfig.canonical(self, spec)
        if self.gate == "mlp":
            return dataclasses.replace(same, gate_heads=2, gate_layers=1)
        return same


class GatedModel(FusionModel):
    """Stages, temperature, the loss with the price of routes, and what is measured of routes.

    A subclass gives the layers and `forward`; its training outputs are (B, C + routes) in stage II:
    the task's outputs, then the weights.
    """

    config: GatedConfig
    tau: Tensor
    relative_costs: Tensor

    def __init__(
        self, spec: DatasetSpec, config: GatedConfig, gate: cost.Part, routes: list[cost.Part]
    ) -> None:
        """Build the gate, and prepare what gates have in common.

        Args:
            spec: the data set.
            config: the configuration.
            gate: the price of the gate.
            routes: the price of each route, without the gate.
        """
        nn.Module.__init__(self)
        self.config, self.modalities = config, config.chosen(spec)
        self.num_outputs, self.num_routes = spec.num_outputs, len(routes)
        self.mixing_points = ()
        self.gate = config.build_gate(spec, len(routes))
        self.measured = ("gflops_expected", *(f"route_{i + 1}" for i in range(len(routes))))
        self._classes = _names_of_classes(spec)
        self._route_flops = [gate.flops + route.flops for route in routes]
        self.is_alone = config.alone > 0
        """Whether stage I is trained."""
        macs = torch.tensor([float(route.macs) for route in routes])
        self.register_buffer("relative_costs", macs / macs.max(), persistent=False)
        # A tensor: a compiled model would be compiled anew for each number.
        self.register_buffer("tau", torch.tensor(config.tau_start), persistent=False)

    def scores(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None) -> Tensor:
        """Return the gate's scores, (B, routes); in full precision, so that routes are the same."""
        device = next(iter(inputs.values())).device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.gate(inputs, lengths)  # type: ignore[no-any-return]
        return self.gate(inputs, lengths)  # type: ignore[no-any-return]

    def weights(self, scores: Tensor) -> Tensor:
        """Return the weights of the routes in training, (B, routes)."""
        soft = relax(scores, self.tau, noise=self.config.noise)
        return harden(soft) if self.config.straight_through else soft

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Set stage and temperature; see `FusionModel.begin_epoch`."""
        num_alone = self.config.num_alone(num_epochs)
        self.is_alone = epoch < num_alone
        joint = max(epoch - num_alone, 0), num_epochs - num_alone
        tau = temperature(*joint, start=self.config.tau_start, end=self.config.tau_end)
        self.tau.fill_(tau)

    def joint_losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of stage II, (B,), of outputs (B, C + routes)."""
        of_task = losses(outputs[:, : self.num_outputs], labels)
        of_routes = outputs[:, self.num_outputs :] @ self.relative_costs.to(outputs.dtype)
        return of_task + self.config.resource_weight * of_routes

    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the shares of samples that take each route, and what they cost on average.

        The shares of a class are `route_1/NAME`, ...; those of classes without samples are left
        out, and all of them where there are more than `MAX_CLASSES`.
        """
        num_rows = max(len(self._classes), 1)
        counts = torch.zeros(num_rows, self.num_routes, dtype=torch.int64)  # by class and route
        for inputs, lengths, labels in batches:
            routes = self.scores(inputs, lengths).argmax(dim=1)
            places = routes + self.num_routes * labels if self._classes else routes
            found = places.bincount(minlength=counts.numel()).cpu()
            counts += found.view_as(counts)
        total = counts.sum(dim=0)
        flops = sum(n * cost_ for n, cost_ in zip(total.tolist(), self._route_flops, strict=True))
        expected, shares = flops / int(total.sum()) / cost.GIGA, (total / total.sum()).tolist()
        measures = dict(zip(self.measured, (expected, *shares), strict=True))
        for name, row in zip(self._classes, counts, strict=False):
            if row.sum():
                of_class = (row / row.sum()).tolist()
                measures |= {f"route_{i}/{name}": x for i, x in enumerate(of_class, start=1)}
        return measures


def _names_of_classes(spec: DatasetSpec) -> list[str]:
    """Return what shares of classes are called: as the classes are, if trackers can take it."""
    if spec.task != "classification" or len(spec.classes) > MAX_CLASSES:
        return []
    if all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ .-]*", name) for name in spec.classes):
        return list(spec.classes)
    return [f"class {number}" for number in range(len(spec.classes))]


def settings_of(config: TransformerConfig) -> dict[str, Any]:
    """Return a configuration as plain values, as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


# ------------------------------------------------------------- experts


@dataclass(frozen=True, kw_only=True, slots=True)
class DynMMConfig(GatedConfig):
    """DynMM; what an expert does not name itself it takes over from here.

    That is `modalities`, `patch`, `dim`, `num_heads` and `dropout`.
    """

    experts: tuple[Mapping[str, Any], ...] | None = None
    """Each a mapping `{kind: a system, modalities: [...], ...its parameters}`. None: `unimodal` on
    the first modality, and `late_fusion` of all."""

    def __post_init__(self) -> None:
        GatedConfig.__post_init__(self)  # super() does not work in a class with slots
        if self.experts is not None:
            object.__setattr__(self, "experts", _plain(self.experts))
            self._configured(self.experts)  # what is wrong without any data set is said here

    def _configured(self, experts: tuple[Mapping[str, Any], ...]) -> list[Expert]:
        """Return the experts, each with what it takes over from here."""
        shared = {
            name: getattr(self, name)
            for name in ("modalities", "patch", "dim", "num_heads", "dropout")
        }
        return [_expert(i, given, shared) for i, given in enumerate(experts, start=1)]

    def experts_of(self, spec: DatasetSpec) -> list[Expert]:
        """Return the experts in their canonical configurations.

        Raises:
            ConfigError: this or an expert's configuration does not fit the data set.
        """
        self.num_tokens(spec)  # what is wrong for all of them is said without naming one
        chosen = self.chosen(spec)
        default = ({"kind": "unimodal", "modalities": chosen[:1]}, {"kind": "late_fusion"})
        found = []
        for i, one in enumerate(self._configured(self.experts or default), start=1):
            try:
                _check_within(one.config.chosen(spec), chosen)
                one.system.cost(spec, one.config)
                found.append(one._replace(config=one.config.canonical(spec)))
            except ConfigError as error:
                raise ConfigError(f"{_naming(i, one.kind)}{error}") from error
        return found

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: every expert says all of its parameters itself."""
        experts = self.experts_of(spec)
        return dataclasses.replace(
            GatedConfig.canonical(self, spec),
            experts=tuple({"kind": one.kind, **settings_of(one.config)} for one in experts),
            dim=40,
            num_heads=5,
            dropout=0.0,
        )


def _plain(experts: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the experts as JSON gives them back; refuse what are no mappings."""
    if not isinstance(experts, list | tuple) or len(experts) < 2:
        raise ConfigError(f"`experts` must be a list of at least two mappings, but got {experts}.")
    for one in experts:
        if not isinstance(one, Mapping) or not isinstance(one.get("kind"), str):
            raise ConfigError(f"`experts` must be mappings with a `kind`, but got {one!r}.")
    try:
        return tuple(json.loads(json.dumps([dict(one) for one in experts], allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`experts` must have plain values, but {error}.") from error


def _check_within(names: Iterable[str], chosen: tuple[str, ...]) -> None:
    other = [name for name in names if name not in chosen]
    if other:
        among = ", ".join(chosen)
        raise ConfigError(
            f"`modalities` must be among those that the gate reads ({among}), but got {other[0]}."
        )


def _naming(number: int, kind: str) -> str:
    return f"`experts`, number {number} ({kind}): "


def _expert(number: int, given: Mapping[str, Any], shared: dict[str, Any]) -> Expert:
    """Configure an expert; errors name it."""
    kind = given["kind"]
    if kind not in CATALOG:
        near = nearest(kind, CATALOG)
        hint = f" Did you mean '{near}'?" if near else ""
        raise ConfigError(f"`experts`, number {number}: No model is called '{kind}'.{hint}")
    system, naming = CATALOG[kind], _naming(number, kind)
    # The plain loss of an expert's plain outputs is what both stages are made of.
    if getattr(system.build, "losses", FusionModel.losses) is not FusionModel.losses:
        raise ConfigError(f"{naming}it trains with a loss of its own, which a gate cannot weigh.")
    types = {field.name: field.type for field in dataclasses.fields(system.config)}
    for name in given:
        if name not in types and name != "kind":
            near = nearest(name, types)
            hint = f" Did you mean '{near}'?" if near else ""
            raise ConfigError(f"{naming}no parameter is called '{name}'.{hint}")
    parameters = {name: value for name, value in shared.items() if name in types}
    parameters |= {
        name: float(value) if types[name] == "float" and type(value) is int else value
        for name, value in given.items()
        if name != "kind"
    }
    try:
        return Expert(kind, system, system.config(**parameters))
    except ConfigError as error:
        raise ConfigError(f"{naming}{error}") from error


class DynMM(GatedModel):
    """Experts and a gate.

    Training outputs are those of all experts in stage I, (B, E C), and in stage II the weighted
    outputs and the weights, (B, C + E). All gradients are clipped by one norm in both.
    """

    config: DynMMConfig

    def __init__(self, spec: DatasetSpec, config: DynMMConfig) -> None:
        experts = config.experts_of(spec)
        super().__init__(spec, config, *dynmm_parts(spec, config))
        self.experts = nn.ModuleList(one.system.build(spec, one.config) for one in experts)

    @property
    def tokenizer(self) -> nn.Module:  # type: ignore[override]
        """The first expert's."""
        tokenizer: nn.Module = self.experts[0].tokenizer  # type: ignore[assignment]
        return tokenizer

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None = None,
        after_layer: Callable[[int, Tokens], Tokens] | None = None,
    ) -> Tensor:
        """Give the outputs of a batch, (B, C) in evaluation; see `FusionModel.forward`.

        In evaluation an expert is given only the samples that the gate sends to it, so that its
        batch is smaller; what is compiled or exported runs all experts on all samples.
        """
        if not self.training:
            routes = self.scores(inputs, lengths).argmax(dim=1)
            return choose(routes, self.num_routes, self._on_rows(inputs, lengths))
        outputs = [expert(inputs, lengths) for expert in self.experts]
        if self.is_alone:
            return torch.cat(outputs, dim=1)
        weights = self.weights(self.scores(inputs, lengths))
        weighted = (weights.unsqueeze(-1) * torch.stack(outputs, dim=1)).sum(dim=1)
        return torch.cat([weighted, weights], dim=1)

    def route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Give the outputs of one expert, and ask the gate; see `FusionModel.route`."""
        self.scores(inputs, lengths)
        outputs: Tensor = self.experts[number](inputs, lengths)
        return outputs

    def _on_rows(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None
    ) -> Callable[[int, Tensor | None], Tensor]:
        def run(number: int, rows: Tensor | None) -> Tensor:
            expert, taken, known = self.experts[number], inputs, lengths
            if rows is not None:
                taken = {name: inputs[name][rows] for name in expert.modalities}  # type: ignore[union-attr]
                known = lengths and {name: length[rows] for name, length in lengths.items()}
            outputs: Tensor = expert(taken, known)
            return outputs

        return run

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Set stage and temperature, and let the experts prepare."""
        super().begin_epoch(epoch, num_epochs)
        for expert in self.experts:
            expert.begin_epoch(epoch, num_epochs)  # type: ignore[operator]

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the experts' losses in stage I, the task's and the price's in II."""
        if not self.is_alone:
            return self.joint_losses(losses, outputs, labels)
        of_experts = [losses(one, labels) for one in outputs.split(self.num_outputs, dim=1)]
        return torch.stack(of_experts).sum(dim=0)


def dynmm_parts(spec: DatasetSpec, config: DynMMConfig) -> tuple[cost.Part, list[cost.Part]]:
    """Return the price of the gate, and that of each expert."""
    experts = [cost.whole(one.system.cost(spec, one.config)) for one in config.experts_of(spec)]
    return config.gate_part(spec, len(experts)), experts


def dynmm_cost(spec: DatasetSpec, config: DynMMConfig) -> cost.Cost:
    """Price DynMM: the gate and the dearest expert, at least the gate and the cheapest."""
    gate, experts = dynmm_parts(spec, config)
    parameters = gate.parameters + sum(expert.parameters for expert in experts)
    return cost.bounded([gate + expert for expert in experts], parameters)


SYSTEMS = {
    "dynmm": System(
        config=DynMMConfig,
        build=DynMM,
        cost=dynmm_cost,
        paper=DYNMM_PAPER,
        mixes_latents=False,
    ),
}
