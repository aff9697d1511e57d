"""DynMM, modality level: a gate sends each sample to one of several cheap or expensive experts.

Experts are fusion models of the catalog, each on its own modalities. Training has the two stages of
the paper: in stage I every expert is trained separately; in stage II all experts and the gate are
trained together, on `y = sum_i g_i E_i(x)` with the loss `L(y) + lambda sum_i g_i C(E_i)`. In
evaluation each sample runs through the gate and one expert, or with `soft_inference` through all
experts. That costs all experts and one gate; the paper's Table 1 counts the gate twice.

The defaults combine the paper's two methods, so that training ends with the hard choices of
evaluation: one-hot weights with the gradient of the relaxation, whose temperature falls to 0.001.
The authors' code has one of the two: no annealing here, and no one-hot weights on the fusion level.

C(E_i) are multiply-adds relative to the most expensive expert, so that `resource_weight` means the
same at any size. The paper's lambda multiplies absolute numbers: it is `resource_weight` divided by
the largest C. The authors' code, with two experts, adds only the mean of g_2; its lambda is
`resource_weight` (C_2 - C_1) / C_2, up to a constant in the loss.

The gate is untrained until stage II, so earlier validation metrics are hardly informative: let
early stopping judge only epochs of stage II.

Source: Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102, sec. 3.

Shapes: B batch, E experts, C outputs, T samples of a modality, F features.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sftsearch.datasets.errors import nearest
from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, TransformerConfig
from sftsearch.trainables.layers.gating import choose, weighted_sum
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry
from sftsearch.trainables.models.gated import DYNMM_PAPER, GatedConfig, GatedModel
from sftsearch.trainables.models.listing import listed_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Losses


class Expert(NamedTuple):
    """A configured expert."""

    kind: str
    entry: ModelEntry
    config: TransformerConfig


def settings_of(config: TransformerConfig) -> dict[str, Any]:
    """Convert a configuration to plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


INHERITED = ("modalities", "patch", "segments", "tokenizer", "dim", "num_heads", "dropout")
"""Fields of a `DynMMConfig` that its experts inherit."""
_TYPES = {field.name: field.type for field in dataclasses.fields(TransformerConfig)}
"""Of inherited fields: one of another type has another meaning, as `segments` of MSAF."""
_CUT_BY = {"patch": "segments", "segments": "patch"}
"""Fields that exclude each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DynMMConfig(GatedConfig):
    """DynMM; experts inherit the fields they do not set.

    These are `INHERITED`. One that sets `patch` does not inherit `segments`, and the reverse.
    """

    experts: tuple[Mapping[str, Any], ...] | None = None
    """Mappings `{kind: a model, modalities: [...], ...its parameters}`. None: `unimodal` on the
    modality with the fewest tokens (among equals, the one with the most features, then the first),
    and `late_fusion` on all."""

    def __post_init__(self) -> None:
        GatedConfig.__post_init__(self)  # super() does not work in a class with slots
        if self.experts is not None:
            object.__setattr__(self, "experts", _plain(self.experts))
            self._configured(self.experts)  # raise errors that do not depend on the dataset

    def _configured(self, experts: tuple[Mapping[str, Any], ...]) -> list[Expert]:
        """Return the experts with their inherited fields."""
        shared = {name: getattr(self, name) for name in INHERITED}
        return [_expert(i, given, shared) for i, given in enumerate(experts, start=1)]

    def experts_of(self, spec: DatasetSpec) -> list[Expert]:
        """Return the experts in their canonical configurations.

        Raises:
            ConfigError: this or an expert's configuration does not fit the dataset.
        """
        tokens = self.num_tokens(spec)  # errors common to all experts do not name one
        chosen = self.chosen(spec)
        # Tokens determine an expert's cost; the paper's cheap expert on CMU-MOSEI reads the text.
        cheap = min(chosen, key=lambda name: (tokens[name], -spec.modalities[name].num_features))
        default = ({"kind": "unimodal", "modalities": (cheap,)}, {"kind": "late_fusion"})
        found = []
        for i, one in enumerate(self._configured(self.experts or default), start=1):
            try:
                _check_within(one.config.chosen(spec), chosen)
                one.entry.cost(spec, one.config)
                found.append(one._replace(config=one.config.canonical(spec)))
            except ConfigError as error:
                raise ConfigError(f"{_naming(i, one.kind)}{error}", "experts") from error
        return found

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: experts state all parameters and inherit none."""
        experts = self.experts_of(spec)
        return dataclasses.replace(
            GatedConfig.canonical(self, spec),
            experts=tuple({"kind": one.kind, **settings_of(one.config)} for one in experts),
            tokenizer="linear" if self.gate == "mlp" else self.tokenizer,
            dim=40,
            num_heads=5,
            dropout=0.0,
        )


def _plain(experts: Any) -> tuple[Mapping[str, Any], ...]:
    """Convert the experts to plain JSON values; raise ConfigError if they are not mappings."""
    if not isinstance(experts, list | tuple) or len(experts) < 2:
        raise ConfigError(
            f"`experts` must be a list of at least two mappings, but got {experts}.", "experts"
        )
    for one in experts:
        if not isinstance(one, Mapping) or not isinstance(one.get("kind"), str):
            raise ConfigError(
                f"`experts` must be mappings with a `kind`, but got {one!r}.", "experts"
            )
    try:
        return tuple(json.loads(json.dumps([dict(one) for one in experts], allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`experts` must have plain JSON values, but {error}.", "experts"
        ) from error


def _check_within(names: Iterable[str], chosen: tuple[str, ...]) -> None:
    other = [name for name in names if name not in chosen]
    if other:
        among = ", ".join(chosen)
        raise ConfigError(
            f"`modalities` must be among those that the gate reads ({among}), but got {other[0]}.",
            "modalities",
        )


def _naming(number: int, kind: str) -> str:
    return f"`experts`, number {number} ({kind}): "


def _expert(number: int, given: Mapping[str, Any], shared: dict[str, Any]) -> Expert:
    """Build the configuration of an expert; errors name its number and kind."""
    kind = given["kind"]
    models = listed_models()
    if kind not in models:
        near = nearest(kind, models)
        hint = f" Did you mean '{near}'?" if near else ""
        raise ConfigError(
            f"`experts`, number {number}: No model is called '{kind}'.{hint}", "experts"
        )
    entry, naming = models[kind], _naming(number, kind)
    _check_entry(entry, naming)
    types = {field.name: field.type for field in dataclasses.fields(entry.config)}
    for name in given:
        if name not in types and name != "kind":
            near = nearest(name, types)
            hint = f" Did you mean '{near}'?" if near else ""
            raise ConfigError(f"{naming}no parameter is called '{name}'.{hint}", "experts")
    parameters = {
        name: value
        for name, value in shared.items()
        if types.get(name) == _TYPES[name] and _CUT_BY.get(name) not in given
    }
    parameters |= {
        name: float(value) if types[name] == "float" and type(value) is int else value
        for name, value in given.items()
        if name != "kind"
    }
    try:
        config = entry.config(**parameters)
    except ConfigError as error:
        raise ConfigError(f"{naming}{error}", "experts") from error
    assert isinstance(config, TransformerConfig), "checked above"
    return Expert(kind, entry, config)


def _check_entry(entry: ModelEntry, naming: str) -> None:
    """Raise ConfigError if a model cannot be an expert."""
    # Both stages apply the task's loss to the outputs of the experts.
    if getattr(entry.build, "losses", FusionModel.losses) is not FusionModel.losses:
        raise ConfigError(
            f"{naming}it has its own training loss, which a gate cannot weight.", "experts"
        )
    if not issubclass(entry.config, TransformerConfig):
        raise ConfigError(f"{naming}it has no tokens, which an expert must have.", "experts")


class DynMM(GatedModel):
    """Experts and a gate.

    Training outputs are those of all experts in stage I, (B, E C), and the weighted outputs and the
    weights in stage II, (B, C + E). All gradients are clipped by one norm in both stages.
    """

    config: DynMMConfig

    def __init__(self, spec: DatasetSpec, config: DynMMConfig) -> None:
        experts = config.experts_of(spec)
        super().__init__(spec, config, *dynmm_parts(spec, config))
        self.experts = nn.ModuleList(one.entry.build(spec, one.config) for one in experts)

    @property
    def tokenizer(self) -> nn.Module:  # type: ignore[override]
        """The first expert's tokenizer."""
        tokenizer: nn.Module = self.experts[0].tokenizer  # type: ignore[assignment]
        return tokenizer

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None = None,
        after_layer: Callable[[int, Tokens], Tokens] | None = None,
    ) -> Tensor:
        """Compute the outputs of a batch, (B, C) in evaluation; see `FusionModel.forward`.

        In evaluation an expert receives only the samples that the gate sends to it; compiled and
        exported models run all experts on all samples.
        """
        if not self.training and self.config.soft_inference:
            return self.softly(inputs, lengths)
        if not self.training:
            routes = self.scores(inputs, lengths).argmax(dim=1)
            return choose(routes, self.num_routes, self._on_rows(inputs, lengths))
        outputs = [expert(inputs, lengths) for expert in self.experts]
        if self.in_stage_one:
            return torch.cat(outputs, dim=1)
        weights = self.weights(self.scores(inputs, lengths))
        return torch.cat([weighted_sum(weights, outputs), weights], dim=1)

    def softly(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None) -> Tensor:
        """Compute the weighted sum of all experts; see `GatedModel.softly`."""
        outputs_BC = [expert(inputs, lengths) for expert in self.experts]
        return weighted_sum(self.soft_weights(inputs, lengths), outputs_BC)

    def on_route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the outputs of one expert; see `GatedModel.on_route`."""
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
        """Set stage and temperature, and call `begin_epoch` of all experts."""
        super().begin_epoch(epoch, num_epochs)
        for expert in self.experts:
            expert.begin_epoch(epoch, num_epochs)  # type: ignore[operator]

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the experts' losses in stage I, the task's and cost loss in II."""
        if not self.in_stage_one:
            return self.joint_losses(losses, outputs, labels)
        by_expert = [losses(one, labels) for one in outputs.split(self.num_outputs, dim=1)]
        return torch.stack(by_expert).sum(dim=0)


def dynmm_parts(spec: DatasetSpec, config: DynMMConfig) -> tuple[cost.Part, list[cost.Part]]:
    """Return the costs of the gate and of each expert."""
    experts = [cost.to_part(one.entry.cost(spec, one.config)) for one in config.experts_of(spec)]
    return config.gate_part(spec, len(experts)), experts


def dynmm_cost(spec: DatasetSpec, config: DynMMConfig) -> cost.Cost:
    """Return the cost of DynMM: the gate and the most expensive expert; at least, the cheapest.

    With `soft_inference` it is that of the gate and all experts.
    """
    gate, experts = dynmm_parts(spec, config)
    if config.soft_inference:
        return cost.total([gate, *experts])
    parameters = gate.parameters + sum(expert.parameters for expert in experts)
    return cost.bounded([gate + expert for expert in experts], parameters)


MODELS = {
    "dynmm": ModelEntry(
        config=DynMMConfig,
        build=DynMM,
        cost=dynmm_cost,
        paper=DYNMM_PAPER,
        mixes_latents=False,
    ),
}
