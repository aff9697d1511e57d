"""SFT and SFT-PO: Sparse Fusion for Multimodal Transformers.

Source: Ding, Rich, Wang, Stier, Turk, Sen, Höllerer 2021, arXiv:2111.11992.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, check_choice, check_integer
from sftsearch.trainables.layers.blocks import AttentionBlock, Each
from sftsearch.trainables.layers.pooling import PoolAndFuse
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry, block_layers
from sftsearch.trainables.pooling_config import MidFusionConfig
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
    window: int | Literal["auto"] = 32
    """Consecutive tokens that attend to each other; the stride of `strided`. `auto`: the square
    root of a modality's tokens, rounded."""
    summary: int = 8
    """Tokens before the last of each window that all tokens attend to, besides that one, in
    `fixed`."""
    pooling_weights: Literal["unimodal", "sparse"] = "unimodal"
    """Layer whose attention weights the tokens in `pooling: attention`: the last unimodal layer
    (the paper, eq. 12) or the sparse layer (its code)."""
    cls_sum: Literal["before_sparse", "after_sparse"] = "before_sparse"
    """Sum the CLS tokens as they are before the sparse layer (the paper, eq. 5 and figure 1) or
    after it (its code)."""

    def __post_init__(self) -> None:
        MidFusionConfig.__post_init__(self)  # super() does not work in a class with slots
        check_choice("sparse_attention", self.sparse_attention, ("strided", "fixed", "dense"))
        if self.window != "auto":
            check_integer("window", self.window, at_least=2)
            self._check_summary(self.window)
        check_integer("summary", self.summary, at_least=1)
        check_choice("pooling_weights", self.pooling_weights, ("unimodal", "sparse"))
        check_choice("cls_sum", self.cls_sum, ("before_sparse", "after_sparse"))

    def _check_summary(self, window: int) -> None:
        if self.sparse_attention == "fixed" and self.summary >= window:
            got = f"summary={self.summary}, window={window}"
            raise ConfigError(
                f"`summary` must be less than `window`, but got ({got}).", "summary", "window"
            )

    def patterns(self, spec: DatasetSpec) -> dict[str, Pattern | None]:
        """Return the pattern of the sparse layer of each modality used; None: dense.

        Raises:
            ConfigError: the configuration does not fit the dataset.
        """
        return {name: self._pattern(1 + n) for name, n in self.num_tokens(spec).items()}

    def _pattern(self, tokens: int) -> Pattern | None:
        if self.sparse_attention == "dense":
            return None
        window = max(2, round(tokens**0.5)) if self.window == "auto" else self.window
        pattern = Pattern(self.sparse_attention, window, self.summary)
        if pattern.is_dense(tokens):
            return None
        self._check_summary(window)
        return pattern

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: within one window every pattern is dense."""
        same: Self = MidFusionConfig.canonical(self, spec)
        if same.pooling != "attention":
            same = dataclasses.replace(same, pooling_weights="unimodal")
        windows = {pattern.window for pattern in self.patterns(spec).values() if pattern}
        if not windows:
            return dataclasses.replace(same, sparse_attention="dense", window=32, summary=8)
        if len(windows) == 1:  # also if it is the same number for all that `auto` gives
            same = dataclasses.replace(same, window=windows.pop())
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
                    pattern=pattern,
                    report_received=pools_by_sparse(spec, config),
                    keep_cls=config.cls_sum == "before_sparse",
                )
                for name, pattern in config.patterns(spec).items()
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
    check_attention(spec, config)
    by_attention = pools_by_attention(spec, config) and not pools_by_sparse(spec, config)
    return [
        *block_layers(
            config, config.chosen(spec), config.unimodal_layers, report_received=by_attention
        ),
        *([] if sparse is None else [sparse]),
        PoolAndFuse(config.windows(spec), config.pooling, eps=config.pooling_eps),
        *block_layers(config, [FUSED], config.fused_layers),
    ]


def pools_by_attention(spec: DatasetSpec, config: MidFusionConfig) -> bool:
    """Return whether a layer must return the attention that tokens receive, for pooling."""
    return config.pooling == "attention" and pools(config.windows(spec).values())


def pools_by_sparse(spec: DatasetSpec, config: MidFusionConfig) -> bool:
    """Return whether the layer that returns the attention received is the sparse one."""
    from_sparse = isinstance(config, SFTConfig) and config.pooling_weights == "sparse"
    return from_sparse and pools_by_attention(spec, config)


def check_attention(spec: DatasetSpec, config: MidFusionConfig) -> None:
    """Raise ConfigError if attention pooling has no layer that gives the weights."""
    has_layer = config.unimodal_layers > 0 or pools_by_sparse(spec, config)
    if not has_layer and pools_by_attention(spec, config):
        remedy = " Or set `pooling_weights: sparse`." if isinstance(config, SFTConfig) else ""
        raise ConfigError(
            "`pooling: attention` needs a unimodal layer before it, but got (unimodal_layers=0)."
            f"{remedy}",
            "pooling",
        )


def sft_cost(spec: DatasetSpec, config: SFTConfig) -> cost.Cost:
    """Return the cost of SFT; its sparse layer is 4nd^2 + 2pd for p attended pairs (dense: n^2)."""
    check_attention(spec, config)
    tokens, reports = config.num_tokens(spec), pools_by_sparse(spec, config)
    sparse = [
        cost.attention(n + 1, config.dim, priced=n, pattern=pattern, reports=reports)
        for n, pattern in zip(tokens.values(), config.patterns(spec).values(), strict=True)
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
