"""Test DynMM: stages, the loss with the cost of routes, hard routing, cost bounds.

Shapes: B batch, E experts, C outputs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.orchestrator.analysis.parameters import abbreviate_parameter, format_parameter
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.search.engine import Search
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.search_spaces.point import Point
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.cost import GIGA, count_routes
from sftsearch.trainables.evaluation import losses_of
from sftsearch.trainables.fit import Fit
from sftsearch.trainables.models.dynmm import DynMM, DynMMConfig

from journals import MemoryJournal
from shapes import MOSEI, VGGS, dataset_spec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.models.fusion import FusionModel

SPEC = dataset_spec(3, first=(6, 4), second=(5, 4), third=(4, 4))
CHEAP = {"kind": "unimodal", "modalities": ["third"], "unimodal_layers": 1, "fused_layers": 1}
EXPENSIVE = {"kind": "late_fusion", "num_layers": 3}
SIZES = {"dim": 8, "num_heads": 2}
TASK = partial(losses_of, "classification", TrainConfig())


def config(**options: Any) -> DynMMConfig:
    return DynMMConfig(**{**SIZES, "experts": (CHEAP, EXPENSIVE)} | options)


def dynmm(seed: int = 0, **options: Any) -> DynMM:
    """Build a small model in float64, where reordered sums differ by 1e-15, not by 1e-6."""
    model = build_model("dynmm", SPEC, config(**options), seed)
    assert isinstance(model, DynMM)
    model.eval().double()
    with torch.no_grad():  # center the scores, so that samples take different routes
        last = [p for name, p in model.gate.named_parameters() if name.endswith("bias")][-1]
        last -= model.scores(samples(), None).mean(dim=0)
    return model


def samples(size: int = 24) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(size, one.num_tokens, 4, generator=random, dtype=torch.float64)
        for name, one in SPEC.modalities.items()
    }


def routes(model: DynMM, inputs: dict[str, Tensor]) -> Tensor:
    return model.scores(inputs, None).argmax(dim=1)


# ------------------------------------------------------------- evaluation


@pytest.mark.parametrize("gate", ["mlp", "transformer"])
def test_a_sample_gets_the_output_of_its_expert_exactly(gate: str) -> None:
    model, x = dynmm(gate=gate), samples()
    chosen = routes(model, x)
    assert set(chosen.tolist()) == {0, 1}
    outputs = model(x)
    for i, expert in enumerate(model.experts):
        torch.testing.assert_close(
            outputs[chosen == i], expert(x)[chosen == i], rtol=1e-12, atol=1e-12
        )


def test_only_the_chosen_expert_runs_on_its_samples_alone() -> None:
    model, x = dynmm(), samples()
    chosen, sizes = routes(model, x), []
    for expert in model.experts:
        expert.register_forward_hook(lambda _, __, outputs: sizes.append(len(outputs)))
    model(x)
    assert sizes == chosen.bincount(minlength=2).tolist()
    alone = {name: one[chosen == 0][:1] for name, one in x.items()}
    sizes.clear()
    model(alone)
    assert sizes == [1]


@pytest.mark.medium
def test_exported_model_gives_the_same_outputs() -> None:
    model, x = dynmm(), samples(size=8)
    lengths = {"first": torch.tensor([6, 0, 3, 1, 6, 5, 4, 2])}
    program = torch.export.export(model, (x, lengths))
    torch.testing.assert_close(
        program.module()(x, lengths), model(x, lengths), rtol=1e-12, atol=1e-12
    )


def test_half_precision_does_not_change_routes() -> None:
    model, x = dynmm().float(), {name: one.float() for name, one in samples().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.scores(x, None), dynmm().float().scores(x, None))


# ------------------------------------------------------------- stages and losses


def test_stage_one_trains_every_expert_separately() -> None:
    """Each expert's gradients are those of its own loss, and the gate has none."""
    model, x, labels = dynmm(), samples(), torch.arange(24) % 3
    model.train().begin_epoch(0, 4)
    model.losses(TASK, model(x), labels).sum().backward()
    assert all(p.grad is None for p in model.gate.parameters())
    for expert in model.experts:
        found = [p.grad for p in expert.parameters()]
        losses = F.cross_entropy(expert(x), labels, reduction="sum")
        expected = torch.autograd.grad(losses, list(expert.parameters()))
        torch.testing.assert_close(found, list(expected))


def test_stages_and_temperature_follow_the_epochs() -> None:
    model = dynmm(alone=0.5, tau_start=1.0, tau_end=1e-3)
    seen = []
    for epoch in range(8):
        model.begin_epoch(epoch, 8)
        seen.append((model.in_stage_one, round(model.tau.item(), 6)))
    assert seen == [(True, 1.0)] * 4 + [(False, 1.0), (False, 0.177828), (False, 0.031623),
                                        (False, 0.005623)]  # fmt: skip
    assert [config(alone=0.9).num_stage_one(epochs) for epochs in (1, 2, 10, 100)] == [0, 1, 9, 90]
    assert not dynmm(alone=0.0).in_stage_one


def outputs_of(model: DynMM, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return outputs and weights of stage II."""
    model.train().begin_epoch(9, 10)
    torch.manual_seed(0)
    outputs = model(x)
    assert outputs.shape == (24, 3 + 2)
    return outputs[:, :3], outputs[:, 3:]


def test_in_stage_two_outputs_are_weighted() -> None:
    model, x = dynmm(straight_through=False, tau_end=1.0), samples()
    outputs, weights = outputs_of(model, x)
    by_hand = sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(model.experts))
    torch.testing.assert_close(outputs, by_hand)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(24, dtype=torch.float64))
    hard, choice = outputs_of(dynmm(straight_through=True, tau_end=1.0), x)
    assert torch.equal(choice, F.one_hot(choice.argmax(dim=1), 2).double())
    assert torch.equal(choice.argmax(dim=1), weights.argmax(dim=1))  # the same noise
    picked = torch.where(choice[:, :1] == 1, model.experts[0](x), model.experts[1](x))
    torch.testing.assert_close(hard, picked)


@pytest.mark.parametrize("kind", ["dynmm", "dynmm_fusion"])
def test_training_ends_with_hard_choices_by_default(kind: str) -> None:
    """The defaults have both of the paper's methods; each alone ends nearly one-hot, too."""
    fields = {"dim": 8, "num_heads": 2}
    default = MODELS[kind].config(**fields)
    assert (default.straight_through, default.tau_start, default.tau_end) == (True, 1.0, 0.001)
    for options in ({}, {"tau_end": 1.0}, {"straight_through": False, "noise": False}):
        model = build_model(kind, SPEC, MODELS[kind].config(**fields, **options), seed=0)
        model.train().begin_epoch(39, 40)
        scores = torch.tensor([[0.0, 0.1] + [-1.0] * (model.num_routes - 2)]).repeat(24, 1)
        weights = model.weights(scores)
        if options.get("straight_through", True):
            assert torch.equal(weights, F.one_hot(weights.argmax(dim=1), model.num_routes).float())
        else:
            assert weights[:, 1].min() > 1 - 1e-6
    constant = build_model(
        kind, SPEC, MODELS[kind].config(**fields, straight_through=False, tau_end=1.0), seed=0
    )
    constant.train().begin_epoch(39, 40)
    assert constant.weights(scores).max() < 0.99  # neither method


def test_without_noise_the_choice_is_that_of_evaluation() -> None:
    model, x = dynmm(straight_through=True, noise=False), samples()
    expected = model(x)
    outputs, choice = outputs_of(model, x)
    assert torch.equal(choice.argmax(dim=1), routes(model, x))
    torch.testing.assert_close(outputs, expected)


def expert_macs() -> list[float]:
    plain = [
        MODELS["unimodal"].config(**SIZES, modalities=("third",), fused_layers=1),
        MODELS["late_fusion"].config(**SIZES, num_layers=3),
    ]
    kinds = ("unimodal", "late_fusion")
    return [MODELS[k].cost(SPEC, c).gmacs for k, c in zip(kinds, plain, strict=True)]


def test_cost_loss_of_a_choice_is_the_cost_of_the_chosen_expert() -> None:
    """Costs are relative to the most expensive expert, so the loss is affine in the mean of g_2."""
    low, high = expert_macs()
    model, labels = dynmm(straight_through=True, resource_weight=0.7), torch.arange(24) % 3
    outputs, choice = outputs_of(model, samples())
    losses = model.losses(TASK, torch.cat([outputs, choice], dim=1), labels)
    added = losses - F.cross_entropy(outputs, labels, reduction="none")
    prices = torch.where(choice[:, 1] == 1, 1.0, low / high).double()
    torch.testing.assert_close(added, 0.7 * prices, rtol=1e-6, atol=1e-7)
    # The authors' code adds lambda' mean g_2; here lambda' = lambda (C_2 - C_1) / C_2.
    constant, slope = 0.7 * low / high, 0.7 * (high - low) / high
    torch.testing.assert_close(
        added.mean(), constant + slope * choice[:, 1].mean(), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("straight_through", [True, False])
def test_cost_loss_favors_the_cheap_expert(straight_through: bool) -> None:
    model = dynmm(straight_through=straight_through, tau_end=1.0, resource_weight=1.0)
    outputs, weights = outputs_of(model, samples())
    constant = torch.zeros(24, dtype=torch.float64)
    joined = torch.cat([outputs, weights], dim=1)
    model.losses(lambda *_: constant, joined, torch.zeros(24)).sum().backward()
    bias = model.gate.contract.bias.grad
    assert bias[0] < 0 < bias[1]  # a step against the gradient raises the cheap one's score


def test_zero_resource_weight_leaves_only_the_task_loss() -> None:
    model, labels = dynmm(resource_weight=0.0), torch.arange(24) % 3
    outputs, weights = outputs_of(model, samples())
    losses = model.losses(TASK, torch.cat([outputs, weights], dim=1), labels)
    torch.testing.assert_close(losses, F.cross_entropy(outputs, labels, reduction="none"))


# ------------------------------------------------------------- costs


def test_cost_bounds_are_the_gate_plus_cheapest_and_most_expensive_expert() -> None:
    """By hand the gate has 32 x (12 + 2) multiply-adds: a patch of four numbers per modality."""
    cost, gate = MODELS["dynmm"].cost(SPEC, config()), 32 * 14 / GIGA
    low, high = expert_macs()
    assert (cost.gmacs_low, cost.gmacs) == pytest.approx((low + gate, high + gate), rel=1e-12)
    model = build_model("dynmm", SPEC, config(), seed=0)
    assert count_routes(model, SPEC, config()) == (cost.gmacs_low, cost.gmacs)
    assert cost.gflops_low < cost.gflops
    assert cost.as_dict().keys() == {
        "gflops", "gmacs", "parameters", "gflops_dense", "gflops_low", "gmacs_low"
    }  # fmt: skip
    plain = MODELS["late_fusion"].cost(SPEC, MODELS["late_fusion"].config(**SIZES))
    assert (plain.gflops_low, plain.gmacs_low) == (plain.gflops, plain.gmacs)
    assert plain.as_dict().keys() == {"gflops", "gmacs", "parameters", "gflops_dense"}


def test_expected_costs_are_those_of_the_routes_taken() -> None:
    model, x = dynmm(), samples()
    chosen = routes(model, x)
    halves = [({name: one[rows] for name, one in x.items()}, {}, chosen[rows])
              for rows in (slice(0, 10), slice(10, 24))]  # fmt: skip
    measures = model.measure(halves)
    assert tuple(measures)[:3] == model.measured == ("gflops_expected", "route_1", "route_2")
    # The labels passed are the routes, so each class takes its own; class 2 has no samples.
    assert {name: value for name, value in measures.items() if "/" in name} == {
        "route_1/class_0": 1.0, "route_2/class_0": 0.0,
        "route_1/class_1": 0.0, "route_2/class_1": 1.0,
    }  # fmt: skip
    cost, share = MODELS["dynmm"].cost(SPEC, config()), chosen.double().mean().item()
    assert measures["route_2"] == pytest.approx(share)
    assert measures["route_1"] == pytest.approx(1 - share)
    expected = cost.gflops_low + share * (cost.gflops - cost.gflops_low)
    assert measures["gflops_expected"] == pytest.approx(expected)


# ------------------------------------------------------------- soft inference


SOFT: dict[str, Any] = {"soft_inference": True, "tau_start": 0.5}


@pytest.mark.parametrize("training", [False, True])
def test_soft_inference_weights_all_experts_as_training_ends(training: bool) -> None:
    model, x = dynmm(**SOFT, noise=False), samples()
    g = torch.softmax(model.scores(x, None) / 0.5, dim=1)
    expected = sum(g[:, i : i + 1] * expert(x) for i, expert in enumerate(model.experts))
    if training:
        outputs, weights = outputs_of(model, x)
        torch.testing.assert_close(weights, g)
        torch.testing.assert_close(outputs, expected)
    else:
        torch.testing.assert_close(model(x), expected)


def test_soft_inference_costs_the_gate_once_and_all_experts() -> None:
    """Unlike in the paper's Table 1, where DynMM-d counts the gate twice."""
    cost, gate = MODELS["dynmm"].cost(SPEC, config(**SOFT)), 32 * 14 / GIGA
    model = build_model("dynmm", SPEC, config(**SOFT), seed=0)
    assert cost.gmacs == pytest.approx(sum(expert_macs()) + gate, rel=1e-12)
    assert (cost.gflops_low, cost.gmacs_low) == (cost.gflops, cost.gmacs)
    assert cost.parameters == MODELS["dynmm"].cost(SPEC, config()).parameters
    assert model.num_routes == 1
    assert count_routes(model, SPEC, config(**SOFT)) == (cost.gmacs,)


def test_soft_inference_has_no_cost_loss_and_nothing_to_measure() -> None:
    model, labels = dynmm(**SOFT, resource_weight=5.0), torch.arange(24) % 3
    outputs, weights = outputs_of(model, samples())
    losses = model.losses(TASK, torch.cat([outputs, weights], dim=1), labels)
    torch.testing.assert_close(losses, F.cross_entropy(outputs, labels, reduction="none"))
    assert model.measured == ()
    assert model.measure([(samples(), {}, labels)]) == {}


@pytest.mark.parametrize("kind", ["dynmm", "dynmm_fusion"])
def test_soft_inference_reads_neither_final_temperature_nor_cost(kind: str) -> None:
    def soft(**options: Any) -> Any:
        return MODELS[kind].config(**SIZES, soft_inference=True, **options).canonical(SPEC)

    same = soft(straight_through=False, tau_end=0.5, resource_weight=3.0)
    assert same == soft()
    assert soft(tau_start=0.5) != soft()
    assert MODELS[kind].config(**SIZES).canonical(SPEC) != soft()


@pytest.mark.medium
def test_soft_model_can_be_exported_and_learns(tmp_path: Path) -> None:
    model, x = dynmm(**SOFT), samples(size=8)
    program = torch.export.export(model, (x, {}))
    torch.testing.assert_close(program.module()(x, {}), model(x, {}), rtol=1e-12, atol=1e-12)
    store = open_dataset("synthetic", cache=tmp_path)
    built = build_model("dynmm", store.spec, DynMMConfig(**SIZES, soft_inference=True), seed=0)
    fit = Fit(built, store, TrainConfig(epochs=2, batch_size=64, learning_rate=5e-3), seed=0)
    for _ in range(2):
        fit.run_epoch()
    assert fit.history[1]["loss"] < fit.history[0]["loss"]
    assert not [name for name in fit.result() if name.startswith("route")]


# ------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("spec", "patch", "expected"),
    [
        (MOSEI, 1, "text"),  # 50 tokens against 500
        (dataset_spec(7, vision=(50, 35), audio=(50, 74), text=(50, 300)), 1, "text"),  # aligned
        (VGGS, 1, "rgb"),  # as many tokens and features as flow, and first
        (VGGS, 38, "rgb"),
        (dataset_spec(2, first=(6, 4), second=(5, 4)), 1, "second"),
        (dataset_spec(2, first=(6, 4), second=(5, 4)), 5, "second"),
        (dataset_spec(2, first=(6, 4), second=(5, 4)), 3, "first"),  # two tokens each
    ],
)
def test_the_default_cheap_expert_reads_the_fewest_tokens(
    spec: DatasetSpec, patch: int, expected: str
) -> None:
    cheap, expensive = DynMMConfig(patch=patch).experts_of(spec)
    assert (cheap.kind, cheap.config.chosen(spec)) == ("unimodal", (expected,))
    assert (expensive.kind, expensive.config.chosen(spec)) == (
        "late_fusion",
        tuple(spec.modalities),
    )


@pytest.mark.parametrize("spec", [MOSEI, VGGS])
def test_no_other_modality_has_a_cheaper_expert(spec: DatasetSpec) -> None:
    chosen, _ = DynMMConfig().experts_of(spec)
    entry = MODELS["unimodal"]
    costs = {m: entry.cost(spec, entry.config(modalities=(m,))).gmacs for m in spec.modalities}
    assert costs[chosen.config.chosen(spec)[0]] == min(costs.values())


@pytest.mark.parametrize(
    ("experts", "words"),
    [
        ([CHEAP], ["`experts`", "at least two"]),
        (["late_fusion", "concat"], ["`experts`", "`kind`", "'late_fusion'"]),
        ([CHEAP, {"kind": "late_fuson"}], ["number 2", "Did you mean 'late_fusion'?"]),
        ([CHEAP, EXPENSIVE | {"num_layer": 2}], ["number 2 (late_fusion)", "'num_layers'"]),
        ([CHEAP | {"num_heads": 3}, EXPENSIVE], ["number 1 (unimodal)", "num_heads=3, dim=8"]),
        ([CHEAP | {"fused_layers": 0}, EXPENSIVE], ["number 1 (unimodal)", "`fused_layers`", "0"]),
        ([CHEAP, EXPENSIVE | {"modalities": ["forth"]}], ["number 2", "Did you mean 'fourth'?"]),
        ([CHEAP | {"modalities": ["first", "third"]}, EXPENSIVE], ["number 1", "exactly one"]),
        ([{"kind": "dynmm"}, EXPENSIVE], ["number 1 (dynmm)", "its own training loss"]),
        ([CHEAP, EXPENSIVE | {"dropout": {1, 2}}], ["plain JSON values"]),
    ],
)
def test_error_in_an_expert_names_it(experts: Any, words: list[str]) -> None:
    spec = dataset_spec(3, first=(6, 4), second=(5, 4), third=(4, 4), fourth=(3, 4))
    with pytest.raises(ConfigError) as caught:
        MODELS["dynmm"].cost(spec, config(experts=experts))
    for word in words:
        assert word in str(caught.value)


def test_an_expert_may_only_read_what_the_gate_reads() -> None:
    with pytest.raises(ConfigError, match=r"number 1 .*\(first, second\), but got third"):
        MODELS["dynmm"].cost(SPEC, config(modalities=("first", "second")))


def test_experts_inherit_the_fields_they_do_not_set() -> None:
    spelled = [
        CHEAP | SIZES | {"dropout": 0},
        EXPENSIVE | SIZES | {"modalities": ["third", "first", "second"], "patch": 1},
    ]
    same = config().canonical(SPEC)
    assert config(experts=spelled, dim=24, num_heads=3).canonical(SPEC) == same
    assert config(gate_heads=1, gate_layers=3).canonical(SPEC) == same  # not read by an mlp gate
    assert DynMMConfig(**json.loads(json.dumps(asdict(same)))) == same
    for other in (
        {"dim": 12},
        {"gate_dim": 8},
        {"gate": "transformer"},
        {"experts": [EXPENSIVE, CHEAP]},
    ):
        assert config(**other).canonical(SPEC) != same


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"gate": "cnn"}, "`gate`"),
        ({"gate": "transformer", "gate_dim": 8, "gate_heads": 3}, "gate_heads=3, gate_dim=8"),
        ({"tau_end": 0.0}, "`tau_end`"),
        ({"alone": 1.0}, "`alone`"),
        ({"resource_weight": -0.1}, "`resource_weight`"),
        ({"noise": 1}, "`noise`"),
        ({"soft_inference": "yes"}, "`soft_inference`"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        config(**options)


def test_manifold_mixup_is_refused_when_a_study_is_checked() -> None:
    source = study_of(training="{mixup: manifold, epochs: 10}")
    with pytest.raises(StudyFileError, match=r"`mixup` must not be manifold for `kind: dynmm`"):
        Admission(source, describe("wearables"))
    bind("dynmm", {}, {"mixup": "input", "epochs": 10}, describe("wearables"))


# ------------------------------------------------------------- in a study

SMALL = {
    "patch": 16,
    "dim": 8,
    "num_heads": 2,
    "experts": [
        {"kind": "unimodal", "modalities": ["watch_acc"], "fused_layers": 4},
        {"kind": "late_fusion", "num_layers": 3},
    ],
}
WEIGHTS = {"kind": "choice", "values": [0.0, 0.3]}
SPACE = [
    {"kind": "dynmm", **SMALL, "resource_weight": WEIGHTS},
    {"kind": "unimodal", "modalities": ["watch_acc"], "patch": 16, "num_heads": 2, "dim": 8,
     "fused_layers": 1},
]  # fmt: skip


def study_of(training: str = "{epochs: 4}", constraints: str = "[]") -> Any:
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\n"
        "objectives: [{metric: top1, direction: maximize}, "
        "{metric: gflops_expected, direction: minimize}]\n"
        "search: {trials: 3, early_stopping: {kind: mo_asha, audit_share: 0}}\n"
        f"constraints: {constraints}\ntraining: {training}\nspace: {json.dumps(SPACE)}\n"
    )
    source = parse_study(text.encode())
    check_names(source)
    return source


def test_reports_show_experts_by_their_settings() -> None:
    mine, other = (
        SimpleNamespace(parameters={"experts": [{"kind": "concat", "num_layers": n}, CHEAP]})
        for n in (1, 2)
    )
    text = "concat(num_layers=1)+unimodal(modalities=[third], unimodal_layers=1, fused_layers=1)"
    assert format_parameter(mine, "experts") == text  # type: ignore[arg-type]
    assert abbreviate_parameter(mine, "experts", [mine, other]) == text  # type: ignore[arg-type,list-item]


@pytest.mark.parametrize(("share", "admitted"), [(1.5, 2), (0.99, 0)])
def test_limit_refuses_models_whose_cheapest_route_exceeds_it(share: float, admitted: int) -> None:
    spec = describe("wearables")
    priced = Admission(study_of(), spec).price(Point(0, {**SMALL, "resource_weight": 0.0})).cost
    assert priced.gflops > 1.5 * priced.gflops_low
    limit = f"[{{metric: gflops, max: {share * priced.gflops_low!r}}}]"
    table = Admission(study_of(constraints=limit), spec).table or {}
    assert len([c for c in table.values() if c.configuration.model == "dynmm"]) == admitted


def test_early_stopping_receives_both_cost_bounds() -> None:
    source = study_of()
    search = Search(
        source.study, MemoryJournal(clock=lambda: 0.0), Admission(source, describe("wearables"))
    )
    reports = {}
    judge = search.known.rule.decide

    def note(report: Any) -> Any:
        reports[report.key] = report
        return judge(report)

    search.known.rule.decide = note  # type: ignore[method-assign]
    while (assignment := search.propose()) is not None:
        for epoch in (1, 2):
            search.report(assignment.key, {"epoch": epoch, "top1": 0.5})
        report = reports[str(assignment.key)]
        assert report.cost_high == assignment.cost["gflops"]
        assert report.cost_low == assignment.cost.get("gflops_low", report.cost_high)
        assert (report.cost_low < report.cost_high) == (assignment.model == "dynmm")
        search.finish(assignment.key, {"top1": 0.5, "gflops_expected": 1.0} | assignment.cost, {})
    assert len(reports) == 3


@pytest.mark.medium
def test_dynmm_learns_and_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    store = open_dataset("synthetic", cache=tmp_path)
    experts = [{"kind": kind, "num_layers": 1} for kind in ("concat", "late_fusion")]
    training = TrainConfig(epochs=4, batch_size=64, learning_rate=5e-3)

    def start() -> Fit:
        model = build_model("dynmm", store.spec, DynMMConfig(**SIZES, experts=experts), seed=0)
        return Fit(model, store, training, seed=0)

    whole, cut = start(), start()
    for _ in range(3):
        whole.run_epoch()
        cut.run_epoch()
    cut.save(tmp_path / "cut")
    resumed = start()
    resumed.load(tmp_path / "cut")
    for fit in (whole, resumed):
        fit.run_epoch()
    histories = [[{**e, "seconds": 0} for e in fit.history] for fit in (whole, resumed)]
    assert histories[0] == histories[1]
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert whole.result()["route_1"] + whole.result()["route_2"] == pytest.approx(1)


def test_plain_model_has_one_route() -> None:
    plain: FusionModel = build_model(
        "concat", SPEC, replace(MODELS["concat"].config(**SIZES), num_layers=1), seed=0
    ).eval()
    x = {name: one.float() for name, one in samples().items()}
    assert plain.num_routes == 1
    assert torch.equal(plain.route(0, x), plain(x))
