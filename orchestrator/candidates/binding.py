"""Bind points of a search space to model and training configurations, with stable ids.

A parameter of a branch is a field of the model's configuration or of `TrainConfig`; no name is in
both.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sftsearch.datasets.errors import look_up, unknown
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.plugins import plugins_of
from sftsearch.search_spaces.schema import Objective
from sftsearch.trainables import catalog as models
from sftsearch.trainables.config import ConfigError, ModelConfig, TrainConfig
from sftsearch.trainables.metrics import METRICS
from sftsearch.trainables.models.fusion import solved_training
from sftsearch.trainables.own_training import check_trainer
from sftsearch.trainables.plugin_functions import DEFAULTS, named_in, source_hashes
from sftsearch.trainables.training_loss import check_loss

if typing.TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces.load import StudySource
    from sftsearch.search_spaces.schema import StudyFile

TRAINING = "training"
_HASHED_AS = {"score_epoch": "value"}
"""Renamed fields and the old names that are hashed, so that ids stay the same."""
_ADDED_LATER = frozenset(
    {
        # of training
        *("accumulate", "average_weights", "class_weights", "label_smoothing", "momentum"),
        *("optimizer", "patience", "schedule", "step_epochs", "warmup_epochs"),
        *("frequency_mask", "jitter", "modality_dropout", "rotate", "rotation", "scaling"),
        *("spectrograms", "time_crop", "time_mask", "token_dropout"),
        *("trainer", "training_loss"),
        # of models
        *("cls_sum", "joint_learning_rate", "modality_order", "pooling_eps", "pooling_weights"),
        *("segments", "soft_inference", "tokenizer"),
    }
)
"""Fields of existing configurations that were added after studies had run. They are hashed only if
they differ from their default, so that ids stay the same; their defaults must never change."""
_HAD_SEGMENTS = ("msaf", "msaf_lstm")
"""Models that had a field `segments`, of another meaning, before all others had one."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of the search space, bound to a dataset, without a seed."""

    id: str
    """12 hexadecimal digits of a hash of everything that determines the values of its trials."""
    model: str
    parameters: dict[str, Any]
    """Parameters as in the study file, with modalities in the dataset's order."""
    model_config: ModelConfig
    train_config: TrainConfig


def bind(
    model: str, values: Mapping[str, object], training: Mapping[str, object], spec: DatasetSpec
) -> Configuration:
    """Return the configuration of a point, in canonical form.

    Equivalent values give one configuration with one id; `parameters` keeps the values given.

    Args:
        model: a name of the model catalog.
        values: the branch's parameters, as in the study file (`Point.parameters`).
        training: the study file's `training` section.
        spec: of the dataset; `modalities` are sorted in its order, by default all of them.

    Raises:
        ConfigError: values are invalid together, such as a `num_heads` that does not divide `dim`.
    """
    entry = look_up(models.MODELS, model, kind="model")
    own = fields_of(model)
    shared = {**training, **{name: v for name, v in values.items() if name not in own}}
    model_config = entry.config(
        **{name: _exact(own, name, value) for name, value in values.items() if name in own}
    )
    chosen = model_config.chosen(spec)
    model_config = model_config.canonical(spec)
    fields = fields_of(TRAINING)
    train_config = TrainConfig(**{name: _exact(fields, name, shared[name]) for name in shared})
    train_config = train_config.canonical(spec)
    if entry.is_solved:  # the options of a study apply to its other models
        train_config = solved_training(train_config)
    if train_config.mixup == "manifold" and not entry.mixes_latents:
        why = (
            "a model of a plug-in does not say where its latents can be mixed"
            if entry.source_hash
            else "its samples take different routes, so no layer sees all of them"
        )
        raise ConfigError(
            f"`mixup` must not be manifold for `kind: {model}`: {why}. Use input or modality.",
            "mixup",
        )
    check_loss(train_config, spec.task, own_loss=entry.own_loss)
    check_trainer(train_config)
    shown = dict(values) | {"modalities": list(chosen)}
    identity = _identity(model, model_config, train_config, spec.fingerprint)
    return Configuration(identity, model, shown, model_config, train_config)


def _exact(fields: Mapping[str, TypeAdapter[object]], name: str, value: object) -> Any:
    """Return a value in its field's type, so that 0 and 0.0 give the same configuration."""
    if name not in fields:  # of a journal from another version
        raise ConfigError(unknown(name, fields, kind="parameter"), name)
    try:
        return check_value(fields[name], value)
    except ValueError as error:
        raise ConfigError(f"`{name}`: {error}", name) from error


def _identity(
    model: str, model_config: ModelConfig, train_config: TrainConfig, fingerprint: str
) -> str:
    training = {_HASHED_AS.get(n, n): value for n, value in _hashed(TRAINING, train_config)}
    content = [
        model,
        _hashed(model, model_config),
        sorted(training.items()),
        fingerprint,
    ]
    # Another source is another model.
    named = dataclasses.asdict(model_config) | dataclasses.asdict(train_config)
    sources = [models.MODELS[model].source_hash, *source_hashes(named)]
    content += [source for source in sources if source]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hashed(name: str, config: TrainConfig | ModelConfig) -> list[tuple[str, object]]:
    """Return the fields that determine a configuration's id, and their values."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    later = _ADDED_LATER - {"segments"} if name in _HAD_SEGMENTS else _ADDED_LATER
    values = [(field, getattr(config, field)) for field in fields_of(name)]
    values = [(n, _without_tokens(v) if n == "experts" else v) for n, v in values]
    return [(n, v) for n, v in values if n not in later or v != defaults[n]]


def _without_tokens(experts: Any) -> Any:
    """Leave out the default `segments` and `tokenizer` of experts, which were added later."""
    plain = {"segments": None, "tokenizer": "linear"}
    return [
        {n: v for n, v in expert.items() if n not in plain or v != plain[n]}
        for expert in experts or ()
    ]


def fields_of(name: str) -> dict[str, TypeAdapter[object]]:
    """Return the fields of a model's configuration (or of `TRAINING`) with their type adapters.

    They are in alphabetical order.
    """
    return _fields(name, _source_of(name))


@functools.cache
def _fields(name: str, source_hash: str) -> dict[str, TypeAdapter[object]]:
    config = _config_of(name)
    hints = typing.get_type_hints(config, localns={"Mapping": Mapping, "Literal": Literal})
    strict = ConfigDict(strict=True, arbitrary_types_allowed=False)
    names = sorted(field.name for field in dataclasses.fields(config))
    return {field: TypeAdapter(hints[field], config=strict) for field in names}


def _config_of(name: str) -> type[TrainConfig | ModelConfig]:
    return TrainConfig if name == TRAINING else models.MODELS[name].config


def _source_of(name: str) -> str:
    """Return the hash of a plug-in's source, with which its fields may change."""
    return "" if name == TRAINING else models.MODELS[name].source_hash


def parameters_of(model: str) -> dict[str, TypeAdapter[object]]:
    """Return all parameters of a branch of this model, including those of training."""
    return _parameters(model, _source_of(model))


@functools.cache
def _parameters(model: str, source_hash: str) -> dict[str, TypeAdapter[object]]:
    return fields_of(model) | fields_of(TRAINING)


def parameter_names(model: str) -> Collection[str]:
    """Return the names of a model's parameters; for an unknown model, those of all models."""
    known = [model] if model in models.MODELS else list(models.MODELS)
    return {name for one in known for name in parameters_of(one)}


def check_value(adapter: TypeAdapter[object], value: object) -> object:
    """Check a value and return it in its field's type (lists become tuples).

    Raises:
        ValueError: the type is wrong.
    """
    try:
        return adapter.validate_python(_frozen(value))
    except ValidationError as error:
        # A union reports every member. None is only the default of an omitted parameter.
        problems = [one for one in error.errors() if one["type"] != "none_required"]
        types = dict.fromkeys(_TYPES.get(one["type"]) or _rest(one["msg"]) for one in problems)
        got = json.dumps(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."
        raise ValueError(f"It must be {' or '.join(types)}, but got {got}.") from error


def _rest(message: str) -> str:
    return message.removeprefix("Input should be ")


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
}


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def with_objectives(source: StudySource, spec: DatasetSpec) -> StudySource:
    """Return the source with default objectives, if it has none: the task's metric and GFLOPs.

    The task's metric is `top1`, `map` (multi-label) or `mae` (regression).
    """
    if "objectives" in source.data:
        return source
    pair = (METRICS[spec.task][0], "gflops")
    objectives = [Objective(metric=name, direction=metric(name).direction) for name in pair]
    study = source.study.model_copy(update={"objectives": objectives})
    return dataclasses.replace(source, checked=study)


def names_used(model: str, study: StudyFile, parameters: Mapping[str, object]) -> list[str]:
    """Return the model and the functions that a configuration of a study names."""
    return [model, *(name for _, name in named_in({**study.training, **parameters}))]


def names_in(study: StudyFile) -> list[str]:
    """Return the models and functions that a study names, also among values to choose from."""
    found = [branch.kind for branch in study.space]
    for values in (study.training, *(branch.parameters for branch in study.space)):
        for name in (*DEFAULTS, "experts"):
            value = values.get(name)
            for one in getattr(value, "values", [value]):
                found += [named for _, named in named_in({name: one})]
    return found


def definition_of(source: StudySource, spec: DatasetSpec) -> dict[str, object]:
    """Return what defines a study: space, data, objectives, constraints, training, replicates.

    Studies with models of plug-ins also have the hashes of these.

    The budget (trials, resources, sampler) is not part of it, so a study can be extended.
    """
    study = source.study
    definition: dict[str, object] = {
        "dataset": study.dataset.kind,
        "folds": study.dataset.folds,
        "fingerprint": spec.fingerprint,
        "objectives": [objective.model_dump() for objective in study.objectives],
        "constraints": [constraint.model_dump() for constraint in study.constraints],
        "training": study.training,
        "replicates": study.search.replicates.model_dump(),
        "space": [branch.model_dump() for branch in study.space],
    }
    if found := plugins_of(names_in(study)):
        definition["plugins"] = {name: plugin.sha256 for name, plugin in sorted(found.items())}
    return definition
