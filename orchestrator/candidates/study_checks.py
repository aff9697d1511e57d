"""Check a study file against the catalogs of datasets and models, and report all errors together.

`load` checks the schema. This module checks names and types of parameters, also in a file with
schema errors.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeGuard

from sftsearch.datasets import catalog as datasets
from sftsearch.datasets.errors import DatasetError, UserError, unknown
from sftsearch.datasets.folds import deal
from sftsearch.orchestrator.candidates.binding import (
    TRAINING,
    check_value,
    fields_of,
    parameters_of,
)
from sftsearch.orchestrator.metrics import (
    BOUNDED_COSTS,
    COSTS,
    EXACT_COSTS,
    MEMORY_COSTS,
    metric,
)
from sftsearch.search_spaces.mistakes import Mistake, Place, StudyFileError
from sftsearch.search_spaces.schema import MAX_WHOLE, is_distribution, members
from sftsearch.trainables import catalog as models
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.metrics import DEGREES, METRICS, metrics_of_dataset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import TypeAdapter

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces.load import StudySource

MEASURED = {task: (*names, "loss") for task, names in METRICS.items()}
"""Validation metrics of a finished trial by task; some datasets lack those of `_NEEDED`."""
_NEEDED = {
    "top5": "more than five classes",
    "acc2_sft": f"the classes {', '.join(DEGREES)}",
    "f1_sft": f"the classes {', '.join(DEGREES)}",
}
"""Metrics that not every dataset of the task has, and what they need."""


def check_names(source: StudySource) -> None:
    """Check names and types against the catalogs.

    Raises:
        StudyFileError: lists all schema errors, unknown models, datasets, metrics, modalities or
            parameters, and values of a wrong type.
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


def _fold_mistakes(source: StudySource, spec: DatasetSpec | None) -> list[Mistake]:
    num_folds = _get(source.data, "dataset", "folds")
    if spec is None or not _is_whole(num_folds):
        return []  # a wrong type is a schema error
    try:
        deal(spec, num_folds)
    except DatasetError as error:
        return [source.mistake(("dataset", "folds"), str(error))]
    return []


def _warm_start_mistakes(source: StudySource) -> list[Mistake]:
    other, own = _get(source.data, "warm_start", "study"), _get(source.data, "study", "name")
    if other is None or other != own:
        return []
    message = f"A study cannot be warm-started from itself, but got '{own}'."
    return [source.mistake(("warm_start", "study"), message)]


def _get(data: object, *keys: str) -> object:
    """Return the value at nested keys of unchecked data, or None."""
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def _training_mistakes(source: StudySource) -> list[Mistake]:
    training = source.data.get(TRAINING)
    found, valid = [], {}
    for name, value in training.items() if isinstance(training, dict) else ():
        place = (TRAINING, name)
        if is_distribution(value):
            message = "`training` applies to all trials: move searched parameters to `space`."
            mistakes = [source.mistake(place, message)]
        else:
            mistakes = _parameter_mistakes(source, place, value, fields_of(TRAINING))
        found += mistakes
        if not mistakes:
            valid[name] = value
    try:
        TrainConfig(**valid)
    except ConfigError as error:
        named = [name for name in error.parameters if name in valid]
        if len(valid) == len(training or {}) or set(error.parameters) <= set(valid):
            found.append(source.mistake((TRAINING, *named[:1]), str(error)))
    return found


def _branch_mistakes(
    source: StudySource, i: int, branch: dict[str, object], spec: DatasetSpec | None
) -> list[Mistake]:
    kind = str(branch["kind"])
    if kind not in models.MODELS:
        text = f"{unknown(kind, models.MODELS, kind='model')} A model of your own needs --plugin."
        return [source.mistake(("space", i, "kind"), text)]
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
    source: StudySource, place: Place, value: object, spec: DatasetSpec
) -> list[Mistake]:
    kind_ = f"modality of '{spec.name}'"
    return [
        source.mistake(where, unknown(name, spec.modalities, kind=kind_))
        for where, name in _named_modalities(place, value)
        if name not in spec.modalities
    ]


def _named_modalities(place: Place, value: object) -> list[tuple[Place, str]]:
    """Return the names in `modalities` (lists) and in values by modality (mappings)."""
    entries = [keys for keys, _ in members(str(place[-1]), value)]
    if entries[0][1:]:
        return [((*place, name), name) for _, name in entries]
    return [
        (where, str(name))
        for where, one in _values_to_check(place, value)
        if isinstance(one, dict)
        or (place[-1] in ("modalities", "modality_order") and isinstance(one, list))
        for name in one
    ]


def _objective_mistakes(source: StudySource, spec: DatasetSpec | None) -> list[Mistake]:
    """Check metrics and directions, also in a file with schema errors."""
    objectives = source.data.get("objectives")
    if not isinstance(objectives, list):
        return []
    found: list[Mistake] = []
    metrics = [_get(objective, "metric") for objective in objectives]
    directions = [_get(objective, "direction") for objective in objectives]
    for i, (name, direction) in enumerate(zip(metrics, directions, strict=True)):
        if isinstance(name, str):
            again = name in metrics[:i]
            found += _metric_mistakes(source, i, name, direction, spec, again=again)
    costs = [name for name in metrics if name in COSTS]
    known = (*EXACT_COSTS, *BOUNDED_COSTS, *MEMORY_COSTS)
    if not found and (metrics[:1] == costs[:1] or not costs):
        message = (
            f"The first objective must be an accuracy ({', '.join(_measured(spec))}) and another "
            f"a cost ({', '.join(COSTS)}), but got ({', '.join(map(str, metrics))})."
        )
        found.append(source.mistake(("objectives",), message))
    elif not found and not any(name in known for name in costs):
        message = (
            f"A search needs a cost that is known or bounded before training, but {costs[0]} is "
            f"measured in trials: add one of {', '.join(known)}."
        )
        found.append(source.mistake(("objectives",), message))
    return found


def _measured(spec: DatasetSpec | None) -> list[str]:
    """Return the metrics of the dataset; for an unknown dataset, those of all tasks."""
    if spec is not None:
        return [*metrics_of_dataset(spec), "loss"]
    return list(dict.fromkeys(itertools.chain(*MEASURED.values())))


def _metric_mistakes(
    source: StudySource,
    i: int,
    name: str,
    direction: object,
    spec: DatasetSpec | None,
    *,
    again: bool,
) -> list[Mistake]:
    place = ("objectives", i, "metric")
    known = [*_measured(spec), *COSTS]
    if spec is not None and name in set(MEASURED[spec.task]) - set(known):
        return [source.mistake(place, f"`{name}` needs {_NEEDED[name]}.")]
    if name not in known:
        kind_ = f"metric of {spec.task}" if spec else "metric"
        return [source.mistake(place, unknown(name, known, kind=kind_))]
    found = []
    if direction in ("maximize", "minimize") and direction != metric(name).direction:
        message = f"`{name}` can only be {metric(name).direction}d."
        found.append(source.mistake(("objectives", i, "direction"), message))
    if again:
        found.append(source.mistake(place, f"`{name}` is listed more than once."))
    return found


def _parameter_mistakes(
    source: StudySource, place: Place, value: object, known: Mapping[str, TypeAdapter[object]]
) -> list[Mistake]:
    name = str(place[-1])
    if name not in known:
        return [source.mistake(place, unknown(name, known, kind="parameter"))]
    found = []
    for where, one in _values_to_check(place, value):
        try:
            check_value(known[name], one)
        except ValueError as error:
            found.append(source.mistake(where, str(error)))
    return found


def _values_to_check(place: Place, value: object) -> list[tuple[Place, object]]:
    """Return the values of a parameter with their places; those by modality entry by entry."""
    found: list[tuple[Place, object]] = []
    for (_, *key), part in members(str(place[-1]), value):
        for where, one in _values_of((*place, *key), part):
            found.append((where, {key[0]: one} if key else one))
    return found


def _values_of(place: Place, value: object) -> list[tuple[Place, object]]:
    if not is_distribution(value):
        return [(place, value)]
    if value["kind"] == "choice" and isinstance(value.get("values"), list):
        return [((*place, "values", i), one) for i, one in enumerate(value["values"])]
    ends = [((*place, end), value[end]) for end in ("low", "high") if end in value]
    if value["kind"] != "float":
        return ends
    return [(where, float(end) if _is_whole(end) else end) for where, end in ends]


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_WHOLE
