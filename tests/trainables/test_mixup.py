"""Test mixup as defined in the papers, on small tensors, in float64 and by closed forms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sftsearch.datasets import synthetic
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.layers.tokens import BOTTLENECK, FUSED, Sequence, Tokens
from sftsearch.trainables.mixup import Mix, Mixup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sftsearch.trainables.models.fusion import FusionModel

PARTNER = torch.tensor([2, 0, 1, 3])
"""A cycle of three rows, and one row that is its own partner."""


DEPTHS = {
    "unimodal_layers": 1,
    "fused_layers": 2,
    "crossmodal_layers": 2,
    "memory_layers": 1,
    "segments": 2,
}


def mix(weights: Mapping[str, Any], label: Any = 0.5, *, layer: int | None = 1) -> Mix:
    as_tensors = {name: torch.tensor(w).float().view(-1) for name, w in weights.items()}
    at = torch.tensor(-1 if layer is None else layer)
    return Mix(PARTNER, as_tensors, torch.tensor(label).float().view(-1), layer, at)


def tokens(*names: str, masked: bool = False, received: bool = False) -> Tokens:
    state = {}
    for name in names:
        valid = None
        if masked:
            valid = torch.rand(4, 6) < 0.5
            valid[:, 0] = True
        state[name] = Sequence(torch.randn(4, 6, 3), valid, torch.rand(4, 5) if received else None)
    return state


def model() -> FusionModel:
    spec = synthetic.spec()
    config = MODELS["sft"].config(dim=8, num_heads=2, unimodal_layers=2, fused_layers=3, stride=2)
    return build_model("sft", spec, config, seed=0)


MIXING_LATENTS = sorted(name for name, entry in MODELS.items() if entry.mixes_latents)


def small_model(name: str) -> FusionModel:
    spec, known = synthetic.spec(), MODELS[name].config
    fields = {"dim": 8, "num_heads": 2, "num_layers": 3, "fusion_layer": 0, **DEPTHS}
    fields = {field: value for field, value in fields.items() if hasattr(known, field)}
    if name == "unimodal":
        fields["modalities"] = ("left",)
    return build_model(name, spec, known(**fields), seed=0)


def inputs(size: int = 4) -> dict[str, Tensor]:
    shapes = synthetic.spec().modalities
    return {
        name: torch.randn(size, shape.num_tokens, shape.num_features)
        for name, shape in shapes.items()
    }


def mixup(**training: Any) -> Mixup:
    config = TrainConfig(**{"mixup": "manifold"} | training)
    return Mixup(config, model(), inputs(1), {})


def draws(count: int, size: int = 24, **training: Any) -> list[Mix]:
    drawing, random = mixup(**training), np.random.default_rng(0)
    return [drawing.draw(size, random) for _ in range(count)]


# What is mixed


@pytest.mark.parametrize("names", [("left", "right"), ("left<right", "right<left"), (FUSED,)])
@pytest.mark.parametrize("masked", [False, True])
def test_weight_one_gives_the_row_and_weight_zero_its_partner(
    names: tuple[str, ...], masked: bool
) -> None:
    """Bit by bit, including masks and attention received."""
    state = tokens(*names, masked=masked, received=True)
    for weight, rows in ((1.0, torch.arange(4)), (0.0, PARTNER)):
        mixed = mix(dict.fromkeys(("left", "right", FUSED), weight)).after_layer(1, state)
        assert list(mixed) == list(state)
        for name, (z, valid, received) in state.items():
            counted = torch.ones(4, 6, dtype=torch.bool) if valid is None else valid
            got = mixed[name]
            assert torch.equal(got.z[counted[rows]], z[rows][counted[rows]])
            assert (got.valid is None) == (valid is None)
            assert got.valid is None or (valid is not None and torch.equal(got.valid, valid[rows]))
            assert received is not None
            assert got.received is not None
            assert torch.equal(got.received, received[rows])


def test_only_the_drawn_layer_is_mixed() -> None:
    state = tokens("left", "right", masked=True)
    drawn = mix({"left": 0.3, "right": 0.6, FUSED: 0.9}, layer=2)
    assert drawn.after_layer(1, state) is state
    assert not torch.equal(drawn.after_layer(2, state)["left"].z, state["left"].z)


def test_each_modality_has_its_weight_and_the_bottleneck_their_mean() -> None:
    state = tokens("left", "right<left", BOTTLENECK)
    mixed = mix({"left": 0.3, "right": 0.6, FUSED: 0.9}).after_layer(1, state)
    for name, weight in (("left", 0.3), ("right<left", 0.6), (BOTTLENECK, 0.45)):
        z = state[name].z.double()
        torch.testing.assert_close(
            mixed[name].z.double(), weight * z + (1 - weight) * z[PARTNER], rtol=1e-6, atol=1e-6
        )


def test_fused_tokens_have_the_fused_weight() -> None:
    state = tokens(FUSED)
    mixed = mix({"left": 0.3, "right": 0.6, FUSED: 0.9}).after_layer(1, state)
    z = state[FUSED].z
    torch.testing.assert_close(mixed[FUSED].z, 0.9 * z + 0.1 * z[PARTNER])


def test_equal_weights_are_ordinary_manifold_mixup() -> None:
    """Verma et al. 2019, eq. 2: one weight for the whole state and for the label."""
    state, weight = tokens("left", "right"), 0.7
    drawn = mix({"left": weight, "right": weight, FUSED: 0.1}, weight)
    whole = torch.cat([z for z, _, _ in state.values()], dim=1)
    mixed = torch.cat([z for z, _, _ in drawn.after_layer(1, state).values()], dim=1)
    torch.testing.assert_close(mixed, weight * whole + (1 - weight) * whole[PARTNER])


def test_padding_counts_as_zero_and_the_union_is_valid() -> None:
    z = torch.tensor([[[1.0], [2.0], [float("nan")]], [[3.0], [float("nan")], [5.0]]])
    valid = torch.tensor([[True, True, False], [True, False, True]])
    half = torch.tensor([0.5])
    drawn = Mix(torch.tensor([1, 0]), {"left": half}, half, 0, torch.tensor(0))
    mixed = drawn.after_layer(0, {"left": Sequence(z, valid)})["left"]
    assert mixed.z[0].flatten().tolist() == [2.0, 1.0, 2.5]
    assert mixed.valid is not None
    assert mixed.valid.all()


@pytest.mark.parametrize("shared", [(), (BOTTLENECK,)])
def test_after_every_layer_mixes_as_after_layer(shared: tuple[str, ...]) -> None:
    state = tokens("left", "right", *shared, masked=True, received=True)
    drawn = mix({"left": [0.3, 0.1, 1.0, 0.0], "right": 0.6, FUSED: 0.9}, layer=2)
    for index in (0, 1, 2):
        ours, theirs = drawn.after_every_layer(index, state), drawn.after_layer(index, state)
        for name, (z, valid, received) in theirs.items():
            assert valid is not None
            assert ours[name].valid is not None
            assert torch.equal(ours[name].valid, valid)
            assert torch.equal(ours[name].z[valid], z[valid])
            assert torch.equal(ours[name].received, received)


def test_inputs_are_mixed_by_modality_and_the_longer_length_counts() -> None:
    batch = inputs()
    batch["left"][0, 2:] = 0.0
    batch["left"][2, 3:] = 0.0
    lengths = {"left": torch.tensor([2, 6, 3, 0])}
    weights = {"left": [0.3, 0.3, 1.0, 0.5], "right": 0.6}
    mixed, longer = mix(weights, layer=None).inputs(batch, lengths)
    for name in batch:
        weight = torch.tensor(weights[name]).view(-1, 1, 1)
        expected = weight * batch[name] + (1 - weight) * batch[name][PARTNER]
        torch.testing.assert_close(mixed[name], expected)
    assert longer["left"].tolist() == [3, 6, 3, 0]  # row 2 has weight 1
    assert (mixed["left"][0, 3:] == 0).all()


def test_latents_are_mixed_or_inputs_but_not_both() -> None:
    batch = inputs()
    latents = mix({"left": 0.3, "right": 0.6, FUSED: 0.9})
    assert latents.inputs(batch, {}) == (batch, {})


# The loss


def soft_labels(drawn: Mix, labels: Tensor) -> Tensor:
    weight = drawn.label_weight.double().view(-1, 1)
    return weight * labels.double() + (1 - weight) * labels[drawn.partner].double()


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0, [0.1, 0.9, 0.5, 0.3]])
def test_loss_equals_the_loss_of_mixed_labels(weight: Any) -> None:
    """Compare cross-entropy, for one class or several labels, with soft labels in float64."""
    outputs, drawn = torch.randn(4, 3), mix({}, weight)
    labels = torch.tensor([0, 2, 1, 2])
    soft = soft_labels(drawn, F.one_hot(labels, 3))
    expected = -(soft * outputs.double().log_softmax(dim=1)).sum(dim=1).mean()
    ours = drawn.loss(lambda p, y: F.cross_entropy(p, y, reduction="none"), outputs, labels)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    several = torch.randint(0, 2, (4, 3)).float()
    expected = F.binary_cross_entropy_with_logits(outputs.double(), soft_labels(drawn, several))
    ours = drawn.loss(
        lambda p, y: F.binary_cross_entropy_with_logits(p, y, reduction="none").mean(dim=1),
        outputs,
        several,
    )
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_of_numbers_is_the_mean_of_two_losses() -> None:
    outputs, labels, drawn = torch.randn(4, 1), torch.randn(4), mix({}, [0.1, 0.9, 0.5, 0.3])
    weight = drawn.label_weight.double()
    errors = (outputs[:, 0] - labels).double().abs(), (outputs[:, 0] - labels[PARTNER]).abs()
    ours = drawn.loss(lambda p, y: (p[:, 0] - y).abs(), outputs, labels)
    expected = (weight * errors[0] + (1 - weight) * errors[1]).mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


# The draws


def test_the_label_weight_is_the_mean_of_modalities_or_the_fused_one() -> None:
    """This SFT has two unimodal layers (0, 1), sparse attention, pooling, three fused layers."""
    seen = set()
    for drawn in draws(200):
        weights = drawn.weights
        apart = (weights["left"] + weights["right"]) / 2
        is_fused = drawn.layer not in (0, 1)
        seen.add(is_fused)
        torch.testing.assert_close(drawn.label_weight, weights[FUSED] if is_fused else apart)
    assert seen == {True, False}


@pytest.mark.parametrize("size", ["batch", "sample"])
def test_weights_are_beta_distributed(size: Any) -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); at a = 0.3 that is 0.15625."""
    found = draws(3000 if size == "batch" else 125, mixup_weights=size)
    for name in ("left", "right", FUSED):
        weights = torch.cat([drawn.weights[name] for drawn in found]).double()
        assert len(weights) == 3000
        # Four standard errors: sqrt(0.15625 / 3000) = 0.0072; of the variance less than 0.002.
        assert weights.mean().item() == pytest.approx(0.5, abs=0.029)
        assert weights.var().item() == pytest.approx(0.15625, abs=0.008)
        # P(w < x) = x^a / (a B(a, a)) (1 + O(x)), and B(a, a) = G(a)^2 / G(2 a): here 0.139.
        rare = 0.01**0.3 / 0.3 * math.gamma(0.6) / math.gamma(0.3) ** 2
        assert (weights < 0.01).double().mean().item() == pytest.approx(rare, abs=0.026)


def test_alpha_sets_the_variance_of_the_weights() -> None:
    """At alpha = 8 the variance is 1 / 68, and weights are almost always in [0.1, 0.9]."""
    weights = torch.cat([drawn.weights["left"] for drawn in draws(1000, mixup_alpha=8.0)])
    assert weights.var().item() == pytest.approx(1 / 68, rel=0.2)
    assert (weights > 0.05).all()


def test_a_batch_shares_its_weights_or_each_sample_has_its_own() -> None:
    (batch,), (sample,) = draws(1), draws(1, mixup_weights="sample")
    assert {len(w) for w in batch.weights.values()} == {1} == {len(batch.label_weight)}
    for weights in (*sample.weights.values(), sample.label_weight):
        assert len(weights.unique()) == 24
    assert not torch.equal(sample.weights["left"], sample.weights["right"])


@pytest.mark.medium
def test_layers_are_drawn_uniformly_from_the_mixing_points() -> None:
    points = model().mixing_points
    assert len(points) == 5
    found = [drawn.layer for drawn in draws(5000)]
    counts = [found.count(point) for point in points]
    assert sum(counts) == 5000
    # Chi-square with 4 degrees of freedom exceeds 18.5 with probability 0.001.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 18.5


def test_partners_are_a_permutation_all_modalities_share() -> None:
    first, second = draws(2)
    assert first.partner.sort().values.tolist() == list(range(24))
    assert not torch.equal(first.partner, second.partner)


@pytest.mark.parametrize("kind", ["input", "modality"])
def test_inputs_have_one_weight_or_one_a_modality(kind: Any) -> None:
    for drawn in draws(20, mixup=kind):
        left, right = drawn.weights["left"], drawn.weights["right"]
        assert drawn.layer is None
        assert torch.equal(left, right) == (kind == "input")
        torch.testing.assert_close(drawn.label_weight, (left + right) / 2)


def test_equal_generators_draw_equally() -> None:
    first, second = draws(3), draws(3)
    for one, other in zip(first, second, strict=True):
        assert one.layer == other.layer
        assert torch.equal(one.partner, other.partner)
        assert all(torch.equal(w, other.weights[name]) for name, w in one.weights.items())


@pytest.mark.medium
@pytest.mark.parametrize("name", MIXING_LATENTS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_weight_zero_gives_the_partners_outputs_after_any_layer(name: str, compiled: bool) -> None:
    """And weight one the row's own: what a model passes on is mixed as a whole."""
    mixing, batch = small_model(name).eval().double(), inputs()
    batch = {source: x.double() for source, x in batch.items()}
    assert mixing.mixing_points
    for layer in mixing.mixing_points:
        for weight, rows in ((1.0, torch.arange(4)), (0.0, PARTNER)):
            drawn = mix(dict.fromkeys((*mixing.modalities, FUSED), weight), layer=layer)
            mixed = mixing(batch, None, drawn.after_every_layer if compiled else drawn.after_layer)
            torch.testing.assert_close(mixed, mixing(batch)[rows], rtol=1e-12, atol=1e-12)


def test_bottlenecks_take_the_weight_of_the_label() -> None:
    """In a model: the state after a fused layer is mixed by modality, and by the label's weight."""
    mixing, batch = small_model("mbt").eval(), inputs()
    drawn = mix({"left": 0.2, "right": 0.6, FUSED: 0.9}, 0.4, layer=mixing.mixing_points[-1])
    seen: dict[str, Tokens] = {}

    def look(index: int, state: Tokens) -> Tokens:
        if index == drawn.layer:
            seen.update(before=state, after=drawn.after_layer(index, state))
        return state

    mixing(batch, None, look)
    for name, weight in (("left", 0.2), ("right", 0.6), (BOTTLENECK, drawn.label_weight.item())):
        z = seen["before"][name].z
        torch.testing.assert_close(seen["after"][name].z, weight * z + (1 - weight) * z[PARTNER])
