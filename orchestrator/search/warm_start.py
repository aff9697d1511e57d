"""Warm-start a study from the results of another one with the same parameters.

If both train under the same conditions (dataset, folds, training, version of sftsearch), the
surrogate gets the other study's results as observations that do not count as trials of this one.
If conditions differ, the values are not comparable, and only the other study's front is proposed
first. The results are stored in one event before the first proposal, so the other study is not
needed again.
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
from sftsearch.search_spaces.point import Point
from sftsearch.search_spaces.schema import Branch, Choice, IntRange
from sftsearch.search_spaces.space import Space, count, on_grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.storage.event import Numbers
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.search_spaces.load import StudySource
    from sftsearch.search_spaces.schema import StudyFile
    from sftsearch.search_spaces.space import Axis

CONDITIONS = {
    "dataset": "the dataset",
    "fingerprint": "the version of the dataset",
    "folds": "the folds",
    "training": "the training",
}
"""Fields of two studies' definitions that must be equal for their values to be comparable."""


class WarmStartError(UserError):
    """The warm-start study cannot be used."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A configuration of the other study with values."""

    id: str
    model: str
    values: dict[str, object]
    """Parameter -> value, including those of its training section."""
    replicates: dict[int, Numbers]
    """Final values of each finished replicate."""


def import_study(
    source: StudySource, admission: Admission, folder: Path, other: Path
) -> tuple[Imported, str]:
    """Import the results of another study; return the event and a message for the user.

    Args:
        source: the file of this study.
        admission: of its space.
        folder: of this study.
        other: the folder of the other study.

    Raises:
        WarmStartError: the other study is this one, was never started, searched other parameters,
            measured other objectives, or has no configuration in this space.
    """
    if other.resolve() == folder.resolve():
        raise WarmStartError(
            f"`warm_start.study` must be another study, but '{other}' is this study itself."
        )
    state = StudyState.of(read_entries(other))
    created = state.created
    if created is None:
        raise WarmStartError(
            f"Cannot warm-start from the study '{other.name}': it was never started."
        )
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
            f"Cannot warm-start from the study '{other.name}': none of its {len(complete)} "
            "finished configurations is in this study's space."
        )
    imported = Imported(other.name, not differs, differs, configurations, starts)
    return imported, _describe(imported, len(complete))


# ------------------------------------------------------------ checks


def _differences(study: StudyFile, admission: Admission, created: Created) -> list[str]:
    """Return the conditions in which the other study differs from this one."""
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
    """Raise if one of the studies searches a parameter that the other one does not have."""
    other = Space([Branch.model_validate(branch) for branch in theirs.space])
    shared = [model for model in dict.fromkeys(space.models) if model in other.models]
    if not shared:
        raise WarmStartError(
            f"Cannot warm-start from the study '{name}': it has none of this study's models, but "
            f"searched {', '.join(dict.fromkeys(other.models))}."
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
            missing = [f"`{name}`" for name in searched[0] if name not in known[1]]
            if missing:
                problems.append(f"{what.format(', '.join(missing))} ({model})")
    if problems:
        raise WarmStartError(
            f"Cannot warm-start from the study '{name}': it {'; it '.join(problems)}."
        )


def _names(
    space: Space, model: str, training: Mapping[str, object]
) -> tuple[dict[str, None], dict[str, None]]:
    """Return the searched parameters of a model, and all of its parameters."""
    branches = [i for i, kind in enumerate(space.models) if kind == model]
    searched = dict.fromkeys(name for i in branches for name in space.axes[i])
    literals = dict.fromkeys(name for i in branches for name in space.literals[i])
    return searched, {**searched, **literals, **dict.fromkeys(training)}


def _check_objectives(study: StudyFile, complete: Sequence[_Trained], name: str) -> None:
    metrics = [objective.metric for objective in study.objectives]
    for values in (values for one in complete for values in one.replicates.values()):
        missing = [metric for metric in metrics if not math.isfinite(values.get(metric, math.nan))]
        if missing:
            raise WarmStartError(
                f"Cannot warm-start from the study '{name}': it did not measure `{missing[0]}`."
            )


# ------------------------------------------------------------ imported results


def _configurations(
    study: StudyFile, admission: Admission, complete: Iterable[_Trained]
) -> list[ImportedConfiguration]:
    """Return the configurations that are in this space, with their values by replicate."""
    metrics = [objective.metric for objective in study.objectives]
    found = []
    for one in complete:
        candidate = _find(admission, one)
        if candidate is not None and candidate.id == one.id:
            known = sorted(one.replicates.items())
            objectives = {number: [values[name] for name in metrics] for number, values in known}
            seconds = {number: values.get("seconds", 0.0) for number, values in known}
            found.append(ImportedConfiguration(one.id, candidate.point, objectives, seconds))
    return found


def _starts(study: StudyFile, admission: Admission, complete: Sequence[_Trained]) -> list[Point]:
    """Return the points of the other study's front that are in this space, cheapest first.

    The front is that of the means over replicates in this study's objectives.
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
    """Return the candidate of this space for a configuration; None if it is not in the space."""
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
    """Return the point of a branch with these values; None if the branch does not have it.

    Parameters that the branch does not have are ignored.
    """
    literals, axes = space.literals[branch], space.axes[branch]
    if any(name in values and values[name] != literal for name, literal in literals.items()):
        return None
    if not all(name in values and _contains(axis, values[name]) for name, axis in axes.items()):
        return None
    return Point(branch, {**literals, **{name: values[name] for name in axes}})


def _contains(axis: Axis, value: object) -> bool:
    """Return whether a value is on an axis."""
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
    """Describe what was imported, as a message for the user."""
    parts = []
    if imported.alike:
        replicates = sum(len(one.objectives) for one in imported.configurations)
        parts.append(
            f"{len(imported.configurations)} of its {num_complete} configurations are in this "
            f"space, and their results ({replicates} trials) are used as prior observations"
        )
    else:
        parts.append(
            f"its values are not comparable with this study's ({', '.join(imported.differs)} "
            "differ), so only its front is used"
        )
    if imported.starts:
        parts.append(f"{len(imported.starts)} configurations of its front are tried first")
    return f"Warm start from '{imported.study}': {'; '.join(parts)}."
