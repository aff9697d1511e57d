"""Compare attention with padded heads with explicit weights in float64, and what it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sftsearch.trainables.layers.fused_attention import SMALLEST, attend_fused

TOKENS = 120


def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    return weights @ v


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("width", "queries", "keys"), [(8, 120, 120), (3, 100, 200), (16, 120, 99)]
)
def test_attention_and_its_gradients(width: int, queries: int, keys: int, with_bias: bool) -> None:
    assert queries * keys >= SMALLEST
    q = torch.randn(2, 3, queries, width, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, width, requires_grad=True) for _ in range(2))
    bias = torch.randn(2, 1, queries, keys) if with_bias else None
    target = torch.randn(2, 3, queries, width)
    out = attend_fused(q, k, v, bias)
    found = torch.autograd.grad((out * target).sum(), (q, k, v))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = explicit(*wide, None if bias is None else bias.double())  # type: ignore[call-arg]
    gradients = torch.autograd.grad((expected * target).sum(), wide)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-4)


def test_what_is_kept_for_the_gradients_is_not_padded() -> None:
    """Queries, keys, values and outputs of width 8, and a logarithm for each query."""
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    q, k, v = (torch.randn(1, 2, TOKENS, 8, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        attend_fused(q, k, v)
    assert sorted(kept) == [2 * TOKENS, *[2 * TOKENS * 8] * 4]


def test_other_kernels_are_used_where_they_are_chosen() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(1, 2, TOKENS, 8, requires_grad=True)
    assert "_Fused" in type(attend_fused(q, q, q).grad_fn).__name__
    with sdpa_kernel([SDPBackend.MATH]):
        assert "_Fused" not in type(attend_fused(q, q, q).grad_fn).__name__
    torch.testing.assert_close(
        attend_fused(q, q, q), F.scaled_dot_product_attention(q, q, q), atol=1e-5, rtol=1e-5
    )
