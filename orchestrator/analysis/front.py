"""Find the Pareto front of a study, with intervals, front probabilities and hypervolume."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator import bootstrap, pareto
from sftsearch.orchestrator.analysis.baselines import compare_baselines
from sftsearch.orchestrator.analysis.configurations import (
    add_test_values,
    summarize_configurations,
)
from sftsearch.orchestrator.analysis.hypervolume import HypervolumeScale, hypervolume_steps
from sftsearch.orchestrator.analysis.significance import compare_with_front, draw_accuracies
from sftsearch.orchestrator.metrics import KNOWN_METRICS, metric
from sftsearch.orchestrator.objectives import Objectives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.baselines import Baselines
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.hypervolume import HypervolumeStep
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The Pareto front of `y` against `x`, and everything else that reports show."""

    study: StudyRecord
    objectives: Objectives
    configurations: tuple[ConfigurationSummary, ...]
    """The front by rising cost, then the others by accuracy, then the unfinished ones."""
    by: tuple[str, ...]
    """Parameters that define families, in addition to the model."""
    top: int | None
    max_gflops: float | None
    num_filtered: int
    """Number of configurations left out because of `max_gflops`."""
    front_probability_source: Literal["posterior", "bootstrap"]
    """`posterior`: the surrogate's probability of being on the (2 %, half a point)-front;
    `bootstrap`: the share of resamples in which the configuration is on the front."""
    num_chosen: int | None
    """Number of configurations that the study chose to report; only they can be on the front. None
    if it chose none, or for other axes."""
    hypervolume: float
    progress: tuple[HypervolumeStep, ...]
    draws: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """Draws of the accuracy by configuration id, (R,), paired, so that differences of two
    are draws too. Only finished configurations with counts by group."""
    baselines: Baselines | None = None
    """None if the study has none, or if they do not have `y`."""

    @property
    def x(self) -> str:
        """Return the cost metric."""
        return self.objectives.x

    @property
    def y(self) -> str:
        """Return the accuracy metric."""
        return self.objectives.y

    @property
    def points(self) -> tuple[ConfigurationSummary, ...]:
        """Return the front, by rising cost."""
        return tuple(c for c in self.configurations if c.on_front)

    @property
    def finished(self) -> tuple[ConfigurationSummary, ...]:
        """Return the configurations with all required replicates."""
        return tuple(c for c in self.configurations if c.status == "finished")

    @property
    def table(self) -> tuple[ConfigurationSummary, ...]:
        """Return the rows to show: all, or the `top` best by y; then the baselines."""
        shown = self.configurations
        if self.top is not None:
            best = sorted(self.finished, key=self.quality, reverse=True)[: self.top]
            chosen = {c.configuration_id for c in best}
            shown = tuple(c for c in shown if c.configuration_id in chosen)
        return shown if self.baselines is None else (*shown, *reversed(self.baselines.summaries))

    @property
    def num_groups(self) -> int:
        """Return the number of validation subjects (or groups); 0 if none were recorded."""
        return len(self._group_names())

    @property
    def groups_are_subjects(self) -> bool:
        """Return whether groups are subjects, not blocks of samples (`00`, `s04 block 01`)."""
        names = self._group_names()
        return not all(_is_number(name) or bootstrap.BLOCK in name for name in names)

    @property
    def num_people(self) -> int | None:
        """Return the number of validation subjects; None if they are unknown or too many."""
        names = self._group_names()
        if not names or any(_is_number(name) for name in names):
            return None
        return len({name.partition(bootstrap.BLOCK)[0] for name in names})

    def _group_names(self) -> set[str]:
        counted = [c.groups for c in self.finished if c.configuration_id in self.draws]
        merged = bootstrap.merge_blocks(counted)
        return {name for seeds in merged for groups in seeds for name in groups}

    def quality(self, c: ConfigurationSummary) -> float:
        """Return y of a configuration, sign-adjusted so that more is better."""
        return self.objectives.quality(c.values)

    def staircase(self) -> tuple[list[float], list[float]]:
        """Return the corners (xs, ys) of the best y at each x, up to the highest x."""
        points = self.points
        if not points:
            return [], []
        costs = [c.values[self.x] for c in self.finished]
        end = max(costs, key=lambda cost: self.objectives.cost_sign * cost)
        xs = [c.values[self.x] for c in points] + [end]
        # With more than two objectives, a more expensive front point need not be better.
        sign = self.objectives.sign
        best = itertools.accumulate((sign * c.values[self.y] for c in points), max)
        ys = [sign * value for value in best]
        return xs, [*ys, ys[-1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontOptions:
    """Axes, families and filters of a front."""

    x: str | None = None
    """Metric of the cost axis; None: the study's cost."""
    y: str | None = None
    """Metric of the accuracy axis; None: the study's accuracy. Only metrics counted by subject have
    intervals."""
    by: tuple[str, ...] | None = None
    """Parameters that define families, in addition to the model; None: those that differ between
    the branches of the study's space."""
    max_gflops: float | None = None
    """Leave out configurations that cost more."""
    top: int | None = None
    """Number of table rows, best by y; the front still uses all configurations."""
    thin: bool = False
    """Leave out front points if another costs at most 2 % more and is at most 0.5 points worse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedConfigurations:
    """A study's configurations with the front marked, before any bootstrap."""

    study: StudyRecord
    options: FrontOptions
    objectives: Objectives
    finished: tuple[ConfigurationSummary, ...]
    """In the order of their ids."""
    unfinished: tuple[ConfigurationSummary, ...]
    chosen: tuple[ConfigurationSummary, ...] | None
    """Those that the study chose to report; None if it chose none, or for other axes."""
    num_filtered: int

    @property
    def points(self) -> tuple[ConfigurationSummary, ...]:
        """The front, in the order of ids."""
        return tuple(c for c in self.finished if c.on_front)

    @property
    def families(self) -> tuple[str, ...]:
        """The parameters that define families, in addition to the model."""
        return _families(self.study, self.options.by)


def mark_front(study: StudyRecord, options: FrontOptions) -> MarkedConfigurations:
    """Find the configurations on a study's front.

    A configuration can be on the front if all of its required replicates have finished and none was
    stopped. If the study chose what to report and trained fresh replicates of it, only the chosen
    ones can be: the means of the others are biased by selection.

    Raises:
        UserError: a metric or parameter is not in the record, or a limit is not positive.
    """
    own = Objectives.of(study.objectives)
    objectives = own.with_axes(options.x or own.x, options.y or own.y)
    _check(study, objectives, options)
    every = summarize_configurations(study, objectives.x, objectives.y)
    limit = options.max_gflops
    kept = [c for c in every if limit is None or _gflops(c) <= limit]
    finished = [c for c in kept if c.status == "finished"]
    finished.sort(key=lambda c: c.configuration_id)  # draws must not depend on the order of trials
    chosen = _chosen(study, finished, objectives)
    marked = _mark_front(finished, objectives, finished if chosen is None else chosen)
    return MarkedConfigurations(
        study=study,
        options=options,
        objectives=objectives,
        finished=tuple(marked),
        unfinished=tuple(c for c in kept if c.status != "finished"),
        chosen=None if chosen is None else tuple(chosen),
        num_filtered=len(every) - len(kept),
    )


def build_front(marked: MarkedConfigurations) -> Front:
    """Add intervals, front probabilities, differences, test values and hypervolumes to a front.

    Raises:
        UserError: the front cannot be thinned.
    """
    study, objectives, options = marked.study, marked.objectives, marked.options
    scale = HypervolumeScale.over(marked.finished, objectives)
    shown = _thin(marked.finished, objectives) if options.thin else marked.finished
    draws = draw_accuracies(shown, objectives.y, folds=study.folds)
    compared, source = _add_concluded(
        compare_with_front(shown, objectives, draws), study, objectives
    )
    finished = add_test_values(compared, study, objectives.y)
    candidates = marked.finished if marked.chosen is None else marked.chosen
    return Front(
        study=study,
        objectives=objectives,
        configurations=_order(finished, marked.unfinished, objectives),
        by=marked.families,
        top=options.top,
        max_gflops=options.max_gflops,
        num_filtered=marked.num_filtered,
        front_probability_source=source,
        num_chosen=None if marked.chosen is None else len(marked.chosen),
        hypervolume=scale.hypervolume(marked.points),
        progress=hypervolume_steps(study, candidates, scale),
        draws=draws,
        baselines=compare_baselines(
            study,
            [c for c in finished if c.on_front],
            objectives,
            is_searched=_are_searched(objectives, study),
            max_gflops=options.max_gflops,
        ),
    )


def _is_number(name: str) -> bool:
    return len(name) == 2 and name.isdigit()


def _check(study: StudyRecord, objectives: Objectives, options: FrontOptions) -> None:
    """Raise UserError if the study has no such front."""
    x, y, max_gflops, top = objectives.x, objectives.y, options.max_gflops, options.top
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
    _families(study, options.by)


def _families(study: StudyRecord, by: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the parameters that define families; those of `by` must be in the study."""
    known = {name: None for trial in study.trials for name in trial.configuration}
    for name in by or ():
        look_up(known, name, kind="parameter of this study")
    return tuple(name for name in study.families if name in known) if by is None else by


def _gflops(c: ConfigurationSummary) -> float:
    return c.values.get("gflops", -math.inf)


def _chosen(
    study: StudyRecord, finished: Sequence[ConfigurationSummary], objectives: Objectives
) -> list[ConfigurationSummary] | None:
    """Return the configurations that the study chose to report, or None."""
    if not _are_searched(objectives, study):
        return None
    return [c for c in finished if c.configuration_id in study.fresh] or None


def _are_searched(objectives: Objectives, study: StudyRecord) -> bool:
    """Return whether the study's conclusion and choice apply to these objectives."""
    own = Objectives.of(study.objectives)
    return objectives.names == (own.y, own.judged_cost)


def _mark_front(
    finished: Sequence[ConfigurationSummary],
    objectives: Objectives,
    candidates: Sequence[ConfigurationSummary],
) -> list[ConfigurationSummary]:
    """Mark the front of the candidates, and its knee."""
    names, directions = objectives.names, objectives.directions
    values = np.array([[c.values[name] for name in names] for c in finished])
    values = values.reshape(-1, len(names))
    ids = {c.configuration_id for c in candidates}
    is_candidate = np.array([c.configuration_id in ids for c in finished], dtype=bool)
    mask = np.zeros(len(finished), dtype=bool)
    mask[is_candidate] = pareto.non_dominated(values[is_candidate], directions)
    marked = [replace(c, on_front=bool(on)) for c, on in zip(finished, mask, strict=True)]
    points, (rows,) = values[mask], np.nonzero(mask)
    for number in range(1, len(names)):
        if np.all(points[:, number] > 0) and (number == 1 or metric(names[number]).is_cost):
            points[:, number] = np.log(points[:, number])
    knee = pareto.knee(points, directions)
    if knee is not None:
        marked[rows[knee]] = replace(marked[rows[knee]], is_knee=True)
    return marked


def _thin(
    finished: Sequence[ConfigurationSummary], objectives: Objectives
) -> list[ConfigurationSummary]:
    """Remove front points that are almost equal to another.

    Raises:
        UserError: there are more than two objectives, or the second is not a cost to minimize.
    """
    front = [c for c in finished if c.on_front]
    costs = [c.values[objectives.x] for c in front]
    is_cost = objectives.is_cost_minimized and min(costs, default=0) >= 0
    if len(objectives.names) > 2 or not is_cost:
        raise UserError(
            "Only a front of two objectives, the second a nonnegative cost, can be thinned, but "
            f"this one has {', '.join(objectives.names)}."
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
    """Replace the bootstrap's front probabilities by those of the study's conclusion, if any."""
    if study.conclusion is None or not _are_searched(objectives, study):
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
    """Return the front by rising cost, then the rest by quality, then the unfinished ones."""
    on_front = (c for c in finished if c.on_front)
    front = sorted(on_front, key=lambda c: objectives.costs(c.values)[0])
    off_front = (c for c in finished if not c.on_front)
    rest = sorted(off_front, key=lambda c: -objectives.quality(c.values))
    ranks = {"incomplete": 0, "stopped": 1, "failed": 2}
    last = sorted(others, key=lambda c: (ranks[c.status], c.configuration_id))
    return (*front, *rest, *last)
