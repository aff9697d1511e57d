"""Self-attention, dense and sparse.

Shapes: B batch, T tokens with CLS, D width, H heads, d = D / H, w window, N = ceil(T / w) windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

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
                the others; this computes the weights.
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
        received = None
        if self.pattern is not None and tokens > self.pattern.window:
            y_BHTd, received = attend_sparsely(
                q_BHTd, k_BHTd, v_BHTd, self.pattern, valid, report_received=self.report_received
            )
        elif self.report_received:
            y_BHTd, received = attend_and_report(q_BHTd, k_BHTd, v_BHTd, valid)
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
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_and_report(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend as `attend` does, but compute the weights and return the attention received."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], lowest_score(q))
    weights = scores.softmax(dim=-1)
    counted = weights[:, :, 1:, 1:]
    if valid is not None:
        counted = counted * valid[:, None, 1:, None]
    return weights @ v, counted.mean(dim=1).sum(dim=1)


def lowest_score(like: Tensor) -> float:
    """Return a score whose softmax weight is zero; not -inf, which could give NaN."""
    lowest: float = torch.finfo(like.dtype).min
    return lowest


# --------------------------------------------------------------- sparse patterns
#
# In both patterns a token attends to its window and to a few distant tokens, under one softmax. The
# two parts are computed as separate small dense products and merged by their exponentials.

MAX_SCORES = {"cpu": 2**20}
"""Largest number of scores in memory, by device; on a CPU they fit a core's cache."""
DEFAULT_MAX_SCORES = 2**28
"""The same for other devices: a gigabyte in float32."""


def attend_sparsely(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    valid: Tensor | None,
    *,
    report_received: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend by the pattern, in chunks of samples; needs more tokens than one window.

    Shape: three of (B, H, T, d), (B, T) -> (B, H, T, d), and the attention received (B, T - 1).
    """
    part = attend_strided if pattern.kind == "strided" else attend_fixed
    if torch.compiler.is_compiling():  # also in export, where the batch size is dynamic
        return part(q, k, v, pattern, valid, report_received=report_received)
    scores = q.shape[1] * pattern.num_scores(q.shape[2])
    chunk_size = max(1, MAX_SCORES.get(q.device.type, DEFAULT_MAX_SCORES) // scores)
    if chunk_size >= len(q):
        return part(q, k, v, pattern, valid, report_received=report_received)
    masks = [None] * len(q) if valid is None else valid.split(chunk_size)
    pieces = zip(q.split(chunk_size), k.split(chunk_size), v.split(chunk_size), masks, strict=False)
    results = [
        part(some_q, some_k, some_v, pattern, mask, report_received=report_received)
        for some_q, some_k, some_v, mask in pieces
    ]
    y = torch.cat([y for y, _ in results])
    received = [one for _, one in results if one is not None]
    return y, torch.cat(received) if received else None


def attend_strided(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    valid: Tensor | None,
    *,
    report_received: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend within the window and to every w-th token (Child et al. 2019, sec. 4).

    In both directions: token i attends to j if i // w = j // w, or i = j modulo w.
    """
    tokens, last = q.shape[2], _tokens_of_last_window(q, pattern)

    def by_window(x: Tensor) -> Tensor:
        return x.transpose(2, 3)

    q, k, v = _in_windows(q, k, v, pattern.window)  # (B, H, N, w, d)
    far_q, far_k, far_v = (by_window(x).contiguous() for x in (q, k, v))  # (B, H, w, N, d)
    near = q @ k.transpose(-1, -2)  # (B, H, N, w, w)
    far = far_q @ far_k.transpose(-1, -2)  # (B, H, w, N, N)
    far.diagonal(dim1=-2, dim2=-1).fill_(lowest_score(q))  # the window already has the token itself
    if last < pattern.window:
        near[:, :, -1, :, last:] = far[:, :, last:, :, -1] = lowest_score(q)
    if valid is not None:
        hidden = ~_mask_in_windows(valid, pattern.window)
        near.masked_fill_(hidden[:, None, :, None], lowest_score(q))
        far.masked_fill_(hidden.transpose(1, 2)[:, None, :, None], lowest_score(q))
    y, total = _merge(near, far, v, far_v, by_window)
    received = None
    if report_received:
        scale = _counted_queries(valid, total, last) / total
        got = (near * scale).sum(dim=-2)
        got = got + (far * by_window(scale)).sum(dim=-2).transpose(2, 3)
        received = got.mean(dim=1).flatten(1)[:, 1:tokens]
    return _cut_off(y.flatten(2, 3), tokens), received


def attend_fixed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    valid: Tensor | None,
    *,
    report_received: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend within the window and to the summary tokens of the other windows.

    These are the last `summary` tokens of each window, and the first of each window except the
    first: the pattern of the SFT authors' code, which builds the mask but never applies it.
    """
    tokens, last = q.shape[2], _tokens_of_last_window(q, pattern)
    summary = torch.tensor(pattern.summary_tokens(tokens), device=q.device)
    far_k, far_v = (x.index_select(2, summary).unsqueeze(2) for x in (k, F.pad(v, (0, 1), value=1)))
    q, k, v = _in_windows(q, k, v, pattern.window)  # (B, H, N, w, d)
    near = q @ k.transpose(-1, -2)  # (B, H, N, w, w)
    far = q @ far_k.transpose(-1, -2)  # (B, H, N, w, G)
    own = summary // pattern.window == torch.arange(q.shape[2], device=q.device)[:, None]
    far.masked_fill_(own[:, None], lowest_score(q))
    if last < pattern.window:
        near[:, :, -1, :, last:] = lowest_score(q)
    if valid is not None:
        hidden = ~_mask_in_windows(valid, pattern.window)
        near.masked_fill_(hidden[:, None, :, None], lowest_score(q))
        far.masked_fill_(~valid.index_select(1, summary)[:, None, None, None], lowest_score(q))
    y, total = _merge(near, far, v, far_v, lambda x: x)
    received = None
    if report_received:
        scale = _counted_queries(valid, total, last) / total
        got = (near * scale).sum(dim=-2).mean(dim=1).flatten(1)
        from_far = (far * scale).sum(dim=(2, 3)).mean(dim=1)
        received = got.index_add(1, summary, from_far)[:, 1:tokens]
    return _cut_off(y.flatten(2, 3), tokens), received


def _tokens_of_last_window(q: Tensor, pattern: Pattern) -> int:
    tokens: int = q.shape[2]
    return (tokens - 1) % pattern.window + 1


def _in_windows(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the last window with zeros, scale the queries, append a column of ones to the values."""
    missing = -q.shape[2] % window

    def cut(x: Tensor) -> Tensor:
        # Contiguous heads: otherwise every product copies them again.
        x = F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()
        in_windows: Tensor = x.unflatten(2, (-1, window))
        return in_windows

    return cut(q * q.shape[-1] ** -0.5), cut(k), cut(F.pad(v, (0, 1), value=1.0))


def _cut_off(y: Tensor, tokens: int) -> Tensor:
    """Remove the padding; without padding do not slice, which costs a copy in the backward pass."""
    return y if y.shape[2] == tokens else y[:, :, :tokens]


def _mask_in_windows(valid: Tensor, window: int) -> Tensor:
    """Return the mask by windows, (B, N, w)."""
    in_windows: Tensor = F.pad(valid, (0, -valid.shape[1] % window)).unflatten(1, (-1, window))
    return in_windows


def _merge(
    near: Tensor, far: Tensor, near_v: Tensor, far_v: Tensor, by_window: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Apply the softmax over the union of two sets of scores to their values.

    Overwrites the scores with their exponentials. Returns the outputs (B, H, N, w, d) and the sums
    of the exponentials (B, H, N, w, 1), which the values' column of ones gives in the same product.
    `by_window` converts between the layouts of the far and the near part.
    """
    highest = torch.maximum(
        near.detach().amax(dim=-1, keepdim=True),
        by_window(far.detach().amax(dim=-1, keepdim=True)),
    )
    near.sub_(highest).exp_()
    far.sub_(by_window(highest)).exp_()
    y = near @ near_v + by_window(far @ far_v)
    sums, total = y.split((y.shape[-1] - 1, 1), dim=-1)
    return sums / total, total


def _counted_queries(valid: Tensor | None, total: Tensor, last: int) -> Tensor:
    """Return (B or 1, 1, N, w, 1): 1 for queries whose attention counts, all valid ones but CLS."""
    counted = torch.ones_like(total[:1, :1])
    counted[:, :, 0, 0] = 0.0
    counted[:, :, -1, last:] = 0.0
    if valid is not None:
        counted = counted * _mask_in_windows(valid, total.shape[3])[:, None, :, :, None]
    return counted
