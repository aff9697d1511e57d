"""Names of a study file <-> fields of the model and training configurations.

`load` knows the form of a study file; what only the catalogues know (data sets, models, their
parameters and types) is checked and resolved here. A parameter of a branch is a field of the
model's configuration or of `TrainConfig`; no name is in both.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sftsearch.datasets import catalog as datasets
from sftsearch.datasets.errors import DatasetError, UserError
from sftsearch.datasets.folds import deal
from sftsearch.search_spaces.mistakes import Mistake, Place, StudyFileError, unknown
from sftsearch.search_spaces.schema import MAX_WHOLE, Objective, is_distribution, members
from sftsearch.trainables import catalog as models
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.metrics import METRICS, TOP_K

if typing.TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces.load import Source

MEASURED = {task: (*names, "loss") for task, names in METRICS.items()}
"""Metrics of a finished trial on validation, by task; `top5` only with more than five classes."""
COSTS = (
    "gflops",
    "gmacs",
    "parameters",
    "gflops_expected",
    "latency_ms",
    "peak_memory_mb",
    "seconds",
)
"""Known before training; measured in the trial; measured, and dependent on the machine."""
GOALS: dict[str, Literal["maximize", "minimize"]] = {
    name: "minimize" if name in ("mae", "loss", *COSTS) else "maximize"
    for name in (*itertools.chain(*MEASURED.values()), *COSTS)
}
"""Metric -> the only way in which it is better."""


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
        StudyFileError: mistakes of form; unknown models, data sets, metrics, modalities or
            parameters; values of a wrong type; all of them at once.
    """
    data = source.data
    found = list(source.mistakes)
    dataset = _get(data, "dataset", "kind")
    root, spec = _get(data, "dataset", "root"), None
    if isinstance(dataset, str) and (root is None or isinstance(root, str)):
        try:
            spec = datasets.describe(dataset, root=root)
        except UserError as error:
            found.append(source.mistake(("dataset", "kind"), str(error)))
    found += _fold_mistakes(source, spec)
    found += _objective_mistakes(source, spec)
    found += _training_mistakes(source)
    found += _warm_start_mistakes(source)
    space = data.get("space")
    for i, branch in enumerate(space if isinstance(space, list) else []):
        if isinstance(branch, dict) and isinstance(branch.get("kind"), str):
            found += _branch_mistakes(source, i, branch, spec)
    if found:
        raise StudyFileError(source.name, found)


def _fold_mistakes(source: Source, spec: DatasetSpec | None) -> list[Mistake]:
    num_folds = _get(source.data, "dataset", "folds")
    if spec is None or not _is_whole(num_folds):
        return []  # a mistake of form, if it is one
    try:
        deal(spec, num_folds)
    except DatasetError as error:
        return [source.mistake(("dataset", "folds"), str(error))]
    return []


def _warm_start_mistakes(source: Source) -> list[Mistake]:
    other, own = _get(source.data, "warm_start", "study"), _get(source.data, "study", "name")
    if other is None or other != own:
        return []
    message = f"'{own}' is this study: name another one to begin with."
    return [source.mistake(("warm_start", "study"), message)]


def _get(data: Any, *keys: str | int) -> Any:
    """Return the value at a place of data whose form may be wrong, or None."""
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def _names_of(table: Mapping[str, Any]) -> list[str]:
    """Return the names as a list, which may be asked for what cannot be a key."""
    return list(table)


def _training_mistakes(source: Source) -> list[Mistake]:
    training = source.data.get(TRAINING)
    found = []
    for name, value in training.items() if isinstance(training, dict) else ():
        place = (TRAINING, name)
        if is_distribution(value):
            message = "`training` holds for all trials: put what is searched into `space`."
            found.append(source.mistake(place, message))
        else:
            found += _parameter_mistakes(source, place, value, fields_of(TRAINING))
    if not found and isinstance(training, dict):
        try:
            TrainConfig(**training)
        except ConfigError as error:
            named = [name for name in re.findall(r"`(\w+)", str(error)) if name in training]
            found.append(source.mistake((TRAINING, *named[:1]), str(error)))
    return found


def _branch_mistakes(
    source: Source, i: int, branch: dict[str, Any], spec: DatasetSpec | None
) -> list[Mistake]:
    kind = branch["kind"]
    if kind not in models.MODELS:
        return [source.mistake(("space", i, "kind"), unknown(kind, models.MODELS, what="model"))]
    found = []
    for name, value in branch.items():
        if name == "kind":
            continue
        place = ("space", i, name)
        mistakes = _parameter_mistakes(source, place, value, parameters_of(kind))
        if spec is not None and not mistakes:
            mistakes = _modality_mistakes(source, place, value, spec)
        found += mistakes
    return found


def _modality_mistakes(
    source: Source, place: Place, value: Any, spec: DatasetSpec
) -> list[Mistake]:
    what = f"modality of '{spec.name}'"
    return [
        source.mistake(where, unknown(name, spec.modalities, what=what))
        for where, name in _named_modalities(place, value)
        if name not in spec.modalities
    ]


def _named_modalities(place: Place, value: Any) -> list[tuple[Place, str]]:
    """Return the names in `modalities` (lists) and in what is set by modality (mappings)."""
    entries = [keys for keys, _ in members(str(place[-1]), value)]
    if entries[0][1:]:
        return [((*place, name), name) for _, name in entries]
    named = [
        (where, one)
        for where, one in _values_to_check(place, value)
        if place[-1] == "modalities" or isinstance(one, dict)
    ]
    return [(where, str(name)) for where, one in named for name in one or ()]


def _objective_mistakes(source: Source, spec: DatasetSpec | None) -> list[Mistake]:
    """Check metrics and goals, also of a file with mistakes of form elsewhere."""
    objectives = source.data.get("objectives")
    if not isinstance(objectives, list):
        return []
    found: list[Mistake] = []
    metrics = [_get(objective, "metric") for objective in objectives]
    goals = [_get(objective, "goal") for objective in objectives]
    for i, (metric, goal) in enumerate(zip(metrics, goals, strict=True)):
        if isinstance(metric, str) and isinstance(goal, str):
            twice = metric in metrics[:i]
            found += _metric_mistakes(source, i, metric, goal, spec, twice=twice)
    costs = [metric for metric in metrics if metric in COSTS]
    if not found and (metrics[:1] == costs[:1] or not costs):
        message = (
            f"The first objective must be an accuracy ({', '.join(_measured(spec))}) and another "
            f"a cost ({', '.join(COSTS)}), but got ({', '.join(map(str, metrics))})."
        )
        found.append(source.mistake(("objectives",), message))
    return found


def _measured(spec: DatasetSpec | None) -> list[str]:
    """Return the metrics of the data set's task; of an unknown data set, those of all tasks."""
    tasks = MEASURED if spec is None else {spec.task: MEASURED[spec.task]}
    return list(dict.fromkeys(itertools.chain(*tasks.values())))


def _metric_mistakes(
    source: Source, i: int, metric: str, goal: str, spec: DatasetSpec | None, *, twice: bool
) -> list[Mistake]:
    place = ("objectives", i, "metric")
    known = [*_measured(spec), *COSTS]
    if metric not in known:
        what = f"metric of {spec.task}" if spec else "metric"
        return [source.mistake(place, unknown(metric, known, what=what))]
    found = []
    if goal in ("maximize", "minimize") and goal != GOALS[metric]:
        message = f"`{metric}` can only be {GOALS[metric]}d."
        found.append(source.mistake(("objectives", i, "goal"), message))
    if twice:
        found.append(source.mistake(place, f"`{metric}` stands twice."))
    if metric == "top5" and spec is not None and spec.num_classes <= TOP_K:
        found.append(source.mistake(place, "`top5` says nothing with five classes or fewer."))
    return found


def _parameter_mistakes(
    source: Source, place: Place, value: Any, known: Mapping[str, Any]
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


def _values_to_check(place: Place, value: Any) -> list[tuple[Place, Any]]:
    """Return what a parameter is set to, with its place; of a mapping, perhaps entry by entry."""
    found: list[tuple[Place, Any]] = []
    for (_, *key), part in members(str(place[-1]), value):
        for where, one in _values_of((*place, *key), part):
            found.append((where, {key[0]: one} if key else one))
    return found


def _values_of(place: Place, value: Any) -> list[tuple[Place, Any]]:
    if not is_distribution(value):
        return [(place, value)]
    if value["kind"] == "choice" and isinstance(value.get("values"), list):
        return [((*place, "values", i), one) for i, one in enumerate(value["values"])]
    ends = [((*place, end), value[end]) for end in ("low", "high") if end in value]
    if value["kind"] != "float":
        return ends
    return [(where, float(end) if _is_whole(end) else end) for where, end in ends]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_WHOLE


# ------------------------------------------------------- fields and their types

TRAINING = "training"


@functools.cache
def fields_of(name: str) -> dict[str, TypeAdapter[Any]]:
    """Return the fields of a model's configuration, or of `TRAINING`'s, each with its strict check.

    They are in alphabetical order.
    """
    config = _config_of(name)
    hints = typing.get_type_hints(config, localns={"Mapping": Mapping, "Literal": Literal})
    strict = ConfigDict(strict=True, arbitrary_types_allowed=False)
    names = sorted(field.name for field in dataclasses.fields(config))
    return {field: TypeAdapter(hints[field], config=strict) for field in names}


def _config_of(name: str) -> type[Any]:
    return TrainConfig if name == TRAINING else models.MODELS[name].config


@functools.cache
def parameters_of(model: str) -> dict[str, TypeAdapter[Any]]:
    """Return every parameter a branch of this model may have, training included."""
    return fields_of(model) | fields_of(TRAINING)


def _checked(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return `value` as the field wants it (lists become tuples).

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


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


# ------------------------------------------------------------- configurations


def bind(
    model: str, values: Mapping[str, Any], training: Mapping[str, Any], spec: DatasetSpec
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
            f"`mixup` must not be manifold for `kind: {model}`, whose samples take routes of their "
            "own: there is no layer after which all of them could be mixed. Take input or modality."
        )
    shown = dict(values) | {"modalities": list(chosen)}
    identity = _identity(model, model_config, train_config, spec.fingerprint)
    return Configuration(identity, model, shown, model_config, train_config)


def _exact(fields: Mapping[str, TypeAdapter[Any]], name: str, value: Any) -> Any:
    """Return a value as its field's type: 0 and 0.0 are one dropout, and one configuration."""
    try:
        return _checked(fields[name], value)
    except ValueError as error:
        raise ConfigError(f"`{name}`: {error}") from error


def _identity(model: str, model_config: Any, train_config: TrainConfig, fingerprint: str) -> str:
    content = [
        model,
        [[name, getattr(model_config, name)] for name in fields_of(model)],
        [[name, getattr(train_config, name)] for name in fields_of(TRAINING)],
        fingerprint,
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_objectives(source: Source, spec: DatasetSpec) -> Source:
    """Return the source with the objectives it does not name: the task's own metric, and GFLOPs.

    The task's own metric is its first: `top1`, `map` (multi-label) or `mae` (regression).
    """
    if "objectives" in source.data:
        return source
    pair = (METRICS[spec.task][0], "gflops")
    objectives = [Objective(metric=metric, goal=GOALS[metric]) for metric in pair]
    study = source.study.model_copy(update={"objectives": objectives})
    return dataclasses.replace(source, checked=study)


def definition_of(source: Source, spec: DatasetSpec) -> dict[str, Any]:
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


def describe_models(*, training: bool = False) -> list[dict[str, Any]]:
    """Return the models with their parameters, types and defaults; or the training's alone."""
    if training:
        return [{"model": TRAINING, "paper": "", "parameters": _describe_fields(TrainConfig)}]
    return [
        {"model": name, "paper": system.paper, "parameters": _describe_fields(system.config)}
        for name, system in sorted(models.MODELS.items())
    ]


def _describe_fields(config: type) -> list[dict[str, Any]]:
    return [
        {"name": field.name, "type": str(field.type), "default": field.default}
        for field in dataclasses.fields(config)
    ]
