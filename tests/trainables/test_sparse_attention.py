"""Compare sparse attention with masked attention, and patterns with their rules.

The rules are written out token by token: strided from Child et al. 2019, fixed from the SFT
authors' code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from sftsearch.trainables import token_windows
from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.layers.sparse_attention import allowed_pairs
from sftsearch.trainables.token_windows import Pattern

Kind = Literal["strided", "fixed"]


def strided_keys(i: int, tokens: int, window: int) -> set[int]:
    """Return what token i attends to: tokens closer than the window, or a multiple of it away."""
    return {j for j in range(tokens) if abs(i - j) < window or (i - j) % window == 0}


def fixed_keys(i: int, tokens: int, window: int, summary: int) -> set[int]:
    """Return what token i attends to: its window with both ends, and all summary tokens.

    A token at a multiple of the window is at the end of its window; the first one is at its start.
    """
    start = i // window * window
    if i % window == 0 and i > 0:
        start = i - window
    keys = set(range(start, start + window + 1))
    for end in range(window, tokens + window, window):
        keys |= set(range(end - summary, end + 1))
    return {j for j in keys if j < tokens}


def mask_of(kind: Kind, tokens: int, window: int, summary: int) -> Tensor:
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        keys = strided_keys(i, tokens, window)
        if kind == "fixed":
            keys = fixed_keys(i, tokens, window, summary)
        mask[i, sorted(keys)] = True
    return mask


@pytest.fixture(params=["in blocks", "masked"])
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute short sequences in both ways."""
    shortest = 0 if request.param == "in blocks" else 1_000_000
    monkeypatch.setattr(token_windows, "SHORTEST_IN_BLOCKS", shortest)
    way: str = request.param
    return way


PATTERNS = [
    pytest.param(kind, window, tokens, id=f"{kind}-{tokens}-by-{window}")
    for kind in ("strided", "fixed")
    for window, tokens in [(4, 13), (4, 16), (4, 6), (4, 5), (7, 50), (3, 97), (32, 20), (32, 66)]
]


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("kind", "window", "tokens"), PATTERNS)
def test_sparse_attention_is_dense_attention_with_a_mask(
    kind: Kind, window: int, tokens: int, padded: bool, reports: bool
) -> None:
    """Compare output, gradients and attention received with explicit weights (T, T)."""
    attention = SelfAttention(
        dim=12, num_heads=3, pattern=Pattern(kind, window, 2), report_received=reports
    ).double()
    pairs = mask_of(kind, tokens, window, 2)
    lengths = torch.tensor([1, tokens // 2, tokens] if padded else [tokens] * 3)
    valid = torch.arange(tokens) < lengths[:, None]
    x = torch.randn(3, tokens, 12, dtype=torch.float64, requires_grad=True)
    allowed = pairs & valid[:, None, None, :]

    def reference(x: Tensor) -> tuple[Tensor, Tensor]:
        heads = attention.in_projection(x).view(3, tokens, 3, 3, 4).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].transpose(-1, -2) / 2
        weights = scores.masked_fill(~allowed, -1e300).softmax(dim=-1) * allowed
        y = (weights @ heads[2]).transpose(1, 2).reshape(3, tokens, 12)
        counted = weights[:, :, 1:, 1:] * valid[:, None, 1:, None]
        return attention.out_projection(y), counted.mean(dim=1).sum(dim=1)

    expected, expected_received = reference(x)
    out, received = attention(x, valid if padded else None)
    read = valid[:, :, None]  # outputs of padded tokens are meaningless
    torch.testing.assert_close(out * read, expected * read)
    target = torch.randn(3, tokens, 12, dtype=torch.float64) * read
    loss, expected_loss = (out * target).sum(), (expected * target).sum()
    if reports:
        assert received is not None
        torch.testing.assert_close(received * valid[:, 1:], expected_received)
        loss = loss + (received * valid[:, 1:]).square().sum()
        expected_loss = expected_loss + expected_received.square().sum()
    gradients = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_loss, x))


@pytest.mark.parametrize("kind", ["strided", "fixed"])
@pytest.mark.parametrize(("window", "summary"), [(32, 8), (5, 2), (2, 1), (4, 3)])
def test_a_pattern_is_its_rule_and_counts_its_pairs(kind: Kind, window: int, summary: int) -> None:
    pattern = Pattern(kind, window, summary)
    for tokens in range(1, 140):
        pairs = mask_of(kind, tokens, window, summary)
        assert torch.equal(allowed_pairs(pattern, tokens), pairs)
        assert pattern.num_pairs(tokens) == int(pairs.sum())
        assert pattern.is_dense(tokens) == bool(pairs.all())


def test_strided_pattern_at_1216_tokens() -> None:
    """A window of 35 allows 123,752 pairs: 82,714 closer than 35, 41,038 at its multiples."""
    n, w = 1216, 35
    closer = n + 2 * sum(n - distance for distance in range(1, w))
    multiples = 2 * sum(n - distance for distance in range(w, n, w))
    assert (closer, multiples) == (82_714, 41_038)
    assert Pattern("strided", w, 8).num_pairs(n) == 123_752


def test_fixed_pattern_of_the_authors_code() -> None:
    """At 40 tokens row 32 sees 33; at 1,200 tokens all rows see 427,113."""
    pattern = Pattern("fixed", 32, 8)
    assert int(allowed_pairs(pattern, 40)[32].sum()) == 33
    assert pattern.num_pairs(1200) == 427_113
    rows = allowed_pairs(pattern, 1201).sum(dim=1)
    assert int(rows.sum()) / 1201**2 == pytest.approx(0.296, abs=5e-4)


@pytest.mark.parametrize("kind", ["strided", "fixed"])
def test_blocks_compute_the_scores_that_the_cost_counts(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record the shapes of both parts; blocks compute far fewer scores than all pairs."""
    from sftsearch.trainables.layers import sparse_attention

    scores = []
    attend = sparse_attention.call_kernel

    def recorded(q: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        scores.append(q.shape[1] * q.shape[2] * k.shape[2])
        return attend(q, k, *others)

    monkeypatch.setattr(sparse_attention, "call_kernel", recorded)
    pattern = Pattern(kind, 35, 8)
    q = torch.randn(1, 1, 1216, 4)
    sparse_attention.attend_sparsely(q, q, q, pattern)
    assert sum(scores) == pattern.num_scores(1216)
    assert sum(scores) < 1216**2 / (7 if kind == "strided" else 2.8)


def test_a_query_without_valid_keys_far_away_has_finite_gradients() -> None:
    """Only the first tokens are valid, so most distant parts have no valid key at all."""
    attention = SelfAttention(dim=8, num_heads=2, pattern=Pattern("strided", 16, 8))
    x = torch.randn(2, 300, 8, requires_grad=True)
    valid = torch.arange(300) < torch.tensor([[3], [0]])
    out, _ = attention(x, valid)
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad((out * valid.unsqueeze(-1)).sum(), x)
    assert gradient.isfinite().all()
    assert gradient[0, 3:].abs().max() == 0


def test_bfloat16_attends_in_blocks() -> None:
    attention = SelfAttention(dim=8, num_heads=2, pattern=Pattern("strided", 16, 8))
    x = torch.randn(2, 300, 8)
    expected, _ = attention(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = attention(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.medium
def test_blocks_are_bit_equal_in_another_process() -> None:
    script = """
import torch
from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.token_windows import Pattern
torch.set_num_threads(1)
torch.manual_seed(0)
attention = SelfAttention(dim=8, num_heads=2, pattern=Pattern("strided", 18, 8))
x = torch.randn(3, 333, 8, requires_grad=True)
attention(x)[0].square().sum().backward()
print(x.grad.double().sum().item().hex(), x.grad.double().square().sum().item().hex())
"""
    command = [sys.executable, "-P", "-c", script]
    printed = {
        subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
        for _ in range(2)
    }
    assert len(printed) == 1
