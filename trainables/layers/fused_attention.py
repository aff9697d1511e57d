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
    if _missing(q) and q.shape[2] * k.shape[2] >= SMALLEST and has_kernel(q):
        y: Tensor = _Fused.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
        return y
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _missing(q: Tensor) -> int:
    """Return by how much heads are padded; not on the meta device, where operations are counted."""
    is_padded = q.dtype == torch.float32 and q.device.type == "cpu"
    return max(0, WIDTH - q.shape[-1]) if is_padded else 0


class _Fused(torch.autograd.Function):
    """Attention with padded heads; what is kept for the backward pass is not padded."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out, log = call_kernel(q, k, v, bias)
        ctx.save_for_backward(q, k, v, bias, out, log)  # type: ignore[arg-type]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, log = ctx.saved_tensors  # type: ignore[attr-defined]
        return *call_backward(grad, q, k, v, bias, out, log), None


def call_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, H, T, d), and of each query the logarithm of the sum of exponentials.

    The logarithms are (B, H, T).
    """
    width, missing = q.shape[-1], _missing(q)
    if missing:
        q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
    out, log = _attend(q, k, v, attn_mask=bias, scale=width**-0.5)
    return out[..., :width].contiguous() if missing else out, log


def call_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, log: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values.

    The kernel computes the weights again, from the logarithms. Outputs and logarithms may be those
    of a softmax over more keys than these: the gradients are then this part's.
    """
    width, missing = q.shape[-1], _missing(q)
    if missing:
        grad, q, k, v, out = (F.pad(x, (0, missing)) for x in (grad, q, k, v, out))
    gradients = _attend_backward(
        grad.contiguous(), q, k, v, out, log, 0.0, False, attn_mask=bias, scale=width**-0.5
    )
    q_grad, k_grad, v_grad = (x[..., :width] if missing else x for x in gradients)
    return q_grad, k_grad, v_grad
