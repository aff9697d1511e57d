"""Concat: early fusion; every token attends to every token of every modality.

Source: baseline of Ding et al. 2021, arXiv:2111.11992, sec. 4; pooled as in their Table 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import (
    ConfigError,
    TransformerConfig,
    check_integer,
    check_names,
)
from sftsearch.trainables.layers.pooling import PoolEach, join_masks
from sftsearch.trainables.layers.tokens import FUSED, Sequence, Tokens
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry, block_layers
from sftsearch.trainables.pooling_config import PoolingConfig
from sftsearch.trainables.token_windows import pools

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.token_windows import Windows


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcatConfig(PoolingConfig):
    """Early fusion; `stride` or `tokens`, a single number, pools after the first layer."""

    num_layers: int = 12
    modality_order: tuple[str, ...] | None = None
    """The order of the joined sequence, read only if it is pooled: the first CLS token, which is
    classified, is not pooled, and windows may span modalities. None: the dataset's."""

    def __post_init__(self) -> None:
        PoolingConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)
        if self.modality_order is not None:  # JSON has lists
            order = check_names("modality_order", self.modality_order)
            object.__setattr__(self, "modality_order", order)

    def joined_order(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Return the modalities in the order of the joined sequence.

        Without pooling it has no effect: all tokens attend to all, and CLS tokens differ in learned
        numbers only.

        Raises:
            ConfigError: `modality_order` does not fit the dataset or the modalities used.
        """
        order = in_order(self, spec, self.modality_order)
        return order if pools(self.windows(spec).values()) else self.chosen(spec)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `PoolingConfig.canonical`: an order that has no effect is default."""
        order = self.joined_order(spec)
        return dataclasses.replace(
            PoolingConfig.canonical(self, spec),
            modality_order=None if order == self.chosen(spec) else order,
        )

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


def in_order(
    config: TransformerConfig, spec: DatasetSpec, order: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the modalities used, in the order of a field `modality_order`; None: the dataset's.

    The order may also have modalities that are not used.

    Raises:
        ConfigError: a modality is unknown, or one that is used is missing in the order.
    """
    names = config.chosen(spec)
    for name in names:
        if order is not None and name not in order:
            raise ConfigError(
                f"`modality_order` must have all modalities used ({', '.join(names)}), but "
                f"{name} is missing.",
                "modality_order",
            )
    return names if order is None else tuple(name for name in order if name in names)


class Join(nn.Module):
    """Concatenate the sequences of `names` with their CLS tokens: {m: (B, T_m, D)} -> FUSED."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def forward(self, tokens: Tokens) -> Tokens:
        """Concatenate the sequences in order."""
        parts = [tokens[name].z for name in self.names]
        valid = join_masks([tokens[name].valid for name in self.names], parts)
        return {FUSED: Sequence(torch.cat(parts, dim=1), valid)}


class Concat(FusionModel):
    """Layers on the joined sequence; the CLS token of the first modality is classified."""

    def __init__(self, spec: DatasetSpec, config: ConcatConfig) -> None:
        join = Join(config.joined_order(spec))
        layers = [join, *pooled_after_first(config, config.windows(spec), config.num_layers)]
        super().__init__(spec, config, layers, readout=[FUSED])


def pooled_after_first(
    config: PoolingConfig, windows: dict[str, Windows], num_layers: int
) -> list[nn.Module]:
    """Return layers for the sequences of `windows`, with pooling after the first layer."""
    by_attention = config.pooling == "attention" and pools(windows.values())
    first = block_layers(config, tuple(windows), 1, report_received=by_attention)
    return [
        *first,
        PoolEach(windows, config.pooling, eps=config.pooling_eps),
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
