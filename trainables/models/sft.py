"""SFT and SFT-PO: Sparse Fusion for Multimodal Transformers.

Source: Ding, Rich, Wang, Stier, Turk, Sen, Höllerer 2021, arXiv:2111.11992.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.trainables import cost
from sftsearch.trainables.config import PooledConfig
from sftsearch.trainables.layers.blocks import AttentionBlock, Each
from sftsearch.trainables.layers.pooling import PoolAndFuse, pooled_count
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.fusion import FusionModel, block_layers

if TYPE_CHECKING:
    from torch import nn

    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(PooledConfig):
    """SFT; the defaults are its paper's: 1 unimodal layer, 11 fused ones, width 40, 5 heads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTPoolingOnlyConfig(PooledConfig):
    """SFT-PO: SFT with pooling only."""


class SFT(FusionModel):
    """Unimodal layers, one more attention layer a modality, pooling, fused layers.

    The attention layer is dense within its modality. The paper calls it sparse, but the mask of
    the released code is never applied, and the paper's costs are those of dense attention.
    """

    def __init__(self, spec: DatasetSpec, config: SFTConfig) -> None:
        attend = Each(
            {
                name: AttentionBlock(
                    dim=config.dim, num_heads=config.num_heads, dropout=config.dropout
                )
                for name in config.chosen(spec)
            }
        )
        super().__init__(spec, config, pooled_layers(spec, config, before_pooling=[attend]))


class SFTPoolingOnly(FusionModel):
    """SFT without the attention layer: mid fusion of pooled tokens."""

    def __init__(self, spec: DatasetSpec, config: SFTPoolingOnlyConfig) -> None:
        super().__init__(spec, config, pooled_layers(spec, config, before_pooling=[]))


def pooled_layers(
    spec: DatasetSpec, config: PooledConfig, *, before_pooling: list[nn.Module]
) -> list[nn.Module]:
    """Return unimodal layers, `before_pooling`, the pooling and the fused layers."""
    return [
        *block_layers(config, config.chosen(spec), config.unimodal_layers),
        *before_pooling,
        PoolAndFuse(config.strides(spec), config.pooling),
        *block_layers(config, [FUSED], config.fused_layers),
    ]


def sft_cost(spec: DatasetSpec, config: SFTConfig) -> cost.Cost:
    """Price SFT: the attention layer counts as dense, 4nd^2 + 2n^2 d."""
    attend = [cost.attention(n + 1, config.dim, priced=n) for n in config.num_tokens(spec).values()]
    return cost.total([*pooled_parts(spec, config), *attend])


def sft_pooling_only_cost(spec: DatasetSpec, config: SFTPoolingOnlyConfig) -> cost.Cost:
    """Price SFT-PO."""
    return cost.total(pooled_parts(spec, config))


def pooled_parts(spec: DatasetSpec, config: PooledConfig) -> list[cost.Part]:
    """Price the layers of `pooled_layers`: n tokens a modality, then 1 + sum k fused ones."""
    tokens, strides = config.num_tokens(spec), config.strides(spec)
    fused = 1 + sum(pooled_count(n, strides[name]) for name, n in tokens.items())
    return [
        cost.tokenizer(spec, config),
        *(
            cost.block(n + 1, config.dim, priced=n) * config.unimodal_layers
            for n in tokens.values()
        ),
        cost.block(fused, config.dim) * config.fused_layers,
        cost.head(config.dim, spec.num_classes),
    ]
