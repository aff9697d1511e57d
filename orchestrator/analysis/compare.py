"""Compare two studies, or two families of one: which is better, and how sure that is.

At equal inference cost: at some costs of their common front, the best that each affords. At equal
tuning cost: the expected best of as many configurations as the one with fewer ran, and of as many
as each trains in the same time. How sure: the share of the resamples, paired by group and drawn
over replicates, in which the first is the better; see `bootstrap.resample_accuracies`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator import bootstrap, pareto
from sftsearch.orchestrator.analysis.families import NUM_LEVELS, best_of, family_of
from sftsearch.orchestrator.analysis.front import summarise
from sftsearch.orchestrator.metrics import metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

    Floats = NDArray[np.float64]


class ComparisonError(UserError):
    """Refuse two that cannot be compared: other data, folds or metrics, or nothing finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """Hold what one of the two reaches under a limit."""

    value: float
    configuration_id: str | None = None
    """Which one does; None where it is an expected best."""
    num_drawn: int | None = None
    """Of how many configurations the best is expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Hold both under one limit."""

    limit: float
    """A cost, a number of configurations, or seconds of training."""
    first: Reached | None
    """None where it has nothing to offer."""
    second: Reached | None
    difference: float | None
    """First minus second."""
    interval: Interval | None
    """Of the difference; None where no groups were counted."""
    probability: float | None
    """That the first is better; equals count half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Hold two studies or families side by side."""

    names: tuple[str, str]
    x: str
    y: str
    num_configurations: tuple[int, int]
    """Finished ones."""
    seconds: tuple[float, float]
    """Training in all, that of stopped and failed trials included."""
    only_chosen: bool
    """Whether at equal cost only what was chosen to be reported competes."""
    at_cost: tuple[Contest, ...]
    at_number: Contest
    at_seconds: Contest


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two, as the common front knows it."""

    name: str
    configurations: tuple[ConfigurationSummary, ...]
    """The finished ones, from the worst to the best."""
    chosen: frozenset[str]
    """Ids of those that were chosen to be reported."""
    seconds: float


def compare_studies(first: StudyRecord, second: StudyRecord) -> Comparison:
    """Compare two studies of the same data.

    Raises:
        ComparisonError: data, folds or metrics differ, or one has nothing finished.
    """
    _check(first, second)
    pairs = [(study.name, study, _ids(study)) for study in (first, second)]
    return _compare(pairs)


def compare_families(study: StudyRecord, names: tuple[str, str]) -> Comparison:
    """Compare two families of one study, by their names in its report.

    Raises:
        ComparisonError: one has nothing finished.
        UserError: there is no such family.
    """
    x, y = _axes(study)
    front = summarise(study, x=x, y=y)
    members: dict[str, set[str]] = {}
    for c in front.configurations:
        members.setdefault(family_of(c, front.by), set()).add(c.configuration_id)
    return _compare([(n, study, look_up(members, n, kind="family of this study")) for n in names])


def _axes(study: StudyRecord) -> tuple[str, str]:
    """Return the cost and the accuracy that a study was searched for."""
    names = [name for name, _ in study.objectives]
    return next(name for name in names if metric(name).is_cost), names[0]


def _check(first: StudyRecord, second: StudyRecord) -> None:
    """Raise ComparisonError where figures of the two do not mean the same."""
    facts = {
        "the data sets": (first.dataset, second.dataset),
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
    x, y = _axes(study)
    return f"{y} against {x}"


def _ids(study: StudyRecord) -> set[str]:
    return {trial.configuration_id for trial in study.trials}


def _compare(pairs: Sequence[tuple[str, StudyRecord, set[str]]]) -> Comparison:
    x, y = _axes(pairs[0][1])
    sides, trials = [], []
    for number, (name, study, ids) in enumerate(pairs):
        side, own = _side(number, name, study, ids)
        sides.append(side)
        trials += own
    # Of both together: one bootstrap, and means freed of the same folds' difficulty.
    directions = dict(pairs[0][1].objectives)
    joint = replace(
        pairs[0][1],
        trials=tuple(trials),
        objectives=tuple((name, directions[name]) for name in (y, x)),
        num_seeds=1,
        fresh={},
        conclusion=None,
        confirmed=False,
    )
    front = summarise(joint, x=x, y=y)
    first, second = (_placed(side, front) for side in sides)
    only_chosen = bool(first.chosen and second.chosen)
    number = min(len(first.configurations), len(second.configurations))
    seconds = min(first.seconds, second.seconds)
    return Comparison(
        names=(first.name, second.name),
        x=x,
        y=y,
        num_configurations=(len(first.configurations), len(second.configurations)),
        seconds=(first.seconds, second.seconds),
        only_chosen=only_chosen,
        at_cost=tuple(
            _at_cost(front, first, second, cost, only_chosen=only_chosen)
            for cost in _levels(front, first, second, only_chosen=only_chosen)
        ),
        at_number=_at_number(front, (first, second), (number, number), float(number)),
        at_seconds=_at_number(
            front, (first, second), (_within(first, seconds), _within(second, seconds)), seconds
        ),
    )


def _side(
    number: int, name: str, study: StudyRecord, ids: set[str]
) -> tuple[_Side, list[TrialRecord]]:
    """Return one of the two, and its trials under names of their own.

    Raises:
        ComparisonError: it has nothing finished.
    """
    x, y = _axes(study)
    front = summarise(study, x=x, y=y)
    finished = [c for c in front.finished if c.configuration_id in ids]
    if not finished:
        raise ComparisonError(f"Nothing of '{name}' has finished: there is nothing to compare.")
    used = {(c.configuration_id, seed) for c in finished for seed in c.seeds}
    trials = [
        replace(t, configuration_id=_joint_id(number, t.configuration_id))
        for t in study.trials
        if t.status == "finished" and (t.configuration_id, t.seed) in used
    ]
    chosen = (
        () if front.num_chosen is None else (c.configuration_id for c in finished if c.is_fresh)
    )
    side = _Side(
        name=name,
        configurations=tuple(
            replace(c, configuration_id=_joint_id(number, c.configuration_id)) for c in finished
        ),
        chosen=frozenset(_joint_id(number, identity) for identity in chosen),
        seconds=sum(_seconds(t) for t in study.trials if t.configuration_id in ids),
    )
    return side, trials


def _joint_id(number: int, configuration_id: str) -> str:
    """Return an id that tells equal configurations of two studies apart."""
    return f"{number}:{configuration_id}"


def _seconds(trial: TrialRecord) -> float:
    """Return how long a trial trained; of one without final values, how long it ran."""
    if trial.status == "finished" and "seconds" in trial.values:
        return trial.values["seconds"]
    return max(0.0, trial.ended - trial.started)


def _placed(side: _Side, front: Front) -> _Side:
    """Return a side with its configurations as the common front has them, worst first."""
    ids = {c.configuration_id for c in side.configurations}
    own = [c for c in front.finished if c.configuration_id in ids]
    own.sort(key=lambda c: (front.quality(c), c.configuration_id))
    return replace(side, configurations=tuple(own))


def _competing(side: _Side, *, only_chosen: bool) -> list[ConfigurationSummary]:
    return [c for c in side.configurations if not only_chosen or c.configuration_id in side.chosen]


def _levels(front: Front, *sides: _Side, only_chosen: bool) -> list[float]:
    """Return some costs of the common front of what competes, and the highest cost of all."""
    every = [c for side in sides for c in _competing(side, only_chosen=only_chosen)]
    values = [[c.values[front.y], c.values[front.x]] for c in every]
    on_front = pareto.non_dominated(values, front.objectives.directions[:2])
    costs = np.unique([cost for (_, cost), on in zip(values, on_front, strict=True) if on])
    picks = np.linspace(0, len(costs) - 1, min(NUM_LEVELS, len(costs))).round().astype(int)
    last = max(cost for _, cost in values)
    return list(dict.fromkeys([*costs[picks].tolist(), last]))


def _at_cost(
    front: Front, first: _Side, second: _Side, cost: float, *, only_chosen: bool
) -> Contest:
    best: list[ConfigurationSummary | None] = []
    for side in (first, second):
        within = [c for c in _competing(side, only_chosen=only_chosen) if c.values[front.x] <= cost]
        best.append(within[-1] if within else None)
    reached = [
        None
        if c is None
        else Reached(value=c.values[front.y], configuration_id=c.configuration_id.split(":", 1)[1])
        for c in best
    ]
    draws = [None if c is None else front.draws.get(c.configuration_id) for c in best]
    return _contest(front, cost, reached, draws)


def _within(side: _Side, seconds: float) -> int:
    """Return how many configurations a side finishes in a time, at its own rate; at least one."""
    number = len(side.configurations)
    share = seconds / side.seconds if side.seconds else 1.0
    return max(1, math.floor(number * share + 1e-9))


def _at_number(
    front: Front, sides: tuple[_Side, _Side], numbers: tuple[int, int], limit: float
) -> Contest:
    """Return the expected best of so many configurations of each, drawn from those it finished."""
    reached: list[Reached | None] = []
    draws: list[Floats | None] = []
    for side, number in zip(sides, numbers, strict=True):
        weights = best_of(len(side.configurations), number)
        values = np.array([c.values[front.y] for c in side.configurations])
        reached.append(Reached(value=float(weights @ values), num_drawn=number))
        ids = [c.configuration_id for c in side.configurations]
        # The ranking stays as it is: in each draw anew, the luckiest of near equals would count.
        known = all(identity in front.draws for identity in ids)
        draws.append(weights @ np.stack([front.draws[i] for i in ids]) if known else None)
    return _contest(front, limit, reached, draws)


def _contest(
    front: Front, limit: float, reached: Sequence[Reached | None], draws: Sequence[Floats | None]
) -> Contest:
    first, second = reached
    difference = None if first is None or second is None else first.value - second.value
    interval, probability = None, None
    if draws[0] is not None and draws[1] is not None:
        gap_R = draws[0] - draws[1]
        interval = bootstrap.percentile_interval(gap_R)
        sign = 1 if front.objectives.directions[0] == "maximize" else -1
        # Equal but for rounding is equal.
        is_equal = np.abs(gap_R) < 1e-12
        probability = float(np.mean(np.where(is_equal, 0.5, sign * gap_R > 0)))
    return Contest(
        limit=limit,
        first=first,
        second=second,
        difference=difference,
        interval=interval,
        probability=probability,
    )
