"""Summarize each configuration: status, means and deviations over its replicates.

A configuration with fresh replicates (trained after it was chosen for the report) is summarized by
those alone, because the choice biases the others. With folds, estimated fold effects are subtracted
first, so that replicates of different folds are comparable.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.analysis.curves import rising_trials
from sftsearch.orchestrator.metrics import EXACT_COSTS, metric
from sftsearch.orchestrator.surrogate.fold_effects import additive_means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.orchestrator.storage.study_record import Groups, StudyRecord, TrialRecord

Status = Literal["finished", "incomplete", "stopped", "failed", "baseline"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The difference of y between a configuration (or family) and another one."""

    other: str
    """Id of the other configuration (or name of the family)."""
    mean: float
    interval: Interval | None
    """95 % interval; None without counts by group."""

    @property
    def within_noise(self) -> bool:
        """Return whether the interval contains 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigurationSummary:
    """A configuration and the results of its trials: a row of the table."""

    configuration_id: str
    model: str
    parameters: dict[str, object]
    status: Status
    reasons: tuple[str, ...] = ()
    """Why it is not finished; empty if it is. Of a baseline, what it is."""
    seeds: tuple[int, ...] = ()
    """The finished replicates that `values` are means of; see `is_fresh`."""
    is_fresh: bool = False
    """Whether `seeds` are only fresh replicates, trained after the choice for the report."""
    num_finished: int = 0
    """Number of all finished replicates."""
    still_rising: bool | None = None
    """Whether most finished replicates were still rising at their last epoch; see
    `curves.rising_trials`. None without learning curves."""
    values: dict[str, float] = field(default_factory=dict)
    """Means over `seeds`; if no trial has finished, the exact costs."""
    deviations: dict[str, float] = field(default_factory=dict)
    """Sample standard deviations over `seeds`; empty with fewer than two."""
    groups: tuple[Groups, ...] = ()
    """Validation counts by group, one mapping per seed."""
    ended: float = 0.0
    """When the last of the required trials finished, Unix seconds."""
    interval: Interval | None = None
    """95 % interval of the mean accuracy."""
    front_probability: float | None = None
    """Probability of being on the front; see `Front.front_probability_source`."""
    on_front: bool = False
    is_knee: bool = False
    is_thinned: bool = False
    """Removed from the front because another point is almost equal; see `FrontOptions.thin`."""
    difference: Difference | None = None
    """To the next cheaper front point; off the front: to the best front point at or below its
    cost."""
    test_values: dict[str, float] = field(default_factory=dict)
    test_interval: Interval | None = None

    @property
    def indistinguishable(self) -> bool:
        """Return whether it is off the front and its difference from the front is within noise."""
        return not self.on_front and self.difference is not None and self.difference.within_noise

    def spread(self, name: str) -> float | None:
        """Return what follows ± after a mean, or None.

        This is half of the 95 % interval if there is one, else the standard deviation over
        replicates; a study has intervals of its accuracy or none.
        """
        if self.interval is not None:
            return (self.interval[1] - self.interval[0]) / 2
        return self.deviations.get(name)


def summarize_configurations(study: StudyRecord, x: str, y: str) -> list[ConfigurationSummary]:
    """Return every configuration of a study with its means, without comparisons.

    A configuration is finished if it has all required replicates, their `x` and `y` are finite, and
    none was stopped.
    """
    effects, rising = _fold_effects(study, y), rising_trials(study)
    summaries = [
        _summarize(trials, study, x, y, effects) for trials in _by_configuration(study).values()
    ]
    by_id: dict[str, list[bool]] = {}
    for trial in study.trials:
        if trial.key in rising:
            by_id.setdefault(trial.configuration_id, []).append(rising[trial.key])
    return [
        replace(c, still_rising=2 * sum(found) > len(found))
        if (found := by_id.get(c.configuration_id))
        else c
        for c in summaries
    ]


def add_test_values(
    finished: Sequence[ConfigurationSummary], study: StudyRecord, y: str
) -> list[ConfigurationSummary]:
    """Add the test values of a confirmed study, with intervals if y is counted by group."""
    if not study.confirmed:
        return list(finished)
    trials = _by_configuration(study)
    tested: list[ConfigurationSummary] = []
    groups: dict[int, list[Groups]] = {}
    for number, c in enumerate(finished):
        opened = [t for t in trials[c.configuration_id] if t.test_values is not None]
        opened = [t for t in opened if t.seed in c.seeds] or opened
        found = [t.test_values for t in opened if t.test_values is not None]
        names = dict.fromkeys(name for values in found for name in values)
        means = {n: statistics.fmean(v[n] for v in found if n in v) for n in names}
        tested.append(replace(c, test_values=means))
        counts = [t.test_groups for t in opened if t.test_groups]
        if metric(y).is_counted and counts and len(counts) == len(opened):
            groups[number] = counts
    draws = bootstrap.resample_accuracies(list(groups.values()))
    for column, number in enumerate(groups):
        interval = bootstrap.share_interval(draws[:, column])
        tested[number] = replace(tested[number], test_interval=interval)
    return tested


def _by_configuration(study: StudyRecord) -> dict[str, list[TrialRecord]]:
    grouped: dict[str, list[TrialRecord]] = {}
    for trial in study.trials:
        grouped.setdefault(trial.configuration_id, []).append(trial)
    return grouped


def _fold_effects(study: StudyRecord, y: str) -> Mapping[int, float]:
    """Estimate the fold effects of a study."""
    return fold_effects(
        [
            (t.configuration_id, t.seed, t.values[y])
            for t in study.trials
            if t.status == "finished" and math.isfinite(t.values.get(y, math.nan))
        ],
        y,
        folds=study.folds,
    )


def fold_effects(
    scores: Sequence[tuple[str, int, float]], y: str, *, folds: int | None
) -> dict[int, float]:
    """Estimate how much each fold raises or lowers `y`; empty without folds.

    Args:
        scores: configuration, replicate and `y` of each finished trial.
        y: the metric; costs do not depend on the fold.
        folds: the number of folds.
    """
    if folds is None or metric(y).is_cost:
        return {}
    rows = {name: n for n, name in enumerate(dict.fromkeys(name for name, *_ in scores))}
    values_CR = np.full((len(rows), max((seed for _, seed, _ in scores), default=0) + 1), np.nan)
    for name, seed, value in scores:
        values_CR[rows[name], seed] = value
    effects_K = additive_means(values_CR, np.arange(values_CR.shape[1]) % folds).effects
    return dict(enumerate(effects_K.tolist()))


def _summarize(
    trials: Sequence[TrialRecord],
    study: StudyRecord,
    x: str,
    y: str,
    effects: Mapping[int, float],
) -> ConfigurationSummary:
    """Summarize the trials of one configuration."""
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
    return ConfigurationSummary(
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
