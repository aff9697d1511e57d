"""Configuration of transformers that pool tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from sftsearch.trainables.config import (
    ConfigError,
    TransformerConfig,
    by_modality,
    check_by_modality,
    check_choice,
    check_integer,
    check_number,
)
from sftsearch.trainables.token_windows import Windows, pools, windows_of_stride

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolingConfig(TransformerConfig):
    """Fields of transformers that pool tokens: by stride, by budget, or not at all (neither)."""

    stride: int | Mapping[str, int] | None = None
    """Consecutive tokens that are pooled to one; the last, incomplete window is dropped (as in the
    paper). One value for all modalities, or one per modality."""
    tokens: int | Mapping[str, int] | None = None
    """Token budget: tokens left of each modality, or all of them if it has fewer; windows differ
    by at most one token, and no token is dropped. One value for all, or one per modality."""
    pooling: Literal["average", "max", "attention"] = "average"
    """`attention` weights each token by the attention it received in the last unimodal layer."""
    pooling_eps: float = 0.0
    """Added to the mean weight of a window in `pooling: attention`, which makes the pooled token
    smaller. 0: the exact weighted mean (the paper); its code has 1e-5."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_choice("pooling", self.pooling, ("average", "max", "attention"))
        check_number("pooling_eps", self.pooling_eps, least=0, below=math.inf)
        if self.stride is not None and self.tokens is not None:
            got = f"stride={self.stride}, tokens={self.tokens}"
            raise ConfigError(
                f"Only one of `stride` and `tokens` may be set, but got ({got}).",
                "stride",
                "tokens",
            )
        for name in ("stride", "tokens"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_by_modality(name, getattr(self, name)))

    def num_pooled_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the tokens of each pooled sequence, without CLS."""
        return self.num_tokens(spec)

    def windows(self, spec: DatasetSpec) -> dict[str, Windows]:
        """Return the pooling windows of each modality used.

        One stride for all may be longer than some modalities, which then keep a single token
        (SFT paper, Table 3, pools 38 tokens with stride 64), but not longer than all of them.

        Raises:
            ConfigError: a stride is longer than its sequence, a modality has no value, or a value
                has an unknown modality.
        """
        tokens = self.num_pooled_tokens(spec)
        if self.stride is None:
            budgets = by_modality("tokens", self.tokens, tokens, spec)
            return {m: Windows(n, min(budgets.get(m, n), n)) for m, n in tokens.items()}
        strides = by_modality("stride", self.stride, tokens, spec)
        for name, stride in strides.items():
            if isinstance(self.stride, Mapping):
                _check_stride(f"stride.{name}", stride, tokens[name])
            else:
                _check_stride("stride", stride, max(tokens.values()))
        return {m: windows_of_stride(n, strides[m]) for m, n in tokens.items()}

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: a stride that drops no token becomes a budget."""
        windows = self.windows(spec)
        exact = all(one.stride is None for one in windows.values())
        longest = {name: one.longest for name, one in windows.items()}
        pooling = self.pooling if pools(windows.values()) else "average"
        return dataclasses.replace(
            TransformerConfig.canonical(self, spec),
            tokens={name: one.count for name, one in windows.items()} if exact else None,
            stride=None if exact else longest,
            pooling=pooling,
            pooling_eps=self.pooling_eps if pooling == "attention" else 0.0,
        )


def _check_stride(name: str, stride: int, tokens: int) -> None:
    if stride > tokens:
        raise ConfigError(
            f"`{name}` must not be longer than the tokens it pools, but got (stride={stride}, "
            f"tokens={tokens}). Stride {tokens} already leaves one token.",
            name,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MidFusionConfig(PoolingConfig):
    """Fields of mid-fusion transformers: unimodal layers, pooling, fused layers."""

    unimodal_layers: int = 1
    """Layers of each modality before pooling."""
    fused_layers: int = 11
    """Layers on the pooled tokens."""

    def __post_init__(self) -> None:
        PoolingConfig.__post_init__(self)
        check_integer("unimodal_layers", self.unimodal_layers, at_least=0)
        check_integer("fused_layers", self.fused_layers, at_least=1)
