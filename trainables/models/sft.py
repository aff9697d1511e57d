"""SFT and SFT-PO: Sparse Fusion for Multimodal Transformers.

Source: Ding, Rich, Wang, Stier, Turk, Sen, Höllerer 2021, arXiv:2111.11992.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from sftsearch.trainables import cost
from sftsearch.trainables.config import (
    ConfigError,
    MidFusionConfig,
    check_choice,
    check_integer,
)
from sftsearch.trainables.layers.blocks import AttentionBlock, Each
from sftsearch.trainables.layers.pooling import PoolAndFuse
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry, block_layers
from sftsearch.trainables.token_windows import Pattern, pools

if TYPE_CHECKING:
    from torch import nn

    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(MidFusionConfig):
    """SFT; the defaults are its paper's: 1 unimodal layer, 11 fused ones, width 40, 5 heads."""

    sparse_attention: Literal["strided", "fixed", "dense"] = "strided"
    """Which tokens attend to each other in the layer before pooling. The paper states `strided`,
    the default. Its code builds `fixed` but never applies the mask, so its results and costs are
    those of `dense`."""
    window: int = 32
    """Consecutive tokens that attend to each other in both patterns; the stride of `strided`."""
    summary: int = 8
    """Tokens at the end of each window that all tokens attend to in `fixed`."""

    def __post_init__(self) -> None:
        MidFusionConfig.__post_init__(self)  # super() does not work in a class with slots
        check_choice("sparse_attention", self.sparse_attention, ("strided", "fixed", "dense"))
        check_integer("window", self.window, at_least=2)
        check_integer("summary", self.summary, at_least=1)
        if self.sparse_attention == "fixed" and self.summary >= self.window:
            got = f"summary={self.summary}, window={self.window}"
            raise ConfigError(
                f"`summary` must be less than `window`, but got ({got}).", "summary", "window"
            )

    @property
    def pattern(self) -> Pattern | None:
        """The pattern of the sparse layer; None: dense."""
        if self.sparse_attention == "dense":
            return None
        return Pattern(self.sparse_attention, self.window, self.summary)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: within one window every pattern is dense."""
        same: Self = MidFusionConfig.canonical(self, spec)
        longest = 1 + max(self.num_tokens(spec).values())
        if self.sparse_attention == "dense" or longest <= self.window:
            return dataclasses.replace(same, sparse_attention="dense", window=32, summary=8)
        if self.sparse_attention == "strided":
            return dataclasses.replace(same, summary=8)
        return same


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTPoolingOnlyConfig(MidFusionConfig):
    """SFT-PO: SFT with pooling only."""


class SFT(FusionModel):
    """Unimodal layers, a sparse attention layer for each modality, pooling, fused layers."""

    def __init__(self, spec: DatasetSpec, config: SFTConfig) -> None:
        sparse = Each(
            {
                name: AttentionBlock(
                    dim=config.dim,
                    num_heads=config.num_heads,
                    dropout=config.dropout,
                    pattern=config.pattern,
                    report_received=pools_by_attention(spec, config),
                )
                for name in config.chosen(spec)
            },
            mixing_point=False,
        )
        super().__init__(spec, config, pooled_layers(spec, config, sparse), readout=[FUSED])


class SFTPoolingOnly(FusionModel):
    """SFT without the sparse attention layer: mid fusion of pooled tokens."""

    def __init__(self, spec: DatasetSpec, config: SFTPoolingOnlyConfig) -> None:
        super().__init__(spec, config, pooled_layers(spec, config), readout=[FUSED])


def pooled_layers(
    spec: DatasetSpec, config: MidFusionConfig, sparse: nn.Module | None = None
) -> list[nn.Module]:
    """Return the unimodal layers, the sparse layer if any, the pooling and the fused layers.

    Raises:
        ConfigError: attention pooling has no attention layer before it.
    """
    if sparse is None:
        check_attention(spec, config)
    by_attention = sparse is None and pools_by_attention(spec, config)
    return [
        *block_layers(
            config, config.chosen(spec), config.unimodal_layers, report_received=by_attention
        ),
        *([] if sparse is None else [sparse]),
        PoolAndFuse(config.windows(spec), config.pooling),
        *block_layers(config, [FUSED], config.fused_layers),
    ]


def pools_by_attention(spec: DatasetSpec, config: MidFusionConfig) -> bool:
    """Return whether the layer before pooling must return the attention that tokens receive."""
    return config.pooling == "attention" and pools(config.windows(spec).values())


def check_attention(spec: DatasetSpec, config: MidFusionConfig) -> None:
    """Raise ConfigError if attention pooling has no layer before it."""
    if config.unimodal_layers == 0 and pools_by_attention(spec, config):
        raise ConfigError(
            "`pooling: attention` needs an attention layer before it, but got (unimodal_layers=0).",
            "pooling",
        )


def sft_cost(spec: DatasetSpec, config: SFTConfig) -> cost.Cost:
    """Return the cost of SFT; its sparse layer is 4nd^2 + 2pd for p attended pairs (dense: n^2)."""
    sparse = [
        cost.attention(
            n + 1, config.dim, priced=n, pattern=config.pattern, num_heads=config.num_heads
        )
        for n in config.num_tokens(spec).values()
    ]
    return cost.total([*pooled_parts(spec, config), *sparse])


def sft_pooling_only_cost(spec: DatasetSpec, config: SFTPoolingOnlyConfig) -> cost.Cost:
    """Return the cost of SFT-PO."""
    check_attention(spec, config)
    return cost.total(pooled_parts(spec, config))


def pooled_parts(spec: DatasetSpec, config: MidFusionConfig) -> list[cost.Part]:
    """Return the cost of `pooled_layers`: n tokens a modality, then 1 + sum k fused tokens."""
    windows = config.windows(spec).values()
    unimodal = [cost.block(w.num_tokens + 1, config.dim, priced=w.num_tokens) for w in windows]
    fused = 1 + sum(w.count for w in windows)
    return [
        cost.tokenizer(spec, config),
        *(block * config.unimodal_layers for block in unimodal),
        cost.block(fused, config.dim) * config.fused_layers,
        cost.head(config.dim, spec.num_outputs),
    ]


MODELS = {
    "sft": ModelEntry(config=SFTConfig, build=SFT, cost=sft_cost, paper=SFT_PAPER),
    "sft_po": ModelEntry(
        config=SFTPoolingOnlyConfig,
        build=SFTPoolingOnly,
        cost=sft_pooling_only_cost,
        paper=SFT_PAPER,
    ),
}
