"""Find the front of a study: from its trials to everything that a report says of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.analysis.configurations import (
    add_test_values,
    summarise_configurations,
)
from sftsearch.orchestrator.analysis.hypervolume import HypervolumeScale, hypervolume_steps
from sftsearch.orchestrator.analysis.objectives import Objectives
from sftsearch.orchestrator.analysis.significance import compare_with_front, draw_accuracies
from sftsearch.orchestrator.metrics import KNOWN_METRICS, metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.hypervolume import HypervolumeStep
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """Hold a study's front of `y` against `x`, and everything a report says beside it."""

    study: StudyRecord
    objectives: Objectives
    configurations: tuple[ConfigurationSummary, ...]
    """The front by rising cost, then the others by accuracy, then what has not finished."""
    by: tuple[str, ...]
    """Parameters that set a family apart, beside its model."""
    top: int | None
    max_gflops: float | None
    num_filtered: int
    """Configurations left out because of `max_gflops`."""
    front_probability_is: Literal["posterior", "bootstrap"]
    """Where front probabilities come from: what the study concluded of being on the
    (2 %, half a point)-front, or the share of the resamples in which it is on the front."""
    num_chosen: int | None
    """Configurations that the study chose to report, of which alone the front is; None where it
    chose none, or for other axes."""
    hypervolume: float
    progress: tuple[HypervolumeStep, ...]
    draws: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """Bootstrap draws of the accuracy of each finished configuration, (R,), by id; paired, so that
    differences of two are draws too. Without those that counted no groups."""

    @property
    def x(self) -> str:
        """Return the metric that is the cost."""
        return self.objectives.x

    @property
    def y(self) -> str:
        """Return the metric that is the quality."""
        return self.objectives.y

    @property
    def points(self) -> tuple[ConfigurationSummary, ...]:
        """Return the front, by rising cost."""
        return tuple(c for c in self.configurations if c.on_front)

    @property
    def finished(self) -> tuple[ConfigurationSummary, ...]:
        """Return every configuration with all its seeds."""
        return tuple(c for c in self.configurations if c.status == "finished")

    @property
    def table(self) -> tuple[ConfigurationSummary, ...]:
        """Return the rows to show: all, or the `top` best by y."""
        if self.top is None:
            return self.configurations
        best = sorted(self.finished, key=self.quality, reverse=True)[: self.top]
        chosen = {c.configuration_id for c in best}
        return tuple(c for c in self.configurations if c.configuration_id in chosen)

    @property
    def num_groups(self) -> int:
        """Return how many subjects some replicate was validated on; 0 if none were recorded."""
        counted = [c for c in self.finished if c.configuration_id in self.draws]
        return len({name for c in counted for groups in c.groups for name in groups})

    @property
    def groups_are_subjects(self) -> bool:
        """Tell subjects from the hundredths `00` to `99` of a split that names none."""
        first = min(self.finished, key=lambda c: c.configuration_id, default=None)
        names = [] if first is None else [name for groups in first.groups[:1] for name in groups]
        return not all(len(name) == 2 and name.isdigit() for name in names)

    def quality(self, c: ConfigurationSummary) -> float:
        """Return y of a configuration, turned so that more is better."""
        return self.objectives.quality(c.values)

    def staircase(self) -> tuple[list[float], list[float]]:
        """Return the best y that each x affords: corners of steps, the last up to the highest x."""
        points = self.points
        if not points:
            return [], []
        costs = [c.values[self.x] for c in self.finished]
        end = max(costs) if self.objectives.is_cost_minimized else min(costs)
        xs = [c.values[self.x] for c in points] + [end]
        # Of more than two objectives, a front point that costs more need not be a better one.
        better = max if self.objectives.directions[0] == "maximize" else min
        ys = list(itertools.accumulate((c.values[self.y] for c in points), better))
        return xs, [*ys, ys[-1]]


def summarise(
    study: StudyRecord,
    *,
    x: str = "gflops",
    y: str = "top1",
    by: Sequence[str] | None = None,
    max_gflops: float | None = None,
    top: int | None = None,
    thin: bool = False,
) -> Front:
    """Return the study's front of `y` against `x`, and of its other objectives if it has more.

    Only configurations with as many finished replicates as every one has, and none stopped, can be
    on it. Where the study chose what to report and trained fresh replicates of it, only those can:
    the others' means are still those that could be chosen for their luck.

    Args:
        study: the record, possibly of a study that still runs.
        x: the metric that is the cost.
        y: the metric that is the quality; only those counted by subject have intervals.
        by: parameters that set families apart, beside the model; names out of the study. None:
            those that tell its branches apart.
        max_gflops: leave out configurations that cost more.
        top: how many rows the table shows, the best by y; the front is of all.
        thin: leave out front points for which one stands that costs at most 2 % more and is at
            most half a point worse.

    Raises:
        UserError: a metric or parameter is not in the record, a limit is not positive, or a front
            cannot be thinned.
    """
    _check(study, x, y, max_gflops, top)
    families, objectives = _families(study, by), Objectives.of(study, x, y)
    every = summarise_configurations(study, x, y)
    kept = [c for c in every if max_gflops is None or _gflops(c) <= max_gflops]
    finished = [c for c in kept if c.status == "finished"]
    finished.sort(key=lambda c: c.configuration_id)  # draws must not depend on who ended first
    chosen = _chosen(study, finished, objectives)
    scale = HypervolumeScale.over(finished, objectives)
    marked = _mark_front(finished, objectives, finished if chosen is None else chosen)
    shown = _thin(marked, objectives) if thin else marked
    draws = draw_accuracies(shown, study, y)
    shown, source = _add_concluded(compare_with_front(shown, objectives, draws), study, objectives)
    unfinished = [c for c in kept if c.status != "finished"]
    return Front(
        study=study,
        objectives=objectives,
        configurations=_order(add_test_values(shown, study, y), unfinished, objectives),
        by=families,
        top=top,
        max_gflops=max_gflops,
        num_filtered=len(every) - len(kept),
        front_probability_is=source,
        num_chosen=None if chosen is None else len(chosen),
        hypervolume=scale.hypervolume(c for c in marked if c.on_front),
        progress=hypervolume_steps(study, finished if chosen is None else chosen, scale),
        draws=draws,
    )


def _check(study: StudyRecord, x: str, y: str, max_gflops: float | None, top: int | None) -> None:
    """Raise UserError where the study has no such front."""
    finished = [t for t in study.trials if t.status == "finished"]
    measured = {name for trial in finished for name in trial.values}
    for name in (x, y):
        look_up(dict.fromkeys(measured or KNOWN_METRICS), name, kind="metric of this study")
    if x == y:
        raise UserError(f"A front needs two metrics, but got x='{x}' and y='{y}'.")
    if max_gflops is not None and not max_gflops > 0:
        raise UserError(f"`max_gflops` must be positive, but got {max_gflops}.")
    if top is not None and top < 1:
        raise UserError(f"`top` must be at least 1, but got {top}.")


def _families(study: StudyRecord, by: Sequence[str] | None) -> tuple[str, ...]:
    """Return the parameters that set families apart; those asked for must be in the study."""
    known = {name: None for trial in study.trials for name in trial.configuration}
    for name in by or ():
        look_up(known, name, kind="parameter of this study")
    return tuple(name for name in study.families if name in known) if by is None else tuple(by)


def _gflops(c: ConfigurationSummary) -> float:
    return c.values.get("gflops", -math.inf)


def _chosen(
    study: StudyRecord, finished: Sequence[ConfigurationSummary], objectives: Objectives
) -> list[ConfigurationSummary] | None:
    """Return the configurations that were chosen to be reported; None where none were."""
    if not objectives.are_searched_for:
        return None
    return [c for c in finished if c.configuration_id in study.fresh] or None


def _mark_front(
    finished: Sequence[ConfigurationSummary],
    objectives: Objectives,
    candidates: Sequence[ConfigurationSummary],
) -> list[ConfigurationSummary]:
    """Mark the front, which is of the candidates alone, and its knee."""
    names, directions = objectives.names, objectives.directions
    values = np.array([[c.values[name] for name in names] for c in finished])
    values = values.reshape(-1, len(names))
    ids = {c.configuration_id for c in candidates}
    may = np.array([c.configuration_id in ids for c in finished], dtype=bool)
    mask = np.zeros(len(finished), dtype=bool)
    mask[may] = pareto.non_dominated(values[may], directions)
    marked = [replace(c, on_front=bool(on)) for c, on in zip(finished, mask, strict=True)]
    bends, (places,) = values[mask], np.nonzero(mask)
    for number in range(1, len(names)):
        if np.all(bends[:, number] > 0) and (number == 1 or metric(names[number]).is_cost):
            bends[:, number] = np.log(bends[:, number])
    knee = pareto.knee(bends, directions)
    if knee is not None:
        marked[places[knee]] = replace(marked[places[knee]], is_knee=True)
    return marked


def _thin(
    finished: Sequence[ConfigurationSummary], objectives: Objectives
) -> list[ConfigurationSummary]:
    """Take the points off the front that others stand for.

    Raises:
        UserError: there are more than two objectives, or the second is not a cost to minimise.
    """
    front = [c for c in finished if c.on_front]
    costs = [c.values[objectives.x] for c in front]
    is_cost = objectives.is_cost_minimized and min(costs, default=0) >= 0
    if len(objectives.names) > 2 or not is_cost:
        raise UserError(
            "Only a front of two objectives can be thinned, the second a cost that is not "
            f"negative, but this one is of {', '.join(objectives.names)}."
        )
    delta = 0.005 if metric(objectives.y).is_share else 0.0
    kept = pareto.thin(costs, [objectives.quality(c.values) for c in front], delta=delta)
    ids = {c.configuration_id for c, keep in zip(front, kept, strict=True) if not keep}
    return [
        replace(c, on_front=False, is_knee=False, is_thinned=True)
        if c.configuration_id in ids
        else c
        for c in finished
    ]


def _add_concluded(
    finished: Sequence[ConfigurationSummary], study: StudyRecord, objectives: Objectives
) -> tuple[list[ConfigurationSummary], Literal["posterior", "bootstrap"]]:
    """Put what the study concluded of front probabilities in the place of the bootstrap's."""
    if study.conclusion is None or not objectives.are_searched_for:
        return list(finished), "bootstrap"
    concluded = {name: one.on_front for name, one in study.conclusion.posteriors.items()}
    if not concluded:
        return list(finished), "bootstrap"
    return [
        replace(c, front_probability=concluded.get(c.configuration_id)) for c in finished
    ], "posterior"


def _order(
    finished: Sequence[ConfigurationSummary],
    others: Sequence[ConfigurationSummary],
    objectives: Objectives,
) -> tuple[ConfigurationSummary, ...]:
    """Return the front by rising cost, then the rest by quality, then what has not finished."""
    on_front = (c for c in finished if c.on_front)
    front = sorted(on_front, key=lambda c: objectives.costs(c.values)[0])
    off_front = (c for c in finished if not c.on_front)
    rest = sorted(off_front, key=lambda c: -objectives.quality(c.values))
    places = {"incomplete": 0, "stopped": 1, "failed": 2}
    last = sorted(others, key=lambda c: (places[c.status], c.configuration_id))
    return (*front, *rest, *last)
