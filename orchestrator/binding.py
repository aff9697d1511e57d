"""Names of a study file <-> fields of the model and training configurations.

`load` knows the form of a study file; what only the catalogues know (data sets, models, their
parameters and types) is checked and resolved here. A parameter of a branch is a field of the model's
configuration or of `TrainConfig`; no name is in both.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sftsearch.datasets import catalog as datasets
from sftsearch.search_spaces.load import Mistake, Source, StudyFileError, unknown
from sftsearch.search_spaces.schema import is_distribution
from sftsearch.trainables import catalog as models
from sftsearch.trainables.config import TrainConfig

if typing.TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec

MEASURED = ("top1", "top5", "map", "balanced_accuracy", "loss")
"""Metrics of a finished trial, on validation; `top5` only with more than five classes."""
MACHINE = ("latency_ms", "peak_memory_mb", "seconds")
"""Measured in the trial, dependent on the machine."""
PRICED = ("gflops", "gmacs", "parameters")
"""Costs that are known before training."""
GOALS = dict.fromkeys(MEASURED, "maximize") | dict.fromkeys(("loss", *MACHINE, *PRICED), "minimize")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of the search space, bound to a data set, without a seed."""

    id: str
    """12 hexadecimal digits of the hash of everything that decides the values of its trials."""
    model: str
    parameters: dict[str, Any]
    """The study file's parameters, modalities in the data set's order."""
    model_config: Any
    train_config: TrainConfig


def check_names(source: Source) -> None:
    """Check what only the catalogues know, and raise it in one list with the mistakes of form.

    Raises:
        StudyFileError: mistakes of form; unknown models, data sets, metrics or parameters; values
            of a wrong type; all of them at once.
    """
    data = source.data
    found = list(source.mistakes)
    dataset = _get(data, "dataset", "kind")
    if isinstance(dataset, str) and dataset not in datasets.DATASETS:
        message = unknown(dataset, datasets.DATASETS, what="data set")
        found.append(source.mistake(("dataset", "kind"), message))
    found += _objective_mistakes(source)
    training = data.get("training")
    for name, value in training.items() if isinstance(training, dict) else ():
        found += _parameter_mistakes(source, ("training", name), value, fields_of(TrainConfig))
    space = data.get("space")
    for i, branch in enumerate(space if isinstance(space, list) else []):
        if isinstance(branch, dict) and isinstance(branch.get("kind"), str):
            found += _branch_mistakes(source, i, branch)
    if found:
        raise StudyFileError(source.name, found)


def _get(data: Any, *keys: str | int) -> Any:
    """Return the value at a place of data whose form may be wrong, or None."""
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def _branch_mistakes(source: Source, i: int, branch: dict[str, Any]) -> list[Mistake]:
    kind = branch["kind"]
    if kind not in models.MODELS:
        return [source.mistake(("space", i, "kind"), unknown(kind, models.MODELS, what="model"))]
    found = []
    for name, value in branch.items():
        if name != "kind":
            found += _parameter_mistakes(source, ("space", i, name), value, parameters_of(kind))
    return found


def _objective_mistakes(source: Source) -> list[Mistake]:
    if source.checked is None:
        return []
    found = []
    objectives = source.checked.objectives
    goals = [objective.goal for objective in objectives]
    if set(goals) != {"maximize", "minimize"} or goals[0] != "maximize":
        message = (
            "The first objective must be an accuracy to maximize and another a cost to minimize, "
            f"but got ({', '.join(goals)})."
        )
        found.append(source.mistake(("objectives",), message))
    metrics = [objective.metric for objective in objectives]
    for i, (metric, goal) in enumerate(zip(metrics, goals, strict=True)):
        place = ("objectives", i, "metric")
        if metric not in GOALS:
            found.append(source.mistake(place, unknown(metric, GOALS, what="metric")))
        elif goal != GOALS[metric]:
            message = f"`{metric}` can only be {GOALS[metric]}d."
            found.append(source.mistake(("objectives", i, "goal"), message))
        if metric in metrics[:i]:
            found.append(source.mistake(place, f"`{metric}` stands twice."))
        if metric == "top5" and _num_classes(source.checked.dataset.kind) <= MAX_FOR_TOP5:
            found.append(source.mistake(place, "`top5` says nothing with five classes or fewer."))
    return found


MAX_FOR_TOP5 = 5


def _num_classes(dataset: str) -> float:
    return len(datasets.describe(dataset).classes) if dataset in datasets.DATASETS else math.inf


def _parameter_mistakes(
    source: Source, place: tuple[str | int, ...], value: Any, known: Mapping[str, Any]
) -> list[Mistake]:
    name = str(place[-1])
    if name not in known:
        return [source.mistake(place, unknown(name, known, what="parameter"))]
    found = []
    for where, one in _values_to_check(place, value):
        try:
            _checked(known[name], one)
        except ValueError as error:
            found.append(source.mistake(where, str(error)))
    return found


def _values_to_check(
    place: tuple[str | int, ...], value: Any
) -> list[tuple[tuple[str | int, ...], Any]]:
    if not is_distribution(value):
        return [(place, value)]
    if value["kind"] == "choice" and isinstance(value.get("values"), list):
        return [((*place, "values", i), one) for i, one in enumerate(value["values"])]
    return [((*place, end), value[end]) for end in ("low", "high") if end in value]


# ------------------------------------------------------- fields and their types


@functools.cache
def fields_of(config: type) -> dict[str, TypeAdapter[Any]]:
    """Return the fields of a configuration dataclass, each with a strict check of its type."""
    names = {"Mapping": Mapping, "Literal": Literal}
    hints = typing.get_type_hints(config, localns=names)
    strict = ConfigDict(strict=True, arbitrary_types_allowed=False)
    return {
        field.name: TypeAdapter(hints[field.name], config=strict)
        for field in dataclasses.fields(config)
    }


@functools.cache
def parameters_of(model: str) -> dict[str, TypeAdapter[Any]]:
    """Return every parameter a branch of this model may have, training included."""
    return fields_of(models.MODELS[model].config) | fields_of(TrainConfig)


def _checked(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return `value` as the field wants it (lists become tuples).

    Raises:
        ValueError: it is of another type; the message gives the value.
    """
    try:
        return adapter.validate_python(_frozen(value))
    except ValidationError as error:
        # A union reports every member; the last one stands for the widest form.
        problem = error.errors()[-1]["msg"].replace("Input should be", "It should be")
        got = json.dumps(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."
        raise ValueError(f"{problem}, but got {got}.") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


# ------------------------------------------------------------- configurations


def bind(
    model: str, values: Mapping[str, Any], training: Mapping[str, Any], spec: DatasetSpec
) -> Configuration:
    """Resolve a point of a space to a configuration.

    Args:
        model: a name of the model catalogue.
        values: the branch's parameters, as in the study file.
        training: what the study file's `training` section sets for all branches.
        spec: the data set; `modalities` is put into its order, absent ones become all of them.

    Raises:
        ConfigError: the values cannot be put together (heads that do not divide the width, ...).
    """
    config_type = models.MODELS[model].config
    own = fields_of(config_type)
    shared = {**training, **{k: v for k, v in values.items() if k not in own}}
    parameters = {name: _frozen(value) for name, value in values.items() if name in own}
    model_config = config_type(**parameters)
    chosen = model_config.chosen(spec)
    if chosen != model_config.modalities:
        model_config = dataclasses.replace(model_config, modalities=chosen)
    train_config = TrainConfig(**{name: _frozen(value) for name, value in shared.items()})
    shown = dict(values) | {"modalities": list(chosen)}
    identity = _identity(model, model_config, train_config, spec.fingerprint)
    return Configuration(identity, model, shown, model_config, train_config)


def _identity(model: str, model_config: Any, train_config: TrainConfig, fingerprint: str) -> str:
    content = [
        model,
        [[name, getattr(model_config, name)] for name in _names(type(model_config))],
        [[name, getattr(train_config, name)] for name in _names(TrainConfig)],
        fingerprint,
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _names(config: type) -> tuple[str, ...]:
    return tuple(sorted(field.name for field in dataclasses.fields(config)))


def definition_of(source: Source, spec: DatasetSpec) -> dict[str, Any]:
    """Return what makes the study the study it is: space, data, objectives, constraints, training.

    The budget (trials, seeds, resources, sampler) is left out: changing it extends the same study.
    """
    study = source.study
    return {
        "dataset": study.dataset.kind,
        "fingerprint": spec.fingerprint,
        "objectives": [objective.model_dump() for objective in study.objectives],
        "constraints": [constraint.model_dump() for constraint in study.constraints],
        "training": study.training,
        "seeds": study.search.seeds,
        "space": [branch.model_dump() for branch in study.space],
    }


def describe_models(*, training: bool = False) -> list[dict[str, Any]]:
    """Return the models with their parameters, types and defaults; or the training's alone."""
    if training:
        return [{"model": "training", "paper": "", "parameters": _describe_fields(TrainConfig)}]
    return [
        {"model": name, "paper": system.paper, "parameters": _describe_fields(system.config)}
        for name, system in sorted(models.MODELS.items())
    ]


def _describe_fields(config: type) -> list[dict[str, Any]]:
    return [
        {"name": field.name, "type": str(field.type), "default": field.default}
        for field in dataclasses.fields(config)
    ]
