"""Concat: early fusion; every token attends to every token of every modality.

Source: baseline of Ding et al. 2021, arXiv:2111.11992, sec. 4; pooled as in their Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, PoolingConfig, check_integer
from sftsearch.trainables.layers.pooling import PoolEach, join_masks
from sftsearch.trainables.layers.tokens import FUSED, Sequence, Tokens
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry, block_layers
from sftsearch.trainables.token_windows import pools

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.token_windows import Windows


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcatConfig(PoolingConfig):
    """Early fusion; `stride` or `tokens`, a single number, pools after the first layer."""

    num_layers: int = 12

    def __post_init__(self) -> None:
        PoolingConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)

    def num_pooled_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the tokens of the joined sequence except the first CLS; the others are pooled."""
        for name in ("stride", "tokens"):
            value = getattr(self, name)
            if isinstance(value, Mapping) and list(value) != [FUSED]:
                raise ConfigError(
                    f"`{name}` of concat must be a whole number, but got {value}.", name
                )
        tokens = self.num_tokens(spec)
        return {FUSED: sum(tokens.values()) + len(tokens) - 1}

    def windows(self, spec: DatasetSpec) -> dict[str, Windows]:
        """Return the windows of the joined sequence."""
        return check_layers_after(PoolingConfig.windows(self, spec), self.num_layers)


def check_layers_after(windows: dict[str, Windows], num_layers: int) -> dict[str, Windows]:
    """Raise ConfigError if tokens are pooled after the first layer but it is the only one."""
    if num_layers == 1 and pools(windows.values()):
        raise ConfigError(
            "`num_layers` must be at least 2 to pool after the first layer, but got 1.",
            "num_layers",
        )
    return windows


class Join(nn.Module):
    """Concatenate all sequences with their CLS tokens: {m: (B, T_m, D)} -> FUSED."""

    def forward(self, tokens: Tokens) -> Tokens:
        """Concatenate the sequences in order."""
        parts = [sequence.z for sequence in tokens.values()]
        valid = join_masks([sequence.valid for sequence in tokens.values()], parts)
        return {FUSED: Sequence(torch.cat(parts, dim=1), valid)}


class Concat(FusionModel):
    """Layers on the joined sequence; the CLS token of the first modality is classified."""

    def __init__(self, spec: DatasetSpec, config: ConcatConfig) -> None:
        layers = [Join(), *pooled_after_first(config, config.windows(spec), config.num_layers)]
        super().__init__(spec, config, layers, readout=[FUSED])


def pooled_after_first(
    config: PoolingConfig, windows: dict[str, Windows], num_layers: int
) -> list[nn.Module]:
    """Return layers for the sequences of `windows`, with pooling after the first layer."""
    by_attention = config.pooling == "attention" and pools(windows.values())
    first = block_layers(config, tuple(windows), 1, report_received=by_attention)
    return [
        *first,
        PoolEach(windows, config.pooling),
        *block_layers(config, tuple(windows), num_layers - 1),
    ]


def concat_cost(spec: DatasetSpec, config: ConcatConfig) -> cost.Cost:
    """Return the cost of Concat; the paper counts sum n tokens, without the CLS tokens."""
    windows, num_modalities = config.windows(spec)[FUSED], len(config.chosen(spec))
    joined, pooled = windows.num_tokens, windows.count
    not_priced = num_modalities - 1 if pooled == joined else 0
    return cost.total(
        [
            cost.tokenizer(spec, config),
            cost.block(joined + 1, config.dim, priced=joined + 1 - num_modalities),
            cost.block(pooled + 1, config.dim, priced=pooled - not_priced)
            * (config.num_layers - 1),
            cost.head(config.dim, spec.num_outputs),
        ]
    )


MODELS = {
    "concat": ModelEntry(config=ConcatConfig, build=Concat, cost=concat_cost, paper=SFT_PAPER),
}
