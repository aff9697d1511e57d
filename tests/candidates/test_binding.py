"""Names of a study file against the catalogues, and the identity of a configuration."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.candidates import binding
from sftsearch.orchestrator.candidates.binding import (
    bind,
    check_names,
    definition_of,
    with_objectives,
)
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.metrics import METRICS

if TYPE_CHECKING:
    from sftsearch.search_spaces.load import Source

WEARABLES = describe("wearables")
OBJECTIVES = """\
objectives:
  - {metric: top1, goal: maximize}
  - {metric: gflops, goal: minimize}
"""
VALID = f"""\
study: {{name: small}}
dataset: {{kind: wearables}}
{OBJECTIVES}search: {{trials: 4, sampler: {{kind: random}}}}
training: {{epochs: 2}}
space:
  - kind: sft
    patch: 8
    stride: {{kind: choice, values: [1, 2]}}
    modalities: [watch_acc, phone_acc]
  - kind: concat
    dim: {{kind: int, low: 20, high: 40, step: 20}}
    num_heads: 4
"""


def parse(old: str = "", new: str = "") -> Source:
    assert VALID.count(old) == 1 or not old
    return parse_study(VALID.replace(old, new).encode() if old else VALID.encode(), name="s.yaml")


def mistakes_of(old: str, new: str) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        check_names(parse(old, new))
    return [line.removeprefix("s.yaml, ") for line in str(caught.value).splitlines()]


def test_a_valid_file_passes() -> None:
    check_names(parse())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: wearables", "kind: wearble",
         "line 2: dataset.kind: No data set is called 'wearble'. Did you mean 'wearables'? Known"),
        ("kind: concat", "kind: conkat",
         "line 13: space[1].kind: No model is called 'conkat'. Did you mean 'concat'? Known: "),
        ("patch: 8", "ptach: 8",
         "line 10: space[0].ptach: No parameter is called 'ptach'. Did you mean 'patch'? Known: "
         "batch_size, "),
        ("num_heads: 4", "fused_layers: 4",
         "line 15: space[1].fused_layers: No parameter is called 'fused_layers'."),
        ("epochs: 2", "epoch: 2",
         "line 7: training.epoch: No parameter is called 'epoch'. Did you mean 'epochs'?"),
        ("epochs: 2", "patch: 8", "line 7: training.patch: No parameter is called 'patch'. "),
        ("metric: top1", "metric: tpo1",
         "line 4: objectives[0].metric: No metric of classification is called 'tpo1'. Did you mean "
         "'top1'? Known: balanced_accuracy, gflops, gflops_expected, gmacs, latency_ms, loss, "
         "macro_f1, map, parameters, peak_memory_mb, seconds, top1, top5."),
        ("[watch_acc, phone_acc]", "[watch_acc, phone_mic]",
         "line 12: space[0].modalities: No modality of 'wearables' is called 'phone_mic'. Did you "
         "mean 'phone_acc'? Known: phone_acc, phone_gyro, watch_acc, watch_gyro."),
        ("[watch_acc, phone_acc]", "{kind: choice, values: [[watch_acc], [watch_ac]]}",
         "line 12: space[0].modalities.values[1]: No modality of 'wearables' is called "
         "'watch_ac'."),
        ("values: [1, 2]", "values: [1, {watch_acc: 1, phone: 2}]",
         "line 11: space[0].stride.values[1]: No modality of 'wearables' is called 'phone'."),
        ("{kind: choice, values: [1, 2]}", "{phone_acc: 2, watch: {kind: choice, values: [1, 2]}}",
         "line 11: space[0].stride.watch: No modality of 'wearables' is called 'watch'. Did you "
         "mean 'watch_acc'?"),
        ("{kind: choice, values: [1, 2]}", "{fone_acc: 2, watch_acc: {kind: choice, values: [1]}}",
         "line 11: space[0].stride.fone_acc: No modality of 'wearables' is called 'fone_acc'."),
        ("{kind: choice, values: [1, 2]}", "{watch_acc: {kind: choice, values: [1, two]}}",
         "line 11: space[0].stride.watch_acc.values[1]: It must be a whole number, but got "
         '{"watch_acc": "two"}.'),
        ("{kind: choice, values: [1, 2]}",
         "{watch_acc: {kind: int, low: 1, high: 2}, phone_acc: x}",
         "line 11: space[0].stride.phone_acc: It must be a whole number, but got "
         '{"phone_acc": "x"}.'),
        ("patch: 8", "patch: {watch_acc: {kind: choice, values: [8]}}",
         "line 10: space[0].patch.watch_acc.values[0]: It must be a whole number, but got "
         '{"watch_acc": 8}.'),
        ("patch: 8", "patch: eight",
         'line 10: space[0].patch: It must be a whole number, but got "eight".'),
        ("patch: 8", "patch: 8.0",
         "line 10: space[0].patch: It must be a whole number, but got 8.0."),
        ("patch: 8", "patch: true",
         "line 10: space[0].patch: It must be a whole number, but got true."),
        ("values: [1, 2]", "values: [1, two]", "line 11: space[0].stride.values[1]: It must be a "
         'whole number or a mapping, but got "two".'),
        ("[watch_acc, phone_acc]", "watch_acc",
         'line 12: space[0].modalities: It must be a list, but got "watch_acc".'),
        ("patch: 8", "pooling: mean",
         "line 10: space[0].pooling: It must be 'average'"),
        ("epochs: 2", "epochs: 0",
         "line 7: training.epochs: `epochs` must be a whole number from 1, but got 0."),
        ("epochs: 2", "learning_rate: .nan", "line 7: training.learning_rate: `learning_rate` must "
         "lie in (0, inf), but got nan."),
        ("epochs: 2", "epochs: {kind: int, low: 1, high: 2}",
         "line 7: training.epochs: `training` holds for all trials: put what is searched into "
         "`space`."),
        ("goal: maximize", "goal: minimize",
         "line 4: objectives[0].goal: `top1` can only be maximized."),
        ("{metric: gflops, goal: minimize}", "{metric: map, goal: maximize}",
         "line 3: objectives: The first objective must be an accuracy (top1, top5, map, "
         "balanced_accuracy, macro_f1, loss) and another a cost (gflops, gmacs, parameters, "
         "gflops_expected, latency_ms, peak_memory_mb, seconds), but got (top1, map)."),
        ("{metric: top1, goal: maximize}", "{metric: gmacs, goal: minimize}",
         "line 3: objectives: The first objective must be an accuracy (top1, "),
        ("{metric: gflops, goal: minimize}", "{metric: loss, goal: minimize}",
         "line 3: objectives: The first objective must be an accuracy (top1, "),
        ("metric: gflops, goal: minimize", "metric: top1, goal: maximize",
         "line 5: objectives[1].metric: `top1` stands twice."),
        ("metric: top1", "metric: top5", "line 4: objectives[0].metric: `top5` says nothing with "
         "five classes or fewer."),
    ],
)  # fmt: skip
def test_what_the_catalogues_do_not_know_has_its_line_and_the_nearest_name(
    old: str, new: str, message: str
) -> None:
    found = mistakes_of(old, new)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_a_range_of_fractions_is_none_of_whole_numbers() -> None:
    """Also where its ends are written without a point."""
    assert mistakes_of(
        "{kind: int, low: 20, high: 40, step: 20}", "{kind: float, low: 20, high: 40}"
    ) == [
        "line 14: space[1].dim.high: It must be a whole number, but got 40.0.",
        "line 14: space[1].dim.low: It must be a whole number, but got 20.0.",
    ]


TASKS = {"multilabel": "synthetic_tags", "regression": "synthetic_rating"}


def of_task(task: str, objectives: str) -> Source:
    text = (
        f"study: {{name: small}}\ndataset: {{kind: {TASKS[task]}}}\n{objectives}"
        "search: {trials: 4}\nspace: [{kind: sft}]\n"
    )
    return parse_study(text.encode(), name="s.yaml")


@pytest.mark.parametrize(
    ("task", "metric", "goal"),
    [
        ("multilabel", "micro_f1", "maximize"),
        ("multilabel", "loss", "minimize"),
        ("regression", "mae", "minimize"),
        ("regression", "pearson", "maximize"),
    ],
)
def test_an_accuracy_is_any_metric_of_the_task_in_its_own_direction(
    task: str, metric: str, goal: str
) -> None:
    objectives = OBJECTIVES.replace("top1, goal: maximize", f"{metric}, goal: {goal}")
    check_names(of_task(task, objectives))
    turned = {"maximize": "minimize", "minimize": "maximize"}[goal]
    with pytest.raises(StudyFileError) as caught:
        check_names(of_task(task, objectives.replace(goal, turned, 1)))
    assert str(caught.value) == (
        f"s.yaml, line 4: objectives[0].goal: `{metric}` can only be {goal}d."
    )


@pytest.mark.parametrize("task", TASKS)
def test_what_the_task_does_not_have_is_a_mistake_with_what_it_has(task: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        check_names(of_task(task, OBJECTIVES))
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.key) == (4, "objectives[0].metric")
    said, known = mistake.message.split("Known: ")
    assert said == f"No metric of {task} is called 'top1'. "
    assert set(known.rstrip(".").split(", ")) == {*METRICS[task], "loss", *binding.COSTS}


@pytest.mark.parametrize(
    ("task", "metric", "goal"),
    [("multilabel", "map", "maximize"), ("regression", "mae", "minimize")],
)
def test_objectives_that_are_not_named_are_the_tasks_own(task: str, metric: str, goal: str) -> None:
    source = of_task(task, "")
    check_names(source)
    study = with_objectives(source, describe(TASKS[task])).study
    pairs = [(objective.metric, objective.goal) for objective in study.objectives]
    assert pairs == [(metric, goal), ("gflops", "minimize")]


def test_objectives_that_are_named_stay_and_a_classifications_are_the_defaults() -> None:
    for source in (parse("metric: top1", "metric: map"), parse(OBJECTIVES, "")):
        assert with_objectives(source, WEARABLES).study == source.study
    assert parse(OBJECTIVES, "").study == parse().study


def test_objectives_are_checked_beside_mistakes_of_form() -> None:
    text = VALID.replace("metric: top1", "metric: topl").replace("trials: 4", "trials: no")
    with pytest.raises(StudyFileError) as caught:
        check_names(parse_study(text.encode(), name="s.yaml"))
    assert [mistake.key for mistake in caught.value.mistakes] == [
        "objectives[0].metric",
        "search.trials",
    ]


# ------------------------------------------------------------------ identity


def identity(model: str = "sft", /, **values: Any) -> str:
    return bind(model, {"patch": 8, **values}, {"epochs": 2}, WEARABLES).id


def test_an_id_does_not_change_from_version_to_version() -> None:
    """Pinned: another id here means that resumed studies would run everything anew."""
    assert identity() == "437bd13ed2b7"
    per_modality = {"watch_acc": 2, "phone_acc": 4}
    values = {"stride": per_modality, "modalities": ["watch_acc", "phone_acc"], "dropout": 0.1}
    assert identity("sft_po", **values) == "3034ea7025ba"


def test_modalities_are_a_set() -> None:
    names = list(WEARABLES.modalities)
    ids = {identity(modalities=list(order)) for order in itertools.permutations(names)}
    assert ids == {identity()}  # all of them is what is used where none is named
    assert identity(modalities=names[:2]) != identity()
    assert identity(modalities=names[:2]) == identity(modalities=names[1::-1])


def test_strides_by_modality_are_a_mapping() -> None:
    one = {"watch_acc": 2, "phone_acc": 4}
    other = {"phone_acc": 4, "watch_acc": 2}
    chosen = ["watch_acc", "phone_acc"]
    assert identity(stride=one, modalities=chosen) == identity(stride=other, modalities=chosen)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_default_spelled_out_is_the_same_configuration(model: str) -> None:
    defaults = {
        field.name: field.default
        for config in (MODELS[model].config, TrainConfig)
        for field in dataclasses.fields(config)
        if field.name != "epochs"
    }
    chosen = {"modalities": ["watch_acc", "watch_gyro"]}  # some models take just two
    if model == "unimodal":
        chosen["modalities"].pop()
    bare = bind(model, chosen, {"epochs": 2}, WEARABLES)
    assert bind(model, {**defaults, **chosen}, {"epochs": 2}, WEARABLES).id == bare.id
    assert bind(model, {**chosen, "epochs": 2}, {}, WEARABLES).id == bare.id
    assert bind(model, {**chosen, "epochs": 2}, {"epochs": 9}, WEARABLES).id == bare.id


def test_a_whole_number_is_the_float_it_stands_for() -> None:
    assert identity(dropout=0) == identity(dropout=0.0) == identity()
    assert identity(learning_rate=1) == identity(learning_rate=1.0)
    bound = bind("sft", {"dropout": 0}, {"weight_decay": 0}, WEARABLES)
    assert type(bound.model_config.dropout) is type(bound.train_config.weight_decay) is float


def test_every_other_value_is_another_configuration() -> None:
    """Where it matters: stride 3 leaves a token out, 17 of them attend sparsely, inputs mix."""
    base = {"stride": 3, "mixup": "input", "epochs": 9, "sparse_attention": "fixed", "window": 12}
    others: dict[str, Any] = {
        "patch": 4, "dim": 20, "num_heads": 4, "dropout": 0.1, "unimodal_layers": 2,
        "fused_layers": 3, "stride": 5, "tokens": 5, "pooling": "max", "modalities": ["watch_acc"],
        "sparse_attention": "strided", "window": 11, "summary": 7,
        "epochs": 8, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.1,
        "clip_norm": 1.0, "plateau_patience": 5, "plateau_factor": 0.5, "value": "best",
        "mixup": "manifold", "mixup_alpha": 0.4, "mixup_warmup": 4, "mixup_weights": "sample",
        "regression_loss": "l2", "precision": "bfloat16", "compile": True,
    }  # fmt: skip
    assert others.keys() == binding.parameters_of("sft").keys()
    ids = [identity(**base)]
    for name, value in others.items():
        changed = base | {name: value} | ({"stride": None} if name == "tokens" else {})
        ids.append(identity(**changed))
    # What a regression is trained on makes no difference to classes.
    assert identity(**base, regression_loss="l2") == ids[0]
    assert len(set(ids)) == len(ids) - 1
    ratings = describe("synthetic_rating")
    losses = [bind("sft", {"regression_loss": loss}, {}, ratings).id for loss in ("l1", "l2")]
    assert losses[0] != losses[1]


ALONE = {"modalities": ["watch_acc"]}
WATCH = {"modalities": ["watch_acc", "watch_gyro"]}
SPELLINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # Eight samples make a token: there are 16 of a sensor.
    ("sft", {"stride": 4}, {"tokens": 4}),
    ("sft_po", {"stride": 16}, {"tokens": dict.fromkeys(WEARABLES.modalities, 1)}),
    ("late_fusion", {"stride": 2}, {"tokens": 8}),
    ("concat", {"stride": 4, **ALONE}, {"tokens": 4, **ALONE}),
    ("sft", {"tokens": 99}, {}),
    ("sft", {"stride": 1, "pooling": "max"}, {"tokens": 16}),
    ("concat", {"pooling": "attention"}, {}),
    ("sft", {**WATCH, "stride": {"watch_acc": 2, "watch_gyro": 4, "phone_acc": 8}},
     {**WATCH, "tokens": {"watch_acc": 8, "watch_gyro": 4}}),
    ("sft", {"sparse_attention": "strided", "window": 17}, {"sparse_attention": "dense"}),
    ("sft", {"mixup": "none", "mixup_alpha": 0.9}, {}),
]  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize(("model", "one", "other"), SPELLINGS)
def test_what_trains_alike_is_one_configuration(
    model: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """And the model that is built is the one that was written: the same logits, bit for bit."""
    common = {"patch": 8, "dim": 8, "num_heads": 2}
    x = {m: torch.randn(3, 128, 3) for m in WEARABLES.modalities}
    bounds = [bind(model, common | values, {}, WEARABLES) for values in (one, other)]
    assert bounds[0].id == bounds[1].id
    assert bounds[0].model_config == bounds[1].model_config
    for values, bound in zip((one, other), bounds, strict=True):
        own = {k: v for k, v in (common | values).items() if k in binding.fields_of(model)}
        built = [
            build_model(model, WEARABLES, config, seed=0).eval()
            for config in (MODELS[model].config(**own), bound.model_config)
        ]
        inputs = {m: x[m] for m in bound.model_config.modalities}
        assert torch.equal(built[0](inputs), built[1](inputs))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"stride": 3}, {"tokens": 5}),  # the stride leaves out the last of 16 tokens
        ({"stride": 2, "pooling": "max"}, {"stride": 2}),
        ({"tokens": {"watch_acc": 2, "watch_gyro": 4}}, {"tokens": 2}),
    ],
)  # fmt: skip
def test_what_trains_otherwise_is_another(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert identity(**WATCH, **one) != identity(**WATCH, **other)


def test_other_data_is_another_configuration_and_a_mere_rewording_is_not() -> None:
    spec = dataclasses.replace(WEARABLES, fingerprint="0" * 64)
    assert bind("sft", {}, {}, spec).id != bind("sft", {}, {}, WEARABLES).id
    spec = dataclasses.replace(WEARABLES, description="Better said.")
    assert bind("sft", {}, {}, spec).id == bind("sft", {}, {}, WEARABLES).id


def test_what_is_shown_is_the_study_files_names_with_the_modalities_in_order() -> None:
    bound = bind("sft", {"modalities": ["watch_gyro", "phone_acc"], "stride": 2}, {}, WEARABLES)
    assert bound.parameters == {"modalities": ["phone_acc", "watch_gyro"], "stride": 2}
    assert bound.model_config.modalities == ("phone_acc", "watch_gyro")
    again = bind("sft", bound.parameters, {}, WEARABLES)
    assert again.id == bound.id
    assert bind("sft", {}, {}, WEARABLES).parameters == {"modalities": list(WEARABLES.modalities)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 20, "num_heads": 3}, "`num_heads` must divide `dim`"),
        ({"modalities": ["radar"]}, "has no modality 'radar'"),
        ({"patch": 8.5}, "`patch`: It must be a whole number, but got 8.5."),
    ],
)
def test_what_cannot_be_put_together_is_said(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        bind("sft", values, {}, WEARABLES)
    assert isinstance(caught.value, UserError)


# ---------------------------------------------------------------- definition


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials: 4", "trials: 8"),
        ("{kind: random}", "{kind: tpe, seed: 4}"),
        ("study: {name: small}", "study: {name: small, description: said better}"),
        ("space:\n", "resources: {cpus: 2}\nspace:\n"),
        ("trials: 4", "trials: 4, balance: branches"),
        (OBJECTIVES, ""),
        ("low: 20, high: 40, step: 20", "step: 20, low: 20, high: 40"),
    ],
)  # fmt: skip
def test_the_budget_is_no_part_of_a_studys_definition(old: str, new: str) -> None:
    assert definition_of(parse(old, new), WEARABLES) == definition_of(parse(), WEARABLES)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("trials: 4", "trials: 4, replicates: 2", "replicates"),
        ("epochs: 2", "epochs: 3", "training"),
        ("patch: 8", "patch: 4", "space"),
        ("metric: gflops", "metric: gmacs", "objectives"),
        ("space:\n", "constraints: [{metric: gflops, max: 1}]\nspace:\n", "constraints"),
    ],
)
def test_everything_else_is(old: str, new: str, part: str) -> None:
    ours = definition_of(parse(), WEARABLES)
    theirs = definition_of(parse(old, new), WEARABLES)
    assert [name for name in ours if ours[name] != theirs[name]] == [part]


def test_every_model_is_described_with_every_parameter_and_its_default() -> None:
    rows = binding.describe_models()
    assert [row["model"] for row in rows] == sorted(MODELS)
    for row in rows:
        names = {parameter["name"] for parameter in row["parameters"]}
        assert names == binding.fields_of(row["model"]).keys()
    (training,) = binding.describe_models(training=True)
    assert {p["name"]: p["default"] for p in training["parameters"]} == dataclasses.asdict(
        TrainConfig()
    )


def test_no_parameter_belongs_to_a_model_and_to_training() -> None:
    for model in MODELS:
        assert not binding.fields_of(model).keys() & binding.fields_of(binding.TRAINING).keys()
