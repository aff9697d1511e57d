"""MulT: every modality attends to every other modality, in stacks of crossmodal layers.

`mult` is the baseline of Ding et al. 2021, arXiv:2111.11992; `mult_original` is the model of Tsai
et al. 2019, arXiv:1906.00295, as its authors' code builds it.

Shapes: B batch, T tokens, D width of a token, M modalities, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import (
    ConfigError,
    TransformerConfig,
    check_integer,
    check_own_tokens,
)
from sftsearch.trainables.layers.blocks import Each, dropout
from sftsearch.trainables.layers.crossmodal import (
    Crossmodal,
    CrossmodalBlock,
    JoinStacks,
    ProjectionTokenizer,
    Sinusoids,
)
from sftsearch.trainables.layers.tokens import Sequence, Tokenizer, Tokens
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sftsearch.datasets.spec import DatasetSpec

MULT_PAPER = (
    "Tsai et al. 2019, Multimodal Transformer for Unaligned Multimodal Language Sequences, "
    "arXiv:1906.00295"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MulTConfig(TransformerConfig):
    """MulT; the depths 9 + 3 match the costs printed in the SFT paper."""

    crossmodal_layers: int = 9
    """Layers of each stack, in which one modality attends to another."""
    memory_layers: int = 3
    """Self-attention layers on the joined stacks of each modality, M - 1 times as wide."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("crossmodal_layers", self.crossmodal_layers, at_least=1)
        check_integer("memory_layers", self.memory_layers, at_least=0)

    def several_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return `num_tokens`, for at least two modalities.

        Raises:
            ConfigError: there is only one modality.
        """
        tokens = self.num_tokens(spec)
        if len(tokens) < 2:
            raise ConfigError(
                f"`modalities` of MulT must be at least two, but got one: {', '.join(tokens)}. "
                "Add a modality, or use the model `unimodal`.",
                "modalities",
            )
        return tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class MulTOriginalConfig(MulTConfig):
    """MulT as published: width 30, and as many memory layers as crossmodal ones (at least 3)."""

    dim: int = 30
    crossmodal_layers: int = 5
    memory_layers: int = 5

    def __post_init__(self) -> None:
        MulTConfig.__post_init__(self)
        check_own_tokens("mult_original", self.tokenizer)


class MulT(FusionModel):
    """MulT with the SFT paper's tokens; the CLS tokens are classified."""

    def __init__(self, spec: DatasetSpec, config: MulTConfig) -> None:
        names = tuple(config.several_tokens(spec))
        width = (len(names) - 1) * config.dim
        layers = [
            *crossmodal_layers(config, names),
            JoinStacks(names, config.dim, shared=True),
            *memory_layers(config, names),
        ]
        super().__init__(
            spec,
            config,
            layers,
            head=FirstTokens(names, width, spec.num_outputs, dropout=config.dropout),
        )


class MulTOriginal(FusionModel):
    """MulT without CLS tokens: future tokens are hidden, the last valid tokens are classified.

    A missing modality adds nothing to the other stacks, and zeros to the head. Dropout is applied
    as in the other models: not to attention weights and embeddings.
    """

    def __init__(self, spec: DatasetSpec, config: MulTOriginalConfig) -> None:
        tokens = config.several_tokens(spec)
        names, longest = tuple(tokens), max(tokens.values())
        width = (len(names) - 1) * config.dim
        layers = [
            Sinusoids(longest, config.dim),
            *crossmodal_layers(config, names, hide_future=True),
            JoinStacks(names, config.dim, shared=False),
            Sinusoids(longest, width),
            *memory_layers(config, names, hide_future=True),
        ]
        super().__init__(
            spec,
            config,
            layers,
            tokenizer=Tokenizer(spec, config, of_modality=ProjectionTokenizer),
            head=LastTokens(names, width, spec.num_outputs, dropout=config.dropout),
        )


def crossmodal_layers(
    config: MulTConfig, names: Collection[str], *, hide_future: bool = False
) -> list[nn.Module]:
    """Return the crossmodal layers of all stacks."""
    return [
        Crossmodal(
            names,
            dim=config.dim,
            num_heads=config.num_heads,
            dropout=config.dropout,
            hide_future=hide_future,
        )
        for _ in range(config.crossmodal_layers)
    ]


def memory_layers(
    config: MulTConfig, names: Collection[str], *, hide_future: bool = False
) -> list[nn.Module]:
    """Return the self-attention layers after the stacks, M - 1 times as wide."""
    return [
        Each(
            {
                name: CrossmodalBlock(
                    dim=(len(names) - 1) * config.dim,
                    num_heads=config.num_heads,
                    dropout=config.dropout,
                    hide_future=hide_future,
                )
                for name in names
            }
        )
        for _ in range(config.memory_layers)
    ]


class Residual(nn.Module):
    """`x + P2 dropout(relu(P1 x))`. Shape: (B, D) -> (B, D)."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers and add the residual."""
        out: Tensor = x + self.second(dropout(F.relu(self.first(x)), self.dropout, self.training))
        return out


class FirstTokens(nn.Module):
    """Compute outputs from the first token of each modality with one norm (SFT authors' code).

    Shape: {name: (B, T, D)} -> (B, C).
    """

    def __init__(self, names: Iterable[str], dim: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.names = tuple(names)
        joined = len(self.names) * dim
        self.norm, self.residual = nn.LayerNorm(dim), Residual(joined, dropout=dropout)
        self.joined_norm, self.linear = nn.LayerNorm(joined), nn.Linear(joined, num_outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs."""
        first_BMD = torch.stack([tokens[name].z[:, 0] for name in self.names], dim=1)
        x = self.residual(self.norm(first_BMD).flatten(1))
        outputs: Tensor = self.linear(self.joined_norm(x))
        return outputs


class LastTokens(nn.Module):
    """Compute outputs from the last valid token of each modality with separate norms (MulT's code).

    Shape: {name: (B, T, D)} -> (B, C). A modality without valid tokens contributes zeros.
    """

    def __init__(self, names: Iterable[str], dim: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.names = tuple(names)
        joined = len(self.names) * dim
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.names)
        self.residual = Residual(joined, dropout=dropout)
        self.linear = nn.Linear(joined, num_outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs."""
        pairs = zip(self.names, self.norms, strict=True)
        x = torch.cat([self._last(tokens[name], norm) for name, norm in pairs], dim=1)
        outputs: Tensor = self.linear(self.residual(x))
        return outputs

    @staticmethod
    def _last(sequence: Sequence, norm: nn.Module) -> Tensor:
        z, valid, _ = sequence
        last: Tensor
        if valid is None:
            last = norm(z[:, -1])
            return last
        count = valid.sum(dim=1)[:, None]
        index = (count - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, z.shape[-1])
        last = norm(z.gather(1, index).squeeze(1))
        return last.where(count > 0, 0.0)


def mult_cost(spec: DatasetSpec, config: MulTConfig) -> cost.Cost:
    """Return the cost of MulT; `gflops` as in the SFT paper's Table 2, which is less than runs.

    `gflops` counts all layers of a target, M - 1 stacks and the memory, as blocks of its n tokens
    of width D. This is inferred: it gives the table's ratio to late fusion for both datasets.
    """
    tokens = config.several_tokens(spec)
    others = len(tokens) - 1
    repeats = config.crossmodal_layers * others + config.memory_layers
    priced = [cost.block(n, config.dim).flops * repeats for n in tokens.values()]
    parts = layer_parts({name: 1 + n for name, n in tokens.items()}, config)
    joined = len(tokens) * others * config.dim
    return cost.total(
        [
            cost.tokenizer(spec, config),
            *(cost.Part(0, part.macs, part.parameters) for part in parts),
            *(cost.Part(flops, 0, 0) for flops in priced),
            cost.norm(config.dim),
            cost.norm(others * config.dim),
            residual_part(joined),
            cost.head(joined, spec.num_outputs),
        ]
    )


def mult_original_cost(spec: DatasetSpec, config: MulTOriginalConfig) -> cost.Cost:
    """Return the cost of the published MulT by the SFT paper's formulas, at its real widths."""
    tokens = config.several_tokens(spec)
    others = len(tokens) - 1
    joined = len(tokens) * others * config.dim
    return cost.total(
        [
            cost.tokenizer(spec, config, plain=True),
            *layer_parts(tokens, config),
            cost.norm(config.dim) * (len(tokens) * others),
            cost.norm(others * config.dim) * len(tokens),
            residual_part(joined),
            cost.linear(joined, spec.num_outputs),
        ]
    )


def layer_parts(tokens: dict[str, int], config: MulTConfig) -> list[cost.Part]:
    """Return the cost of the layers as they run, on sequences of `tokens` tokens."""
    wide = (len(tokens) - 1) * config.dim
    stacks = [
        crossmodal_part(n, s, config.dim) * config.crossmodal_layers
        for a, n in tokens.items()
        for b, s in tokens.items()
        if a != b
    ]
    memory = [crossmodal_part(n, n, wide) * config.memory_layers for n in tokens.values()]
    return stacks + memory


def crossmodal_part(n: int, s: int, d: int) -> cost.Part:
    """Return the cost of a block of n tokens that attends to s tokens; its MLP is 4d wide."""
    return cost.cross_attention(n, s, d) + cost.norm(d) + cost.mlp(n, d, hidden=4 * d)


def residual_part(d: int) -> cost.Part:
    """Return the cost of the head's two layers; the paper does not count heads."""
    return cost.linear(d, d) * 2


MODELS = {
    "mult": ModelEntry(config=MulTConfig, build=MulT, cost=mult_cost, paper=SFT_PAPER),
    "mult_original": ModelEntry(
        config=MulTOriginalConfig, build=MulTOriginal, cost=mult_original_cost, paper=MULT_PAPER
    ),
}
