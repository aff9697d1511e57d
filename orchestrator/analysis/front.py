"""From the trials of a study to its front: what is measured, how sure it is, and what to say of it.

Accuracy is the mean over a configuration's replicates: seeds, and folds where the study has them.
Its intervals, and those of differences, are 95 % percentile intervals by bootstrap over subjects
and replicates at once, paired by subject (`pareto`). Where a configuration has fresh replicates,
which it got after it was chosen, its figures are of those alone. Replicates of other folds are
compared after what is estimated of how hard the folds are is taken out (`surrogate`).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator import bootstrap, pareto
from sftsearch.orchestrator.metrics import EXACT_COSTS, METRICS, metric
from sftsearch.orchestrator.surrogate.gp import additive_means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.storage.study_record import Groups, StudyRecord, TrialRecord

Status = Literal["finished", "incomplete", "stopped", "failed"]
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
    """The finished replicates that its values are of; see `is_fresh`."""
    is_fresh: bool = False
    """Whether they are those it got after it was chosen to be reported, and no others."""
    num_finished: int = 0
    """All its finished replicates."""
    values: dict[str, float] = field(default_factory=dict)
    """Means over `seeds`; where nothing finished, what is known without training."""
    deviations: dict[str, float] = field(default_factory=dict)
    """Standard deviations over `seeds` (n - 1); empty with fewer than two."""
    groups: tuple[Groups, ...] = ()
    """Validation counts, one of each of `seeds`."""
    ended: float = 0.0
    """When as many of its trials as it needs had finished, unix seconds."""
    interval: Interval | None = None
    """Of the mean accuracy."""
    membership: float | None = None
    """How likely it is on the front; see `Front.membership_is`."""
    on_front: bool = False
    is_knee: bool = False
    is_thinned: bool = False
    """On the front, but left out of it because another hardly differs; see `summarise`."""
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
    objectives: tuple[str, ...]
    """What the front is of: y, x, and the study's other objectives where it has more than two."""
    directions: tuple[str, ...]
    """Of the objectives."""
    configurations: tuple[Configuration, ...]
    """The front by rising cost, then the others by accuracy, then what has not finished."""
    by: tuple[str, ...]
    """Parameters that set a family apart, beside its model."""
    top: int | None
    max_gflops: float | None
    num_filtered: int
    """Configurations left out because of `max_gflops`."""
    num_groups: int
    """Subjects that some replicate was validated on; 0 where none were recorded."""
    groups_are_subjects: bool
    membership_is: Literal["posterior", "bootstrap"]
    """Where memberships come from: the probability that the study concluded of being on the
    (2 %, half a point)-front, or the share of the resamples in which it is on the front."""
    num_chosen: int | None
    """Configurations that the study chose to report, of which alone the front is; None where it
    chose none, or for other axes."""
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
    thin: bool = False,
) -> Front:
    """Return the study's front of `y` against `x`.

    Only configurations with as many finished replicates as every one has, and none stopped, can be
    on it. Where the study chose what to report and trained fresh replicates of it, only those can:
    the others' means are still those that could be chosen for their luck.

    A study of more than two objectives has a front of them all, if x and y are two of them.

    Args:
        study: the record, possibly of a study that still runs.
        x: the metric that is the cost.
        y: the metric that is the quality; only those that are counted by subject, `top1` and
            `acc2`, have intervals.
        by: parameters that set families apart, beside the model; names out of the study. None:
            those that tell its branches apart.
        max_gflops: leave out configurations that cost more.
        top: how many rows the table shows, the best by y; the front is of all.
        thin: keep as few points of the front as stand for the whole of it: each that is left out
            has one that costs at most 2 % more and is at most half a point worse.

    Raises:
        UserError: a metric or parameter is not in the record, a limit is not positive, or a front
            cannot be thinned.
    """
    _check(study, x, y, max_gflops, top)
    known = {name: None for trial in study.trials for name in trial.configuration}
    for name in by or ():
        look_up(known, name, kind="parameter of this study")
    if by is None:
        by = [name for name in study.families if name in known]
    objectives = _objectives(study, x, y)
    directions = tuple(_direction(study, name) for name in objectives)
    effects = _fold_effects(study, y)
    grouped = [_group(trials, study, x, y, effects) for trials in _by_configuration(study).values()]
    kept = [
        c for c in grouped if max_gflops is None or c.values.get("gflops", -math.inf) <= max_gflops
    ]
    finished = [c for c in kept if c.status == "finished"]
    finished.sort(key=lambda c: c.configuration_id)  # draws must not depend on who ended first
    chosen = _chosen(study, finished, objectives)
    scale = _Scale.over(finished, objectives, directions)
    finished = _find_front(finished, objectives, directions, chosen)
    hypervolume = scale.hypervolume([c for c in finished if c.on_front])
    if thin:
        finished = _thin(finished, objectives, directions)
    counted = _with_groups(finished, study.folds) if metric(y).is_counted else []
    draws = _draws(counted, y, centred=study.folds is not None)
    finished = _compare(finished, objectives, directions, draws)
    believed = _beliefs(study, objectives)
    if believed:
        finished = [replace(c, membership=believed.get(c.configuration_id)) for c in finished]
    finished = _read_test(finished, study, y)
    ordered = _order(finished, [c for c in kept if c.status != "finished"], x, y, directions)
    return Front(
        study=study,
        x=x,
        y=y,
        objectives=objectives,
        directions=directions,
        configurations=tuple(ordered),
        by=tuple(by),
        top=top,
        max_gflops=max_gflops,
        num_filtered=len(grouped) - len(kept),
        num_groups=len({name for c in counted for groups in c.groups for name in groups}),
        groups_are_subjects=_are_subjects(finished),
        membership_is="posterior" if believed else "bootstrap",
        num_chosen=None if chosen is None else len(chosen),
        hypervolume=hypervolume,
        progress=_progress(study, finished if chosen is None else chosen, scale),
        draws=draws,
    )


def _objectives(study: StudyRecord, x: str, y: str) -> tuple[str, ...]:
    """Return y, x and the study's other objectives, if x and y are two of more than two."""
    names = [name for name, _ in study.objectives]
    others = [name for name in names if name not in (x, y)]
    return (y, x, *others) if {x, y} <= set(names) else (y, x)


def _is_searched_for(study: StudyRecord, objectives: tuple[str, ...]) -> bool:
    """Tell whether what the study concluded is about this front."""
    names = [name for name, _ in study.objectives]
    cost = next((name for name in names if name in EXACT_COSTS), EXACT_COSTS[0])
    return objectives == (names[0], cost)


def _chosen(
    study: StudyRecord, finished: Sequence[Configuration], objectives: tuple[str, ...]
) -> list[Configuration] | None:
    """Return the configurations that were chosen to be reported; None where none were."""
    if not _is_searched_for(study, objectives):
        return None
    return [c for c in finished if c.configuration_id in study.fresh] or None


def _beliefs(study: StudyRecord, objectives: tuple[str, ...]) -> dict[str, float]:
    """Return what the study concluded of each configuration's membership, if it did."""
    if study.conclusion is None or not _is_searched_for(study, objectives):
        return {}
    return {name: belief.on_front for name, belief in study.conclusion.beliefs.items()}


def _thin(
    finished: Sequence[Configuration], objectives: tuple[str, ...], directions: tuple[str, ...]
) -> list[Configuration]:
    """Take the points off the front that others stand for.

    Raises:
        UserError: there are more than two objectives, or the second is not a cost to minimise.
    """
    y, x = objectives[:2]
    front = [c for c in finished if c.on_front]
    costs = [c.values[x] for c in front]
    if len(objectives) > 2 or directions[1] != "minimize" or min(costs, default=0) < 0:
        raise UserError(
            "Only a front of two objectives can be thinned, the second a cost that is not "
            f"negative, but this one is of {', '.join(objectives)}."
        )
    sign = 1 if directions[0] == "maximize" else -1
    delta = 0.005 if metric(y).is_share else 0.0
    kept = pareto.thin(costs, [sign * c.values[y] for c in front], delta=delta)
    ids = {c.configuration_id for c, keep in zip(front, kept, strict=True) if not keep}
    return [
        replace(c, on_front=False, is_knee=False, is_thinned=True)
        if c.configuration_id in ids
        else c
        for c in finished
    ]


@dataclass(frozen=True, slots=True)
class _Scale:
    """The unit cube hypervolumes are measured in: 1 is best, 0 everywhere the reference.

    Cost: 1 at the lowest seen, 0 at the highest, by its logarithm where all are positive; 1 if all
    cost the same. Shares stay as they are, so the reference is an accuracy of 0; other metrics run
    from the worst seen (0) to the best (1).
    """

    objectives: tuple[str, ...]
    ends: tuple[Interval, ...]
    """Worst and best of each objective, after the logarithm."""
    is_log: tuple[bool, ...]

    @classmethod
    def over(
        cls,
        finished: Sequence[Configuration],
        objectives: tuple[str, ...],
        directions: tuple[str, ...],
    ) -> _Scale:
        ends, is_log = [], []
        for number, (name, direction) in enumerate(zip(objectives, directions, strict=True)):
            values = [c.values[name] for c in finished]
            ratios = number == 1 or metric(name).is_cost
            is_log.append(ratios and number > 0 and all(value > 0 for value in values))
            values = [math.log(value) for value in values] if is_log[-1] else values
            is_whole = metric(name).is_share and number != 1
            ends.append(_ends([0.0, 1.0] if is_whole else values, direction))
        return cls(objectives, tuple(ends), tuple(is_log))

    def place(self, c: Configuration) -> tuple[float, ...]:
        """Return a configuration's objectives in the unit cube."""
        values = [c.values[name] for name in self.objectives]
        values = [math.log(v) if log else v for v, log in zip(values, self.is_log, strict=True)]
        return tuple(_share(v, ends) for v, ends in zip(values, self.ends, strict=True))

    def hypervolume(self, configurations: Iterable[Configuration]) -> float:
        """Return the share of the cube that the configurations beat."""
        return self.enclosed([self.place(c) for c in configurations])

    def enclosed(self, places: Sequence[tuple[float, ...]]) -> float:
        """Return the share of the cube that places in it beat."""
        reference = [0.0] * len(self.objectives)
        return pareto.hypervolume(places, reference, self.directions)

    @property
    def directions(self) -> tuple[str, ...]:
        """Every axis of the cube is best at 1."""
        return ("maximize",) * len(self.objectives)


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


def _fold_effects(study: StudyRecord, y: str) -> Mapping[int, float]:
    """Return how much more than on others is reached on each fold, of a study with folds."""
    if study.folds is None or metric(y).is_cost:
        return {}
    cells = [
        (t.configuration_id, t.seed, t.values[y])
        for t in study.trials
        if t.status == "finished" and math.isfinite(t.values.get(y, math.nan))
    ]
    rows = {name: n for n, name in enumerate(dict.fromkeys(name for name, *_ in cells))}
    values_CR = np.full((len(rows), max((seed for _, seed, _ in cells), default=0) + 1), np.nan)
    for name, seed, value in cells:
        values_CR[rows[name], seed] = value
    effects_K = additive_means(values_CR, np.arange(values_CR.shape[1]) % study.folds).effects
    return dict(enumerate(effects_K.tolist()))


def _group(
    trials: Sequence[TrialRecord],
    study: StudyRecord,
    x: str,
    y: str,
    effects: Mapping[int, float],
) -> Configuration:
    """Return the mean over replicates of one configuration's trials, without comparisons."""
    finished = sorted((t for t in trials if t.status == "finished"), key=lambda t: t.seed)
    fresh = [t for t in finished if t.seed in study.fresh.get(t.configuration_id, ())]
    used = fresh or finished
    names = [name for t in used for name in t.values] if used else EXACT_COSTS
    values = {name: _values(used or trials, name) for name in dict.fromkeys(names)}
    if effects and used and len(values.get(y, ())) == len(used):
        own = [effects.get(t.seed % (study.folds or 1), 0.0) for t in used]
        values[y] = [value - effect for value, effect in zip(values[y], own, strict=True)]
    status, reasons = _status(trials, study.num_seeds, x, y)
    ends = sorted(t.ended for t in finished)[: study.num_seeds]
    return Configuration(
        configuration_id=trials[0].configuration_id,
        model=trials[0].model,
        parameters=dict(trials[0].configuration),
        status=status,
        reasons=reasons,
        seeds=tuple(t.seed for t in used),
        is_fresh=bool(fresh),
        num_finished=len(finished),
        values={name: statistics.fmean(found) for name, found in values.items() if found},
        deviations={n: _deviation(found) for n, found in values.items() if len(found) > 1},
        groups=tuple(t.groups for t in used),
        ended=max(ends, default=0.0),
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
    stopped = [t for t in trials if t.status == "stopped"]
    if stopped:
        return "stopped", tuple(f"seed {t.seed} after epoch {t.epoch}: {t.reason}" for t in stopped)
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
    finished: Sequence[Configuration],
    objectives: tuple[str, ...],
    directions: tuple[str, ...],
    chosen: Sequence[Configuration] | None,
) -> list[Configuration]:
    """Mark the front, of those that were chosen if some were, and its knee."""
    values = np.array([[c.values[name] for name in objectives] for c in finished])
    values = values.reshape(-1, len(objectives))
    ids = {c.configuration_id for c in (finished if chosen is None else chosen)}
    may = np.array([c.configuration_id in ids for c in finished], dtype=bool)
    mask = np.zeros(len(finished), dtype=bool)
    mask[may] = pareto.non_dominated(values[may], directions)
    marked = [replace(c, on_front=bool(on)) for c, on in zip(finished, mask, strict=True)]
    bends, (places,) = values[mask], np.nonzero(mask)
    for number in range(1, len(objectives)):
        if np.all(bends[:, number] > 0) and (number == 1 or metric(objectives[number]).is_cost):
            bends[:, number] = np.log(bends[:, number])
    knee = pareto.knee(bends, directions)
    if knee is not None:
        marked[places[knee]] = replace(marked[places[knee]], is_knee=True)
    return marked


def _draws(
    counted: Sequence[Configuration], y: str, *, centred: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the draws of every configuration.

    Args:
        counted: those with groups.
        y: the metric that the groups count.
        centred: move the draws by what the folds of a configuration are easier than others, so
            that they are of the mean that is printed.
    """
    draws = bootstrap.resample_accuracies([c.groups for c in counted])
    shifts = [c.values[y] - _pooled(c) if centred else 0.0 for c in counted]
    return {c.configuration_id: draws[:, n] + shifts[n] for n, c in enumerate(counted)}


def _pooled(c: Configuration) -> float:
    """Return the accuracy over all groups and replicates together."""
    cells = [cell for groups in c.groups for cell in groups.values()]
    return sum(correct for correct, _ in cells) / sum(count for _, count in cells)


def _compare(
    finished: Sequence[Configuration],
    objectives: tuple[str, ...],
    directions: tuple[str, ...],
    draws: Mapping[str, NDArray[np.float64]],
) -> list[Configuration]:
    """Add intervals, memberships and differences."""
    y, signs = objectives[0], [1 if d == "minimize" else -1 for d in directions[1:]]
    costs = {
        c.configuration_id: tuple(
            sign * c.values[name] for sign, name in zip(signs, objectives[1:], strict=True)
        )
        for c in finished
    }
    share: dict[str, float] = {}
    if finished and len(draws) == len(finished):  # among fewer, it would be of another front
        members = _membership(np.stack([*draws.values()], axis=1), [costs[i] for i in draws])
        share = {i: float(member) for i, member in zip(draws, members, strict=True)}
    front = sorted((c for c in finished if c.on_front), key=lambda c: costs[c.configuration_id])
    best = 1 if directions[0] == "maximize" else -1
    compared = []
    for c in finished:
        own = draws.get(c.configuration_id)
        rival = _rival(c, front, costs, lambda f: best * f.values[y])
        compared.append(
            replace(
                c,
                interval=None if own is None else bootstrap.percentile_interval(own),
                membership=share.get(c.configuration_id),
                difference=None if rival is None else difference(c, rival, y, draws),
            )
        )
    return compared


def _membership(
    draws_RN: NDArray[np.float64], costs: Sequence[tuple[float, ...]]
) -> NDArray[np.float64]:
    """Return in which share of the draws each configuration is on the front, (N,).

    Args:
        draws_RN: accuracies to maximize.
        costs: of each, to minimize; one, or several.
    """
    cost_ND = np.array(costs)
    if cost_ND.shape[1] == 1:
        return bootstrap.share_on_front(draws_RN, cost_ND[:, 0])
    share_N = np.empty(len(costs))
    for n, own in enumerate(cost_ND):
        is_equal, is_rival = np.all(cost_ND == own, axis=1), np.all(cost_ND <= own, axis=1)
        equal_R = draws_RN[:, is_equal].max(axis=1)
        cheaper_R = draws_RN[:, is_rival & ~is_equal].max(axis=1, initial=-np.inf)
        share_N[n] = np.mean((draws_RN[:, n] >= equal_R) & (draws_RN[:, n] > cheaper_R))
    return share_N


def _cost(c: Configuration, x: str, directions: tuple[str, ...]) -> float:
    return c.values[x] if directions[1] == "minimize" else -c.values[x]


def _with_groups(configurations: Sequence[Configuration], folds: int | None) -> list[Configuration]:
    """Return those that counted the same groups with every seed, as pairing needs.

    With folds a replicate counts the groups of its fold: those that counted two in all, for with
    one (a speaker left out, say) nothing is left to draw from.
    """
    if folds is not None:
        counted = {
            c.configuration_id: [{name for name, (_, n) in g.items() if n > 0} for g in c.groups]
            for c in configurations
        }
        return [
            c
            for c in configurations
            if all(counted[c.configuration_id])
            and len(set().union(*counted[c.configuration_id])) > 1
        ]
    names = next((set(c.groups[0]) for c in configurations if c.groups and c.groups[0]), set())
    return [
        c
        for c in configurations
        if names and all(set(g) == names and all(n > 0 for _, n in g.values()) for g in c.groups)
    ]


def _rival(
    c: Configuration,
    front: Sequence[Configuration],
    costs: Mapping[str, tuple[float, ...]],
    quality: Callable[[Configuration], float],
) -> Configuration | None:
    """Return whom a configuration is compared with: the best front point that is not dearer.

    Of two objectives that is the next cheaper one of a front point, and of another the front point
    at or below its cost. Points of exactly its costs are no rivals of a front point.
    """
    own = costs[c.configuration_id]

    def is_rival(f: Configuration) -> bool:
        other = costs[f.configuration_id]
        affordable = all(theirs <= ours for theirs, ours in zip(other, own, strict=True))
        return affordable and not (c.on_front and other == own)

    below = [f for f in front if is_rival(f)]
    return max(reversed(below), key=quality, default=None)


def difference(
    c: Configuration, other: Configuration, y: str, draws: Mapping[str, NDArray[np.float64]]
) -> Difference:
    """Return how much more of `y` a configuration has than another, with what `draws` tell."""
    own, rival = draws.get(c.configuration_id), draws.get(other.configuration_id)
    interval = None if own is None or rival is None else bootstrap.percentile_interval(own - rival)
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
        opened = [t for t in opened if t.seed in c.seeds] or opened
        found = [t.test_values for t in opened if t.test_values is not None]
        names = dict.fromkeys(name for values in found for name in values)
        means = {n: statistics.fmean(v[n] for v in found if n in v) for n in names}
        seeds = [t.test_groups for t in opened if t.test_groups]
        interval = None
        if metric(y).is_counted and seeds and len(seeds) == len(opened):
            interval = bootstrap.percentile_interval(bootstrap.resample_accuracies([seeds])[:, 0])
        tested.append(replace(c, test_values=means, test_interval=interval))
    return tested


def _order(
    finished: Sequence[Configuration],
    others: Sequence[Configuration],
    x: str,
    y: str,
    directions: tuple[str, ...],
) -> list[Configuration]:
    sign = -1 if directions[0] == "maximize" else 1
    front = sorted((c for c in finished if c.on_front), key=lambda c: _cost(c, x, directions))
    rest = sorted((c for c in finished if not c.on_front), key=lambda c: sign * c.values[y])
    places = {"incomplete": 0, "stopped": 1, "failed": 2}
    last = sorted(others, key=lambda c: (places[c.status], c.configuration_id))
    return [*front, *rest, *last]


def _are_subjects(finished: Sequence[Configuration]) -> bool:
    """Tell subjects from the hundredths `00` to `99` of a split that names none."""
    names = [name for c in finished[:1] for groups in c.groups[:1] for name in groups]
    return not all(len(name) == 2 and name.isdigit() for name in names)


def _progress(
    study: StudyRecord, finished: Sequence[Configuration], scale: _Scale
) -> tuple[Progress, ...]:
    """Return the hypervolume after each finished trial, in the order they ended.

    A configuration counts from when as many of its trials as it needs have finished, with its final
    mean; so the curve never falls.
    """
    trials = sorted((t for t in study.trials if t.status == "finished"), key=lambda t: t.ended)
    start = min((t.started for t in trials if t.started), default=0.0)
    waiting = sorted(finished, key=lambda c: c.ended, reverse=True)
    front: list[tuple[float, ...]] = []
    curve, volume = [], 0.0
    for number, trial in enumerate(trials, start=1):
        before = len(waiting)
        while waiting and waiting[-1].ended <= trial.ended:
            front.append(scale.place(waiting.pop()))
        if len(waiting) < before:
            on_front = pareto.non_dominated(front, scale.directions)
            front = [place for place, on in zip(front, on_front, strict=True) if on]
            volume = scale.enclosed(front)
        seconds = max(0.0, trial.ended - start)
        curve.append(Progress(num_trials=number, seconds=seconds, hypervolume=volume))
    return tuple(curve)
