"""Compare costs with the SFT paper's figures, and closed forms with counted operations."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.cost import Cost, count_gmacs
from sftsearch.trainables.token_windows import Pattern

from shapes import MOSEI, MOSEI_STRIDES, VGGS, VGGS_STRIDES, dataset_spec

if typing.TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


def price(name: str, spec: DatasetSpec, **options: Any) -> Cost:
    return MODELS[name].cost(spec, MODELS[name].config(**options))


@pytest.mark.parametrize(
    ("name", "spec", "options", "formula", "printed"),
    [
        ("concat", VGGS, {}, 1.7125, 1.68),
        ("late_fusion", VGGS, {}, 1.5346, 1.51),
        ("sft", VGGS, {"stride": VGGS_STRIDES, "sparse_attention": "dense"}, 0.2581, 0.25),
        ("concat", MOSEI, {}, 1.1814, 1.16),
        ("late_fusion", MOSEI, {}, 0.6054, 0.59),
        ("sft", MOSEI, {"stride": MOSEI_STRIDES, "sparse_attention": "dense"}, 0.1042, 0.10),
    ],
)
def test_gflops_match_the_sft_paper(
    name: str, spec: DatasetSpec, options: dict[str, Any], formula: float, printed: float
) -> None:
    """Ding et al. 2021, appendix A.2 gives the formula; Table 2 prints 1.6 to 4.2 % less."""
    gflops = price(name, spec, **options).gflops
    assert gflops == pytest.approx(formula, abs=0.5e-4)
    assert gflops == pytest.approx(printed, rel=0.05)


def test_layer_cost_matches_the_papers_appendix() -> None:
    """One more layer on n = 1276 tokens of width 40: 4nd^2 + 2n^2 d + 2nd^2 + 4nd."""
    n, d = 1276, 40
    layer = price("concat", VGGS, num_layers=2).gflops - price("concat", VGGS, num_layers=1).gflops
    assert layer == pytest.approx((4 * n * d**2 + 2 * n**2 * d + 2 * n * d**2 + 4 * n * d) / 1e9)


def test_sft_costs_one_attention_layer_more_than_sft_po() -> None:
    """Dense attention without MLP in each modality: 4nd^2 + 2n^2 d."""
    d = 40
    more = price("sft", VGGS, sparse_attention="dense").gflops - price("sft_po", VGGS).gflops
    expected = sum(4 * n * d**2 + 2 * n**2 * d for n in (38, 1200, 38))
    assert more == pytest.approx(expected / 1e9)


@pytest.mark.parametrize(("kind", "priced"), [("strided", 0.1524), ("fixed", 0.1770)])
def test_sparse_pattern_costs_its_attended_pairs(kind: str, priced: float) -> None:
    """On VGGS the fixed pattern costs 0.177, as derived from the density of the authors' mask."""
    cost = price("sft", VGGS, stride=VGGS_STRIDES, sparse_attention=kind)
    dense = price("sft", VGGS, stride=VGGS_STRIDES, sparse_attention="dense")
    saved = sum(n * n - Pattern(kind, 32, 8).num_pairs(n) for n in (38, 1200, 38))
    assert dense.gflops - cost.gflops == pytest.approx(2 * 40 * saved / 1e9)
    assert cost.gflops == pytest.approx(priced, abs=1e-4)
    assert cost.parameters == dense.parameters


def test_a_longer_stride_never_costs_more() -> None:
    costs = [price("sft", MOSEI, stride=stride) for stride in range(1, 501)]
    for finer, coarser in pairwise(costs):
        assert coarser.gflops <= finer.gflops
        assert coarser.gmacs <= finer.gmacs
        assert coarser.parameters == finer.parameters


def test_sft_po_without_pooling_costs_nearly_as_much_as_concat() -> None:
    """The remaining difference is one CLS token: 1 + sum n against sum n."""
    fused = price("sft_po", MOSEI, unimodal_layers=0, fused_layers=12, stride=1)
    assert fused.gflops == pytest.approx(price("concat", MOSEI).gflops, rel=2e-3)


def test_unimodal_costs_the_same_as_sft_po_with_one_modality() -> None:
    options: dict[str, Any] = {"modalities": ("audio",), "stride": 20, "patch": 3}
    assert price("unimodal", MOSEI, **options) == price("sft_po", MOSEI, **options)


def field_values(draw: st.DrawFn, name: str, kind: Any) -> Any:
    """Draw a small value for a field of a configuration."""
    if typing.get_origin(kind) is Literal:
        return draw(st.sampled_from(typing.get_args(kind)))
    if kind is bool:
        return draw(st.booleans())
    if kind is float:
        return draw(st.sampled_from([0.0, 0.3]))
    return draw(st.integers(2, 9) if name == "window" else st.integers(0, 3))


def draw_cut(draw: st.DrawFn, names: list[str], shortest: int) -> dict[str, Any]:
    """Draw how samples are cut into tokens: by patch or into segments, also by modality."""
    cut_by, most = draw(st.sampled_from([("patch", shortest), ("segments", 12)]))
    number = st.integers(1, most)
    value = {m: draw(number) for m in names} if draw(st.booleans()) else draw(number)
    return {"patch": 1, "segments": None} | {cut_by: value}


@st.composite
def cases(draw: st.DrawFn) -> tuple[DatasetSpec, str, Any]:
    """Draw a dataset, a model, a subset of the modalities, and a valid configuration."""
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 9))
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    spec = dataset_spec(draw(st.integers(2, 9)), **{name: draw(sizes) for name in names})
    varies = {name: draw(st.booleans()) for name in names}
    shapes = {n: replace(s, variable_length=varies[n]) for n, s in spec.modalities.items()}
    spec = replace(spec, modalities=shapes)
    model = draw(st.sampled_from(sorted(MODELS)))
    at_most = 1 if model == "unimodal" else None
    subset = draw(st.lists(st.sampled_from(names), min_size=1, max_size=at_most, unique=True))
    shortest = min(spec.modalities[name].num_tokens for name in subset)
    heads = draw(st.integers(1, 3))
    options: dict[str, Any] = {
        "modalities": tuple(subset),
        **draw_cut(draw, subset, shortest),
        "num_heads": heads,
        "dim": heads * draw(st.integers(1, 6)),
    }
    if model.startswith("msaf"):
        options["segments"] = draw(st.integers(1, 3))  # does not cut tokens
    config = MODELS[model].config
    pooled = {"stride": None, "tokens": None}
    if hasattr(config, "stride"):
        which, sizes_of = draw(st.sampled_from(sorted(pooled))), st.integers(1, 12)
        by_modality = draw(st.booleans()) and model != "concat"
        pooled[which] = {m: draw(sizes_of) for m in subset} if by_modality else draw(sizes_of)
        options |= pooled
    hints = typing.get_type_hints(config, localns={"Mapping": Mapping})
    options = {name: value for name, value in options.items() if name in hints}
    for name, kind in hints.items():
        if name not in {*options, *pooled}:
            options[name] = field_values(draw, name, kind)
    try:
        fits = config(**options)
        MODELS[model].cost(spec, fits)
    except ConfigError:
        assume(False)
    return spec, model, fits


@pytest.mark.medium
@settings(max_examples=100, suppress_health_check=[HealthCheck.filter_too_much])
@given(cases())
def test_every_closed_form_equals_the_counted_multiply_adds(
    case: tuple[DatasetSpec, str, Any],
) -> None:
    spec, name, config = case
    model, cost = build_model(name, spec, config, seed=0), MODELS[name].cost(spec, config)
    assert cost.gmacs == count_gmacs(model, spec, config)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
