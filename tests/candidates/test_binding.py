"""Bind study files to the catalogs, and check the ids of configurations."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest
import torch

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.candidates import binding
from sftsearch.orchestrator.candidates.binding import (
    bind,
    definition_of,
    with_objectives,
)
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig

from bound_study import OBJECTIVES, TASKS, of_task, parse

WEARABLES = describe("wearables")


@pytest.mark.parametrize(
    ("task", "metric", "direction"),
    [("multilabel", "map", "maximize"), ("regression", "mae", "minimize")],
)
def test_with_objectives_adds_defaults_of_the_task(task: str, metric: str, direction: str) -> None:
    source = of_task(task, "")
    check_names(source)
    study = with_objectives(source, describe(TASKS[task])).study
    pairs = [(objective.metric, objective.direction) for objective in study.objectives]
    assert pairs == [(metric, direction), ("gflops", "minimize")]


def test_with_objectives_keeps_given_objectives() -> None:
    for source in (parse("metric: top1", "metric: map"), parse(OBJECTIVES, "")):
        assert with_objectives(source, WEARABLES).study == source.study
    assert parse(OBJECTIVES, "").study == parse().study


# ------------------------------------------------------------------ ids


def identity(model: str = "sft", /, **values: Any) -> str:
    return bind(model, {"patch": 8, **values}, {"epochs": 2}, WEARABLES).id


def test_bind_ids_are_stable_across_versions() -> None:
    """The ids are pinned: with other ids, resumed studies would train everything again."""
    assert identity() == "437bd13ed2b7"
    per_modality = {"watch_acc": 2, "phone_acc": 4}
    values = {"stride": per_modality, "modalities": ["watch_acc", "phone_acc"], "dropout": 0.1}
    assert identity("sft_po", **values) == "3034ea7025ba"


def test_bind_ignores_the_order_of_modalities() -> None:
    names = list(WEARABLES.modalities)
    ids = {identity(modalities=list(order)) for order in itertools.permutations(names)}
    assert ids == {identity()}  # the default is all of them
    assert identity(modalities=names[:2]) != identity()
    assert identity(modalities=names[:2]) == identity(modalities=names[1::-1])


def test_bind_ignores_the_order_of_strides_by_modality() -> None:
    one = {"watch_acc": 2, "phone_acc": 4}
    other = {"phone_acc": 4, "watch_acc": 2}
    chosen = ["watch_acc", "phone_acc"]
    assert identity(stride=one, modalities=chosen) == identity(stride=other, modalities=chosen)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_bind_gives_explicit_defaults_the_same_id(model: str) -> None:
    defaults = {
        field.name: field.default
        for config in (MODELS[model].config, TrainConfig)
        for field in dataclasses.fields(config)
        if field.name != "epochs"
    }
    chosen = {"modalities": ["watch_acc", "watch_gyro"]}  # some models take only two
    if model == "unimodal":
        chosen["modalities"].pop()
    bare = bind(model, chosen, {"epochs": 2}, WEARABLES)
    assert bind(model, {**defaults, **chosen}, {"epochs": 2}, WEARABLES).id == bare.id
    assert bind(model, {**chosen, "epochs": 2}, {}, WEARABLES).id == bare.id
    assert bind(model, {**chosen, "epochs": 2}, {"epochs": 9}, WEARABLES).id == bare.id


def test_bind_converts_integers_of_float_parameters() -> None:
    assert identity(dropout=0) == identity(dropout=0.0) == identity()
    assert identity(learning_rate=1) == identity(learning_rate=1.0)
    bound = bind("sft", {"dropout": 0}, {"weight_decay": 0}, WEARABLES)
    assert type(bound.model_config.dropout) is type(bound.train_config.weight_decay) is float


def test_bind_gives_different_values_different_ids() -> None:
    """In the base configuration every parameter has an effect on training."""
    base = {"stride": 3, "mixup": "input", "epochs": 9, "sparse_attention": "fixed", "window": 12}
    others: dict[str, Any] = {
        "patch": 4, "dim": 20, "num_heads": 4, "dropout": 0.1, "unimodal_layers": 2,
        "fused_layers": 3, "stride": 5, "tokens": 5, "pooling": "max", "modalities": ["watch_acc"],
        "sparse_attention": "strided", "window": 11, "summary": 7,
        "pooling_eps": 1e-3, "pooling_weights": "sparse", "cls_sum": "after_sparse",
        "epochs": 8, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.1,
        "clip_norm": 1.0, "plateau_patience": 5, "plateau_factor": 0.5, "score_epoch": "best",
        "accumulate": 2, "optimizer": "adam", "momentum": 0.5, "schedule": "cosine",
        "warmup_epochs": 2.5, "step_epochs": 3, "patience": 2, "average_weights": 0.99,
        "label_smoothing": 0.1, "class_weights": "balanced",
        "mixup": "manifold", "mixup_alpha": 0.4, "mixup_warmup": 4, "mixup_weights": "sample",
        "regression_loss": "l2", "precision": "bfloat16", "compile": True,
        "segments": 12, "tokenizer": "conv",
        "time_crop": 0.1, "rotation": 10, "rotate": ["watch_acc"], "scaling": 0.1, "jitter": 0.1,
        "token_dropout": 0.1, "time_mask": 0.1, "frequency_mask": 0.1,
        "spectrograms": ["watch_acc"], "modality_dropout": 0.1,
    }  # fmt: skip
    needed: dict[str, Any] = {
        "tokens": {"stride": None}, "momentum": {"optimizer": "sgd"},
        "step_epochs": {"schedule": "step"}, "pooling_eps": {"pooling": "attention"},
        "pooling_weights": {"pooling": "attention"}, "rotate": {"rotation": 5},
        "spectrograms": {"time_mask": 0.2}, "segments": {"patch": 1},
    }  # fmt: skip
    """What a parameter needs to have an effect."""
    named = {"trainer", "training_loss"}  # need a plug-in, see tests/plugins
    assert others.keys() == binding.parameters_of("sft").keys() - named
    ids = [identity(**base)]
    for name, value in others.items():
        changed = base | {name: value} | needed.get(name, {})
        ids.append(identity(**changed))
        if name != "regression_loss":  # has no effect on classification
            assert ids[-1] != identity(**base | needed.get(name, {}))
    # The loss of a regression has no effect on classification.
    assert identity(**base, regression_loss="l2") == ids[0]
    assert len(set(ids)) == len(ids) - 1
    ratings = describe("synthetic_rating")
    losses = [bind("sft", {"regression_loss": loss}, {}, ratings).id for loss in ("l1", "l2")]
    assert losses[0] != losses[1]


ALONE = {"modalities": ["watch_acc"]}
WATCH = {"modalities": ["watch_acc", "watch_gyro"]}
SPELLINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # A token has eight samples, so a sensor has 16 tokens.
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
    ("sft", {"momentum": 0.5, "step_epochs": 3}, {}),
    ("sft", {"schedule": "cosine", "plateau_patience": 3, "plateau_factor": 0.5},
     {"schedule": "cosine"}),
    ("sft", {"schedule": "step", "plateau_patience": 3}, {"schedule": "step"}),
    ("sft", {"epochs": 5, "patience": 4}, {"epochs": 5}),
    ("sft", {"clip_norm": 1}, {"clip_norm": 1.0}),
    ("sft", {"patch": dict.fromkeys(WEARABLES.modalities, 8)}, {}),
    ("sft", {"patch": 1, "segments": 16}, {}),
    ("sft", {"patch": 1, "segments": dict.fromkeys(WEARABLES.modalities, 12)},
     {"patch": 1, "segments": 12}),
    ("sft", {"rotate": ["watch_acc"], "spectrograms": ["watch_acc"]}, {}),
    ("sft", {"rotation": 5, "rotate": [*WEARABLES.modalities]}, {"rotation": 5}),
]  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize(("model", "one", "other"), SPELLINGS)
def test_bind_gives_equivalent_configurations_one_id(
    model: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The built models also have the same logits, bit for bit."""
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
        ({"stride": 3}, {"tokens": 5}),  # the stride drops the last of 16 tokens
        ({"stride": 2, "pooling": "max"}, {"stride": 2}),
        ({"tokens": {"watch_acc": 2, "watch_gyro": 4}}, {"tokens": 2}),
    ],
)  # fmt: skip
def test_bind_gives_different_training_different_ids(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert identity(**WATCH, **one) != identity(**WATCH, **other)


def test_bind_ids_of_fields_added_later_differ_only_from_their_defaults() -> None:
    """The id of a configuration with an older version's fields is pinned above."""
    assert identity(optimizer="adamw", patience=None, warmup_epochs=0) == "437bd13ed2b7"
    assert identity(clip_norm=None) != identity()
    assert identity(patience=3, epochs=9) != identity(epochs=9)
    gated = {"gate": "mlp", "dim": 8, "num_heads": 2}
    rates = {identity("dynmm_fusion", **gated, joint_learning_rate=r) for r in (None, 1e-3, 1e-4)}
    assert len(rates) == 3
    assert identity("dynmm_fusion", **gated) in rates


def test_every_field_added_later_is_a_field_with_a_default() -> None:
    for name in binding._ADDED_LATER:
        assert any(name in binding.fields_of(kind) for kind in (*MODELS, binding.TRAINING)), name


def test_bind_ids_depend_on_the_fingerprint_but_not_on_the_description() -> None:
    spec = dataclasses.replace(WEARABLES, fingerprint="0" * 64)
    assert bind("sft", {}, {}, spec).id != bind("sft", {}, {}, WEARABLES).id
    spec = dataclasses.replace(WEARABLES, description="Another description.")
    assert bind("sft", {}, {}, spec).id == bind("sft", {}, {}, WEARABLES).id


def test_bind_keeps_the_study_files_names_and_sorts_modalities() -> None:
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
        ({"patch": 8.5}, "`patch`: It must be a whole number or a mapping, but got 8.5."),
    ],
)
def test_bind_reports_invalid_combinations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        bind("sft", values, {}, WEARABLES)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("option", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}])
def test_bind_refuses_options_of_a_loss_that_is_not_trained_on(option: dict[str, Any]) -> None:
    (name,) = option
    cases = [
        ("sft", "synthetic_tags"),
        ("sft", "synthetic_rating"),
        ("multiplication", "wearables"),
        ("multiplicative", "wearables"),
    ]
    for model, dataset in cases:
        with pytest.raises(ConfigError, match=f"`{name}` changes the cross-entropy") as caught:
            bind(model, {}, option, describe(dataset))
        assert caught.value.parameters == (name,)
    bind("sft", {}, option, WEARABLES)


# ---------------------------------------------------------------- definition


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials: 4", "trials: 8"),
        ("{kind: random}", "{kind: tpe, seed: 4}"),
        ("study: {name: small}", "study: {name: small, description: another one}"),
        ("space:\n", "resources: {cpus: 2}\nspace:\n"),
        ("trials: 4", "trials: 4, balance: branches"),
        (OBJECTIVES, ""),
        ("low: 20, high: 40, step: 20", "step: 20, low: 20, high: 40"),
    ],
)  # fmt: skip
def test_definition_of_leaves_out_the_budget(old: str, new: str) -> None:
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
def test_definition_of_has_everything_else(old: str, new: str, part: str) -> None:
    ours = definition_of(parse(), WEARABLES)
    theirs = definition_of(parse(old, new), WEARABLES)
    assert [name for name in ours if ours[name] != theirs[name]] == [part]


def test_fields_of_a_model_are_none_of_training() -> None:
    for model in MODELS:
        assert not binding.fields_of(model).keys() & binding.fields_of(binding.TRAINING).keys()
