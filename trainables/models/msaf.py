"""MSAF: attention over the channels of all modalities.

`msaf` inserts it between the transformer layers of late fusion; `msaf_lstm` is its paper's network
for CMU-MOSEI, two LSTM layers with MSAF between them.

Source: Su et al. 2020, MSAF: Multimodal Split Attention Fusion, arXiv:2012.07175.

Notation: D width of a modality, C of a block of channels, r reduction, N blocks in all, q segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import (
    ConfigError,
    TransformerConfig,
    check_integer,
    check_number,
    check_own_tokens,
)
from sftsearch.trainables.layers.blocks import Each, dropout
from sftsearch.trainables.layers.msaf import (
    MSAF,
    SegmentedMSAF,
    msaf_macs,
    msaf_parameters,
    num_blocks,
)
from sftsearch.trainables.layers.recurrent import LSTM, last_valid, lstm_macs, lstm_parameters
from sftsearch.trainables.layers.tokens import CutSamples, Sequence, Tokenizer
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry, block_layers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens

MSAF_PAPER = "Su et al. 2020, MSAF: Multimodal Split Attention Fusion, arXiv:2012.07175"


@dataclass(frozen=True, slots=True)
class ChannelSplit:
    """How the channels of modalities are split, with all defaults resolved."""

    widths: tuple[int, ...]
    """Channels of each modality."""
    block_width: int
    """C."""
    reduction: int
    """r."""
    segments: int
    """q."""

    @property
    def num_blocks(self) -> int:
        """N."""
        return sum(num_blocks(width, self.block_width) for width in self.widths)

    def part(self) -> cost.Part:
        """Return the cost of all segments; the paper also counts norm and ReLU, but no softmax."""
        sizes = (self.block_width, self.block_width // self.reduction, self.num_blocks)
        macs = msaf_macs(*sizes)
        return cost.Part(macs + 3 * sizes[1], macs, msaf_parameters(*sizes)) * self.segments


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig(TransformerConfig):
    """Fields that all models with MSAF share."""

    block_width: int | None = None
    """Channels of a block, C; None: half of the narrowest modality's (the paper's rule)."""
    reduction: int | None = None
    """Divisor of C in the join, r; None: the paper's, 4 for two modalities and 2 for more, but at
    most C."""
    suppression: float = 0.0
    """Smallest weight of a channel, lambda; at 1 nothing would be fused."""
    block_dropout: float = 0.2
    """Probability that a block of a sample is dropped in training."""
    segments: int = 1
    """Segments of time that are fused separately, each with its own weights. In other models this
    is the number of tokens; here that follows from `patch`."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        for name in ("block_width", "reduction"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), at_least=1)
        check_number("suppression", self.suppression, least=0, below=1)
        check_number("block_dropout", self.block_dropout, least=0, below=1)
        check_integer("segments", self.segments, at_least=1)

    @property
    def num_segments(self) -> None:
        """None: tokens are cut by `patch`."""
        return

    def widths_of(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the channels of each modality used."""
        return dict.fromkeys(self.num_tokens(spec), self.dim)

    def split(self, spec: DatasetSpec) -> ChannelSplit:
        """Resolve how channels are split.

        Raises:
            ConfigError: the sizes are incompatible.
        """
        tokens, widths = self.num_tokens(spec), tuple(self.widths_of(spec).values())
        width = self.block_width or max(1, min(widths) // 2)
        reduction = self.reduction or min(2 if len(widths) > 2 else 4, width)
        if width > max(widths):
            got = f"block_width={width}, widest modality: {max(widths)}"
            message = f"`block_width` must not exceed the widest modality, but got ({got})."
            raise ConfigError(message, "block_width")
        if reduction > width:
            got = f"reduction={reduction}, block_width={width}"
            message = f"`reduction` must be at most `block_width`, but got ({got})."
            raise ConfigError(message, "reduction", "block_width")
        found = ChannelSplit(widths, width, reduction, self.segments)
        if found.num_blocks == 1:
            raise ConfigError(
                f"MSAF needs at least two blocks, but got (block_width={width}, one modality of "
                f"width {width}). Choose a smaller `block_width` or add a modality.",
                "block_width",
            )
        if self.segments > min(tokens.values()):
            got = f"segments={self.segments}, {min(tokens, key=tokens.__getitem__)} has "
            raise ConfigError(
                "`segments` must be at most the tokens of a modality, but got "
                f"({got}{min(tokens.values())} tokens).",
                "segments",
            )
        return found

    def resolved(self, spec: DatasetSpec) -> dict[str, Any]:
        """Return `block_width` and `reduction` resolved; r is the largest with the same effect."""
        split = self.split(spec)
        reduction = split.block_width // (split.block_width // split.reduction)
        return {"block_width": split.block_width, "reduction": reduction}


def msaf_module(split: ChannelSplit, config: SplitConfig, *, shared: int) -> SegmentedMSAF:
    """Return the MSAFs of all segments; `shared`: leading tokens that all segments read."""
    return SegmentedMSAF(
        [
            MSAF(
                split.widths,
                block_width=split.block_width,
                reduction=split.reduction,
                suppression=config.suppression,
                block_dropout=config.block_dropout,
            )
            for _ in range(split.segments)
        ],
        shared=shared,
    )


class ChannelFusion(nn.Module):
    """Fuse the channels of all sequences; tokens are the positions.

    CLS tokens are pooled with the other tokens and scaled by the same gains.

    Shape: {m: (B, T_m, D_m)} -> the same.
    """

    def __init__(self, fusion: nn.Module) -> None:
        """Set the module; it maps features [(B, D_m, T_m)] and masks [(B, T_m)] to features."""
        super().__init__()
        self.fusion = fusion

    def forward(self, tokens: Tokens) -> Tokens:
        """Scale the channels."""
        features = [sequence.z.transpose(1, 2) for sequence in tokens.values()]
        masks = [sequence.valid for sequence in tokens.values()]
        weighed = zip(tokens, self.fusion(features, masks), masks, strict=True)
        return {name: Sequence(x.transpose(1, 2), valid) for name, x, valid in weighed}


# --------------------------------------------------------------- on tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class MSAFConfig(SplitConfig):
    """Late fusion with MSAF after some of its layers."""

    num_layers: int = 12
    """Layers of each modality."""
    fusion_layers: tuple[int, ...] | None = None
    """Layers that MSAF follows, from 1; empty: late fusion. None: the last two, as in the paper's
    networks for video."""

    def __post_init__(self) -> None:
        SplitConfig.__post_init__(self)
        check_integer("num_layers", self.num_layers, at_least=1)
        if self.fusion_layers is not None:
            checked = check_placement(self.fusion_layers, self.num_layers)
            object.__setattr__(self, "fusion_layers", checked)

    @property
    def placement(self) -> tuple[int, ...]:
        """The layers that MSAF follows."""
        return placement(self.fusion_layers, self.num_layers)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: late fusion does not read the fields of MSAF."""
        same = dataclasses.replace(
            TransformerConfig.canonical(self, spec), fusion_layers=self.placement
        )
        if self.placement:
            return dataclasses.replace(same, **self.resolved(spec))
        return dataclasses.replace(
            same, block_width=None, reduction=None, suppression=0.0, block_dropout=0.2, segments=1
        )


def check_placement(layers: Any, num_layers: int) -> tuple[int, ...]:
    """Return the layer numbers sorted; raise ConfigError if one is invalid or repeated."""
    if not isinstance(layers, list | tuple):
        raise ConfigError(
            f"`fusion_layers` must be a list of layers, but got {layers!r}.", "fusion_layers"
        )
    for layer in layers:
        check_integer("fusion_layers", layer, at_least=1)
        if layer > num_layers:
            got = f"fusion_layers={list(layers)}, num_layers={num_layers}"
            message = f"`fusion_layers` must be at most `num_layers`, but got ({got})."
            raise ConfigError(message, "fusion_layers", "num_layers")
    if len(set(layers)) < len(layers):
        raise ConfigError(
            f"`fusion_layers` must be distinct layers, but got {list(layers)}.", "fusion_layers"
        )
    return tuple(sorted(layers))


def placement(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """Return the layers that a fusion module follows: those given, or the last two."""
    return tuple(range(max(num_layers - 1, 1), num_layers + 1)) if layers is None else layers


class MSAFTransformer(FusionModel):
    """Layers of each modality, MSAF after some; one head for all, its logits summed.

    Each segment also reads the CLS tokens, which become the mean of the segments' results.
    """

    def __init__(self, spec: DatasetSpec, config: MSAFConfig) -> None:
        names = tuple(config.num_tokens(spec))
        split = config.split(spec) if config.placement else None
        layers: list[nn.Module] = []
        for layer in range(1, config.num_layers + 1):
            layers += block_layers(config, names, 1)
            if split and layer in config.placement:
                layers.append(ChannelFusion(msaf_module(split, config, shared=1)))
        super().__init__(spec, config, layers, readout=names)


def msaf_cost(spec: DatasetSpec, config: MSAFConfig) -> cost.Cost:
    """Return the cost of late fusion and of the modules' products, which is the same anywhere."""
    tokens = config.num_tokens(spec).values()
    fused = [config.split(spec).part() * len(config.placement)] if config.placement else []
    return cost.total(
        [
            cost.tokenizer(spec, config),
            *(cost.block(n + 1, config.dim, priced=n) * config.num_layers for n in tokens),
            *fused,
            cost.head(config.dim, spec.num_outputs, sequences=len(tokens)),
        ]
    )


# --------------------------------------------------------------- on recurrent networks


@dataclass(frozen=True, kw_only=True, slots=True)
class MSAFLSTMConfig(SplitConfig):
    """LSTM, MSAF, LSTM; on CMU-MOSEI the paper's widths are 32, 64 and 128, its segments five."""

    dim: int = 32
    """Width of every modality's LSTMs, unless `widths` is set."""
    widths: Mapping[str, int] | None = None
    """Width of the LSTMs by modality."""
    num_heads: int = 1
    """Not read: there is no attention."""
    dropout: float = 0.0
    """Dropout rate on the inputs of the last layer."""
    segments: int = 5
    """Segments of time that are fused separately, each with its own weights."""

    def __post_init__(self) -> None:
        SplitConfig.__post_init__(self)
        check_own_tokens("msaf_lstm", self.tokenizer)
        if self.widths is not None:
            if not isinstance(self.widths, Mapping):
                raise ConfigError(
                    f"`widths` must be a mapping by modality, got {self.widths!r}.", "widths"
                )
            for name, width in self.widths.items():
                check_integer(f"widths.{name}", width, at_least=1)
            object.__setattr__(self, "widths", dict(self.widths))

    def widths_of(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the width of each modality's LSTMs.

        Raises:
            ConfigError: a modality has no width, or a width has an unknown modality.
        """
        used = self.num_tokens(spec)
        if self.widths is None:
            return dict.fromkeys(used, self.dim)
        if self.widths:
            TransformerConfig(modalities=tuple(self.widths)).chosen(spec)  # raises if unknown
        for name in used:
            if name not in self.widths:
                raise ConfigError(f"`widths` has no value for '{name}', which is used.", "widths")
        return {name: self.widths[name] for name in used}

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: widths are given by modality."""
        return dataclasses.replace(
            TransformerConfig.canonical(self, spec),
            **self.resolved(spec),
            widths=self.widths_of(spec),
            dim=32,
            num_heads=1,
        )


class LastSteps(nn.Module):
    """Compute outputs from the last valid token of every modality: {m: (B, T, D_m)} -> (B, C).

    A modality without valid tokens contributes zeros.
    """

    def __init__(self, names: Iterable[str], dim: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.names, self.dropout = tuple(names), dropout
        self.linear = nn.Linear(dim, num_outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs."""
        last = torch.cat([last_valid(tokens[name]) for name in self.names], dim=1)
        outputs: Tensor = self.linear(dropout(last, self.dropout, self.training))
        return outputs


class MSAFLSTM(FusionModel):
    """Per modality two LSTMs with MSAF between them; the last states are classified.

    Manifold mixup can mix after both LSTMs.
    """

    def __init__(self, spec: DatasetSpec, config: MSAFLSTMConfig) -> None:
        split, widths = config.split(spec), config.widths_of(spec)
        features = config.sample_widths(spec)
        super().__init__(
            spec,
            config,
            [
                Each({m: LSTM(features[m], width) for m, width in widths.items()}),
                ChannelFusion(msaf_module(split, config, shared=0)),
                Each({m: LSTM(width, width) for m, width in widths.items()}),
            ],
            tokenizer=Tokenizer(spec, config, of_modality=CutSamples),
            head=LastSteps(widths, sum(split.widths), spec.num_outputs, dropout=config.dropout),
        )


def msaf_lstm_cost(spec: DatasetSpec, config: MSAFLSTMConfig) -> cost.Cost:
    """Return the cost: 4 D (F + D) multiply-adds per token and LSTM, and MSAF's products."""
    split, widths, tokens = config.split(spec), config.widths_of(spec), config.num_tokens(spec)
    samples = config.sample_widths(spec)
    parts = [split.part(), cost.linear(sum(split.widths), spec.num_outputs)]
    for name, width in widths.items():
        for features in (samples[name], width):
            macs = tokens[name] * lstm_macs(features, width)
            parts.append(cost.Part(macs, macs, lstm_parameters(features, width)))
    return cost.total(parts)


MODELS = {
    "msaf": ModelEntry(config=MSAFConfig, build=MSAFTransformer, cost=msaf_cost, paper=MSAF_PAPER),
    "msaf_lstm": ModelEntry(
        config=MSAFLSTMConfig, build=MSAFLSTM, cost=msaf_lstm_cost, paper=MSAF_PAPER
    ),
}
