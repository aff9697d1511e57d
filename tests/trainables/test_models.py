"""Test the SFT paper's models: sizes, symmetries, and what is fused.

Shapes: B batch, n tokens of a modality, F features, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.layers.tokens import FUSED, Sequence

from shapes import MOSEI, MOSEI_STRIDES, VGGS, VGGS_STRIDES, dataset_spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.models.fusion import FusionModel


SMALL = dataset_spec(3, left=(12, 4), right=(12, 4))


def build(name: str, spec: DatasetSpec, **options: Any) -> FusionModel:
    return build_model(name, spec, MODELS[name].config(**options), seed=0).eval()


def small(name: str, **options: Any) -> FusionModel:
    """Build a small model in float64, where reordered sums differ by 1e-15, not by 1e-6."""
    return build(name, SMALL, **{"dim": 8, "num_heads": 2} | options).double()


def samples(size: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(size, 12, 4, generator=random, dtype=torch.float64)
        for name in SMALL.modalities
    }


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "seven_classes", "hundred_classes"),
    [
        ("sft", 158_927, 162_740),
        ("concat", 119_407, 123_220),
        ("unimodal", 119_407, 123_220),
        ("late_fusion", 357_487, 361_300),
    ],
)
def test_parameters_match_the_authors_code(
    name: str, seven_classes: int, hundred_classes: int
) -> None:
    """Without tokenizers; counted by running the code of Ding et al. 2021."""
    for spec, expected in ((MOSEI, seven_classes), (VGGS, hundred_classes)):
        alone = (next(iter(spec.modalities)),) if name == "unimodal" else None
        model = build(name, spec, modalities=alone)
        assert count(model.layers, model.head) == expected


def test_tokenizers_and_blocks_match_the_authors_code() -> None:
    assert count(build("concat", MOSEI).tokenizer) == 58_720
    concat = build("concat", VGGS)
    assert count(concat.tokenizer) == 138_440
    assert count(concat.layers) == 12 * 9_920


@pytest.mark.parametrize(
    ("spec", "strides", "fused"),
    [(VGGS, VGGS_STRIDES, 1 + 12 + 20 + 12), (MOSEI, MOSEI_STRIDES, 1 + 10 + 10 + 25)],
)
def test_the_paper_strides_leave_45_and_46_fused_tokens(
    spec: DatasetSpec, strides: dict[str, int], fused: int
) -> None:
    model = build("sft", spec, stride=strides)
    x = {
        name: torch.zeros(2, shape.num_tokens, shape.num_features)
        for name, shape in spec.modalities.items()
    }
    assert model(x).shape == (2, spec.num_classes)
    tokens = model.tokenizer(x)
    for layer in model.layers[:3]:  # unimodal layer, attention layer, pooling
        tokens = layer(tokens)
    assert {name: one.z.shape for name, one in tokens.items()} == {FUSED: (2, fused, 40)}


def test_without_pooling_all_tokens_are_fused() -> None:
    model = build("sft_po", SMALL, unimodal_layers=0, stride=1)
    x = {name: torch.zeros(1, 12, 4) for name in SMALL.modalities}
    assert model.layers[0](model.tokenizer(x))[FUSED].z.shape == (1, 1 + 12 + 12, 40)


@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
def test_order_matters_across_pooling_windows_but_not_inside_them(
    pooling: str,
) -> None:
    """With dense attention, only pooling depends on the token order after the tokenizer."""
    options: dict[str, Any] = {"unimodal_layers": 2, "fused_layers": 2, "stride": 4}
    model = small("sft", sparse_attention="dense", pooling=pooling, **options)
    sparse = small("sft", sparse_attention="strided", window=3, pooling=pooling, **options)

    def logits(order: list[int], model: FusionModel = model) -> Tensor:
        tokens = model.tokenizer(samples())
        z = tokens["left"].z
        tokens["left"] = Sequence(torch.cat([z[:, :1], z[:, 1:][:, order]], dim=1))
        for layer in model.layers:
            tokens = layer(tokens)
        scores: Tensor = model.head(tokens)
        return scores

    given = logits(list(range(12)))
    inside = logits([2, 0, 3, 1, 4, 5, 6, 7, 11, 10, 9, 8])
    across = logits([4, 1, 2, 3, 0, 5, 6, 7, 8, 9, 10, 11])
    torch.testing.assert_close(inside, given, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(across, given, rtol=1e-4)
    swapped = logits([2, 0, 3, 1, 4, 5, 6, 7, 11, 10, 9, 8], sparse)
    assert not torch.allclose(swapped, logits(list(range(12)), sparse), rtol=1e-4)


def test_late_fusion_is_a_sum_of_functions_of_one_modality_each() -> None:
    """The interaction f(a, b) - f(a', b) - f(a, b') + f(a', b') is zero; that of SFT is not."""
    x = samples()
    other = {name: x_BnF.flip(0) for name, x_BnF in x.items()}

    def mixed(model: FusionModel) -> Tensor:
        def f(left: Tensor, right: Tensor) -> Tensor:
            scores: Tensor = model({"left": left, "right": right})
            return scores

        return (
            f(x["left"], x["right"])
            - f(other["left"], x["right"])
            - f(x["left"], other["right"])
            + f(other["left"], other["right"])
        )

    assert mixed(small("late_fusion", num_layers=2)).abs().max() < 1e-12
    assert mixed(small("sft", fused_layers=2)).abs().max() > 1e-3


def test_the_fused_cls_token_is_the_sum_of_the_modalities_cls_tokens() -> None:
    model = small("sft_po", unimodal_layers=0, stride=12)
    tokens = model.tokenizer(samples())
    fused, left, right = model.layers[0](tokens)[FUSED].z, tokens["left"].z, tokens["right"].z
    torch.testing.assert_close(fused[:, 0], left[:, 0] + right[:, 0])
    torch.testing.assert_close(fused[:, 1], left[:, 1:].mean(dim=1))


def test_modalities_swapped_with_their_weights_give_the_same_logits() -> None:
    """Fused tokens have no positions, so their order does not matter."""
    model = small("sft", unimodal_layers=2, fused_layers=2, stride={"left": 3, "right": 3})
    swapped = small("sft", unimodal_layers=2, fused_layers=2, stride={"left": 3, "right": 3})
    swaps = {".modalities.0.": ".modalities.1.", ".blocks.0.": ".blocks.1."}
    swaps |= {new: old for old, new in swaps.items()}
    weights, per_modality = model.state_dict(), 4  # tokenizer, two unimodal and attention layer

    def swap(key: str) -> str:
        if key.startswith("layers.") and int(key.split(".")[1]) >= per_modality:
            return key
        for old, new in swaps.items():
            if old in key:
                return key.replace(old, new)
        return key

    swapped.load_state_dict({swap(key): tensor for key, tensor in weights.items()})
    x = samples()
    exchanged = {"left": x["right"], "right": x["left"]}
    torch.testing.assert_close(swapped(exchanged), model(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(swapped(x), model(x), rtol=1e-4)


def test_concat_classifies_the_cls_token_of_the_first_modality() -> None:
    model = small("concat", num_layers=1)
    tokens = model.tokenizer(samples())
    joined = model.layers[0](tokens)[FUSED]
    assert torch.equal(joined.z, torch.cat([tokens["left"].z, tokens["right"].z], dim=1))
    z = model.layers[1]({FUSED: joined})[FUSED].z
    torch.testing.assert_close(model(samples()), model.head.linear(model.head.norm(z[:, 0])))


def test_unimodal_is_sft_po_of_one_modality() -> None:
    options: dict[str, Any] = {"modalities": ("right",), "stride": 3, "fused_layers": 2}
    alone, pooled = small("unimodal", **options), small("sft_po", **options)
    torch.testing.assert_close(alone(samples()), pooled(samples()))


@pytest.mark.parametrize("pooling", ["average", "max", "attention"])
@pytest.mark.parametrize("sparse_attention", ["strided", "fixed", "dense"])
def test_padding_changes_nothing_in_any_pattern_and_pooling(
    sparse_attention: str, pooling: str
) -> None:
    model = small(
        "sft",
        sparse_attention=sparse_attention,
        window=5,
        summary=2,
        pooling=pooling,
        tokens=5,
        fused_layers=2,
    )
    lengths = {"left": torch.tensor([12, 5, 0]), "right": torch.tensor([1, 12, 7])}
    corrupted = {
        name: x.masked_fill((torch.arange(12) >= lengths[name][:, None])[:, :, None], torch.nan)
        for name, x in samples().items()
    }
    given = model(samples(), lengths)
    assert given.isfinite().all()
    assert torch.equal(model(corrupted, lengths), given)


def test_more_padding_changes_only_the_windows() -> None:
    """Compare samples with 8 of 12 tokens, without pooling, with a model for 8 tokens."""
    shorter = dataset_spec(3, left=(8, 4), right=(8, 4))
    options: dict[str, Any] = {"dim": 8, "num_heads": 2, "fused_layers": 2, "window": 4}
    long, short = (build("sft", spec, **options).double() for spec in (SMALL, shorter))
    weights = {key: w[:9] if "positions" in key else w for key, w in long.state_dict().items()}
    short.load_state_dict(weights)
    cut = {name: x[:, :8] for name, x in samples().items()}
    lengths = dict.fromkeys(SMALL.modalities, torch.full((3,), 8))
    torch.testing.assert_close(long(samples(), lengths), short(cut), rtol=1e-12, atol=1e-12)
