"""Test what is particular to SFT: its sparse layer, the sum of CLS tokens, pooling by attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.datasets.catalog import describe
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.sft import SFTConfig
from sftsearch.trainables.token_windows import Pattern

from shapes import VGGS, dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import FusionModel

PAIR = dataset_spec(3, left=(12, 4), right=(12, 4))


def small(**options: Any) -> FusionModel:
    options = {"dim": 8, "num_heads": 2, "unimodal_layers": 2, "fused_layers": 1} | options
    model = build_model("sft", PAIR, SFTConfig(**options), seed=0).double().eval()
    for layer in model.layers[:3]:  # a fresh layer changes a token by little
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def samples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(3, 12, 4, dtype=torch.float64, generator=generator)
        for name in PAIR.modalities
    }


def tokens_after(model: FusionModel, count: int) -> Tokens:
    tokens = model.tokenizer(samples())
    for layer in model.layers[:count]:
        tokens = layer(tokens)
    return dict(tokens)


@pytest.mark.parametrize("cls_sum", ["before_sparse", "after_sparse"])
def test_the_cls_tokens_are_summed_before_or_after_the_sparse_layer(cls_sum: str) -> None:
    """The paper sums the CLS tokens of layer L (eq. 5); its code those of the sparse layer."""
    model = small(cls_sum=cls_sum, tokens=3)
    fused = tokens_after(model, 4)[FUSED].z[:, 0]
    before = sum(sequence.z[:, 0] for sequence in tokens_after(model, 2).values())
    sparse = model.layers[2].blocks  # two modalities
    after = sum(
        z[:, 0] + block.attention(torch.nn.functional.layer_norm(z, (8,)))[0][:, 0]  # type: ignore[operator,union-attr]
        for z, block in zip((one.z for one in tokens_after(model, 2).values()), sparse, strict=True)  # type: ignore[arg-type]
    )
    expected, other = (before, after) if cls_sum == "before_sparse" else (after, before)
    torch.testing.assert_close(fused, expected)
    assert not torch.allclose(fused, other, rtol=1e-2)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["unimodal", "sparse"])
def test_attention_pooling_takes_the_weights_of_one_layer(weights: str) -> None:
    """Eq. 12 takes those of layer L, the authors' code those of the sparse layer.

    Compute all weights (T, T) by hand, and pool by their column sums.
    """
    model = small(pooling="attention", pooling_weights=weights, tokens=3, window=3)
    assert SFTConfig().pooling_weights == "unimodal"
    index = 1 if weights == "unimodal" else 2
    before, after = tokens_after(model, index), tokens_after(model, 3)
    fused = tokens_after(model, 4)[FUSED].z[:, 1:]
    for i, name in enumerate(PAIR.modalities):
        block: Any = model.layers[index].blocks[i]  # type: ignore[index]
        attention = block.attend.attention if weights == "unimodal" else block.attention
        x = torch.nn.functional.layer_norm(before[name].z, (8,))
        heads = attention.in_projection(x).view(3, 13, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].transpose(-1, -2) / 2
        if weights == "sparse":
            far = (torch.arange(13)[:, None] - torch.arange(13)).abs()
            scores = scores.masked_fill((far >= 3) & (far % 3 != 0), -torch.inf)
        received = scores.softmax(dim=-1)[:, :, 1:, 1:].mean(dim=1).sum(dim=1).view(3, 3, 4, 1)
        z = after[name].z[:, 1:].view(3, 3, 4, 8)
        expected = (z * received).sum(dim=2) / received.sum(dim=2)
        torch.testing.assert_close(fused[:, 3 * i : 3 * i + 3], expected)


def test_attention_pooling_needs_the_layer_that_gives_its_weights() -> None:
    options: dict[str, Any] = {"unimodal_layers": 0, "pooling": "attention", "tokens": 3}
    with pytest.raises(ConfigError, match=r"unimodal layer before it.*pooling_weights: sparse"):
        MODELS["sft"].cost(PAIR, SFTConfig(**options))
    MODELS["sft"].cost(PAIR, SFTConfig(**options, pooling_weights="sparse"))


def test_auto_window_is_the_square_root_of_a_modalitys_tokens() -> None:
    """With CLS: 39 tokens give 6, 1,201 give 35."""
    patterns = SFTConfig(window="auto").patterns(VGGS)
    assert patterns == {
        "rgb": Pattern("strided", 6, 8),
        "spec": Pattern("strided", 35, 8),
        "flow": Pattern("strided", 6, 8),
    }
    assert SFTConfig(window="auto").canonical(VGGS).window == "auto"


def test_auto_window_is_the_same_configuration_as_its_number() -> None:
    spec = dataset_spec(3, a=(64, 2), b=(64, 2))
    assert SFTConfig(window="auto").canonical(spec) == SFTConfig(window=8).canonical(spec)
    assert SFTConfig(window=64).canonical(spec).sparse_attention == "dense"


def test_auto_window_allows_a_third_of_the_pairs_of_a_sensor() -> None:
    """With 64 tokens and CLS, windows of 8: 919 pairs closer than 8, 464 at multiples of 8."""
    spec = describe("wearables")
    patterns = SFTConfig(patch=2, window="auto").patterns(spec)
    assert len(patterns) == 4
    for pattern in patterns.values():
        assert pattern is not None
        assert pattern.num_pairs(65) == 919 + 464
        assert pattern.num_pairs(65) / 65**2 < 0.35


@pytest.mark.parametrize("window", ["auto", 4])
def test_summary_must_be_shorter_than_the_window(window: str | int) -> None:
    with pytest.raises(ConfigError, match=r"`summary` must be less.*summary=8, window="):
        SFTConfig(sparse_attention="fixed", window=window).canonical(PAIR)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"pooling_eps": -1.0}, {"pooling_weights": "both"}, {"cls_sum": "no"}, {"window": 1}],
)
def test_wrong_values_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"`{name}`"):
        SFTConfig(**options)


def test_options_of_attention_pooling_make_no_difference_without_it() -> None:
    with_options = SFTConfig(tokens=3, pooling_eps=1e-5, pooling_weights="sparse")
    assert with_options.canonical(PAIR) == SFTConfig(tokens=3).canonical(PAIR)
