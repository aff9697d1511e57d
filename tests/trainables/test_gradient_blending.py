"""Test the weights of gradient blending against the formula, and their updates in training."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.evaluation import losses_of
from sftsearch.trainables.models.gradient_blending import (
    LEAST_GROWTH,
    GradientBlending,
    GradientBlendingConfig,
    blend,
)

from shapes import dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

SPEC = dataset_spec(3, sound=(6, 2), image=(4, 3))
LOSSES = partial(losses_of, "classification", TrainConfig())


def model_of(**options: Any) -> GradientBlending:
    config = GradientBlendingConfig(dim=8, num_heads=2, num_layers=1, **options)
    model = build_model("gradient_blending", SPEC, config, seed=0)
    assert isinstance(model, GradientBlending)
    return model


def batch(seed: int, size: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(size, one.num_tokens, one.num_features, generator=random)
        for name, one in SPEC.modalities.items()
    }
    return inputs, {}, torch.randint(3, (size,), generator=random)


# ------------------------------------------------------------------ weights


def test_weights_are_generalization_over_squared_overfitting() -> None:
    fell, grew = [0.4, 0.1, 0.3], [0.2, 0.1, 0.5]
    shares = [g / o**2 for g, o in zip(fell, grew, strict=True)]
    weights = blend(torch.tensor(fell), torch.tensor(grew), least=1e-6)
    assert weights.tolist() == pytest.approx([s / sum(shares) for s in shares])
    assert weights.sum().item() == pytest.approx(1)


def test_head_that_did_not_generalize_has_weight_zero() -> None:
    assert blend(torch.tensor([-0.1, 0.2]), torch.tensor([0.1, 0.1]), least=0.01).tolist() == [0, 1]


@pytest.mark.parametrize("grew", [0.0, -3.0, 0.005])
def test_gap_that_hardly_grew_counts_as_the_minimum(grew: float) -> None:
    weights = blend(torch.tensor([0.2, 0.2]), torch.tensor([grew, 0.02]), least=0.01)
    assert weights.tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("fell", [[-1.0, 0.0], [math.nan, 0.1], [math.inf, 0.1]])
def test_weights_are_equal_without_usable_losses(fell: list[float]) -> None:
    assert blend(torch.tensor(fell), torch.tensor([0.1, 0.1]), least=0.01).tolist() == [0.5, 0.5]


def test_an_equal_share_is_added() -> None:
    model = model_of(equal_share=0.3)
    before = torch.tensor([[1.0, 1.0, 1.0], [1.2, 1.2, 1.2]])
    now = torch.tensor([[0.5, 0.6, 0.9], [0.9, 0.8, 1.3]])
    fell = [0.3, 0.4, 0.0]  # the last one is negative and clamped to 0
    grew = [0.4 - 0.2, 0.2 - 0.2, 0.4 - 0.2]
    shares = [g / max(o, LEAST_GROWTH * 1.2) ** 2 for g, o in zip(fell, grew, strict=True)]
    expected = [0.7 * s / sum(shares) + 0.1 for s in shares]
    assert model.weigh(before, now).tolist() == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------ in training


def test_the_loss_is_the_weighted_sum_of_the_heads_losses() -> None:
    model = model_of()
    model.blend_weights.copy_(torch.tensor([0.2, 0.3, 0.5]))
    inputs, lengths, labels = batch(0)
    outputs = model(inputs, lengths)
    assert outputs.shape == (5, 3, 3)
    by_head = [LOSSES(outputs[:, k], labels) for k in range(3)]
    expected = 0.2 * by_head[0] + 0.3 * by_head[1] + 0.5 * by_head[2]
    torch.testing.assert_close(model.losses(LOSSES, outputs, labels), expected)


def test_evaluation_returns_the_fused_head() -> None:
    model = model_of()
    inputs, lengths, _ = batch(0)
    last = model(inputs, lengths)[:, -1]
    torch.testing.assert_close(model.eval()(inputs, lengths), last)


def test_weights_change_only_after_super_epochs_and_are_saved_with_the_model() -> None:
    model = model_of(super_epoch=2).eval()
    train, validation = [batch(1), batch(2)], [batch(3)]
    equal = model.blend_weights.clone()
    with torch.no_grad():
        model.end_epoch(0, LOSSES, train, validation)
        assert torch.equal(model.blend_weights, equal)
        first = model.last_losses.clone()
        for row, split in zip(first, (train, validation), strict=True):
            heads = [
                torch.cat(
                    [LOSSES(model.head.all_outputs(tokens_of(model, b))[:, k], b[2]) for b in split]
                )
                for k in range(3)
            ]
            torch.testing.assert_close(row, torch.stack([h.mean() for h in heads]))
        for weights in model.parameters():
            weights.mul_(0.9)
        model.end_epoch(2, LOSSES, train, validation)
        assert torch.equal(model.last_losses, first)  # the third epoch does not end a super-epoch
        model.end_epoch(3, LOSSES, train, validation)
    assert not torch.equal(model.last_losses, first)
    torch.testing.assert_close(model.blend_weights, model.weigh(first, model.last_losses))
    assert model.blend_weights.sum().item() == pytest.approx(1)
    assert {"blend_weights", "last_losses"} <= model.state_dict().keys()


def tokens_of(model: GradientBlending, one: Any) -> Any:
    tokens = model.tokenizer(one[0], one[1])
    for layer in model.layers:
        tokens = layer(tokens)
    return tokens


@pytest.mark.parametrize("options", [{"super_epoch": 0}, {"equal_share": 1.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        GradientBlendingConfig(**options)
