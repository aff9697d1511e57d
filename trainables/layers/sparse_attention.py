"""Attention between the pairs of tokens that a sparse pattern allows.

A long sequence is computed as two smaller dense attentions: one part covers the neighbors of each
token, the other the distant tokens. Both run in torch's fused kernel, which stores no weights, and
are merged into one softmax over their union.

Shapes: B batch, H heads, T tokens with CLS, d width of a head, w window, N windows or blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sftsearch.trainables.layers.fused_attention import (
    attend_fused,
    call_backward,
    call_kernel,
    has_kernel,
    widen,
)
from sftsearch.trainables.token_windows import QUERY_BLOCK as BLOCK

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    from sftsearch.trainables.token_windows import Pattern


def lowest_score(like: Tensor) -> float:
    """Return a score whose softmax weight is zero; not -inf, which could give NaN."""
    lowest: float = torch.finfo(like.dtype).min
    return lowest


def allowed_pairs(pattern: Pattern, num_tokens: int, device: torch.device | None = None) -> Tensor:
    """Return which tokens attend to which, (T, T) with queries in rows; see `Pattern`."""
    i = torch.arange(num_tokens, device=device)
    if pattern.kind == "strided":
        distance = (i[:, None] - i).abs()
        return (distance < pattern.window) | (distance % pattern.window == 0)
    window = pattern.window_of(i)
    start = pattern.window * window[:, None]
    near = (start <= i) & (i <= start + pattern.window)
    summary = torch.zeros_like(i, dtype=torch.bool)
    summary[pattern.summary_tokens(num_tokens)] = True
    return near | summary


def attend_sparsely(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, valid: Tensor | None = None
) -> Tensor:
    """Attend from every token to the valid tokens that the pattern allows.

    Short sequences, GPUs, and compiled or exported models use dense attention with a mask.

    Shape: three of (B, H, T, d), (B, T) -> (B, H, T, d).
    """
    tokens = q.shape[2]
    # On the meta device, operations are counted as they run on a CPU.
    if not (pattern.runs_in_blocks(tokens) and (q.is_meta or has_kernel(q))):
        allowed = allowed_pairs(pattern, tokens, q.device)
        if valid is not None:
            allowed = allowed & valid[:, None, None]
        bias = _bias(allowed, q).view(-1, 1, tokens, tokens)
        return attend_fused(q, k, v, bias)
    layout = (_Strided if pattern.kind == "strided" else _Fixed)(pattern, q.shape[1], tokens)
    y: Tensor = _Union.apply(q, k, v, valid, layout)  # type: ignore[no-untyped-call]
    return y


def _bias(allowed: Tensor, like: Tensor) -> Tensor:
    """Convert a mask to scores to add, 0 or the lowest."""
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill(~allowed, lowest_score(like))


Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""Queries, keys, values and scores to add of one part, in a layout of its own."""


class _Union(torch.autograd.Function):
    """Merge two attentions of the same queries into one softmax over the keys of both.

    Their outputs are weighted by the sums of exponentials of their rows; see `call_backward` for
    the gradients. Only queries, keys, values and outputs are kept for the backward pass, which cuts
    them into parts again.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        layout: _Strided | _Fixed,
    ) -> Tensor:
        width, wide_q, wide_k, wide_v = q.shape[-1], widen(q), widen(k), widen(v)
        near, near_log = call_kernel(*layout.near(wide_q, wide_k, wide_v, valid), width)
        far, far_log = call_kernel(*layout.far(wide_q, wide_k, wide_v, valid), width)
        far_log = layout.to_near(far_log.unsqueeze(-1), lowest_score(far_log)).squeeze(-1)
        log = torch.logaddexp(near_log, far_log)
        share = (near_log - log).exp().unsqueeze(-1).to(near.dtype)
        out = layout.from_near(torch.lerp(layout.to_near(far, 0.0), near, share))
        out = out[..., :width].contiguous()
        ctx.save_for_backward(q, k, v, valid, out, log)  # type: ignore[arg-type]
        ctx.layout = layout  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, valid, out, log = ctx.saved_tensors  # type: ignore[attr-defined]
        layout: _Strided | _Fixed = ctx.layout  # type: ignore[attr-defined]
        width = grad.shape[-1]
        grad, out = (layout.in_near(widen(x)) for x in (grad, out))
        far_log = layout.to_far(log.unsqueeze(-1)).squeeze(-1).contiguous()
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in inputs]
            wide_q, wide_k, wide_v = (widen(x) for x in inputs)
            near = layout.near(wide_q, wide_k, wide_v, valid)
            far = layout.far(wide_q, wide_k, wide_v, valid)
        of_near = call_backward(grad, *near, out, log, width)
        of_far = call_backward(layout.to_far(grad), *far, layout.to_far(out), far_log, width)
        gradients = torch.autograd.grad([*near[:3], *far[:3]], inputs, [*of_near, *of_far])
        return *gradients, None, None


class _Blocks(torch.autograd.Function):
    """Cut (B, H, T, d) into overlapping blocks (B, H, N, width, d), one every `BLOCK` tokens.

    The backward pass of `unfold`, or of slices, would take as long as the attention.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, width: int) -> Tensor:
        ctx.shape = x.shape  # type: ignore[attr-defined]
        return x.unfold(2, width, BLOCK).transpose(-1, -2).contiguous()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.new_zeros(ctx.shape)  # type: ignore[attr-defined]
        for i, block in enumerate(grad.unbind(2)):
            total[:, :, i * BLOCK : i * BLOCK + block.shape[2]] += block
        return total, None


@dataclass(frozen=True, slots=True)
class _Strided:
    """Blocks of queries with the keys around them; all tokens of the same residue modulo w."""

    pattern: Pattern
    heads: int
    tokens: int

    @property
    def _blocks(self) -> int:
        return -(-self.tokens // BLOCK)

    @property
    def _rows(self) -> int:
        """N, tokens of a residue."""
        return -(-self.tokens // self.pattern.window)

    def near(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Part:
        """Return the part of pairs closer than w, for N = ceil(T / BLOCK) blocks of queries."""
        reach, width = self.pattern.window - 1, BLOCK + 2 * self.pattern.window - 2
        starts = BLOCK * torch.arange(self._blocks, device=q.device)[:, None]
        keys = starts + torch.arange(width, device=q.device) - reach  # (N, BLOCK + 2 (w - 1))
        queries = starts + torch.arange(BLOCK, device=q.device)
        allowed = (queries[:, :, None] - keys[:, None]).abs() <= reach
        allowed = allowed & ((keys >= 0) & (keys < self.tokens))[:, None]
        if valid is not None:
            allowed = allowed & valid[:, keys.clamp(0, self.tokens - 1)][:, None, :, None]
        bias = _bias(allowed, q).expand(-1 if valid is not None else 1, self.heads, -1, -1, -1)

        def around(x: Tensor) -> Tensor:
            x = F.pad(x, (0, 0, reach, self._blocks * BLOCK - self.tokens + reach))
            blocks: Tensor = _Blocks.apply(x, width)  # type: ignore[no-untyped-call]
            return blocks.flatten(1, 2)

        return self.in_near(q), around(k), around(v), bias.flatten(1, 2)

    def far(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Part:
        """Return the part of the same residue, w sequences of N tokens, without a token itself."""
        window, device = self.pattern.window, q.device
        keys = window * torch.arange(self._rows, device=device)
        keys = keys + torch.arange(window, device=device)[:, None]  # (w, N)
        allowed = ~torch.eye(self._rows, dtype=torch.bool, device=device)
        allowed = allowed & (keys < self.tokens)[:, None]
        if valid is not None:
            allowed = allowed & valid[:, keys.clamp(max=self.tokens - 1)][:, None, :, None]
        bias = _bias(allowed, q).expand(-1 if valid is not None else 1, self.heads, -1, -1, -1)
        parts = (self._by_residue(x) for x in (q, k, v))
        return *parts, bias.flatten(1, 2)  # type: ignore[return-value]

    def to_near(self, x: Tensor, fill: float) -> Tensor:
        """Convert from the layout of `far` to that of `near`."""
        x = x.unflatten(1, (self.heads, self.pattern.window)).transpose(2, 3)
        return self.in_near(x.flatten(2, 3)[:, :, : self.tokens], fill)

    def to_far(self, x: Tensor) -> Tensor:
        """Convert from the layout of `near` to that of `far`."""
        return self._by_residue(self.from_near(x))

    def from_near(self, x: Tensor) -> Tensor:
        """Convert from the layout of `near` to (B, H, T, d)."""
        rows: Tensor = x.unflatten(1, (self.heads, -1)).flatten(2, 3)
        return rows[:, :, : self.tokens]

    def in_near(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Convert from (B, H, T, d) to the layout of `near`."""
        x = F.pad(x, (0, 0, 0, self._blocks * BLOCK - self.tokens), value=fill)
        return x.reshape(x.shape[0], -1, BLOCK, x.shape[-1])

    def _by_residue(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, self._rows * self.pattern.window - self.tokens))
        by_row: Tensor = x.unflatten(2, (self._rows, self.pattern.window))
        return by_row.transpose(2, 3).reshape(x.shape[0], -1, self._rows, x.shape[-1])


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Windows of w tokens after CLS; all queries with CLS and the summary tokens."""

    pattern: Pattern
    heads: int
    tokens: int

    @property
    def _windows(self) -> int:
        return -(-(self.tokens - 1) // self.pattern.window)

    def near(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Part:
        """Return the part within windows; CLS is alone in a window more, with the first's keys."""
        window, device = self.pattern.window, q.device
        keys = window * torch.arange(self._windows, device=device)[:, None]
        keys = keys + torch.arange(1, 1 + window, device=device)  # (N, w)
        allowed = keys < self.tokens
        if valid is not None:
            allowed = allowed & valid[:, keys.clamp(max=self.tokens - 1)]
        allowed = torch.cat([allowed[..., :1, :], allowed], dim=-2)[..., None, :]
        if valid is None:
            allowed = allowed.unsqueeze(0)
        bias = _bias(allowed, q)[:, None].expand(-1, self.heads, -1, window, -1)

        def cut(x: Tensor) -> Tensor:
            x = F.pad(x[:, :, 1:], (0, 0, 0, self._windows * window + 1 - self.tokens))
            x = x.unflatten(2, (self._windows, window))
            return torch.cat([x[:, :, :1], x], dim=2).flatten(1, 2)

        return self.in_near(q), cut(k), cut(v), bias.flatten(1, 2)

    def far(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Part:
        """Return the part of CLS, for itself and the first window, and distant summary tokens."""
        i = torch.arange(self.tokens, device=q.device)
        keys = torch.tensor([0, *self.pattern.summary_tokens(self.tokens)], device=q.device)
        window = self.pattern.window_of(i)
        allowed = window[:, None] != window[keys]
        allowed[:, 0] = window == 0
        if valid is not None:
            allowed = allowed & valid[:, None, None, keys]
        return q, k[:, :, keys], v[:, :, keys], _bias(allowed, q).view(-1, 1, *allowed.shape[-2:])

    def to_near(self, x: Tensor, fill: float) -> Tensor:
        """Convert from the layout of `far` to that of `near`."""
        return self.in_near(x, fill)

    def to_far(self, x: Tensor) -> Tensor:
        """Convert from the layout of `near` to that of `far`."""
        return self.from_near(x).contiguous()

    def from_near(self, x: Tensor) -> Tensor:
        """Convert from the layout of `near` to (B, H, T, d)."""
        start = self.pattern.window - 1
        rows: Tensor = x.unflatten(1, (self.heads, -1)).flatten(2, 3)
        return rows[:, :, start : start + self.tokens]

    def in_near(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Convert from (B, H, T, d) to the layout of `near`."""
        window = self.pattern.window
        last = self._windows * window + 1 - self.tokens
        x = F.pad(x, (0, 0, window - 1, last), value=fill)
        in_windows: Tensor = x.unflatten(2, (-1, window)).flatten(1, 2)
        return in_windows
