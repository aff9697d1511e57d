"""Warm starts: a study begins with what another one of the same parameters has found.

Where both train alike (data set, folds, training, version of sftsearch), what the other measured is
known from the beginning: it is told to the surrogate as observations that are no part of this
study. Where they differ, its values mean nothing here, and only its front is proposed first. All of
it is one event of the journal, written before the first proposal: the other study is not needed
again.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.pareto import non_dominated
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.events import Imported, ImportedConfiguration
from sftsearch.orchestrator.storage.journal import read_entries
from sftsearch.search_spaces.schema import Branch, Choice, IntRange
from sftsearch.search_spaces.space import Point, Space, count, on_grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.storage.event import Numbers
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.search_spaces.load import Source
    from sftsearch.search_spaces.schema import StudyFile
    from sftsearch.search_spaces.space import Axis

CONDITIONS = {
    "dataset": "the data set",
    "fingerprint": "the version of the data set",
    "folds": "the folds",
    "training": "the training",
}
"""What of two studies' definitions must be the same for their values to be."""


class WarmStartError(UserError):
    """A study that nothing can be begun with."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A configuration of the other study that has values."""

    id: str
    model: str
    values: dict[str, object]
    """Parameter -> value, what its training section sets included."""
    replicates: dict[int, Numbers]
    """Final values of each finished replicate."""


def import_study(
    source: Source, admission: Admission, folder: Path, other: Path
) -> tuple[Imported, str]:
    """Return what another study gives this one, as an event, and say what that is.

    Args:
        source: the file of this study.
        admission: of its space.
        folder: of this study.
        other: the folder of the other study.

    Raises:
        WarmStartError: the other study is this one, never began, searched other parameters,
            measured other objectives, or has nothing that lies in this space.
    """
    if other.resolve() == folder.resolve():
        raise WarmStartError(f"`warm_start.study` is this study itself ('{other}').")
    state = StudyState.of(read_entries(other))
    created = state.created
    if created is None:
        raise WarmStartError(f"The study '{other.name}' never began: there is nothing to take.")
    _check_parameters(source.study, admission.space, created, other.name)
    complete = [
        _Trained(one.id, one.model, {**created.training, **one.point.values}, one.values)
        for one in state.configurations.values()
        if one.is_complete
    ]
    _check_objectives(source.study, complete, other.name)
    differs = _differences(source.study, admission, created)
    configurations, starts = [], []
    if not differs:
        configurations = _configurations(source.study, admission, complete)
    if differs or source.study.search.sampler.kind != "ehvi":
        starts = _starts(source.study, admission, complete)
    if not (configurations or starts):
        raise WarmStartError(
            f"The study '{other.name}' has nothing to begin with: none of its {len(complete)} "
            "finished configurations is in this space."
        )
    imported = Imported(other.name, not differs, differs, configurations, starts)
    return imported, _describe(imported, len(complete))


# ------------------------------------------------------------ whether it fits


def _differences(study: StudyFile, admission: Admission, created: Created) -> list[str]:
    """Return why the other study's values are not those that this one would measure."""
    theirs = created.definition
    own = {
        "dataset": study.dataset.kind,
        "fingerprint": admission.spec.fingerprint,
        "folds": study.dataset.folds,
        "training": json.loads(json.dumps(study.training)),
    }
    found = [what for name, what in CONDITIONS.items() if own[name] != theirs.get(name)]
    if created.facts.get("sftsearch") != importlib.metadata.version("sftsearch"):
        found.append("the version of sftsearch")
    return found


def _check_parameters(study: StudyFile, space: Space, theirs: Created, name: str) -> None:
    """Refuse a study that searched a parameter this one does not have, or the other way round."""
    other = Space([Branch.model_validate(branch) for branch in theirs.space])
    shared = [model for model in dict.fromkeys(space.models) if model in other.models]
    if not shared:
        raise WarmStartError(
            f"The study '{name}' has none of this study's models: it searched "
            f"{', '.join(dict.fromkeys(other.models))}."
        )
    problems = []
    for model in shared:
        ours, others = (
            _names(space, model, study.training),
            _names(other, model, theirs.training),
        )
        for searched, known, what in (
            (others, ours, "searched {}, which this study does not have"),
            (ours, others, "does not have {}, which this study searches"),
        ):
            lacking = [f"`{name}`" for name in searched[0] if name not in known[1]]
            if lacking:
                problems.append(f"{what.format(', '.join(lacking))} ({model})")
    if problems:
        raise WarmStartError(
            f"The study '{name}' cannot be begun with: it {'; it '.join(problems)}."
        )


def _names(
    space: Space, model: str, training: Mapping[str, object]
) -> tuple[dict[str, None], dict[str, None]]:
    """Return the parameters of a model that are searched, and all that are set."""
    branches = [i for i, kind in enumerate(space.models) if kind == model]
    searched = dict.fromkeys(name for i in branches for name in space.axes[i])
    literals = dict.fromkeys(name for i in branches for name in space.literals[i])
    return searched, {**searched, **literals, **dict.fromkeys(training)}


def _check_objectives(study: StudyFile, complete: Sequence[_Trained], name: str) -> None:
    metrics = [objective.metric for objective in study.objectives]
    for values in (values for one in complete for values in one.replicates.values()):
        lacking = [metric for metric in metrics if not math.isfinite(values.get(metric, math.nan))]
        if lacking:
            raise WarmStartError(f"The study '{name}' did not measure `{lacking[0]}`.")


# ------------------------------------------------------------ what is taken over


def _configurations(
    study: StudyFile, admission: Admission, complete: Iterable[_Trained]
) -> list[ImportedConfiguration]:
    """Return the configurations that are in this space, with their values by replicate."""
    metrics = [objective.metric for objective in study.objectives]
    taken = []
    for one in complete:
        candidate = _find(admission, one)
        if candidate is not None and candidate.id == one.id:
            known = sorted(one.replicates.items())
            objectives = {number: [values[name] for name in metrics] for number, values in known}
            seconds = {number: values.get("seconds", 0.0) for number, values in known}
            taken.append(ImportedConfiguration(one.id, candidate.point, objectives, seconds))
    return taken


def _starts(study: StudyFile, admission: Admission, complete: Sequence[_Trained]) -> list[Point]:
    """Return the other study's front as points of this space, those that are in it, cheapest first.

    Means over replicates, in this study's objectives.
    """
    if not complete:
        return []
    means = [
        [
            math.fsum(values[o.metric] for values in one.replicates.values()) / len(one.replicates)
            for o in study.objectives
        ]
        for one in complete
    ]
    on_front = non_dominated(means, [o.direction for o in study.objectives])
    best = [one for one, is_best in zip(complete, on_front, strict=True) if is_best]
    found = [candidate for candidate in (_find(admission, one) for one in best) if candidate]
    found.sort(key=lambda candidate: (candidate.cost.gflops, candidate.id))
    return list({candidate.id: candidate.point for candidate in found}.values())


def _find(admission: Admission, one: _Trained) -> Candidate | None:
    """Return a configuration as one of this space; None where it is not in it."""
    if admission.table is not None and one.id in admission.table:
        return admission.table[one.id]
    space = admission.space
    for branch, model in enumerate(space.models):
        if model == one.model:
            point = _point(space, branch, one.values)
            candidate = None if point is None else admission.within_limits(point)
            if candidate is not None:
                return candidate
    return None


def _point(space: Space, branch: int, values: Mapping[str, object]) -> Point | None:
    """Return the point of a branch that has these values; None where it has none such.

    A parameter that the branch does not have is left out: what is trained alike has one id.
    """
    literals, axes = space.literals[branch], space.axes[branch]
    if any(name in values and values[name] != literal for name, literal in literals.items()):
        return None
    if not all(name in values and _holds(axis, values[name]) for name, axis in axes.items()):
        return None
    return Point(branch, {**literals, **{name: values[name] for name in axes}})


def _holds(axis: Axis, value: object) -> bool:
    """Tell whether an axis has a value."""
    if isinstance(axis, Choice):
        return json.dumps(value) in [json.dumps(one) for one in axis.values]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not axis.low <= value <= axis.high:
        return False
    if isinstance(axis, IntRange):
        return value == int(value) and (int(value) - axis.low) % axis.step == 0
    if axis.step is None:
        return True
    nearest = round((value - axis.low) / axis.step)
    return nearest < count(axis) and value == on_grid(axis, nearest)


def _describe(imported: Imported, num_complete: int) -> str:
    """Say what was taken over from another study."""
    told = []
    if imported.alike:
        replicates = sum(len(one.objectives) for one in imported.configurations)
        told.append(
            f"{len(imported.configurations)} of its {num_complete} configurations are in "
            f"this space and known from the beginning ({replicates} trials, none of them counted "
            "here)"
        )
    else:
        told.append(
            f"its values are not this study's ({', '.join(imported.differs)} differ): only its "
            "front is of use"
        )
    if imported.starts:
        told.append(f"{len(imported.starts)} configurations of its front are tried first")
    return f"Warm start from '{imported.study}': {'; '.join(told)}."
