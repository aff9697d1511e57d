"""Names of a study file <-> fields of the model and training configurations.

A parameter of a branch is a field of the model's configuration or of `TrainConfig`; no name is in
both. A point of a space becomes a configuration here, with its id.
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

from sftsearch.orchestrator.metrics import metric
from sftsearch.search_spaces.schema import Objective
from sftsearch.trainables import catalog as models
from sftsearch.trainables.config import ConfigError, TrainConfig, TransformerConfig
from sftsearch.trainables.metrics import METRICS

if typing.TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces.load import Source

TRAINING = "training"
_HASHED_AS = {"score_epoch": "value"}
"""Fields that once had another name, under which an id still counts them: an id outlives it."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of the search space, bound to a data set, without a seed."""

    id: str
    """12 hexadecimal digits of the hash of everything that decides the values of its trials."""
    model: str
    parameters: dict[str, Any]
    """The study file's parameters, modalities in the data set's order."""
    model_config: TransformerConfig
    train_config: TrainConfig


def bind(
    model: str, values: Mapping[str, object], training: Mapping[str, object], spec: DatasetSpec
) -> Configuration:
    """Resolve a point of a space to a configuration, in its canonical form.

    What trains alike is one configuration, with one id: the first of several spellings is shown.

    Args:
        model: a name of the model catalogue.
        values: the branch's parameters, as in the study file (`Point.parameters`).
        training: what the study file's `training` section sets for all branches.
        spec: the data set; `modalities` is put into its order, absent ones become all of them.

    Raises:
        ConfigError: the values cannot be put together (heads that do not divide the width, ...).
    """
    own = fields_of(model)
    shared = {**training, **{name: v for name, v in values.items() if name not in own}}
    model_config = models.MODELS[model].config(
        **{name: _exact(own, name, value) for name, value in values.items() if name in own}
    )
    chosen = model_config.chosen(spec)
    model_config = model_config.canonical(spec)
    fields = fields_of(TRAINING)
    train_config = TrainConfig(**{name: _exact(fields, name, shared[name]) for name in shared})
    train_config = train_config.canonical(spec)
    if train_config.mixup == "manifold" and not models.MODELS[model].mixes_latents:
        raise ConfigError(
            f"`mixup` must not be manifold for `kind: {model}`: its samples take different routes, "
            "so no layer sees all of them. Use input or modality.",
            "mixup",
        )
    shown = dict(values) | {"modalities": list(chosen)}
    identity = _identity(model, model_config, train_config, spec.fingerprint)
    return Configuration(identity, model, shown, model_config, train_config)


def _exact(fields: Mapping[str, TypeAdapter[object]], name: str, value: object) -> Any:
    """Return a value as its field's type: 0 and 0.0 are one dropout, and one configuration."""
    try:
        return check_value(fields[name], value)
    except ValueError as error:
        raise ConfigError(f"`{name}`: {error}", name) from error


def _identity(
    model: str, model_config: TransformerConfig, train_config: TrainConfig, fingerprint: str
) -> str:
    training = {_HASHED_AS.get(n, n): getattr(train_config, n) for n in fields_of(TRAINING)}
    content = [
        model,
        [[name, getattr(model_config, name)] for name in fields_of(model)],
        sorted(training.items()),
        fingerprint,
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def fields_of(name: str) -> dict[str, TypeAdapter[object]]:
    """Return the fields of a model's configuration, or of `TRAINING`'s, each with its strict check.

    They are in alphabetical order.
    """
    config = _config_of(name)
    hints = typing.get_type_hints(config, localns={"Mapping": Mapping, "Literal": Literal})
    strict = ConfigDict(strict=True, arbitrary_types_allowed=False)
    names = sorted(field.name for field in dataclasses.fields(config))
    return {field: TypeAdapter(hints[field], config=strict) for field in names}


def _config_of(name: str) -> type[TrainConfig | TransformerConfig]:
    return TrainConfig if name == TRAINING else models.MODELS[name].config


@functools.cache
def parameters_of(model: str) -> dict[str, TypeAdapter[object]]:
    """Return every parameter a branch of this model may have, training included."""
    return fields_of(model) | fields_of(TRAINING)


def parameter_names(model: str) -> Collection[str]:
    """Return the names of a model's parameters; of an unknown model, those of all models."""
    known = [model] if model in models.MODELS else list(models.MODELS)
    return {name for one in known for name in parameters_of(one)}


def check_value(adapter: TypeAdapter[object], value: object) -> object:
    """Check a value and return it as the field wants it (lists become tuples).

    Raises:
        ValueError: it is of another type; the message gives the value.
    """
    try:
        return adapter.validate_python(_frozen(value))
    except ValidationError as error:
        # A union reports each of its members; null is what a parameter has that is left out.
        problems = [one for one in error.errors() if one["type"] != "none_required"]
        wanted = dict.fromkeys(_WANTED.get(one["type"]) or _rest(one["msg"]) for one in problems)
        got = json.dumps(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."
        raise ValueError(f"It must be {' or '.join(wanted)}, but got {got}.") from error


def _rest(message: str) -> str:
    return message.removeprefix("Input should be ")


_WANTED = {
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


def with_objectives(source: Source, spec: DatasetSpec) -> Source:
    """Return the source with the objectives it does not name: the task's own metric, and GFLOPs.

    The task's own metric is its first: `top1`, `map` (multi-label) or `mae` (regression).
    """
    if "objectives" in source.data:
        return source
    pair = (METRICS[spec.task][0], "gflops")
    objectives = [Objective(metric=name, direction=metric(name).direction) for name in pair]
    study = source.study.model_copy(update={"objectives": objectives})
    return dataclasses.replace(source, checked=study)


def definition_of(source: Source, spec: DatasetSpec) -> dict[str, object]:
    """Return what makes the study the study it is: space, data, objectives, constraints, training.

    The budget (trials, resources, sampler) is left out: changing it extends the same study. Seeds
    are part of it: a configuration is judged by all of them.
    """
    study = source.study
    return {
        "dataset": study.dataset.kind,
        "folds": study.dataset.folds,
        "fingerprint": spec.fingerprint,
        "objectives": [objective.model_dump() for objective in study.objectives],
        "constraints": [constraint.model_dump() for constraint in study.constraints],
        "training": study.training,
        "replicates": study.search.replicates.model_dump(),
        "space": [branch.model_dump() for branch in study.space],
    }
