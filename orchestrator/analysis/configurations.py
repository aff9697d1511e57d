"""Sum up a configuration's trials: means over its replicates, and whether it has all of them.

Accuracy is the mean over a configuration's replicates: seeds, and folds where the study has them.
Where a configuration has fresh replicates, which it got after it was chosen, its figures are of
those alone. Replicates of other folds are compared after what is estimated of how hard the folds
are is taken out.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.metrics import EXACT_COSTS, metric
from sftsearch.orchestrator.surrogate.fold_effects import additive_means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.orchestrator.storage.study_record import Groups, StudyRecord, TrialRecord

Status = Literal["finished", "incomplete", "stopped", "failed"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Hold how much more accurate a configuration (or model) is than another, and how surely."""

    other: str
    """Id of the other configuration (or the model's name)."""
    mean: float
    interval: Interval | None
    """None where no groups were recorded, or the metric is not counted by group."""

    @property
    def within_noise(self) -> bool:
        """Tell whether the interval holds 0: the data do not tell the two apart."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigurationSummary:
    """Hold a point of the search space with what its trials gave: a row of the table."""

    configuration_id: str
    model: str
    parameters: dict[str, object]
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
    front_probability: float | None = None
    """How likely it is on the front; see `Front.front_probability_is`."""
    on_front: bool = False
    is_knee: bool = False
    is_thinned: bool = False
    """On the front, but left out of it because another hardly differs; see `front.summarise`."""
    difference: Difference | None = None
    """On the front: to the next cheaper front point. Else: to the front point at or below its
    cost."""
    test_values: dict[str, float] = field(default_factory=dict)
    test_interval: Interval | None = None

    @property
    def indistinguishable(self) -> bool:
        """Tell whether it is off the front by no more than noise."""
        return not self.on_front and self.difference is not None and self.difference.within_noise


def summarise_configurations(study: StudyRecord, x: str, y: str) -> list[ConfigurationSummary]:
    """Return every configuration of a study with its means, without comparisons.

    It is finished when it has as many finished replicates as every one has, all with a finite `x`
    and `y`, and none was stopped.
    """
    effects = _fold_effects(study, y)
    return [
        _summarise(trials, study, x, y, effects) for trials in _by_configuration(study).values()
    ]


def add_test_values(
    finished: Sequence[ConfigurationSummary], study: StudyRecord, y: str
) -> list[ConfigurationSummary]:
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


def _summarise(
    trials: Sequence[TrialRecord],
    study: StudyRecord,
    x: str,
    y: str,
    effects: Mapping[int, float],
) -> ConfigurationSummary:
    """Return the mean over replicates of one configuration's trials."""
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
