"""Test the order of modalities where it matters: asymmetric updates, and pooled early fusion.

Shapes: B batch, T tokens of a modality, D width.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.search_spaces.papers import paper_tables
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError

from shapes import dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.trainables.models.fusion import FusionModel

SPEC = dataset_spec(3, first=(6, 4), second=(5, 4), third=(4, 4))
NAMES = tuple(SPEC.modalities)
REVERSED = NAMES[::-1]
MBT: dict[str, Any] = {"num_layers": 3, "fusion_layer": 2, "update": "asymmetric"}
POOLED: dict[str, Any] = {"num_layers": 2, "stride": 4}
SIZES: dict[str, Any] = {"dim": 8, "num_heads": 2}


def small(name: str, **options: Any) -> FusionModel:
    config = MODELS[name].config(**SIZES | options)
    return build_model(name, SPEC, config, seed=0).eval().double()


def samples() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(3, shape.num_tokens, 4, generator=random, dtype=torch.float64)
        for name, shape in SPEC.modalities.items()
    }


def same(name: str, *options: dict[str, Any]) -> bool:
    config = MODELS[name].config
    return len({str(config(**one).canonical(SPEC)) for one in options}) == 1


@pytest.mark.parametrize("order", [NAMES, REVERSED, ("second", "third", "first")])
def test_asymmetric_update_passes_from_each_modality_to_the_later_ones(
    order: tuple[str, ...],
) -> None:
    """With one fused layer a CLS token depends on its modality and those before it."""
    model = small("mbt", **MBT, modality_order=order)
    x = {name: x_BTF.requires_grad_() for name, x_BTF in samples().items()}
    tokens = model.tokenizer(x)
    for layer in model.layers:
        tokens = layer(tokens)
    for source, target in product(NAMES, NAMES):
        cls = tokens[target].z[:, 0].square().sum()
        (grad,) = torch.autograd.grad(cls, x[source], retain_graph=True, allow_unused=True)
        depends = grad is not None and bool(grad.any())
        assert depends == (order.index(source) <= order.index(target)), (source, target)


def test_the_first_modality_is_classified_if_early_fusion_is_pooled() -> None:
    """The first token stays; the sequence is that of its modality, then the others' in order."""
    for order in (NAMES, REVERSED):
        model = small("concat", **POOLED, modality_order=order)
        tokens = model.tokenizer(samples())
        joined = model.layers[0](tokens)["fused"].z
        assert torch.equal(joined, torch.cat([tokens[name].z for name in order], dim=1))
        assert torch.equal(joined[:, 0], tokens[order[0]].z[:, 0])


def test_without_pooling_early_fusion_has_no_order() -> None:
    """Any CLS token may be classified: exchange two of them, and the outputs stay the same."""
    model = small("concat", num_layers=2)
    x, (first, *_, last) = samples(), model.tokenizer.modalities
    join, *layers = model.layers
    join.names = REVERSED
    with torch.no_grad():
        for one in (first, last):  # a CLS token is the sum of these two
            one.cls.add_(one.positions[0])
            one.positions[0] = 0.0
        outputs = model_of_first(model, layers, NAMES, x)
        first.cls.data, last.cls.data = last.cls.data, first.cls.data
        torch.testing.assert_close(model(x), outputs, rtol=1e-12, atol=1e-12)
    assert same("concat", {}, {"modality_order": REVERSED})


def model_of_first(
    model: FusionModel, layers: list[Any], order: tuple[str, ...], x: dict[str, Tensor]
) -> Tensor:
    """Run early fusion with the modalities joined in this order."""
    tokens = model.tokenizer(x)
    join = type(model.layers[0])(order)
    tokens = join(tokens)
    for layer in layers:
        tokens = layer(tokens)
    outputs: Tensor = model.head(tokens)
    return outputs


def test_an_order_that_is_not_read_is_canonical() -> None:
    other = {"modality_order": REVERSED}
    assert not same("mbt", MBT, MBT | other)
    assert same("mbt", MBT, MBT | {"modality_order": NAMES})
    assert same("mbt", MBT | other, MBT | {"modality_order": list(REVERSED)})
    for unread in (
        {"update": "symmetric"},
        {"strategy": "vanilla"},
        {"strategy": "cross"},
        {"fusion_layer": 3},
        {"modalities": ("second",)},
    ):
        assert same("mbt", MBT | unread, MBT | unread | other), unread
    assert not same("concat", POOLED, POOLED | other)
    assert same("concat", POOLED, POOLED | {"modality_order": NAMES})
    one = {"modalities": ("second",)}
    assert same("concat", POOLED | one, POOLED | one | other)


def test_an_order_may_have_modalities_that_are_not_used() -> None:
    some = {"modalities": ("first", "third")}
    assert same("mbt", MBT | some | {"modality_order": REVERSED},
                MBT | some | {"modality_order": ("third", "first")})  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [("mbt", MBT), ("concat", POOLED)])
def test_an_incomplete_order_is_refused(name: str, options: dict[str, Any]) -> None:
    config = MODELS[name].config(**SIZES | options, modality_order=("first", "third"))
    for refuse in (config.canonical, lambda spec: build_model(name, spec, config, seed=0)):
        with pytest.raises(ConfigError, match=r"modalities used \(first, second, third\), but sec"):
            refuse(SPEC)
    with pytest.raises(ConfigError, match="`modality_order` must be a non-empty list of distinct"):
        MODELS[name].config(modality_order=("first", "first"))


def test_the_papers_table_of_updates_has_both_orders() -> None:
    rows = {row.name: row.parameters["AudioSet"] for row in paper_tables()["MBT table 4"].rows}
    assert rows["Spec first"]["modality_order"] == ["spec", "rgb"]
    assert "modality_order" not in rows["RGB first"]  # the dataset's order
