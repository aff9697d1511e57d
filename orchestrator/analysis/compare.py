"""Compare two studies, or two families of one study, with a paired bootstrap.

At equal inference cost: the best configuration of each side at some costs of their joint front. At
equal tuning cost: the expected best of equally many configurations, and of as many as each side
trains in equal time. The probability that the first is better is the share of bootstrap resamples
in which it is; see `bootstrap.resample_accuracies`.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator import bootstrap, pareto
from sftsearch.orchestrator.analysis.configurations import fold_effects
from sftsearch.orchestrator.analysis.families import NUM_LEVELS, best_of, family_of
from sftsearch.orchestrator.analysis.front import FrontOptions, mark_front
from sftsearch.orchestrator.analysis.significance import draw_accuracies
from sftsearch.orchestrator.objectives import Objectives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import MarkedConfigurations
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

    Floats = NDArray[np.float64]


class ComparisonError(UserError):
    """The two sides differ in data, folds or metrics, or one has no finished configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """The accuracy that one side reaches under a limit."""

    value: float
    configuration_id: str | None = None
    """The configuration; None for an expected best."""
    num_drawn: int | None = None
    """Number of configurations that the expected best is drawn from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Both sides under one limit."""

    limit: float
    """A cost, a number of configurations, or seconds of training."""
    first: Reached | None
    """None if no configuration is within the limit."""
    second: Reached | None
    difference: float | None
    """First minus second."""
    interval: Interval | None
    """95 % interval of the difference; None without counts by group."""
    probability: float | None
    """Probability that the first is better; ties count half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The comparison of two studies or families."""

    names: tuple[str, str]
    x: str
    y: str
    num_configurations: tuple[int, int]
    """Finished configurations."""
    seconds: tuple[float, float]
    """Total training time, including stopped and failed trials."""
    only_chosen: bool
    """Whether only reported configurations are compared at equal cost."""
    at_cost: tuple[Contest, ...]
    at_number: Contest
    at_seconds: Contest


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a comparison."""

    name: str
    configurations: tuple[ConfigurationSummary, ...]
    """The finished ones, worst first."""
    chosen: frozenset[str]
    """Ids of the configurations that the study chose to report."""
    seconds: float
    scores: Mapping[tuple[str, int], float]
    """Accuracy by configuration and replicate, for the replicates that enter the means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Common:
    """What both sides share."""

    objectives: Objectives
    draws: Mapping[str, Floats]
    """Bootstrap draws by configuration, (R,), paired across both sides."""
    only_chosen: bool


def compare_studies(first: StudyRecord, second: StudyRecord) -> Comparison:
    """Compare two studies of the same data.

    Raises:
        ComparisonError: data, folds or metrics differ, or a study has no finished configuration.
    """
    _check(first, second)
    marked = [mark_front(study, FrontOptions()) for study in (first, second)]
    return _compare([_side(n, one.study.name, one, None) for n, one in enumerate(marked)], marked)


def compare_families(study: StudyRecord, names: tuple[str, str]) -> Comparison:
    """Compare two families of one study, by their names in its report.

    Raises:
        ComparisonError: a family has no finished configuration.
        UserError: there is no such family.
    """
    marked = mark_front(study, FrontOptions())
    members: dict[str, set[str]] = {}
    for c in (*marked.finished, *marked.unfinished):
        members.setdefault(family_of(c, marked.families), set()).add(c.configuration_id)
    sides = [
        _side(n, name, marked, look_up(members, name, kind="family of this study"))
        for n, name in enumerate(names)
    ]
    return _compare(sides, [marked, marked])


def _check(first: StudyRecord, second: StudyRecord) -> None:
    """Raise ComparisonError if values of the two studies are not comparable."""
    facts = {
        "the datasets": (first.dataset, second.dataset),
        "the fingerprints of the data": (_fingerprint(first), _fingerprint(second)),
        "the numbers of folds": (first.folds, second.folds),
        "the metrics": (_metrics(first), _metrics(second)),
    }
    for what, (one, other) in facts.items():
        if one != other:
            raise ComparisonError(
                f"The studies '{first.name}' and '{second.name}' cannot be compared: {what} "
                f"differ ({one}; {other})."
            )


def _fingerprint(study: StudyRecord) -> str:
    return study.facts.get("fingerprint", "unknown")[:12]


def _metrics(study: StudyRecord) -> str:
    objectives = Objectives.of(study.objectives)
    return f"{objectives.y} against {objectives.x}"


def _compare(sides: Sequence[_Side], marked: Sequence[MarkedConfigurations]) -> Comparison:
    """Compare two sides with one bootstrap of both."""
    study, objectives = marked[0].study, marked[0].objectives
    first, second = _with_common_folds(sides, objectives, folds=study.folds)
    common = _Common(
        objectives=objectives,
        draws=draw_accuracies(
            sorted(
                (*first.configurations, *second.configurations), key=lambda c: c.configuration_id
            ),
            objectives.y,
            folds=study.folds,
        ),
        only_chosen=bool(first.chosen and second.chosen),
    )
    number = min(len(first.configurations), len(second.configurations))
    seconds = min(first.seconds, second.seconds)
    within = (_within(first, seconds), _within(second, seconds))
    return Comparison(
        names=(first.name, second.name),
        x=objectives.x,
        y=objectives.y,
        num_configurations=(len(first.configurations), len(second.configurations)),
        seconds=(first.seconds, second.seconds),
        only_chosen=common.only_chosen,
        at_cost=tuple(
            _at_cost(common, first, second, cost) for cost in _levels(common, first, second)
        ),
        at_number=_at_number(common, (first, second), (number, number), float(number)),
        at_seconds=_at_number(common, (first, second), within, seconds),
    )


def _side(number: int, name: str, marked: MarkedConfigurations, ids: set[str] | None) -> _Side:
    """Return a side, with ids that are distinct from those of the other.

    Args:
        number: 0 or 1.
        name: of the study or family.
        marked: the study's configurations.
        ids: of the side's configurations; None: all.

    Raises:
        ComparisonError: it has no finished configuration.
    """
    study = marked.study
    mine = {t.configuration_id for t in study.trials} if ids is None else ids
    finished = [c for c in marked.finished if c.configuration_id in mine]
    if not finished:
        raise ComparisonError(f"No configuration of '{name}' has finished, so it has no results.")
    chosen = [c for c in finished if c.is_fresh and marked.chosen is not None]
    used = {(c.configuration_id, seed) for c in finished for seed in c.seeds}
    return _Side(
        name=name,
        configurations=tuple(
            replace(c, configuration_id=_joint_id(number, c.configuration_id)) for c in finished
        ),
        chosen=frozenset(_joint_id(number, c.configuration_id) for c in chosen),
        seconds=sum(_seconds(t) for t in study.trials if t.configuration_id in mine),
        scores={
            (_joint_id(number, t.configuration_id), t.seed): t.values[marked.objectives.y]
            for t in study.trials
            if t.status == "finished" and (t.configuration_id, t.seed) in used
        },
    )


def _with_common_folds(
    sides: Sequence[_Side], objectives: Objectives, *, folds: int | None
) -> list[_Side]:
    """Subtract fold effects, estimated on both sides together, and sort worst first."""
    y = objectives.y
    scores = [(name, seed, v) for side in sides for (name, seed), v in side.scores.items()]
    effects = fold_effects(scores, y, folds=folds)
    found = []
    for side in sides:
        moved = [
            replace(c, values=c.values | {y: _mean(c, side.scores, effects, folds or 1)})
            for c in side.configurations
        ]
        moved.sort(key=lambda c: (objectives.quality(c.values), c.configuration_id))
        found.append(replace(side, configurations=tuple(moved)))
    return found


def _mean(
    c: ConfigurationSummary,
    scores: Mapping[tuple[str, int], float],
    effects: Mapping[int, float],
    folds: int,
) -> float:
    own = [scores[c.configuration_id, s] - effects.get(s % folds, 0.0) for s in c.seeds]
    return statistics.fmean(own)


def _joint_id(number: int, configuration_id: str) -> str:
    """Return an id that distinguishes equal configurations of two studies."""
    return f"{number}:{configuration_id}"


def _seconds(trial: TrialRecord) -> float:
    """Return a trial's training time, or its run time if it has no final values."""
    if trial.status == "finished" and "seconds" in trial.values:
        return trial.values["seconds"]
    return max(0.0, trial.ended - trial.started)


def _competing(side: _Side, *, only_chosen: bool) -> list[ConfigurationSummary]:
    return [c for c in side.configurations if not only_chosen or c.configuration_id in side.chosen]


def _levels(common: _Common, *sides: _Side) -> list[float]:
    """Return some costs of the joint front, and the highest cost of all configurations."""
    x, y = common.objectives.x, common.objectives.y
    every = [c for side in sides for c in _competing(side, only_chosen=common.only_chosen)]
    values = [[c.values[y], c.values[x]] for c in every]
    on_front = pareto.non_dominated(values, common.objectives.directions[:2])
    costs = np.unique([cost for (_, cost), on in zip(values, on_front, strict=True) if on])
    picks = np.linspace(0, len(costs) - 1, min(NUM_LEVELS, len(costs))).round().astype(int)
    last = max(cost for _, cost in values)
    return list(dict.fromkeys([*costs[picks].tolist(), last]))


def _at_cost(common: _Common, first: _Side, second: _Side, cost: float) -> Contest:
    x, y = common.objectives.x, common.objectives.y
    best: list[ConfigurationSummary | None] = []
    for side in (first, second):
        competing = _competing(side, only_chosen=common.only_chosen)
        within = [c for c in competing if c.values[x] <= cost]
        best.append(within[-1] if within else None)
    reached = [
        None
        if c is None
        else Reached(value=c.values[y], configuration_id=c.configuration_id.split(":", 1)[1])
        for c in best
    ]
    draws = [None if c is None else common.draws.get(c.configuration_id) for c in best]
    return _contest(common, cost, reached, draws)


def _within(side: _Side, seconds: float) -> int:
    """Return how many configurations a side finishes in a time at its average rate; at least 1."""
    number = len(side.configurations)
    share = seconds / side.seconds if side.seconds else 1.0
    return max(1, math.floor(number * share + 1e-9))


def _at_number(
    common: _Common, sides: tuple[_Side, _Side], numbers: tuple[int, int], limit: float
) -> Contest:
    """Compare the expected best of `numbers` finished configurations of each side."""
    reached: list[Reached | None] = []
    draws: list[Floats | None] = []
    for side, number in zip(sides, numbers, strict=True):
        weights = best_of(len(side.configurations), number)
        values = np.array([c.values[common.objectives.y] for c in side.configurations])
        reached.append(Reached(value=float(weights @ values), num_drawn=number))
        ids = [c.configuration_id for c in side.configurations]
        # The ranking is fixed: ranking again in each draw would select on noise.
        has_draws = all(identity in common.draws for identity in ids)
        draws.append(weights @ np.stack([common.draws[i] for i in ids]) if has_draws else None)
    return _contest(common, limit, reached, draws)


def _contest(
    common: _Common, limit: float, reached: Sequence[Reached | None], draws: Sequence[Floats | None]
) -> Contest:
    first, second = reached
    difference = None if first is None or second is None else first.value - second.value
    interval, probability = None, None
    if draws[0] is not None and draws[1] is not None:
        gap_R = draws[0] - draws[1]
        interval = bootstrap.percentile_interval(gap_R)
        is_equal = np.abs(gap_R) < 1e-12  # up to rounding
        is_better = common.objectives.sign * gap_R > 0
        probability = float(np.mean(np.where(is_equal, 0.5, is_better)))
    return Contest(
        limit=limit,
        first=first,
        second=second,
        difference=difference,
        interval=interval,
        probability=probability,
    )
