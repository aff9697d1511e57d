"""Test tokenizer, attention, block and pooling against slow references in float64.

Shapes: B batch, n tokens, F features, P patch, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.spec import ModalitySpec
from sftsearch.trainables.config import TransformerConfig
from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.layers.blocks import Block, dropout
from sftsearch.trainables.layers.pooling import Pool, PoolAndFuse
from sftsearch.trainables.layers.tokens import FUSED, ModalityTokenizer, Sequence, Tokenizer
from sftsearch.trainables.token_windows import Cut, Windows, windows_of_stride

if TYPE_CHECKING:
    from torch import Tensor


def test_a_token_is_the_projection_of_a_patch_plus_its_position() -> None:
    """Seven samples in patches of three give three tokens; two zero samples pad the last."""
    tokenize = ModalityTokenizer(cut=Cut(3, 3), num_features=2, dim=5).double()
    x = torch.randn(4, 7, 2, dtype=torch.float64)
    z = tokenize(x).z
    assert z.shape == (4, 1 + 3, 5)
    weight, bias = tokenize.projection.weight, tokenize.projection.bias
    for sample in range(4):
        torch.testing.assert_close(z[sample, 0], tokenize.cls[0] + tokenize.positions[0])
        for token in range(3):
            patch = [
                x[sample, s] if s < 7 else torch.zeros(2) for s in range(3 * token, 3 * token + 3)
            ]
            expected = weight @ torch.cat(patch).double() + bias + tokenize.positions[1 + token]
            torch.testing.assert_close(z[sample, 1 + token], expected)


def test_cls_and_positions_start_as_standard_normal_numbers() -> None:
    tokenize = ModalityTokenizer(cut=Cut(199, 1), num_features=1, dim=100)
    for parameter in (tokenize.cls, tokenize.positions):
        spread = 4 / parameter.numel() ** 0.5  # four standard errors of a mean
        assert parameter.mean().item() == pytest.approx(0, abs=spread)
        assert parameter.std().item() == pytest.approx(1, abs=spread)


@pytest.mark.parametrize(("samples", "patch", "tokens"), [(128, 8, 16), (7, 3, 3), (5, 5, 1)])
def test_patches_round_up(samples: int, patch: int, tokens: int) -> None:
    spec = replace(
        describe("synthetic"), modalities={"x": ModalitySpec(num_tokens=samples, num_features=2)}
    )
    config = TransformerConfig(patch=patch)
    assert config.num_tokens(spec) == {"x": tokens}
    z = Tokenizer(spec, config)({"x": torch.zeros(1, samples, 2)})
    assert z["x"].z.shape == (1, 1 + tokens, 40)


def test_attention_matches_torch_multihead_attention() -> None:
    ours = SelfAttention(dim=12, num_heads=3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for bias in (ours.in_projection.bias, ours.out_projection.bias):
            bias.normal_()
        theirs.in_proj_weight.copy_(ours.in_projection.weight)
        theirs.in_proj_bias.copy_(ours.in_projection.bias)
        theirs.out_proj.load_state_dict(ours.out_projection.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x)[0], theirs(x, x, x)[0])


def test_attention_is_initialized_as_torch_multihead_attention() -> None:
    """Uniform weights up to sqrt(6 / 4d) and sqrt(1 / d), biases zero."""
    ours, dim = SelfAttention(dim=64, num_heads=4), 64
    assert ours.in_projection.weight.abs().max().item() == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    assert ours.out_projection.weight.abs().max().item() == pytest.approx(dim**-0.5, rel=0.01)
    assert not ours.in_projection.bias.any()
    assert not ours.out_projection.bias.any()


def test_block_is_the_two_residuals_of_the_authors_code() -> None:
    block = Block(dim=6, num_heads=2, dropout=0.0).double()
    z = torch.randn(2, 5, 6, dtype=torch.float64)
    centered = z - z.mean(-1, keepdim=True)
    normed = centered / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = z + block.attend.attention(normed)[0]
    mlp = nn.Sequential(block.norm, block.expand, nn.ReLU(), block.contract)
    torch.testing.assert_close(block(Sequence(z)).z, y + mlp(y))


def test_dropout_keeps_the_mean_and_has_its_rate() -> None:
    x = torch.rand(100, 100) + 1
    dropped = dropout(x, 0.3, training=True)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.7)
    assert kept.float().mean().item() == pytest.approx(0.7, abs=4 * (0.21 / 10_000) ** 0.5)
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def by_hand(x: Tensor, bounds: list[tuple[int, int]], kind: str, weights: Tensor) -> Tensor:
    pooled = []
    for start, stop in bounds:
        of_window, w = x[:, start:stop], weights[:, start:stop, None]
        if kind == "attention":
            pooled.append((of_window * w).sum(dim=1) / w.sum(dim=1))
        else:
            pooled.append(of_window.mean(dim=1) if kind == "average" else of_window.amax(dim=1))
    return torch.stack(pooled, dim=1)


WINDOWS = [
    (windows_of_stride(12, 1), [(i, i + 1) for i in range(12)]),
    (windows_of_stride(12, 3), [(0, 3), (3, 6), (6, 9), (9, 12)]),
    (windows_of_stride(13, 4), [(0, 4), (4, 8), (8, 12)]),
    (windows_of_stride(128, 65), [(0, 65)]),
    (windows_of_stride(5, 9), [(0, 5)]),
    (Windows(13, 4), [(0, 3), (3, 6), (6, 9), (9, 13)]),
    (Windows(5, 3), [(0, 1), (1, 3), (3, 5)]),
    (Windows(7, 7), [(i, i + 1) for i in range(7)]),
]


@pytest.mark.parametrize("kind", ["average", "max", "attention"])
@pytest.mark.parametrize(("windows", "bounds"), WINDOWS)
def test_pooling_makes_one_token_of_each_window(
    kind: str, windows: Windows, bounds: list[tuple[int, int]]
) -> None:
    assert windows.bounds() == bounds
    z = torch.randn(2, 1 + windows.num_tokens, 3, dtype=torch.float64)
    received = torch.rand(2, windows.num_tokens, dtype=torch.float64)
    pooled, valid = Pool(windows, kind)(Sequence(z, None, received))
    assert valid is None
    if windows.count == windows.num_tokens:
        assert torch.equal(pooled, z[:, 1:])
    else:
        torch.testing.assert_close(pooled, by_hand(z[:, 1:], bounds, kind, received))


@pytest.mark.parametrize("kind", ["average", "max", "attention"])
@pytest.mark.parametrize("windows", [Windows(12, 4), Windows(13, 4), windows_of_stride(13, 4)])
def test_pooling_reads_only_valid_tokens_and_masks_empty_windows(
    kind: str, windows: Windows
) -> None:
    """Compare with each sample cut to its length; windows are those of the padded length."""
    n = windows.num_tokens
    lengths = [0, 4, n - 1, n]
    z = torch.randn(4, 1 + n, 3, dtype=torch.float64)
    received = torch.rand(4, n, dtype=torch.float64)
    valid = torch.arange(1 + n) <= torch.tensor(lengths)[:, None]
    pooled, kept = Pool(windows, kind)(Sequence(z, valid, received))
    assert kept is not None
    for i, length in enumerate(lengths):
        bounds = [(a, min(b, length)) for a, b in windows.bounds()]
        assert kept[i].tolist() == [a < b for a, b in bounds]
        full = [bound for bound in bounds if bound[0] < bound[1]]
        if full:
            expected = by_hand(z[i : i + 1, 1:], full, kind, received[i : i + 1])
            torch.testing.assert_close(pooled[i : i + 1, : len(full)], expected)
        assert pooled[i, len(full) :].abs().sum() == 0


def test_pooling_by_attention_is_an_exact_mean() -> None:
    """Any positive weights, however small: pooling equal tokens gives that token."""
    z = torch.full((1, 13, 2), 3.0, dtype=torch.float64)
    received = torch.rand(1, 12, dtype=torch.float64) * 1e-12
    received[0, 4:8] = 0.0  # no query attends to the second window at all
    pooled, _ = Pool(Windows(12, 3), "attention")(Sequence(z, None, received))
    torch.testing.assert_close(pooled, torch.full_like(pooled, 3.0))


def test_pooling_eps_is_that_of_the_authors_code() -> None:
    """Their weights are means over 1,200 queries, and 1e-5 is added to the mean of a window.

    For equal weights 1 / 1,200 a token shrinks by 1 / (1 + 1,200 * 1e-5), 1.2 %.
    """
    n, window, eps = 1200, 60, 1e-5
    z = torch.randn(2, 1 + n, 3, dtype=torch.float64)
    weights = torch.rand(2, n, n, dtype=torch.float64)
    pool = Pool(windows_of_stride(n, window), "attention", eps=eps)
    pooled, _ = pool(Sequence(z, None, weights.sum(dim=1)))
    w, x = weights.mean(dim=1)[..., None], z[:, 1:]
    for i in range(n // window):
        part = slice(i * window, (i + 1) * window)
        by_hand_ = (x[:, part] * w[:, part]).mean(dim=1) / (w[:, part].mean(dim=1) + eps)
        torch.testing.assert_close(pooled[:, i], by_hand_)
    equal, _ = pool(Sequence(torch.ones_like(z), None, torch.ones(2, n, dtype=torch.float64)))
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / 1.012))


def test_token_budget_leaves_exactly_that_many_tokens_and_drops_none() -> None:
    for n in range(1, 40):
        for k in range(1, n + 1):
            bounds = Windows(n, k).bounds()
            assert len(bounds) == k
            assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
            sizes = {stop - start for start, stop in bounds}
            assert max(sizes) - min(sizes) <= 1


def test_pooling_by_equal_attention_is_average_pooling() -> None:
    z = torch.randn(2, 13, 3)
    evenly = Pool(Windows(12, 5), "attention")(Sequence(z, None, torch.ones(2, 12)))[0]
    average = Pool(Windows(12, 5), "average")(Sequence(z))[0]
    torch.testing.assert_close(evenly, average, rtol=1e-5, atol=1e-5)


def test_pooling_agrees_with_torch_pooling() -> None:
    z = torch.randn(2, 14, 3)
    for kind, theirs in (("average", nn.AvgPool1d(4)), ("max", nn.MaxPool1d(4))):
        pooled, _ = Pool(windows_of_stride(13, 4), kind)(Sequence(z))
        torch.testing.assert_close(pooled, theirs(z[:, 1:].transpose(1, 2)).transpose(1, 2))


def test_a_stride_as_long_as_the_tokens_leaves_one_token_a_modality() -> None:
    a, b = torch.randn(2, 1 + 6, 3), torch.randn(2, 1 + 4, 3)
    windows = {"a": windows_of_stride(6, 6), "b": windows_of_stride(4, 99)}
    fused = PoolAndFuse(windows, "average")({"a": Sequence(a), "b": Sequence(b)})[FUSED]
    expected = [a[:, 0] + b[:, 0], a[:, 1:].mean(dim=1), b[:, 1:].mean(dim=1)]
    torch.testing.assert_close(fused.z, torch.stack(expected, dim=1))
    assert fused.valid is None
