"""Fusion of one vector per modality: Concat+FC, TFN, LMF and multiplicative interactions.

Each modality has its own layers, as in late fusion; its vector is its normed CLS token. The models
differ in the hidden layer that fuses the vectors; ReLU and a linear layer follow.

- `concat_fc`: a fully connected layer on the concatenation, a baseline in the tables of MSAF.
- `tfn`: a fully connected layer on the outer product of all [1; z_m].
- `lmf`: the same with a low-rank weight.
- `mi_matrix`: a bilinear map of two modalities.

To compare only the fusion, all models use the tokens and blocks of Ding et al. 2021,
arXiv:2111.11992, instead of the papers' encoders (LSTMs, convolutions). Early fusion, where every
token attends to every other, is `concat`.

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
"""Largest width of the outer product of `tfn`: 8.4 million weights at 128 hidden units, and 128 MiB
for the products of 512 samples in evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodersConfig(TransformerConfig):
    """Fields of models that encode each modality separately."""

    num_layers: int = 12
    """Layers of each modality."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)


def encoders(spec: DatasetSpec, config: EncodersConfig) -> list[nn.Module]:
    """Return the layers of each modality."""
    return block_layers(config, config.chosen(spec), config.num_layers)


def encoder_parts(spec: DatasetSpec, config: EncodersConfig) -> list[cost.Part]:
    """Return the cost of the encoders and the tokenizer: n tokens a modality."""
    tokens = config.num_tokens(spec).values()
    blocks = [cost.block(n + 1, config.dim, priced=n) * config.num_layers for n in tokens]
    return [cost.tokenizer(spec, config), *blocks]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcatFCConfig(EncodersConfig):
    """Concat+FC: a hidden layer on the concatenated vectors."""

    hidden_dim: int = 128
    """Width of the fusing hidden layer."""

    def __post_init__(self) -> None:
        EncodersConfig.__post_init__(self)
        check_integer("hidden_dim", self.hidden_dim, at_least=1)

    def widths(self, spec: DatasetSpec) -> list[int]:
        """Return the width of each modality's vector; raise ConfigError if they cannot be fused."""
        return [self.dim for _ in self.num_tokens(spec)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TFNConfig(ConcatFCConfig):
    """Tensor fusion network: a hidden layer on the outer product of the vectors."""

    factor_dim: int | None = 8
    """Width that the vectors are projected to; None: no projection. The product is
    (width + 1) ** modalities wide."""

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
            f"(factor_dim={self.factor_dim}, dim={self.dim}). {remedy}.",
            "factor_dim",
            "dim",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LMFConfig(ConcatFCConfig):
    """Low-rank multimodal fusion."""

    rank: int = 4
    """Rank of the weight tensor's decomposition."""

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
                f"{', '.join(names)}. Choose two, or use `tfn` or `lmf`, which take any number.",
                "modalities",
            )
        return [self.dim, self.dim]


class VectorFusion(FusionModel):
    """Separate layers for each modality, then a head that fuses their vectors."""

    def __init__(
        self,
        spec: DatasetSpec,
        config: ConcatFCConfig,
        fusion: nn.Module,
        *,
        width: int | None = None,
    ) -> None:
        """Assemble the model.

        Args:
            spec: the dataset.
            config: the configuration.
            fusion: maps the vectors to (B, H).
            width: width that the vectors are projected to; None: no projection.
        """
        vectors = ClsVectors(config.chosen(spec), config.dim, width=width)
        head = FusedHead(vectors, fusion, config.hidden_dim, spec.num_outputs, rate=config.dropout)
        super().__init__(spec, config, encoders(spec, config), head=head)


class ConcatFC(VectorFusion):
    """Fusion by concatenation."""

    def __init__(self, spec: DatasetSpec, config: ConcatFCConfig) -> None:
        super().__init__(spec, config, ConcatFusion(config.widths(spec), config.hidden_dim))


class TFN(VectorFusion):
    """Fusion by the outer product."""

    def __init__(self, spec: DatasetSpec, config: TFNConfig) -> None:
        fusion = TensorFusion(config.widths(spec), config.hidden_dim)
        super().__init__(spec, config, fusion, width=config.factor_dim)


class LMF(VectorFusion):
    """Fusion by low-rank factors."""

    def __init__(self, spec: DatasetSpec, config: LMFConfig) -> None:
        fusion = LowRankFusion(config.widths(spec), config.hidden_dim, rank=config.rank)
        super().__init__(spec, config, fusion)


class MIMatrix(VectorFusion):
    """Fusion by a bilinear map."""

    def __init__(self, spec: DatasetSpec, config: MIMatrixConfig) -> None:
        super().__init__(spec, config, MatrixFusion(config.widths(spec), config.hidden_dim))


def fused_parts(spec: DatasetSpec, config: ConcatFCConfig, fusion: cost.Part) -> list[cost.Part]:
    """Return the cost of a model with this cost of its fusion.

    The SFT paper does not count heads, but the fusion is counted: it is all that distinguishes
    these models.
    """
    modalities = len(config.chosen(spec))
    return [
        *encoder_parts(spec, config),
        cost.norm(config.dim) * modalities,
        fusion,
        cost.linear(config.hidden_dim, spec.num_outputs),
    ]


def priced(macs: int, parameters: int) -> cost.Part:
    """Return the cost of a fusion; `flops` count all its multiply-adds."""
    return cost.Part(macs, macs, parameters)


def concat_part(widths: list[int], hidden: int) -> cost.Part:
    """Return the cost of `ConcatFusion`, sum(d) H."""
    return priced(sum(widths) * hidden, (sum(widths) + 1) * hidden)


def concat_fc_cost(spec: DatasetSpec, config: ConcatFCConfig) -> cost.Cost:
    """Return the cost of Concat+FC."""
    fusion = concat_part(config.widths(spec), config.hidden_dim)
    return cost.total(fused_parts(spec, config, fusion))


def tfn_cost(spec: DatasetSpec, config: TFNConfig) -> cost.Cost:
    """Return the cost of TFN: projections, M D d, and hidden layer, prod(1 + d) H."""
    widths = config.widths(spec)
    products = prod(1 + d for d in widths)
    fusion = priced(products * config.hidden_dim, (products + 1) * config.hidden_dim)
    if config.factor_dim is not None:
        d, width = config.dim, config.factor_dim
        fusion += priced(d * width, (d + 1) * width) * len(widths)
    return cost.total(fused_parts(spec, config, fusion))


def lmf_cost(spec: DatasetSpec, config: LMFConfig) -> cost.Cost:
    """Return the cost of LMF: sum(1 + d) R H; products of modalities are element-wise."""
    widths = config.widths(spec)
    factors = sum(1 + d for d in widths) * config.rank * config.hidden_dim
    fusion = priced(factors, factors + config.rank + config.hidden_dim)
    return cost.total(fused_parts(spec, config, fusion))


def mi_matrix_cost(spec: DatasetSpec, config: MIMatrixConfig) -> cost.Cost:
    """Return the cost of MI-Matrix: (d_1 d_2 + d_2 + d_1) H."""
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
