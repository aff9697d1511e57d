"""Self-attention. Shapes: B batch, T tokens with CLS, D width, H heads, d = D / H."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sftsearch.trainables.layers.fused_attention import attend_fused
from sftsearch.trainables.layers.sparse_attention import (
    allowed_pairs,
    attend_sparsely,
    lowest_score,
)

if TYPE_CHECKING:
    from sftsearch.trainables.token_windows import Pattern


class SelfAttention(nn.Module):
    """Multi-head self-attention by the fused kernel, which never stores the (T, T) weights.

    Same function and initialization as `nn.MultiheadAttention`: queries, keys and values in one
    projection, all layers with bias.

    Shape: (B, T, D) -> (B, T, D), and the attention received (B, T - 1), or None.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        pattern: Pattern | None = None,
        report_received: bool = False,
    ) -> None:
        """Create the projections.

        Args:
            dim: D.
            num_heads: H.
            pattern: which pairs attend; None: all of them.
            report_received: also return how much attention each token except CLS received from
                the others; this computes and stores the weights of all pairs.
        """
        super().__init__()
        self.num_heads, self.pattern, self.report_received = num_heads, pattern, report_received
        self.in_projection = nn.Linear(dim, 3 * dim)
        self.out_projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_projection.weight)
        nn.init.zeros_(self.in_projection.bias)
        nn.init.zeros_(self.out_projection.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Attend from every token of x to the valid tokens of x that the pattern allows."""
        batch, tokens, dim = x.shape
        # Chunks of whole rows: their gradients are then joined by one copy instead of two.
        heads = (batch, tokens, self.num_heads, -1)
        q_BHTd, k_BHTd, v_BHTd = (
            part.view(heads).transpose(1, 2) for part in self.in_projection(x).chunk(3, dim=-1)
        )
        received, pattern = None, self.pattern
        if pattern is not None and pattern.is_dense(tokens):
            pattern = None
        if self.report_received:
            y_BHTd, received = attend_and_report(q_BHTd, k_BHTd, v_BHTd, valid, pattern)
        elif pattern is not None:
            y_BHTd = attend_sparsely(q_BHTd, k_BHTd, v_BHTd, pattern, valid)
        else:
            y_BHTd = attend(q_BHTd, k_BHTd, v_BHTd, valid)
        out: Tensor = self.out_projection(y_BHTd.transpose(1, 2).reshape(batch, tokens, dim))
        return out, received


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
    """Attend to the valid keys by the fused kernel.

    Shape: (B, H, T, d), (B, H, S, d), (B, H, S, d), (B, S) -> (B, H, T, d). Invalid keys have
    weight 0; if no key is valid, the result is finite but meaningless.
    """
    mask = None
    if valid is not None:
        bias = torch.zeros_like(valid, dtype=q.dtype).masked_fill(~valid, lowest_score(q))
        mask = bias[:, None, None]
    return attend_fused(q, k, v, mask)


def attend_and_report(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, pattern: Pattern | None = None
) -> tuple[Tensor, Tensor]:
    """Attend by explicit weights, and return the attention received.

    Shape: three of (B, H, T, d), (B, T) -> (B, H, T, d) and (B, T - 1): for each token but CLS, the
    sum of the weights of all valid queries but CLS, averaged over the heads.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if pattern is not None:
        hidden = ~allowed_pairs(pattern, q.shape[2], q.device)
        scores = scores.masked_fill(hidden, lowest_score(q))
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], lowest_score(q))
    weights = scores.softmax(dim=-1)
    counted = weights[:, :, 1:, 1:]
    if valid is not None:
        counted = counted * valid[:, None, 1:, None]
    return weights @ v, counted.mean(dim=1).sum(dim=1)
