"""Torch's fused attention kernel for CPUs: it stores no weights, only a logarithm for each query.

Shapes: B batch, H heads, T queries, S keys, d width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

WIDTH = 16
"""Width of a head below which the kernel is slower than at this width, up to 1.5 times: float32
heads are padded with zeros."""
SMALLEST = 96 * 96
"""Scores of a head from which padding saves more time than it takes."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def has_kernel(q: Tensor) -> bool:
    """Return whether the kernel may be called directly: on a CPU, not while a model is traced.

    It may not where `sdpa_kernel` has chosen another one.
    """
    is_traced = torch.compiler.is_compiling()
    return q.device.type == "cpu" and not is_traced and torch.backends.cuda.flash_sdp_enabled()


def attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend by the fastest fused kernel; `bias` is added to the scores.

    Shape: (B, H, T, d), (B, H, S, d), (B, H, S, d), (B or 1, H or 1, T or 1, S) -> (B, H, T, d).
    """
    is_large = q.shape[2] * k.shape[2] >= SMALLEST
    if is_large and _missing(q) and has_kernel(q):
        y: Tensor = _Fused.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
        return y
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class _Fused(torch.autograd.Function):
    """Attention with padded heads; what is kept for the backward pass is not padded."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        width = q.shape[-1]
        out, log = call_kernel(widen(q), widen(k), widen(v), bias, width)
        out = out[..., :width].contiguous()
        ctx.save_for_backward(q, k, v, bias, out, log)  # type: ignore[arg-type]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, log = ctx.saved_tensors  # type: ignore[attr-defined]
        width = q.shape[-1]
        gradients = call_backward(
            widen(grad), widen(q), widen(k), widen(v), bias, widen(out), log, width
        )
        return *(x[..., :width] for x in gradients), None


def widen(x: Tensor) -> Tensor:
    """Pad narrow heads with zeros, (B, H, T, d) -> (B, H, T, at least `WIDTH`)."""
    missing = _missing(x)
    return F.pad(x, (0, missing)) if missing else x


def _missing(x: Tensor) -> int:
    """Return by how much heads are padded; not on the meta device, where operations are counted."""
    is_padded = x.dtype == torch.float32 and x.device.type == "cpu"
    return max(0, WIDTH - x.shape[-1]) if is_padded else 0


def call_kernel(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, width: int
) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, H, T, d), and of each query the logarithm of the sum of exponentials.

    The logarithms are (B, H, T). `width` is that of the heads before padding.
    """
    out, log = _attend(q, k, v, attn_mask=bias, scale=width**-0.5)
    return out, log


def call_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log: Tensor,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values.

    The kernel computes the weights again, from the logarithms. Outputs and logarithms may be those
    of a softmax over more keys than these: the gradients are then this part's.
    """
    q_grad, k_grad, v_grad = _attend_backward(
        grad.contiguous(), q, k, v, out, log, 0.0, False, attn_mask=bias, scale=width**-0.5
    )
    return q_grad, k_grad, v_grad
