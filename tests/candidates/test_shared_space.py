"""Shared parameters, errors of several kinds together, and objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.binding import definition_of, parameter_names
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.objectives import Objectives
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.search_spaces.schema import FloatRange

if TYPE_CHECKING:
    from sftsearch.search_spaces.load import StudySource


SHARED = """\
study: {name: s}
dataset: {kind: wearables, folds: 5}
objectives:
  - {metric: top1, direction: maximize}
  - {metric: gflops, direction: minimize}
search: {sampler: {kind: tpe, seed: 1}, trials: 4}
training: {epochs: 2, batch_size: 8}
resources: {cpus: 1}
space:
  shared: {patch: 8, dropout: 0.1, num_layers: 2, sparse_attention: dense}
  models:
    - {kind: sft, num_heads: 4, dim: {kind: choice, values: [8, 16]}, tokens: {watch_acc: 2}}
    - {kind: concat, num_heads: 4, dropout: {kind: float, low: 0.0, high: 0.5}}
    - {kind: unimodal, num_heads: 4, modalities: [watch_acc]}
"""


def read_shared(text: str = SHARED) -> StudySource:
    source = parse_study(text.encode(), parameter_names, name="s.yaml")
    check_names(source)
    return source


def mistakes_of_shared(*changes: tuple[str, str]) -> list[str]:
    text = SHARED
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    with pytest.raises(StudyFileError) as caught:
        read_shared(text)
    return [line.removeprefix("s.yaml, ") for line in str(caught.value).splitlines()]


def test_shared_parameters_go_to_each_model_that_has_them() -> None:
    sft, concat, unimodal = read_shared().study.space
    assert sft.parameters.keys() == {
        "patch", "dropout", "sparse_attention", "num_heads", "dim", "tokens",
    }  # fmt: skip
    assert (sft.parameters["dropout"], unimodal.parameters["dropout"]) == (0.1, 0.1)
    assert isinstance(concat.parameters["dropout"], FloatRange)  # its own, not the shared one
    assert concat.parameters["num_layers"] == 2
    assert "num_layers" not in sft.parameters
    assert "num_layers" not in unimodal.parameters
    assert unimodal.parameters["modalities"] == ["watch_acc"]


def test_shared_parameters_equal_parameters_listed_by_branch() -> None:
    """The order is also equal, so that proposals and the definition are the same."""
    listed = SHARED.split("space:")[0] + (
        "space:\n"
        "  - {kind: sft, num_heads: 4, dim: {kind: choice, values: [8, 16]},"
        " tokens: {watch_acc: 2}, patch: 8, dropout: 0.1, sparse_attention: dense}\n"
        "  - {kind: concat, num_heads: 4, dropout: {kind: float, low: 0.0, high: 0.5},"
        " patch: 8, num_layers: 2}\n"
        "  - {kind: unimodal, num_heads: 4, modalities: [watch_acc], patch: 8,"
        " dropout: 0.1}\n"
    )
    short, long = read_shared(), read_shared(listed)
    spec = describe("wearables")
    assert short.study == long.study
    assert [list(b.parameters) for b in short.study.space] == [
        list(b.parameters) for b in long.study.space
    ]
    assert definition_of(short, spec) == definition_of(long, spec)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patch: 8", "patch: eight",
         'line 10: space.shared.patch: It must be a whole number or a mapping, but got "eight".'),
        ("patch: 8", "patches: 8",
         "line 10: space.shared.patches: No parameter is called 'patches'. Did you mean 'patch'?"),
        ("patch: 8", "patch: {kind: int, low: 8}",
         "line 10: space.shared.patch.high: This key is missing."),
        ("patch: 8", "kind: sft", "line 10: space.shared.kind: No parameter is called 'kind'."),
        ("kind: concat", "kind: concatt",
         "line 13: space.models[1].kind: No model is called 'concatt'. Did you mean 'concat'?"),
        ("values: [8, 16]", "values: [8, x]", "line 12: space.models[0].dim.values[1]: It must be"),
        ("  models:", "  model:", "line 9: space.models: This key is missing."),
        ("  models:", "  also: {}\n  models:", "line 11: space.also: No key is called 'also'."),
        ("{patch: 8, dropout: 0.1, num_layers: 2, sparse_attention: dense}", "[patch]",
         "line 10: space.shared: It must be a mapping of parameters."),
    ],
)  # fmt: skip
def test_check_names_reports_a_shared_parameter_once(old: str, new: str, message: str) -> None:
    found = mistakes_of_shared((old, new))
    assert found[0].startswith(message)
    assert len(found) == len(set(found)) == 1 + (old == "  models:" and "model:" in new)


WRONG_TYPES = {
    "study.name": ("name: s", "name: 7"),
    "dataset.folds": ("folds: 5", "folds: five"),
    "objectives[0].direction": ("direction: maximize", "direction: 3"),
    "search.sampler.seed": ("seed: 1", "seed: one"),
    "search.trials": ("trials: 4", "trials: four"),
    "training.epochs": ("epochs: 2", "epochs: two"),
    "resources.cpus": ("cpus: 1", "cpus: one"),
    "space.shared.patch": ("patch: 8", "patch: eight"),
    "space.models[0].dim.values[1]": ("[8, 16]", "[8, wide]"),
    "space.models[0].tokens": ("watch_acc: 2", "watch_acc: two"),
    "space.models[1].dropout.high": ("high: 0.5", "high: much"),
    "space.models[2].modalities": ("[watch_acc]", "watch_acc"),
}
UNKNOWN_NAMES = {
    "space.models[1].kind": ("kind: concat", "kind: concatt"),
    "training.batch": ("batch_size: 8", "batch: 8"),
    "objectives[0].metric": ("metric: top1", "metric: top9"),
    "resources.gpu": ("cpus: ", "gpu: 0, cpus: "),
    "objectives[1].metric": ("metric: gflops", "metric: gflop"),
    "space.shared.num_layer": ("num_layers", "num_layer"),
    "space.models[0].heads": ("sft, num_heads", "sft, heads"),
    "study.label": ("study: {", "study: {label: x, "),
    "space.models[2].width": ("unimodal, ", "unimodal, width: 8, "),
    "search.replicate": ("trials: ", "replicate: 2, trials: "),
    "dataset.kind": ("wearables", "wearable"),
    "search.balanced": ("search: {", "search: {balanced: true, "),
}


@pytest.mark.parametrize(("wrong", "unknown"), list(zip(WRONG_TYPES, UNKNOWN_NAMES, strict=True)))
def test_check_names_reports_a_wrong_type_and_an_unknown_name_together(
    wrong: str, unknown: str
) -> None:
    found = mistakes_of_shared(WRONG_TYPES[wrong], UNKNOWN_NAMES[unknown])
    keys = [line.split(": ")[1] for line in found]
    assert wrong in keys
    assert unknown in keys


@pytest.mark.parametrize("cost", ["latency_ms", "train_step_ms", "seconds"])
def test_check_names_refuses_a_measured_cost_as_the_only_one(cost: str) -> None:
    only = ("metric: gflops", f"metric: {cost}")
    assert mistakes_of_shared(only) == [
        f"line 3: objectives: A search needs a cost that is known or bounded before training, but "
        f"{cost} is measured in trials: add one of gflops, gmacs, parameters, gflops_dense, "
        "gflops_expected, train_memory_mb, inference_memory_mb, weights_mb."
    ]
    both = (
        f"  - {{metric: gflops, direction: minimize}}\n  - {{metric: {cost}, direction: minimize}}"
    )
    read_shared(SHARED.replace("  - {metric: gflops, direction: minimize}", both))


def test_objectives_report_on_the_searched_cost() -> None:
    text = SHARED.replace(
        "  - {metric: gflops, direction: minimize}",
        "  - {metric: latency_ms, direction: minimize}\n"
        "  - {metric: parameters, direction: minimize}",
    )
    objectives = Objectives.of_study(read_shared(text).study)
    assert objectives.names == ("top1", "parameters", "latency_ms")
    assert objectives.searched_cost == objectives.x == "parameters"
    assert Objectives.of([("top1", "maximize"), ("gflops_expected", "minimize")]) == Objectives(
        ("top1", "gflops_expected"), ("maximize", "minimize")
    )


def test_objectives_adjust_signs_by_direction() -> None:
    objectives = Objectives.of([("mae", "minimize"), ("gflops", "minimize")])
    assert objectives.quality({"mae": 0.5, "gflops": 2.0}) == -0.5
    assert objectives.costs({"mae": 0.5, "gflops": 2.0}) == (2.0,)
    assert objectives.with_axes("pearson", "top1").costs({"pearson": 0.25}) == (-0.25,)


def test_check_names_does_not_blame_a_default_for_a_value_of_a_wrong_type() -> None:
    changed = ("epochs: 2", "mixup: input, mixup_warmup: 30, epochs: x")
    assert mistakes_of_shared(changed) == [
        'line 7: training.epochs: It must be a whole number, but got "x".'
    ]


def test_check_names_reports_no_shared_parameter_where_no_model_is_a_mapping() -> None:
    text = SHARED.split("  models:")[0] + "  models: [sft, concat]\n"
    with pytest.raises(StudyFileError) as caught:
        read_shared(text)
    assert "Known: ." not in str(caught.value)


def test_expand_shared_leaves_too_many_models_to_the_schema() -> None:
    models = "    - {kind: sft}\n" * 1001
    with pytest.raises(StudyFileError, match=r"space\.models: The list is too long"):
        read_shared(SHARED.split("    - {kind: sft")[0] + models)


def test_objectives_of_an_old_record_may_have_a_measured_cost_alone() -> None:
    objectives = Objectives.of([("top1", "maximize"), ("latency_ms", "minimize")])
    assert (objectives.x, objectives.searched_cost) == ("latency_ms", "gflops")
