"""Tokenizer, attention, block and pooling against slow references in float64.

Shapes: B batch, n tokens, F features, P patch, D width.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.spec import ModalitySpec
from sftsearch.trainables.config import TransformerConfig
from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.layers.blocks import Block, dropout
from sftsearch.trainables.layers.pooling import PoolAndFuse, pool, pooled_count
from sftsearch.trainables.layers.tokens import FUSED, ModalityTokenizer, Tokenizer


def test_a_token_is_the_projection_of_a_patch_plus_its_position() -> None:
    """Seven samples in patches of three are three tokens; two samples of zeros fill the last."""
    tokenize = ModalityTokenizer(num_tokens=3, patch=3, num_features=2, dim=5).double()
    x = torch.randn(4, 7, 2, dtype=torch.float64)
    z = tokenize(x)
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
    tokenize = ModalityTokenizer(num_tokens=199, patch=1, num_features=1, dim=100)
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
    assert z["x"].shape == (1, 1 + tokens, 40)


def test_attention_is_that_of_torch_multihead_attention() -> None:
    ours = SelfAttention(dim=12, num_heads=3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for bias in (ours.in_projection.bias, ours.out_projection.bias):
            bias.normal_()
        theirs.in_proj_weight.copy_(ours.in_projection.weight)
        theirs.in_proj_bias.copy_(ours.in_projection.bias)
        theirs.out_proj.load_state_dict(ours.out_projection.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_attention_starts_as_torch_multihead_attention_does() -> None:
    """Uniform weights up to sqrt(6 / 4d) and sqrt(1 / d), biases zero."""
    ours, dim = SelfAttention(dim=64, num_heads=4), 64
    assert ours.in_projection.weight.abs().max().item() == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    assert ours.out_projection.weight.abs().max().item() == pytest.approx(dim**-0.5, rel=0.01)
    assert not ours.in_projection.bias.any()
    assert not ours.out_projection.bias.any()


def test_a_block_is_the_two_residuals_of_the_authors_code() -> None:
    block = Block(dim=6, num_heads=2, dropout=0.0).double()
    z = torch.randn(2, 5, 6, dtype=torch.float64)
    centred = z - z.mean(-1, keepdim=True)
    normed = centred / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = z + block.attend.attention(normed)
    mlp = nn.Sequential(block.norm, block.expand, nn.ReLU(), block.contract)
    torch.testing.assert_close(block(z), y + mlp(y))


def test_dropout_keeps_the_mean_and_zeroes_at_its_rate() -> None:
    x = torch.rand(100, 100) + 1
    dropped = dropout(x, 0.3, training=True)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.7)
    assert kept.float().mean().item() == pytest.approx(0.7, abs=4 * (0.21 / 10_000) ** 0.5)
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize(("tokens", "stride"), [(12, 1), (12, 3), (13, 4), (5, 5), (5, 9)])
def test_pooling_takes_whole_windows_and_leaves_at_least_one_token(
    kind: str, tokens: int, stride: int
) -> None:
    x = torch.randn(2, tokens, 3, dtype=torch.float64)
    pooled = pool(x, stride, kind)
    count = pooled_count(tokens, stride)
    assert pooled.shape == (2, count, 3)
    for window in range(count):
        of_window = x[:, window * stride : (window + 1) * stride]
        expected = of_window.mean(dim=1) if kind == "average" else of_window.amax(dim=1)
        torch.testing.assert_close(pooled[:, window], expected)


def test_pooling_agrees_with_torch_pooling() -> None:
    x = torch.randn(2, 13, 3)
    for kind, theirs in (("average", nn.AvgPool1d(4)), ("max", nn.MaxPool1d(4))):
        torch.testing.assert_close(pool(x, 4, kind), theirs(x.transpose(1, 2)).transpose(1, 2))


def test_a_stride_as_long_as_the_tokens_leaves_one_token_a_modality() -> None:
    tokens = {"a": torch.randn(2, 1 + 6, 3), "b": torch.randn(2, 1 + 4, 3)}
    fused = PoolAndFuse({"a": 6, "b": 99}, "average")(tokens)[FUSED]
    expected = [
        tokens["a"][:, 0] + tokens["b"][:, 0],
        tokens["a"][:, 1:].mean(dim=1),
        tokens["b"][:, 1:].mean(dim=1),
    ]
    torch.testing.assert_close(fused, torch.stack(expected, dim=1))
