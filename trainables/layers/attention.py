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
    """Multi-head self-attention over the fused kernel, which never holds the (T, T) weights.

    Same function and same initial distribution as `nn.MultiheadAttention`: queries, keys and
    values in one projection, biases everywhere.

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
        """Args as in the configuration.

        Args:
            dim: D.
            num_heads: H.
            pattern: which pairs attend; None: all of them.
            report_received: also say how much attention each token but CLS received from the
                others, which needs the weights.
        """
        super().__init__()
        self.num_heads, self.pattern, self.report_received = num_heads, pattern, report_received
        self.in_projection = nn.Linear(dim, 3 * dim)
        self.out_projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_projection.weight)
        nn.init.zeros_(self.in_projection.bias)
        nn.init.zeros_(self.out_projection.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Let every token of x attend to the valid tokens of x, as far as the pattern allows."""
        batch, tokens, dim = x.shape
        # Chunks of whole rows, so that their gradients are joined by one copy, not two.
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
    """Attend to the valid keys, by the fused kernel.

    Shape: (B, H, T, d), (B, H, S, d), (B, H, S, d), (B, S) -> (B, H, T, d). Keys that are not
    valid have the weight 0; where none is, the result is finite and of no meaning.
    """
    mask = None
    if valid is not None:
        mask = torch.zeros_like(valid, dtype=q.dtype).masked_fill(~valid, least(q))[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_and_report(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend as `attend` does, with the weights in hand: also return the attention received."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], least(q))
    weights = scores.softmax(dim=-1)
    asked = weights[:, :, 1:, 1:]
    if valid is not None:
        asked = asked * valid[:, None, 1:, None]
    return weights @ v, asked.mean(dim=1).sum(dim=1)


def least(like: Tensor) -> float:
    """Return a score whose weight is zero beside any other; no -inf, so that nothing is NaN."""
    lowest: float = torch.finfo(like.dtype).min
    return lowest


# --------------------------------------------------------------- sparse patterns
#
# Both patterns are the window of a token and a few tokens far away, under one softmax. The two
# parts are computed apart, each as a small dense product, and merged by their exponentials.

SCORES_AT_ONCE = {"cpu": 2**20}
"""Most scores that are held at once, by device; so many stay in a core's cache."""
MANY_SCORES = 2**28
"""Those on other devices: a gigabyte in float32."""


def attend_sparsely(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    valid: Tensor | None,
    *,
    report_received: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend by the pattern, some samples at a time; for more tokens than a window has.

    Shape: three of (B, H, T, d), (B, T) -> (B, H, T, d), and the attention received (B, T - 1).
    """
    part = attend_strided if pattern.kind == "strided" else attend_fixed
    if torch.compiler.is_compiling():  # also when exporting: the number of samples is free there
        return part(q, k, v, pattern, valid, report_received=report_received)
    scores = q.shape[1] * pattern.num_scores(q.shape[2])
    at_once = max(1, SCORES_AT_ONCE.get(q.device.type, MANY_SCORES) // scores)
    if at_once >= len(q):
        return part(q, k, v, pattern, valid, report_received=report_received)
    masks = [None] * len(q) if valid is None else valid.split(at_once)
    pieces = zip(q.split(at_once), k.split(at_once), v.split(at_once), masks, strict=False)
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
    """Attend to one's window and to every w-th token from oneself (Child et al. 2019, sec. 4).

    Both ways: token i sees j where i // w = j // w, or i = j modulo w.
    """
    tokens, last = q.shape[2], _tokens_of_last_window(q, pattern)

    def by_window(x: Tensor) -> Tensor:
        return x.transpose(2, 3)

    q, k, v = _in_windows(q, k, v, pattern.window)  # (B, H, N, w, d)
    far_q, far_k, far_v = (by_window(x).contiguous() for x in (q, k, v))  # (B, H, w, N, d)
    near = q @ k.transpose(-1, -2)  # (B, H, N, w, w)
    far = far_q @ far_k.transpose(-1, -2)  # (B, H, w, N, N)
    far.diagonal(dim1=-2, dim2=-1).fill_(least(q))  # the token itself is in its window
    if last < pattern.window:
        near[:, :, -1, :, last:] = far[:, :, last:, :, -1] = least(q)
    if valid is not None:
        hidden = ~_mask_in_windows(valid, pattern.window)
        near.masked_fill_(hidden[:, None, :, None], least(q))
        far.masked_fill_(hidden.transpose(1, 2)[:, None, :, None], least(q))
    y, total = _merge(near, far, v, far_v, by_window)
    received = None
    if report_received:
        scale = _asking(valid, total, last) / total
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
    """Attend to one's window and to the summary tokens of the other windows.

    These are the last `summary` tokens of each window and the first of all but the first window:
    the pattern that the SFT authors' code names (it is built there, and never applied).
    """
    tokens, last = q.shape[2], _tokens_of_last_window(q, pattern)
    summary = torch.tensor(pattern.summary_tokens(tokens), device=q.device)
    far_k, far_v = (x.index_select(2, summary).unsqueeze(2) for x in (k, F.pad(v, (0, 1), value=1)))
    q, k, v = _in_windows(q, k, v, pattern.window)  # (B, H, N, w, d)
    near = q @ k.transpose(-1, -2)  # (B, H, N, w, w)
    far = q @ far_k.transpose(-1, -2)  # (B, H, N, w, G)
    own = summary // pattern.window == torch.arange(q.shape[2], device=q.device)[:, None]
    far.masked_fill_(own[:, None], least(q))
    if last < pattern.window:
        near[:, :, -1, :, last:] = least(q)
    if valid is not None:
        hidden = ~_mask_in_windows(valid, pattern.window)
        near.masked_fill_(hidden[:, None, :, None], least(q))
        far.masked_fill_(~valid.index_select(1, summary)[:, None, None, None], least(q))
    y, total = _merge(near, far, v, far_v, lambda x: x)
    received = None
    if report_received:
        scale = _asking(valid, total, last) / total
        got = (near * scale).sum(dim=-2).mean(dim=1).flatten(1)
        from_far = (far * scale).sum(dim=(2, 3)).mean(dim=1)
        received = got.index_add(1, summary, from_far)[:, 1:tokens]
    return _cut_off(y.flatten(2, 3), tokens), received


def _tokens_of_last_window(q: Tensor, pattern: Pattern) -> int:
    tokens: int = q.shape[2]
    return (tokens - 1) % pattern.window + 1


def _in_windows(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fill the last window up with zeros, scale the queries, give the values a column of ones."""
    missing = -q.shape[2] % window

    def cut(x: Tensor) -> Tensor:
        # Heads one behind the other in memory, or every product would copy them again.
        x = F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()
        in_windows: Tensor = x.unflatten(2, (-1, window))
        return in_windows

    return cut(q * q.shape[-1] ** -0.5), cut(k), cut(F.pad(v, (0, 1), value=1.0))


def _cut_off(y: Tensor, tokens: int) -> Tensor:
    """Drop what filled the last window up; a slice of everything would cost a copy, backwards."""
    return y if y.shape[2] == tokens else y[:, :, :tokens]


def _mask_in_windows(valid: Tensor, window: int) -> Tensor:
    """Return (B, N, w)."""
    in_windows: Tensor = F.pad(valid, (0, -valid.shape[1] % window)).unflatten(1, (-1, window))
    return in_windows


def _merge(
    near: Tensor, far: Tensor, near_v: Tensor, far_v: Tensor, by_window: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Softmax over the union of two sets of scores, each part applied to its values.

    Overwrites the scores by their exponentials, and returns the values (B, H, N, w, d) and what
    the exponentials must be divided by, (B, H, N, w, 1): the column of ones in the values sums
    them within the same product. `by_window` turns the far part's layout into that, and back.
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


def _asking(valid: Tensor | None, total: Tensor, last: int) -> Tensor:
    """Return (B or 1, 1, N, w, 1): 1 for the queries whose attention counts as received."""
    asking = torch.ones_like(total[:1, :1])
    asking[:, :, 0, 0] = 0.0
    asking[:, :, -1, last:] = 0.0
    if valid is not None:
        asking = asking * _mask_in_windows(valid, total.shape[3])[:, None, :, :, None]
    return asking
