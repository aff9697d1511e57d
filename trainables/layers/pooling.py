"""Pool tokens. Shapes: B batch, n tokens without CLS, k pooled tokens, D width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sftsearch.trainables.layers.tokens import FUSED, Sequence, Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.trainables.token_windows import Windows


class Pool(nn.Module):
    """Pool the valid tokens of each window to one token, channel by channel.

    `average`, `max`, or `attention`: the mean weighted by the attention that each token received
    (SFT paper, eq. 12, with column sums: the row sums of softmax weights that it prints are 1 for
    every token). A window whose tokens received none is averaged.

    Shape: a sequence (B, 1 + n, D) -> (B, k, D) and its mask (B, k), without the CLS token. A
    window without a valid token is masked.
    """

    index: Tensor | None
    inside: Tensor | None

    def __init__(self, windows: Windows, kind: str, *, eps: float = 0.0) -> None:
        """Prepare the windows.

        Args:
            windows: that tokens are pooled in.
            kind: average, max or attention.
            eps: of `attention`: added to the mean of a window's weights, each itself a mean over
                the n queries, before the division.
        """
        super().__init__()
        self.windows, self.kind, self.eps = windows, kind, eps
        index, inside = windows.index()
        even = all(inside)
        self.register_buffer("index", None if even else torch.tensor(index), persistent=False)
        self.register_buffer(
            "inside",
            None if even else torch.tensor(inside).view(windows.count, -1),
            persistent=False,
        )

    def forward(self, sequence: Sequence) -> tuple[Tensor, Tensor | None]:
        """Pool all tokens except CLS."""
        z, valid = sequence.z[:, 1:], sequence.valid
        if valid is not None:
            valid = valid[:, 1:]
        if self.windows.count == self.windows.num_tokens:
            return z, valid
        x_BksD, inside = self._cut(z), self.inside
        if valid is not None:
            in_window = self._cut(valid)
            inside = in_window if inside is None else in_window & inside
        if self.kind == "max":
            pooled = _highest(x_BksD, inside)
        elif self.kind == "attention":
            assert sequence.received is not None, "attention pooling must follow attention"
            queries = self.windows.num_tokens if valid is None else valid.sum(dim=1)[:, None]
            weights, eps = self._cut(sequence.received), self.eps * queries
            pooled = _weighted_mean(x_BksD, inside, weights, eps)
        else:
            pooled = _mean(x_BksD, inside)
        return pooled, None if valid is None or inside is None else inside.any(dim=-1)

    def _cut(self, x: Tensor) -> Tensor:
        """Cut (B, n, ...) into windows, (B, k, s, ...); short windows repeat a token."""
        windows = self.windows
        if self.index is None:
            x = x[:, : windows.count * windows.longest]
        else:
            x = x.index_select(1, self.index)
        cut: Tensor = x.unflatten(1, (windows.count, windows.longest))
        return cut


def _highest(x: Tensor, inside: Tensor | None) -> Tensor:
    if inside is None:
        return x.amax(dim=2)
    hidden = ~inside.unsqueeze(-1)
    highest = x.masked_fill(hidden, torch.finfo(x.dtype).min).amax(dim=2)
    return highest.masked_fill(hidden.all(dim=-2), 0.0)


def _mean(x: Tensor, inside: Tensor | None) -> Tensor:
    if inside is None:
        return x.mean(dim=2)
    total = inside.sum(dim=-1, keepdim=True).clamp(min=1)  # an empty window has none
    return (x * (inside / total).unsqueeze(-1)).sum(dim=2)


def _weighted_mean(
    x: Tensor, inside: Tensor | None, weights: Tensor, eps: float | Tensor
) -> Tensor:
    """Average by weights (B, k, s); `eps`, one number or (B, 1), is added to their mean."""
    equal = torch.ones_like(weights) if inside is None else inside.to(weights.dtype)
    weights = weights * equal
    weights = weights.where(weights.sum(dim=-1, keepdim=True) > 0, equal)
    total = weights.sum(dim=-1) + eps * equal.sum(dim=-1)
    total = total.where(total > 0, 1.0)  # an empty window
    return (x * (weights / total.unsqueeze(-1)).unsqueeze(-1)).sum(dim=2)


class PoolEach(nn.Module):
    """Pool every sequence and keep its CLS token: {m: (B, 1 + n, D)} -> {m: (B, 1 + k, D)}."""

    def __init__(self, windows: Mapping[str, Windows], kind: str, *, eps: float = 0.0) -> None:
        """Create one `Pool` for each sequence."""
        super().__init__()
        self.names = tuple(windows)
        self.pools = nn.ModuleList([Pool(one, kind, eps=eps) for one in windows.values()])

    def forward(self, tokens: Tokens) -> Tokens:
        """Pool the sequences."""
        pooled = {}
        for name, pool in zip(self.names, self.pools, strict=True):
            z, valid = pool(tokens[name])
            pooled[name] = _prepend_cls(tokens[name].z[:, :1], [z], [valid])
        return pooled


class PoolAndFuse(nn.Module):
    """`[sum_m cls_m; pool(z_1); ...; pool(z_M)]`: the fused sequence (SFT paper, sec. 3.3).

    Shape: {modality: (B, 1 + n, D)} -> {FUSED: (B, 1 + sum k, D)}.
    """

    def __init__(self, windows: Mapping[str, Windows], kind: str, *, eps: float = 0.0) -> None:
        """Create one `Pool` for each sequence."""
        super().__init__()
        self.names = tuple(windows)
        self.pools = nn.ModuleList([Pool(one, kind, eps=eps) for one in windows.values()])

    def forward(self, tokens: Tokens) -> Tokens:
        """Pool every modality and join the results after the sum of the CLS tokens."""
        cls_B1D = torch.stack([sequence.z[:, :1] for sequence in tokens.values()]).sum(dim=0)
        pooled = [pool(tokens[name]) for name, pool in zip(self.names, self.pools, strict=True)]
        parts, masks = [z for z, _ in pooled], [valid for _, valid in pooled]
        return {FUSED: _prepend_cls(cls_B1D, parts, masks)}


def _prepend_cls(cls_B1D: Tensor, parts: list[Tensor], masks: list[Tensor | None]) -> Sequence:
    """Join parts (B, k, D) and their masks after a CLS token."""
    return Sequence(
        torch.cat([cls_B1D, *parts], dim=1), join_masks([None, *masks], [cls_B1D, *parts])
    )


def join_masks(masks: list[Tensor | None], parts: list[Tensor]) -> Tensor | None:
    """Return the mask of joined parts (B, k, D); None if no part has a mask."""
    if all(mask is None for mask in masks):
        return None
    whole = [
        z.new_ones(z.shape[:2], dtype=torch.bool) if mask is None else mask
        for mask, z in zip(masks, parts, strict=True)
    ]
    return torch.cat(whole, dim=1)
