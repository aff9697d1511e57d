"""MBT: fusion through a few bottleneck tokens, and its paper's two alternatives.

Source: Nagrani et al. 2021, Attention Bottlenecks for Multimodal Fusion, arXiv:2107.00135, sec. 3;
blocks, width and tokens are those of the baseline in Ding et al. 2021, arXiv:2111.11992, so that it
is comparable with the other models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from sftsearch.trainables import cost
from sftsearch.trainables.config import (
    ConfigError,
    TransformerConfig,
    check_choice,
    check_integer,
    check_names,
    check_number,
)
from sftsearch.trainables.layers.blocks import Each
from sftsearch.trainables.layers.bottleneck import (
    AddBottleneck,
    BottleneckLayer,
    CrossLayer,
    SkippedBlock,
    SplitModalities,
)
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.concat import Join, in_order
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from sftsearch.datasets.spec import DatasetSpec

MBT_PAPER = "Nagrani et al. 2021, Attention Bottlenecks for Multimodal Fusion, arXiv:2107.00135"


@dataclass(frozen=True, kw_only=True, slots=True)
class MBTConfig(TransformerConfig):
    """MBT; the defaults are its paper's: 12 layers, fusion from the ninth on, 4 bottlenecks."""

    num_layers: int = 12
    """Layers of each modality, including fused ones."""
    fusion_layer: int = 8
    """Number of unimodal layers before the first fused one."""
    strategy: Literal["bottleneck", "vanilla", "cross"] = "bottleneck"
    """How modalities are fused: through bottleneck tokens, by self-attention on the joined sequence
    with shared weights, or by attention of each modality to all, with separate weights."""
    num_bottlenecks: int = 4
    """Bottleneck tokens."""
    update: Literal["symmetric", "asymmetric"] = "symmetric"
    """symmetric: all modalities read the same bottlenecks, and the next ones are the mean of their
    outputs (eq. 8-9, as in the authors' code). asymmetric: each modality reads the bottlenecks that
    the previous one returned (eq. 10-11, as in the SFT authors' baseline)."""
    modality_order: tuple[str, ...] | None = None
    """The order of an asymmetric update, not read otherwise. None: the dataset's. (The paper's
    Table 4 compares both orders of two modalities.)"""
    tied: bool = False
    """Share weights between modalities in `cross`, which makes it `vanilla`."""
    stochastic_depth: float = 0.0
    """Probability, in training, that a sample skips an update of the last layer; it grows linearly
    from 0 in the first layer. The paper uses 0.3."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)
        check_integer("fusion_layer", self.fusion_layer, at_least=0)
        if self.fusion_layer > self.num_layers:
            got = f"fusion_layer={self.fusion_layer}, num_layers={self.num_layers}"
            raise ConfigError(
                f"`fusion_layer` must be at most `num_layers`, but got ({got}).",
                "fusion_layer",
                "num_layers",
            )
        check_choice("strategy", self.strategy, ("bottleneck", "vanilla", "cross"))
        check_integer("num_bottlenecks", self.num_bottlenecks, at_least=1)
        check_choice("update", self.update, ("symmetric", "asymmetric"))
        if not isinstance(self.tied, bool):
            raise ConfigError(f"`tied` must be true or false, but got {self.tied!r}.", "tied")
        check_number("stochastic_depth", self.stochastic_depth, least=0, below=1)
        if self.modality_order is not None:  # JSON has lists
            order = check_names("modality_order", self.modality_order)
            object.__setattr__(self, "modality_order", order)

    @property
    def fusion(self) -> Literal["none", "bottleneck", "vanilla", "cross"]:
        """The fusion strategy in effect."""
        if self.fusion_layer == self.num_layers:
            return "none"
        return "vanilla" if self.strategy == "cross" and self.tied else self.strategy

    def update_order(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Return the modalities in the order in which they read the bottlenecks.

        Raises:
            ConfigError: `modality_order` does not fit the dataset or the modalities used.
        """
        order = in_order(self, spec, self.modality_order)
        is_read = self.fusion == "bottleneck" and self.update == "asymmetric"
        return order if is_read else self.chosen(spec)

    def skip(self, layer: int) -> float:
        """Return the probability that an update of a layer is skipped."""
        return self.stochastic_depth * layer / max(self.num_layers - 1, 1)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: fields that the fusion does not read are default."""
        same, order = TransformerConfig.canonical(self, spec), self.update_order(spec)
        same = dataclasses.replace(
            same, modality_order=None if order == self.chosen(spec) else order
        )
        if self.num_layers == 1:
            same = dataclasses.replace(same, stochastic_depth=0.0)
        fusion = self.fusion
        same = dataclasses.replace(
            same, strategy="bottleneck" if fusion == "none" else fusion, tied=False
        )
        if fusion != "bottleneck":
            return dataclasses.replace(same, num_bottlenecks=4, update="symmetric")
        if len(self.chosen(spec)) == 1:
            return dataclasses.replace(same, update="symmetric")
        return same


class MBT(FusionModel):
    """Unimodal layers, then fused ones; the outputs of all CLS tokens are averaged."""

    def __init__(self, spec: DatasetSpec, config: MBTConfig) -> None:
        names = config.chosen(spec)
        layers: list[nn.Module] = [
            Each(blocks(config, names, i)) for i in range(config.fusion_layer)
        ]
        super().__init__(
            spec, config, [*layers, *fused_layers(spec, config)], readout=names, average=True
        )


def blocks(config: MBTConfig, names: Iterable[str], layer: int) -> dict[str, SkippedBlock]:
    """Return the blocks of one layer, by name."""
    return {
        name: SkippedBlock(
            dim=config.dim,
            num_heads=config.num_heads,
            dropout=config.dropout,
            skip=config.skip(layer),
        )
        for name in names
    }


def fused_layers(spec: DatasetSpec, config: MBTConfig) -> list[nn.Module]:
    """Return the fused layers, and the layers that join and split sequences around them."""
    names, depths = config.chosen(spec), range(config.fusion_layer, config.num_layers)
    if config.fusion == "bottleneck":
        symmetric, order = config.update == "symmetric", config.update_order(spec)
        return [
            AddBottleneck(config.num_bottlenecks, config.dim),
            *(BottleneckLayer(blocks(config, order, i), symmetric=symmetric) for i in depths),
        ]
    if config.fusion == "vanilla":
        lengths = {name: 1 + n for name, n in config.num_tokens(spec).items()}
        return [
            Join(names),
            *(Each(blocks(config, [FUSED], i)) for i in depths),
            SplitModalities(FUSED, lengths),
        ]
    return [CrossLayer(blocks(config, names, i)) for i in depths]  # none, or cross


def mbt_cost(spec: DatasetSpec, config: MBTConfig) -> cost.Cost:
    """Return the cost of MBT: n tokens a modality, n + K with bottlenecks, attended pairs only."""
    tokens = list(config.num_tokens(spec).values())
    unimodal = [cost.block(n + 1, config.dim, priced=n) for n in tokens]
    fused = fused_parts(tokens, config)
    bottleneck = config.num_bottlenecks * config.dim if config.fusion == "bottleneck" else 0
    return cost.total(
        [
            cost.tokenizer(spec, config),
            *(part * config.fusion_layer for part in unimodal),
            *(part * (config.num_layers - config.fusion_layer) for part in fused),
            cost.Part(0, 0, bottleneck),
            cost.head(config.dim, spec.num_outputs, sequences=len(tokens)),
        ]
    )


def fused_parts(tokens: list[int], config: MBTConfig) -> list[cost.Part]:
    """Return the cost of a fused layer, for modalities with `tokens` tokens."""
    d, k, joined = config.dim, config.num_bottlenecks, sum(tokens)
    if config.fusion == "bottleneck":
        return [cost.block(n + 1 + k, d, priced=n + k) for n in tokens]
    runs = joined + len(tokens)  # each modality has a CLS token
    if config.fusion == "vanilla":
        return [cost.block(runs, d, priced=joined)]
    return [
        cost.cross_attention(n + 1, runs, d, priced=(n, joined)) + cost.mlp(n + 1, d, priced=n)
        for n in tokens
    ]


MODELS = {
    "mbt": ModelEntry(config=MBTConfig, build=MBT, cost=mbt_cost, paper=MBT_PAPER),
}
