"""Fewer tokens by pooling. Shapes: B batch, n tokens, k pooled tokens, s stride, D width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sftsearch.trainables.layers.tokens import FUSED, Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping


def pooled_count(num_tokens: int, stride: int) -> int:
    """Return how many tokens are left: floor(n / s), at least one."""
    return max(1, num_tokens // stride)


def pool(x: Tensor, stride: int, kind: str) -> Tensor:
    """Pool windows of `stride` tokens that do not overlap, channel by channel.

    Shape: (B, n, D) -> (B, k, D). Tokens behind the last whole window are left out; with
    s >= n all tokens are one window.
    """
    stride = min(stride, x.shape[1])
    if stride == 1:
        return x
    count = pooled_count(x.shape[1], stride)
    windows = x[:, : count * stride].unflatten(1, (count, stride))
    pooled: Tensor = windows.mean(dim=2) if kind == "average" else windows.amax(dim=2)
    return pooled


class PoolAndFuse(nn.Module):
    """`[sum_m cls_m; pool(z_1); ...; pool(z_M)]`: the fused sequence (SFT paper, sec. 3.3).

    Shape: {modality: (B, 1 + n, D)} -> {FUSED: (B, 1 + sum k, D)}.
    """

    def __init__(self, strides: Mapping[str, int], kind: str) -> None:
        super().__init__()
        self.strides, self.kind = dict(strides), kind

    def forward(self, tokens: Tokens) -> Tokens:
        """Pool every modality and join what is left behind the sum of the CLS tokens."""
        cls_B1D = torch.stack([z[:, :1] for z in tokens.values()]).sum(dim=0)
        pooled = [pool(tokens[name][:, 1:], s, self.kind) for name, s in self.strides.items()]
        return {FUSED: torch.cat([cls_B1D, *pooled], dim=1)}
