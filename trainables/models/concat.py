"""Concat: early fusion, every token attends to every token of every modality.

Source: baseline of Ding et al. 2021, arXiv:2111.11992, sec. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import TransformerConfig, check_integer
from sftsearch.trainables.layers.tokens import FUSED, Tokens
from sftsearch.trainables.models.fusion import FusionModel, block_layers

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcatConfig(TransformerConfig):
    """Early fusion."""

    num_layers: int = 12

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)


class Join(nn.Module):
    """All sequences one behind the other, each with its CLS token: {m: (B, T_m, D)} -> FUSED."""

    def forward(self, tokens: Tokens) -> Tokens:
        """Join the sequences in their order."""
        return {FUSED: torch.cat(list(tokens.values()), dim=1)}


class Concat(FusionModel):
    """Layers on the joined sequence; the CLS token of the first modality is classified."""

    def __init__(self, spec: DatasetSpec, config: ConcatConfig) -> None:
        layers = [Join(), *block_layers(config, [FUSED], config.num_layers)]
        super().__init__(spec, config, layers)


def concat_cost(spec: DatasetSpec, config: ConcatConfig) -> cost.Cost:
    """Price Concat: the paper counts sum n tokens, without the CLS tokens that run too."""
    tokens = config.num_tokens(spec).values()
    layer = cost.block(sum(tokens) + len(tokens), config.dim, priced=sum(tokens))
    return cost.total(
        [
            cost.tokenizer(spec, config),
            layer * config.num_layers,
            cost.head(config.dim, spec.num_classes),
        ]
    )
