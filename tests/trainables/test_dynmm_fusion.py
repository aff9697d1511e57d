"""Test DynMM's fusion level: nested paths, their weights and costs, and which layers run.

Shapes: B batch, K cells, C outputs.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.cost import GIGA, count_routes
from sftsearch.trainables.evaluation import losses_of
from sftsearch.trainables.layers.tokens import Sequence
from sftsearch.trainables.models.dynmm_fusion import (
    Align,
    DynMMFusion,
    DynMMFusionConfig,
    SqueezeExcite,
    fusion_parts,
)

from shapes import dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

SPEC = dataset_spec(3, first=(6, 4), second=(12, 4), third=(4, 4))
TASK = partial(losses_of, "classification", TrainConfig())
K = 3


def config(**options: Any) -> DynMMFusionConfig:
    return DynMMFusionConfig(**{"dim": 8, "num_heads": 2, "num_layers": K} | options)


def network(**options: Any) -> DynMMFusion:
    """Build a small model in float64, where reordered sums differ by 1e-15, not by 1e-6."""
    model = build_model("dynmm_fusion", SPEC, config(**options), seed=0)
    assert isinstance(model, DynMMFusion)
    return model.eval().double()


def samples(size: int = 24) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(size, one.num_tokens, 4, generator=random, dtype=torch.float64)
        for name, one in SPEC.modalities.items()
    }


LENGTHS = {"first": torch.arange(24) % 7, "second": torch.arange(24) % 13}


def test_path_without_cells_runs_only_the_main_modality() -> None:
    """With g = e_0 the model is a unimodal transformer with the same weights."""
    model, x = network(), samples()
    alone = model.by_routes(x, LENGTHS, torch.zeros(24, dtype=torch.int64))
    tokens = {"first": model.tokenizer.modalities[0](x["first"], LENGTHS["first"])}
    for layer in model.main_layers:
        tokens = layer(tokens)
    torch.testing.assert_close(alone, model.head(tokens), rtol=0, atol=0)
    corrupted = {**x, "second": x["second"] + 1, "third": x["third"] * torch.nan}
    assert torch.equal(
        model.by_routes(corrupted, LENGTHS, torch.zeros(24, dtype=torch.int64)), alone
    )


@pytest.mark.medium
def test_path_through_all_cells_is_the_static_network() -> None:
    """With g = e_K every layer of every modality runs and every cell fuses."""
    model, x = network(), samples()
    tokens = model.tokenizer(x, LENGTHS)
    for layer, other_layer, cell in zip(
        model.main_layers, model.other_layers, model.cells, strict=True
    ):
        main = layer({"first": tokens["first"]})
        others = other_layer({name: tokens[name] for name in ("second", "third")})
        fused = cell(main | others)
        tokens = {"first": Sequence(fused, main["first"].valid), **others}
    whole = model.by_routes(x, LENGTHS, torch.full((24,), K))
    torch.testing.assert_close(whole, model.head({"first": tokens["first"]}))


@pytest.mark.parametrize("known", [None, LENGTHS])
def test_routes_and_one_hot_weights_give_the_same(known: dict[str, Tensor] | None) -> None:
    model, x = network(), samples()
    routes = torch.arange(24) % (K + 1)
    by_routes = model.by_routes(x, known, routes)
    by_weights = model.by_weights(x, known, F.one_hot(routes, K + 1))
    torch.testing.assert_close(by_routes, by_weights, rtol=1e-12, atol=1e-12)
    by_route = torch.stack([model.route(k, x, known) for k in range(K + 1)])
    torch.testing.assert_close(
        by_routes, by_route[routes, torch.arange(24)], rtol=1e-12, atol=1e-12
    )


def test_a_cell_mixes_its_operations_by_the_paths_that_use_it() -> None:
    """With one layer h = w x_1 + (1 - w) SE(...) and w = g_0; w_j never decreases with j."""
    model, x = network(num_layers=1), samples()
    g = torch.softmax(torch.randn(24, 2, dtype=torch.float64), dim=1)
    tokens = model.tokenizer(x)
    main = model.main_layers[0]({"first": tokens["first"]})
    others = model.other_layers[0]({name: tokens[name] for name in ("second", "third")})
    w = g[:, 0, None, None]
    h = w * main["first"].z + (1 - w) * model.cells[0](main | others)
    torch.testing.assert_close(
        model.by_weights(x, None, g), model.head({"first": Sequence(h, None)})
    )
    weights = torch.softmax(torch.randn(50, 5), dim=1)
    alone = weights.cumsum(dim=1)[:, :-1]
    for j in range(4):
        torch.testing.assert_close(alone[:, j], sum(weights[:, i] for i in range(j + 1)))
    assert bool((alone.diff(dim=1) >= 0).all())
    torch.testing.assert_close(alone[:, -1], 1 - weights[:, -1])


def test_auxiliary_layers_run_only_samples_that_still_fuse() -> None:
    model, x, sizes = network(), samples(), []
    for layer in model.other_layers:
        layer.register_forward_hook(lambda _, given, __: sizes.append(len(given[0]["second"].z)))
    model.by_routes(x, None, torch.tensor([0, 1, 2, 3] * 6))
    assert sizes == [18, 12, 6]
    sizes.clear()
    model.by_routes(x, None, torch.tensor([0, 1] * 12))
    assert sizes == [12]


@pytest.mark.medium
def test_evaluation_takes_the_path_of_the_highest_score() -> None:
    model, x = network(), samples()
    with torch.no_grad():
        model.gate.contract.bias -= model.scores(x, None).mean(dim=0)
    routes = model.scores(x, None).argmax(dim=1)
    assert len(set(routes.tolist())) > 2
    torch.testing.assert_close(model(x), model.by_routes(x, None, routes))
    program = torch.export.export(model, (x, LENGTHS))
    torch.testing.assert_close(program.module()(x, LENGTHS), model(x, LENGTHS))


def test_a_path_is_drawn_for_each_sample_in_stage_one() -> None:
    """Paths are drawn uniformly, and each output is that of one path."""
    model, x = network(), samples()
    model.train().begin_epoch(0, 10)
    torch.manual_seed(0)
    outputs = model(x)
    by_route = torch.stack([model.route(k, x) for k in range(K + 1)])
    distance = (by_route - outputs).abs().amax(dim=2)
    found = distance.argmin(dim=0)
    assert distance.amin(dim=0).max() < 1e-12
    torch.manual_seed(0)
    assert torch.equal(found, torch.randint(K + 1, (24,)))
    labels = torch.arange(24) % 3
    torch.testing.assert_close(model.losses(TASK, outputs, labels), TASK(outputs, labels))


def test_stage_two_adds_the_cost_of_the_paths() -> None:
    model, x, labels = network(resource_weight=0.5), samples(), torch.arange(24) % 3
    model.train().begin_epoch(9, 10)
    outputs = model(x)
    assert outputs.shape == (24, 3 + K + 1)
    _, paths = fusion_parts(SPEC, config())
    relative = torch.tensor([path.macs / paths[-1].macs for path in paths], dtype=torch.float64)
    added = model.losses(TASK, outputs, labels) - TASK(outputs[:, :3], labels)
    torch.testing.assert_close(added, 0.5 * outputs[:, 3:] @ relative, rtol=1e-6, atol=1e-7)


@pytest.mark.medium
def test_path_costs_match_the_counts_and_rise_by_equal_steps() -> None:
    """By hand a step has blocks of 7 and 3 tokens of width 8, at patch 2, and SE for 3 modalities.

    A block of n tokens has 6 n d^2 + 2 n^2 d multiply-adds; each SE at reduction 4 has 2 x 8 x 2.
    """
    chosen = config(patch=2)
    gate, paths = fusion_parts(SPEC, chosen)
    model = build_model("dynmm_fusion", SPEC, chosen, seed=0)
    assert count_routes(model, SPEC, chosen) == tuple((gate + p).macs / GIGA for p in paths)
    step = sum(6 * n * 64 + 2 * n * n * 8 for n in (7, 3)) + 3 * 2 * 8 * 2
    assert [b.macs - a.macs for a, b in pairwise(paths[1:])] == [step] * 2
    tokenizers = (6 + 2) * 2 * 4 * 8
    assert paths[1].macs - paths[0].macs == step + tokenizers
    cost = MODELS["dynmm_fusion"].cost(SPEC, chosen)
    assert (cost.gmacs_low, cost.gmacs) == (
        (gate + paths[0]).macs / GIGA,
        (gate + paths[-1]).macs / GIGA,
    )


def test_expected_costs_are_those_of_the_paths_taken() -> None:
    model, x = network(), samples()
    routes = model.scores(x, None).argmax(dim=1)
    gate, paths = fusion_parts(SPEC, config())
    expected = sum((gate + paths[int(k)]).flops for k in routes) / 24 / GIGA
    measures = model.measure([(x, {}, routes)])
    assert measures["gflops_expected"] == pytest.approx(expected, rel=1e-12)
    assert [measures[f"route_{k + 1}"] for k in range(K + 1)] == pytest.approx(
        (routes.bincount(minlength=K + 1) / 24).tolist()
    )


def test_soft_inference_mixes_every_cell_and_costs_the_longest_path() -> None:
    chosen = config(soft_inference=True, tau_start=0.5)
    model, x = network(soft_inference=True, tau_start=0.5), samples()
    g = torch.softmax(model.scores(x, LENGTHS) / 0.5, dim=1)
    torch.testing.assert_close(model(x, LENGTHS), model.by_weights(x, LENGTHS, g))
    gate, paths = fusion_parts(SPEC, chosen)
    cost = MODELS["dynmm_fusion"].cost(SPEC, chosen)
    assert cost.gmacs == cost.gmacs_low == (gate + paths[-1]).macs / GIGA
    assert cost.parameters == MODELS["dynmm_fusion"].cost(SPEC, config()).parameters
    built = build_model("dynmm_fusion", SPEC, chosen, seed=0)
    assert count_routes(built, SPEC, chosen) == (cost.gmacs,)
    assert (built.num_routes, built.measured) == (1, ())
    model.train().begin_epoch(0, 10)  # in stage I any of the K + 1 paths is drawn
    torch.manual_seed(0)
    drawn = torch.randint(K + 1, (24,))
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), model.by_weights(x, None, F.one_hot(drawn, K + 1)))


# ------------------------------------------------------------- parts


def test_squeeze_and_excitation_scales_channels_by_the_valid_mean() -> None:
    torch.manual_seed(0)
    module = SqueezeExcite(4, 2)
    z, valid = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    for row, count in ((0, 2), (1, 3)):
        mean = z[row, :count].mean(dim=0)
        hidden = torch.relu(module.squeeze.weight @ mean + module.squeeze.bias)
        gain = torch.sigmoid(module.excite.weight @ hidden + module.excite.bias)
        torch.testing.assert_close(module(Sequence(z, valid))[row], z[row] * gain)
    with torch.no_grad():
        for layer in (module.squeeze, module.excite):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    torch.testing.assert_close(module(Sequence(z, valid)), z / 2)


@pytest.mark.parametrize(
    ("tokens", "places", "expected"),
    [
        (4, 4, [[0], [1], [2], [3]]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (2, 4, [[0], [0], [1], [1]]),
        (3, 7, [[0], [0], [0], [1], [1], [2], [2]]),
        (5, 2, [[0, 1], [2, 3, 4]]),
    ],
)
def test_align_averages_or_repeats_tokens(
    tokens: int, places: int, expected: list[list[int]]
) -> None:
    z = torch.randn(2, 1 + tokens, 3)
    aligned = Align(tokens, places)(Sequence(z))
    assert torch.equal(aligned[:, 0], z[:, 0])
    by_hand = torch.stack([z[:, [1 + i for i in one]].mean(dim=1) for one in expected], dim=1)
    torch.testing.assert_close(aligned[:, 1:], by_hand)
    valid = torch.ones(2, 1 + tokens, dtype=torch.bool)
    valid[:, 1:] = False
    assert not Align(tokens, places)(Sequence(z, valid))[:, 1:].any()


# ------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"main": "forth"}, ["`main`", "first, second, third", "'forth'"]),
        ({"main": "first", "modalities": ("second", "third")}, ["`main`", "second, third"]),
        ({"modalities": ("second",)}, ["`modalities`", "at least two", "second"]),
    ],
)
def test_invalid_roles_are_refused(options: dict[str, Any], words: list[str]) -> None:
    for refuse in (MODELS["dynmm_fusion"].cost, MODELS["dynmm_fusion"].build):
        with pytest.raises(ConfigError) as caught:
            refuse(SPEC, config(**options))
        assert all(word in str(caught.value) for word in words)


def test_a_reduction_above_the_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="reduction=9, dim=8"):
        config(reduction=9)


def test_the_first_modality_is_the_main_one() -> None:
    assert config().canonical(SPEC) == config(main="first").canonical(SPEC)
    assert config(main="third").canonical(SPEC) != config().canonical(SPEC)
    assert config(reduction=3).canonical(SPEC) == config().canonical(SPEC)  # 8 // 3 is 8 // 4
    assert network(main="third").others == ("first", "second")
