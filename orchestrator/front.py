"""From the trials of a study to its front: what is measured, how sure it is, and what to say of it.

Accuracy is the mean over seeds. Its intervals, and those of differences, are 95 % percentile
intervals by bootstrap over subjects and seeds at once, paired by subject (`pareto`).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.measures import METRICS, metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.record import Groups, StudyRecord, TrialRecord

Status = Literal["finished", "incomplete", "failed"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much more accurate a configuration (or model) is than another, and how sure that is."""

    other: str
    """Id of the other configuration (or the model's name)."""
    mean: float
    interval: Interval | None
    """None where no groups were recorded, or the metric is not counted by group."""

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0: the data do not tell the two apart."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One point of the search space with what its trials gave: a row of the table."""

    configuration_id: str
    model: str
    parameters: dict[str, Any]
    status: Status
    reasons: tuple[str, ...] = ()
    """Why it is not finished; empty if it is."""
    seeds: tuple[int, ...] = ()
    """The finished ones."""
    values: dict[str, float] = field(default_factory=dict)
    """Means over the finished seeds."""
    deviations: dict[str, float] = field(default_factory=dict)
    """Standard deviations over the finished seeds (n - 1); empty with fewer than two."""
    groups: tuple[Groups, ...] = ()
    """Validation counts, one a finished seed."""
    ended: float = 0.0
    """When its last finished trial ended, unix seconds."""
    interval: Interval | None = None
    """Of the mean accuracy."""
    membership: float | None = None
    """Share of the resamples in which it is on the front."""
    on_front: bool = False
    is_knee: bool = False
    difference: Difference | None = None
    """On the front: to the next cheaper front point. Else: to the front point at or below its
    cost."""
    test_values: dict[str, float] = field(default_factory=dict)
    test_interval: Interval | None = None

    @property
    def indistinguishable(self) -> bool:
        """Whether it is off the front by no more than noise."""
        return not self.on_front and self.difference is not None and self.difference.within_noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The hypervolume after so many finished trials."""

    num_trials: int
    seconds: float
    """Since the study's first trial started."""
    hypervolume: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """A study's front of `y` against `x`, and everything a report says beside it."""

    study: StudyRecord
    x: str
    y: str
    directions: tuple[str, str]
    """Of y and x."""
    configurations: tuple[Configuration, ...]
    """The front by rising cost, then the others by accuracy, then what has not finished."""
    by: tuple[str, ...]
    """Parameters that set a family apart, beside its model."""
    top: int | None
    max_gflops: float | None
    num_filtered: int
    """Configurations left out because of `max_gflops`."""
    num_groups: int
    """Subjects of the validation split; 0 where none were recorded."""
    groups_are_subjects: bool
    hypervolume: float
    progress: tuple[Progress, ...]
    draws: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """Bootstrap draws of the accuracy of each finished configuration, (R,), by id; paired, so that
    differences of two are draws too. Without those that counted no groups."""

    @property
    def points(self) -> tuple[Configuration, ...]:
        """The front, by rising cost."""
        return tuple(c for c in self.configurations if c.on_front)

    @property
    def finished(self) -> tuple[Configuration, ...]:
        """Every configuration with all its seeds."""
        return tuple(c for c in self.configurations if c.status == "finished")

    @property
    def table(self) -> tuple[Configuration, ...]:
        """The rows to show: all, or the `top` best by y."""
        if self.top is None:
            return self.configurations
        sign = -1 if self.directions[0] == "maximize" else 1
        best = sorted(self.finished, key=lambda c: sign * c.values[self.y])[: self.top]
        chosen = {c.configuration_id for c in best}
        return tuple(c for c in self.configurations if c.configuration_id in chosen)


def summarise(
    study: StudyRecord,
    *,
    x: str = "gflops",
    y: str = "top1",
    by: Sequence[str] | None = None,
    max_gflops: float | None = None,
    top: int | None = None,
) -> Front:
    """Return the study's front of `y` against `x`.

    Only configurations with all their seeds finished can be on it.

    Args:
        study: the record, possibly of a study that still runs.
        x: the metric that is the cost.
        y: the metric that is the quality; only those that are counted by subject, `top1` and
            `acc2`, have intervals.
        by: parameters that set families apart, beside the model; names out of the study. None:
            those that tell its branches apart.
        max_gflops: leave out configurations that cost more.
        top: how many rows the table shows, the best by y; the front is of all.

    Raises:
        UserError: a metric or parameter is not in the record, or a limit is not positive.
    """
    _check(study, x, y, max_gflops, top)
    known = {name: None for trial in study.trials for name in trial.configuration}
    for name in by or ():
        look_up(known, name, kind="parameter of this study")
    if by is None:
        by = [name for name in study.families if name in known]
    directions = (_direction(study, y), _direction(study, x))
    grouped = [_group(trials, study, x, y) for trials in _by_configuration(study).values()]
    kept = [
        c for c in grouped if max_gflops is None or c.values.get("gflops", -math.inf) <= max_gflops
    ]
    finished = [c for c in kept if c.status == "finished"]
    finished.sort(key=lambda c: c.configuration_id)  # draws must not depend on who ended first
    scale = _Scale.over(finished, x, y, directions)
    finished = _find_front(finished, x, y, directions)
    counted = _with_groups(finished) if metric(y).is_counted else []
    draws = _draws(counted)
    finished = _compare(finished, x, y, directions, draws)
    finished = _read_test(finished, study, y)
    ordered = _order(finished, [c for c in kept if c.status != "finished"], x, y, directions)
    return Front(
        study=study,
        x=x,
        y=y,
        directions=directions,
        configurations=tuple(ordered),
        by=tuple(by),
        top=top,
        max_gflops=max_gflops,
        num_filtered=len(grouped) - len(kept),
        num_groups=len(counted[0].groups[0]) if counted else 0,
        groups_are_subjects=_are_subjects(finished),
        hypervolume=scale.hypervolume([c for c in finished if c.on_front]),
        progress=_progress(study, finished, scale),
        draws=draws,
    )


_BOTH_BEST_AT_ONE = ("maximize", "maximize")


@dataclass(frozen=True, slots=True)
class _Scale:
    """The unit square hypervolumes are measured in: 1 is best, (0, 0) the reference.

    Cost: 1 at the lowest seen, 0 at the highest, by its logarithm where all are positive; 1 if all
    cost the same. Shares stay as they are, so the reference is an accuracy of 0; other metrics run
    from the worst seen (0) to the best (1).
    """

    x: str
    y: str
    x_ends: Interval
    """Worst and best, after the logarithm."""
    y_ends: Interval
    is_log: bool

    @classmethod
    def over(
        cls, finished: Sequence[Configuration], x: str, y: str, directions: tuple[str, str]
    ) -> _Scale:
        costs = [c.values[x] for c in finished]
        is_log = all(cost > 0 for cost in costs)
        costs = [math.log(cost) for cost in costs] if is_log else costs
        gains = [0.0, 1.0] if metric(y).is_share else []
        gains = gains or [c.values[y] for c in finished]
        return cls(x, y, _ends(costs, directions[1]), _ends(gains, directions[0]), is_log)

    def place(self, c: Configuration) -> tuple[float, float]:
        """Return a configuration's y and x in the unit square."""
        cost = math.log(c.values[self.x]) if self.is_log else c.values[self.x]
        return _share(c.values[self.y], self.y_ends), _share(cost, self.x_ends)

    def hypervolume(self, configurations: Iterable[Configuration]) -> float:
        """Return the share of the square that the configurations beat."""
        places = [self.place(c) for c in configurations]
        return pareto.hypervolume(places, (0.0, 0.0), _BOTH_BEST_AT_ONE)


def _ends(values: Sequence[float], direction: str) -> Interval:
    if not values:
        return 0.0, 0.0
    low, high = min(values), max(values)
    return (low, high) if direction == "maximize" else (high, low)


def _share(value: float, ends: Interval) -> float:
    worst, best = ends
    return 1.0 if worst == best else (value - worst) / (best - worst)


def _check(study: StudyRecord, x: str, y: str, max_gflops: float | None, top: int | None) -> None:
    finished = [t for t in study.trials if t.status == "finished"]
    measured = {name for trial in finished for name in trial.values}
    for name in (x, y):
        look_up(dict.fromkeys(measured or METRICS), name, kind="metric of this study")
    if x == y:
        raise UserError(f"A front needs two metrics, but got x='{x}' and y='{y}'.")
    if max_gflops is not None and not max_gflops > 0:
        raise UserError(f"`max_gflops` must be positive, but got {max_gflops}.")
    if top is not None and top < 1:
        raise UserError(f"`top` must be at least 1, but got {top}.")


def _direction(study: StudyRecord, name: str) -> str:
    return dict(study.objectives).get(name) or metric(name).direction


def _by_configuration(study: StudyRecord) -> dict[str, list[TrialRecord]]:
    grouped: dict[str, list[TrialRecord]] = {}
    for trial in study.trials:
        grouped.setdefault(trial.configuration_id, []).append(trial)
    return grouped


def _group(trials: Sequence[TrialRecord], study: StudyRecord, x: str, y: str) -> Configuration:
    """Return the mean over seeds of one configuration's trials, without comparisons."""
    finished = sorted((t for t in trials if t.status == "finished"), key=lambda t: t.seed)
    names = [name for trial in trials for name in trial.values]
    values = {name: _values(finished or trials, name) for name in dict.fromkeys(names)}
    status, reasons = _status(trials, study.num_seeds, x, y)
    return Configuration(
        configuration_id=trials[0].configuration_id,
        model=trials[0].model,
        parameters=dict(trials[0].configuration),
        status=status,
        reasons=reasons,
        seeds=tuple(t.seed for t in finished),
        values={name: statistics.fmean(found) for name, found in values.items() if found},
        deviations={n: _deviation(found) for n, found in values.items() if len(found) > 1},
        groups=tuple(t.groups for t in finished),
        ended=max((t.ended for t in finished), default=0.0),
    )


def _values(trials: Sequence[TrialRecord], name: str) -> list[float]:
    return [float(t.values[name]) for t in trials if name in t.values]


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _status(
    trials: Sequence[TrialRecord], num_seeds: int, x: str, y: str
) -> tuple[Status, tuple[str, ...]]:
    finished = [t for t in trials if t.status == "finished"]
    failed = [t for t in trials if t.status == "failed"]
    if len(finished) < num_seeds:
        if failed:
            return "failed", tuple(
                f"seed {t.seed}: {t.reason or 'no reason given'}" for t in failed
            )
        return "incomplete", (f"{len(finished)} of {num_seeds} seeds finished",)
    for name in (y, x):
        values = _values(finished, name)
        if len(values) < len(finished):
            return "incomplete", (f"no {name} recorded",)
        if not all(map(math.isfinite, values)):
            return "failed", (f"{name} is not finite",)
    return "finished", ()


def _find_front(
    finished: Sequence[Configuration], x: str, y: str, directions: tuple[str, str]
) -> list[Configuration]:
    """Mark the front and its knee."""
    values = [(c.values[y], c.values[x]) for c in finished]
    mask = pareto.non_dominated(values, directions)
    marked = [replace(c, on_front=bool(on)) for c, on in zip(finished, mask, strict=True)]
    places = [i for i, on in enumerate(mask) if on]
    is_log = all(values[i][1] > 0 for i in places)
    bends = [(values[i][0], math.log(values[i][1]) if is_log else values[i][1]) for i in places]
    knee = pareto.knee(bends, directions)
    if knee is not None:
        marked[places[knee]] = replace(marked[places[knee]], is_knee=True)
    return marked


def _draws(counted: Sequence[Configuration]) -> dict[str, NDArray[np.float64]]:
    draws = pareto.resample_accuracies([c.groups for c in counted])
    return {c.configuration_id: draws[:, n] for n, c in enumerate(counted)}


def _compare(
    finished: Sequence[Configuration],
    x: str,
    y: str,
    directions: tuple[str, str],
    draws: Mapping[str, NDArray[np.float64]],
) -> list[Configuration]:
    """Add intervals, memberships and differences."""
    costs = {c.configuration_id: _cost(c, x, directions) for c in finished}
    share: dict[str, float] = {}
    if finished and len(draws) == len(finished):  # among fewer, it would be of another front
        members = pareto.membership(np.stack([*draws.values()], axis=1), [costs[i] for i in draws])
        share = {i: float(member) for i, member in zip(draws, members, strict=True)}
    front = sorted((c for c in finished if c.on_front), key=lambda c: costs[c.configuration_id])
    compared = []
    for c in finished:
        own = draws.get(c.configuration_id)
        rival = _rival(c, front, costs)
        compared.append(
            replace(
                c,
                interval=None if own is None else pareto.percentile_interval(own),
                membership=share.get(c.configuration_id),
                difference=None if rival is None else difference(c, rival, y, draws),
            )
        )
    return compared


def _cost(c: Configuration, x: str, directions: tuple[str, str]) -> float:
    return c.values[x] if directions[1] == "minimize" else -c.values[x]


def _with_groups(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return those that counted the same groups with every seed, as pairing needs."""
    names = next((set(c.groups[0]) for c in configurations if c.groups and c.groups[0]), set())
    return [
        c
        for c in configurations
        if names and all(set(g) == names and all(n > 0 for _, n in g.values()) for g in c.groups)
    ]


def _rival(
    c: Configuration, front: Sequence[Configuration], costs: Mapping[str, float]
) -> Configuration | None:
    """Return the dearest front point below the cost of a front point, or at or below another's."""
    own = costs[c.configuration_id]
    below = [
        f
        for f in front
        if costs[f.configuration_id] < own or (costs[f.configuration_id] == own and not c.on_front)
    ]
    return below[-1] if below else None


def difference(
    c: Configuration, other: Configuration, y: str, draws: Mapping[str, NDArray[np.float64]]
) -> Difference:
    """Return how much more of `y` a configuration has than another, with what `draws` tell."""
    own, rival = draws.get(c.configuration_id), draws.get(other.configuration_id)
    interval = None if own is None or rival is None else pareto.percentile_interval(own - rival)
    mean = c.values[y] - other.values[y]
    return Difference(other=other.configuration_id, mean=mean, interval=interval)


def _read_test(
    finished: Sequence[Configuration], study: StudyRecord, y: str
) -> list[Configuration]:
    """Add the test values of a confirmed study, and the intervals of y where it is counted."""
    if not study.confirmed:
        return list(finished)
    trials = _by_configuration(study)
    tested = []
    for c in finished:
        opened = [t for t in trials[c.configuration_id] if t.test_values is not None]
        found = [t.test_values for t in opened if t.test_values is not None]
        names = dict.fromkeys(name for values in found for name in values)
        means = {n: statistics.fmean(v[n] for v in found if n in v) for n in names}
        seeds = [t.test_groups for t in opened if t.test_groups]
        interval = None
        if metric(y).is_counted and seeds and len(seeds) == len(opened):
            interval = pareto.percentile_interval(pareto.resample_accuracies([seeds])[:, 0])
        tested.append(replace(c, test_values=means, test_interval=interval))
    return tested


def _order(
    finished: Sequence[Configuration],
    others: Sequence[Configuration],
    x: str,
    y: str,
    directions: tuple[str, str],
) -> list[Configuration]:
    sign = -1 if directions[0] == "maximize" else 1
    front = sorted((c for c in finished if c.on_front), key=lambda c: _cost(c, x, directions))
    rest = sorted((c for c in finished if not c.on_front), key=lambda c: sign * c.values[y])
    last = sorted(others, key=lambda c: (c.status == "failed", c.configuration_id))
    return [*front, *rest, *last]


def _are_subjects(finished: Sequence[Configuration]) -> bool:
    """Tell subjects from the hundredths `00` to `99` of a split that names none."""
    names = [name for c in finished[:1] for groups in c.groups[:1] for name in groups]
    return not all(len(name) == 2 and name.isdigit() for name in names)


def _progress(
    study: StudyRecord, finished: Sequence[Configuration], scale: _Scale
) -> tuple[Progress, ...]:
    """Return the hypervolume after each finished trial, in the order they ended.

    A configuration counts from the end of its last trial, with its final mean; so the curve never
    falls.
    """
    trials = sorted((t for t in study.trials if t.status == "finished"), key=lambda t: t.ended)
    start = min((t.started for t in trials if t.started), default=0.0)
    waiting = sorted(finished, key=lambda c: c.ended, reverse=True)
    front: list[tuple[float, float]] = []
    curve = []
    for number, trial in enumerate(trials, start=1):
        while waiting and waiting[-1].ended <= trial.ended:
            front.append(scale.place(waiting.pop()))
            on_front = pareto.non_dominated(front, _BOTH_BEST_AT_ONE)
            front = [place for place, on in zip(front, on_front, strict=True) if on]
        seconds = max(0.0, trial.ended - start)
        volume = pareto.hypervolume(front, (0.0, 0.0), _BOTH_BEST_AT_ONE)
        curve.append(Progress(num_trials=number, seconds=seconds, hypervolume=volume))
    return tuple(curve)
