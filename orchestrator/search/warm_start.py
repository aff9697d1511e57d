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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.pareto import non_dominated
from sftsearch.orchestrator.storage.journal import read_events
from sftsearch.search_spaces.schema import Branch, Choice, IntRange
from sftsearch.search_spaces.space import Point, Space, count, on_grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.storage.journal import Journal
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


@dataclass(slots=True)
class _Trained:
    """A configuration of the other study."""

    id: str
    model: str
    values: dict[str, Any]
    """Parameter -> value, what its training section sets included."""
    replicates: dict[int, dict[str, float]] = field(default_factory=dict)
    """Final values of each finished replicate."""
    dropped: bool = False
    """Whether a replicate of it was stopped or failed."""


def begin(journal: Journal, source: Source, admission: Admission, other: Path) -> str:
    """Journal what another study gives this one, unless that was done or trials have begun.

    Args:
        journal: of this study, open for writing.
        source: its file.
        admission: of its space.
        other: the folder of the other study.

    Returns:
        A sentence that says what was taken over; empty where nothing was to be done.

    Raises:
        WarmStartError: the other study is this one, searched other parameters, measured other
            objectives, or has nothing that lies in this space.
    """
    begun = {event.kind for event in journal.events(through=journal.last_id)}
    if begun & {"imported", "proposed"}:
        return ""
    if other.resolve() == journal.folder.resolve():
        raise WarmStartError(f"`warm_start.study` is this study itself ('{other}').")
    created, trained = _read(other)
    theirs = created["definition"]
    _check_parameters(source.study, admission.space, theirs, other.name)
    complete = [one for one in trained if one.replicates and not one.dropped]
    _check_objectives(source.study, complete, other.name)
    differs = _differences(source.study, admission, created)
    body: dict[str, Any] = {
        "study": other.name,
        "alike": not differs,
        "differs": differs,
        "configurations": [],
        "starts": [],
    }
    if not differs:
        body["configurations"] = _configurations(source.study, admission, complete)
    if differs or source.study.search.sampler.kind != "front":
        body["starts"] = _starts(source.study, admission, complete)
    if not (body["configurations"] or body["starts"]):
        raise WarmStartError(
            f"The study '{other.name}' has nothing to begin with: none of its {len(complete)} "
            "finished configurations is in this space."
        )
    journal.append("imported", **body)
    return _in_words(body, len(complete))


def _read(folder: Path) -> tuple[dict[str, Any], list[_Trained]]:
    """Return the body of a study's `created` event and its configurations.

    Raises:
        WarmStartError: it never began.
    """
    created: dict[str, Any] | None = None
    points: dict[int, dict[str, Any]] = {}
    trained: dict[str, _Trained] = {}
    for event in read_events(folder):
        body = event.body
        if event.kind == "created":
            created = body
        elif event.kind == "proposed":
            points[body["number"]] = body["values"]
        elif event.kind == "admitted" and created is not None:
            identity = body["configuration_id"]
            values = {**created["definition"]["training"], **points[body["number"]]}
            trained[identity] = _Trained(identity, body["model"], values)
        elif event.kind in ("finished", "failed", "stopped"):
            identity, _, seed = body["trial"].rpartition("-")
            if event.kind == "finished":
                trained[identity].replicates[int(seed)] = body["values"]
            trained[identity].dropped |= event.kind != "finished"
    if created is None:
        raise WarmStartError(f"The study '{folder.name}' never began: there is nothing to take.")
    return created, list(trained.values())


# ------------------------------------------------------------ whether it fits


def _differences(study: StudyFile, admission: Admission, created: Mapping[str, Any]) -> list[str]:
    """Return why the other study's values are not those that this one would measure."""
    theirs = created["definition"]
    own = {
        "dataset": study.dataset.kind,
        "fingerprint": admission.spec.fingerprint,
        "folds": study.dataset.folds,
        "training": json.loads(json.dumps(study.training)),
    }
    found = [what for name, what in CONDITIONS.items() if own[name] != theirs.get(name)]
    if created["facts"].get("sftsearch") != importlib.metadata.version("sftsearch"):
        found.append("the version of sftsearch")
    return found


def _check_parameters(study: StudyFile, space: Space, theirs: Mapping[str, Any], name: str) -> None:
    """Refuse a study that searched a parameter this one does not have, or the other way round."""
    other = Space([Branch.model_validate(branch) for branch in theirs["space"]])
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
            _names(other, model, theirs["training"]),
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
    space: Space, model: str, training: Mapping[str, Any]
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
) -> list[dict[str, Any]]:
    """Return the configurations that are in this space, with their values by replicate."""
    metrics = [objective.metric for objective in study.objectives]
    taken = []
    for one in complete:
        candidate = _find(admission, one)
        if candidate is not None and candidate.id == one.id:
            replicates = {
                str(number): {
                    "objectives": [values[metric] for metric in metrics],
                    "seconds": values.get("seconds", 0.0),
                }
                for number, values in sorted(one.replicates.items())
            }
            point = {"branch": candidate.point.branch, "values": dict(candidate.point.values)}
            taken.append({"configuration_id": one.id, **point, "replicates": replicates})
    return taken


def _starts(
    study: StudyFile, admission: Admission, complete: Sequence[_Trained]
) -> list[dict[str, Any]]:
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
    on_front = non_dominated(means, [o.goal for o in study.objectives])
    best = [one for one, is_best in zip(complete, on_front, strict=True) if is_best]
    found = [candidate for candidate in (_find(admission, one) for one in best) if candidate]
    found.sort(key=lambda candidate: (candidate.cost.gflops, candidate.id))
    points = {candidate.id: candidate.point for candidate in found}
    return [{"branch": p.branch, "values": dict(p.values)} for p in points.values()]


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


def _point(space: Space, branch: int, values: Mapping[str, Any]) -> Point | None:
    """Return the point of a branch that has these values; None where it has none such.

    A parameter that the branch does not have is left out: what is trained alike has one id.
    """
    literals, axes = space.literals[branch], space.axes[branch]
    if any(name in values and values[name] != literal for name, literal in literals.items()):
        return None
    if not all(name in values and _holds(axis, values[name]) for name, axis in axes.items()):
        return None
    return Point(branch, {**literals, **{name: values[name] for name in axes}})


def _holds(axis: Axis, value: Any) -> bool:
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


def _in_words(body: Mapping[str, Any], num_complete: int) -> str:
    name, starts = body["study"], len(body["starts"])
    told = []
    if body["alike"]:
        replicates = sum(len(one["replicates"]) for one in body["configurations"])
        told.append(
            f"{len(body['configurations'])} of its {num_complete} configurations are in this space "
            f"and known from the beginning ({replicates} trials, none of them counted here)"
        )
    else:
        told.append(
            f"its values are not this study's ({', '.join(body['differs'])} differ): only its "
            "front is of use"
        )
    if starts:
        told.append(f"{starts} configurations of its front are tried first")
    return f"Warm start from '{name}': {'; '.join(told)}."
