"""Fusion of one vector a modality: Concat+FC, TFN, LMF and multiplicative interactions.

Each modality has layers of its own, as in late fusion; its vector is its CLS token, normed. What
they differ in is the hidden layer that fuses the vectors; a linear layer on its ReLU classifies.

- `concat_fc`: a fully connected layer on the concatenation, a baseline in the tables of MSAF.
- `tfn`: one on the outer product of all [1; z_m].
- `lmf`: the same with a weight of low rank.
- `mi_matrix`: a bilinear map of two modalities.

The papers' encoders (LSTMs, convolutions) are not theirs alone to compare, so all models here
share the tokens and blocks of Ding et al. 2021, arXiv:2111.11992. Early fusion, where every token
meets every other one, is `concat`.

Shapes: d width of a vector, M modalities, H width of the hidden layer, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, TransformerConfig, check_integer
from sftsearch.trainables.layers.tensor_fusion import (
    ClsVectors,
    ConcatFusion,
    FusedHead,
    LowRankFusion,
    MatrixFusion,
    TensorFusion,
)
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry, block_layers

if TYPE_CHECKING:
    from torch import nn

    from sftsearch.datasets.spec import DatasetSpec

MSAF_PAPER = "Su et al. 2020, MSAF: Multimodal Split Attention Fusion, arXiv:2012.07175"
TFN_PAPER = (
    "Zadeh et al. 2017, Tensor Fusion Network for Multimodal Sentiment Analysis, arXiv:1707.07250"
)
LMF_PAPER = (
    "Liu et al. 2018, Efficient Low-rank Multimodal Fusion with Modality-Specific Factors, "
    "arXiv:1806.00064"
)
MI_PAPER = (
    "Jayakumar et al. 2020, Multiplicative Interactions and Where to Find Them, ICLR; as fusion of "
    "modalities: Liang et al. 2021, MultiBench, arXiv:2107.07502"
)

MOST_PRODUCTS = 65_536
"""Widest outer product of `tfn`: with 128 hidden units 8.4 million weights, and 128 MiB to hold
the products of an evaluation's 512 samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodersConfig(TransformerConfig):
    """What the models share whose modalities have nothing but layers of their own."""

    num_layers: int = 12
    """Layers of each modality."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)


def encoders(spec: DatasetSpec, config: EncodersConfig) -> list[nn.Module]:
    """Return the layers of each modality."""
    return block_layers(config, config.chosen(spec), config.num_layers)


def encoder_parts(spec: DatasetSpec, config: EncodersConfig) -> list[cost.Part]:
    """Price them and the tokenizer: n tokens a modality."""
    tokens = config.num_tokens(spec).values()
    blocks = [cost.block(n + 1, config.dim, priced=n) * config.num_layers for n in tokens]
    return [cost.tokenizer(spec, config), *blocks]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcatFCConfig(EncodersConfig):
    """Concat+FC: a hidden layer on the concatenated vectors."""

    hidden_dim: int = 128
    """Width of the hidden layer, which fuses."""

    def __post_init__(self) -> None:
        EncodersConfig.__post_init__(self)
        check_integer("hidden_dim", self.hidden_dim, at_least=1)

    def widths(self, spec: DatasetSpec) -> list[int]:
        """Return the width of each modality's vector, and refuse what cannot be fused."""
        return [self.dim for _ in self.num_tokens(spec)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TFNConfig(ConcatFCConfig):
    """Tensor fusion network: a hidden layer on the outer product of the vectors."""

    factor_dim: int | None = 8
    """Width that the vectors are projected to, since the product is (width + 1) ** modalities
    wide; None: no projection."""

    def __post_init__(self) -> None:
        ConcatFCConfig.__post_init__(self)
        if self.factor_dim is not None:
            check_integer("factor_dim", self.factor_dim, at_least=1)

    def widths(self, spec: DatasetSpec) -> list[int]:
        """See `ConcatFCConfig.widths`: the outer product must be at most `MOST_PRODUCTS` wide."""
        width = self.factor_dim or self.dim
        widths = [width for _ in self.num_tokens(spec)]
        products = prod(1 + d for d in widths)
        if products <= MOST_PRODUCTS:
            return widths
        most = max(d for d in range(width) if (1 + d) ** len(widths) <= MOST_PRODUCTS)
        remedy = f"Set `factor_dim` to at most {most}" if most else "Choose fewer modalities"
        raise ConfigError(
            f"The outer product of `tfn` must be at most {MOST_PRODUCTS:,} wide, but "
            f"{len(widths)} modalities of width {width} make {products:,} products "
            f"(factor_dim={self.factor_dim}, dim={self.dim}). {remedy}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LMFConfig(ConcatFCConfig):
    """Low-rank multimodal fusion."""

    rank: int = 4
    """Terms of the weight tensor's decomposition."""

    def __post_init__(self) -> None:
        ConcatFCConfig.__post_init__(self)
        check_integer("rank", self.rank, at_least=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class MIMatrixConfig(ConcatFCConfig):
    """Multiplicative interactions in matrix form, of two modalities."""

    def widths(self, spec: DatasetSpec) -> list[int]:
        """See `ConcatFCConfig.widths`: there must be two modalities."""
        names = tuple(self.num_tokens(spec))
        if len(names) != 2:
            raise ConfigError(
                f"`modalities` of `mi_matrix` must be exactly two, but got {len(names)}: "
                f"{', '.join(names)}. Name two; `tfn` and `lmf` take any number."
            )
        return [self.dim, self.dim]


class VectorFusion(FusionModel):
    """Layers of each modality on its own, then a head that fuses their vectors."""

    def __init__(
        self,
        spec: DatasetSpec,
        config: ConcatFCConfig,
        fusion: nn.Module,
        *,
        width: int | None = None,
    ) -> None:
        """Put the model together.

        Args:
            spec: the data set.
            config: the configuration.
            fusion: from the vectors to (B, H).
            width: that the vectors are projected to; None: they are not.
        """
        vectors = ClsVectors(config.chosen(spec), config.dim, width=width)
        head = FusedHead(vectors, fusion, config.hidden_dim, spec.num_outputs, rate=config.dropout)
        super().__init__(spec, config, encoders(spec, config), head=head)


class ConcatFC(VectorFusion):
    """Fuses by concatenation."""

    def __init__(self, spec: DatasetSpec, config: ConcatFCConfig) -> None:
        super().__init__(spec, config, ConcatFusion(config.widths(spec), config.hidden_dim))


class TFN(VectorFusion):
    """Fuses by the outer product."""

    def __init__(self, spec: DatasetSpec, config: TFNConfig) -> None:
        fusion = TensorFusion(config.widths(spec), config.hidden_dim)
        super().__init__(spec, config, fusion, width=config.factor_dim)


class LMF(VectorFusion):
    """Fuses by low-rank factors."""

    def __init__(self, spec: DatasetSpec, config: LMFConfig) -> None:
        fusion = LowRankFusion(config.widths(spec), config.hidden_dim, rank=config.rank)
        super().__init__(spec, config, fusion)


class MIMatrix(VectorFusion):
    """Fuses by a bilinear map."""

    def __init__(self, spec: DatasetSpec, config: MIMatrixConfig) -> None:
        super().__init__(spec, config, MatrixFusion(config.widths(spec), config.hidden_dim))


def fused_parts(spec: DatasetSpec, config: ConcatFCConfig, fusion: cost.Part) -> list[cost.Part]:
    """Price a model whose fusion costs that.

    The SFT paper prices no head; what fuses is priced here all the same, or the models would
    differ in nothing.
    """
    modalities = len(config.chosen(spec))
    return [
        *encoder_parts(spec, config),
        cost.norm(config.dim) * modalities,
        fusion,
        cost.linear(config.hidden_dim, spec.num_outputs),
    ]


def priced(macs: int, parameters: int) -> cost.Part:
    """Price what fuses: its multiply-adds are the paper's operations, too."""
    return cost.Part(macs, macs, parameters)


def concat_part(widths: list[int], hidden: int) -> cost.Part:
    """Price `ConcatFusion`, sum(d) H."""
    return priced(sum(widths) * hidden, (sum(widths) + 1) * hidden)


def concat_fc_cost(spec: DatasetSpec, config: ConcatFCConfig) -> cost.Cost:
    """Price Concat+FC."""
    fusion = concat_part(config.widths(spec), config.hidden_dim)
    return cost.total(fused_parts(spec, config, fusion))


def tfn_cost(spec: DatasetSpec, config: TFNConfig) -> cost.Cost:
    """Price TFN: the projections, M D d, and the hidden layer, prod(1 + d) H."""
    widths = config.widths(spec)
    products = prod(1 + d for d in widths)
    fusion = priced(products * config.hidden_dim, (products + 1) * config.hidden_dim)
    if config.factor_dim is not None:
        d, width = config.dim, config.factor_dim
        fusion += priced(d * width, (d + 1) * width) * len(widths)
    return cost.total(fused_parts(spec, config, fusion))


def lmf_cost(spec: DatasetSpec, config: LMFConfig) -> cost.Cost:
    """Price LMF: sum(1 + d) R H; the products of the modalities are element-wise."""
    widths = config.widths(spec)
    factors = sum(1 + d for d in widths) * config.rank * config.hidden_dim
    fusion = priced(factors, factors + config.rank + config.hidden_dim)
    return cost.total(fused_parts(spec, config, fusion))


def mi_matrix_cost(spec: DatasetSpec, config: MIMatrixConfig) -> cost.Cost:
    """Price MI-Matrix: (d_1 d_2 + d_2 + d_1) H."""
    first, second = config.widths(spec)
    products = (first * second + second + first) * config.hidden_dim
    fusion = priced(products, products + config.hidden_dim)
    return cost.total(fused_parts(spec, config, fusion))


MODELS = {
    "concat_fc": ModelEntry(
        config=ConcatFCConfig, build=ConcatFC, cost=concat_fc_cost, paper=MSAF_PAPER
    ),
    "tfn": ModelEntry(config=TFNConfig, build=TFN, cost=tfn_cost, paper=TFN_PAPER),
    "lmf": ModelEntry(config=LMFConfig, build=LMF, cost=lmf_cost, paper=LMF_PAPER),
    "mi_matrix": ModelEntry(
        config=MIMatrixConfig, build=MIMatrix, cost=mi_matrix_cost, paper=MI_PAPER
    ),
}
