"""Compare the best of a front with the best baseline, paired by subject.

The front is the best of many trials and a baseline the best of few, so the values that they were
chosen by favor the front. The comparison therefore uses, if there are any, fresh replicates of the
front, on folds on which its configuration had no replicate before; on each fold a baseline is the
one that is best on the other folds. Without fresh replicates the posterior mean of the front's best
replaces its mean. `Basis` says which of these applies.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Difference
from sftsearch.orchestrator.metrics import metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.configurations import Interval
    from sftsearch.orchestrator.objectives import Objectives
    from sftsearch.orchestrator.storage.study_record import (
        BaselineRecord,
        Groups,
        StudyRecord,
        TrialRecord,
    )

Basis = Literal["unseen", "fresh", "posterior", "search"]
"""What the value of the front's best is: `unseen`, of fresh replicates on folds on which neither
side was chosen; `fresh`, of fresh replicates, on folds (or the split) that both were chosen on;
`posterior`, its posterior mean, which corrects for the choice; `search`, of the replicates by which
it was chosen, which favors the front."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineContest:
    """The best of the front against the best baseline."""

    baseline: str
    """Id of the best baseline by validation; see `Baselines.summaries`."""
    configuration: str
    """Id of the best configuration on the front."""
    baseline_value: float
    """Its mean on the folds that are compared."""
    value: float
    """The configuration's, by `basis`."""
    interval: Interval | None
    """95 % interval of `value - baseline_value`; see `paired_interval`."""
    num_groups: int
    """Subjects (or groups of samples) that are compared; 0 if the metric does not count them."""
    basis: Basis
    verdict: Literal["behind", "tied", "ahead"]
    """`behind`: the baseline is better; `tied`: the interval contains 0, or the values are equal;
    `ahead`: the front is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """The baselines of a study and how the front does against the best of them."""

    summaries: tuple[ConfigurationSummary, ...]
    """From the worst to the best, with the status `baseline`. `seeds` are the folds (0 without
    folds), and `difference` is to the best of the front."""
    contest: BaselineContest | None
    """None if nothing is on the front."""

    def at_a_cost(self, x: str) -> tuple[ConfigurationSummary, ...]:
        """Return those with a positive cost `x`, which have a place on a chart."""
        return tuple(c for c in self.summaries if c.values.get(x, 0.0) > 0)

    def lines(self, x: str) -> tuple[ConfigurationSummary, ...]:
        """Return the others, which a chart shows as lines across all costs."""
        return tuple(c for c in self.summaries if not c.values.get(x, 0.0) > 0)

    @property
    def best(self) -> ConfigurationSummary:
        """The best baseline by validation."""
        return self.summaries[-1]


@dataclass(frozen=True, slots=True)
class _Pairing:
    """The replicates of the front's best that are compared, and the baselines' folds."""

    configuration: ConfigurationSummary
    trials: tuple[TrialRecord, ...]
    basis: Basis
    posterior: float | None


def compare_baselines(
    study: StudyRecord,
    points: Sequence[ConfigurationSummary],
    objectives: Objectives,
    *,
    is_searched: bool,
    max_gflops: float | None = None,
) -> Baselines | None:
    """Compare the best configuration of a front with each baseline of its study.

    Args:
        study: with its baselines.
        points: the configurations on the front.
        objectives: of the front.
        is_searched: whether the study's posteriors apply to these objectives.
        max_gflops: leave out baselines that cost more.

    Returns:
        None if no baseline has the accuracy of the front.
    """
    y = objectives.y
    records: dict[str, list[BaselineRecord]] = {}
    for one in study.baselines:
        if y in one.values and one.values.get("gflops", 0.0) <= (max_gflops or math.inf):
            records.setdefault(one.name, []).append(one)
    if not records:
        return None
    pairing = _pairing(study, points, objectives, is_searched=is_searched)
    found = []
    for name, own in records.items():
        summary = _summarize(name, own, y)
        contest = None if pairing is None else _contest(summary, own, pairing, study, objectives)
        found.append((_with_difference(summary, contest), contest))
    # Of equal ones the cheaper is the better.
    found.sort(
        key=lambda pair: (
            objectives.quality(pair[0].values),
            -pair[0].values.get("gflops", 0.0),
        )
    )
    return Baselines(summaries=tuple(one for one, _ in found), contest=found[-1][1])


def _summarize(name: str, records: Sequence[BaselineRecord], y: str) -> ConfigurationSummary:
    """Return the means of a baseline over its folds; with folds, its most frequent description."""
    values: dict[str, list[float]] = {}
    for one in records:
        for metric_name, value in one.values.items():
            values.setdefault(metric_name, []).append(value)
    described = Counter((one.description, one.modalities) for one in records)
    description, modalities = described.most_common(1)[0][0]
    groups = tuple(one.groups for one in records)
    tested = [one for one in records if one.test_values is not None]
    test_groups = [one.test_groups for one in tested if one.test_groups]
    return ConfigurationSummary(
        configuration_id=f"baseline-{name}",
        model=name,
        parameters={"modalities": list(modalities)} if modalities else {},
        status="baseline",
        reasons=(description,),
        seeds=tuple(one.fold or 0 for one in records),
        num_finished=len(records),
        values={n: statistics.fmean(found) for n, found in values.items()},
        deviations={n: statistics.stdev(found) for n, found in values.items() if len(found) > 1},
        groups=groups,
        interval=_interval(groups, y),
        test_values=_test_means(tested),
        test_interval=_interval(test_groups, y) if len(test_groups) == len(records) else None,
    )


def _test_means(tested: Sequence[BaselineRecord]) -> dict[str, float]:
    names = dict.fromkeys(name for one in tested for name in one.test_values or {})
    return {n: statistics.fmean((one.test_values or {})[n] for one in tested) for n in names}


def _interval(groups: Sequence[Groups], y: str) -> Interval | None:
    if not _can_resample(groups, y):
        return None
    return bootstrap.share_interval(bootstrap.resample_accuracies([groups])[:, 0])


def _can_resample(groups: Sequence[Groups], y: str) -> bool:
    """Return whether y is counted and there is more than one group to resample."""
    counted = [{name for name, (_, count) in own.items() if count > 0} for own in groups]
    return metric(y).is_counted and all(counted) and len(set().union(*counted)) > 1


def _pairing(
    study: StudyRecord,
    points: Sequence[ConfigurationSummary],
    objectives: Objectives,
    *,
    is_searched: bool,
) -> _Pairing | None:
    """Choose the best configuration of a front, and the replicates that are compared."""
    if not points:
        return None
    posteriors = study.conclusion.posteriors if study.conclusion and is_searched else {}
    fresh = [c for c in points if c.is_fresh]
    if not fresh and all(c.configuration_id in posteriors for c in points):
        best = max(points, key=lambda c: objectives.sign * posteriors[c.configuration_id].mean)
        trials = _trials(study, best, best.seeds)
        return _Pairing(best, trials, "posterior", posteriors[best.configuration_id].mean)
    best = max(fresh or points, key=lambda c: objectives.quality(c.values))
    if not best.is_fresh:
        return _Pairing(best, _trials(study, best, best.seeds), "search", None)
    unseen = _on_unseen_folds(study, best)
    trials = _trials(study, best, unseen or best.seeds)
    return _Pairing(best, trials, "unseen" if unseen else "fresh", None)


def _trials(
    study: StudyRecord, c: ConfigurationSummary, seeds: Sequence[int]
) -> tuple[TrialRecord, ...]:
    own = (t for t in study.trials if t.configuration_id == c.configuration_id)
    return tuple(t for t in own if t.seed in seeds and t.status == "finished")


def _on_unseen_folds(study: StudyRecord, c: ConfigurationSummary) -> tuple[int, ...]:
    """Return the fresh replicates on folds on which the configuration had none before."""
    if study.folds is None:
        return ()
    seen = {
        t.seed % study.folds
        for t in study.trials
        if t.configuration_id == c.configuration_id and t.seed not in c.seeds
    }
    return tuple(seed for seed in c.seeds if seed % study.folds not in seen)


def _contest(
    summary: ConfigurationSummary,
    records: Sequence[BaselineRecord],
    pairing: _Pairing,
    study: StudyRecord,
    objectives: Objectives,
) -> BaselineContest:
    """Compare a baseline with the best of the front on the folds that both have."""
    y, by_fold = objectives.y, {one.fold: one for one in records}

    def rival_of(trial: TrialRecord) -> BaselineRecord | None:
        return by_fold.get(None if study.folds is None else trial.seed % study.folds)

    pairs = [(t, one) for t in pairing.trials if (one := rival_of(t)) is not None]
    if pairing.posterior is not None:  # a mean over all folds
        value, baseline_value = pairing.posterior, summary.values[y]
    elif pairs:
        value = statistics.fmean(trial.values[y] for trial, _ in pairs)
        baseline_value = statistics.fmean(one.values[y] for _, one in pairs)
    else:
        value, baseline_value = pairing.configuration.values[y], summary.values[y]
    difference = value - baseline_value
    counted = metric(y).is_counted and bool(pairs)
    pairs_of_groups = [(trial.groups, one.groups) for trial, one in pairs]
    interval = paired_interval(pairs_of_groups, difference) if counted else None
    people = {name.partition(bootstrap.BLOCK)[0] for own, _ in pairs_of_groups for name in own}
    return BaselineContest(
        baseline=summary.configuration_id,
        configuration=pairing.configuration.configuration_id,
        baseline_value=baseline_value,
        value=value,
        interval=interval,
        num_groups=len(people) if counted else 0,
        basis=pairing.basis,
        verdict=verdict_of(difference, interval, objectives.sign),
    )


def paired_interval(pairs: Sequence[tuple[Groups, Groups]], difference: float) -> Interval | None:
    """Return the 95 % interval of a difference of two accuracies on the same subjects, or None.

    The difference is a ratio: the sum of each subject's difference of correct samples over the sum
    of its samples. The interval is Student's t with the variance of the linearized ratio. With one
    or two subjects it is over blocks of their samples, so about these subjects alone; if there are
    no blocks, there is no interval.

    Args:
        pairs: counts by group of both sides, for each replicate that is compared.
        difference: the center of the interval.

    Source: Cochran 1977, Sampling Techniques, section 6.3 (ratio estimator); Student's t.
    """
    from scipy import special  # type: ignore[import-untyped, unused-ignore]

    changes: dict[str, tuple[float, float]] = {}
    for own, theirs in pairs:
        for name in own.keys() & theirs.keys():
            before, total = changes.get(name, (0.0, 0.0))
            changes[name] = (before + own[name][0] - theirs[name][0], total + own[name][1])
    by_person: dict[str, list[tuple[float, float]]] = {}
    for name in sorted(changes):
        by_person.setdefault(name.partition(bootstrap.BLOCK)[0], []).append(changes[name])
    strata = list(by_person.values())
    if len(strata) >= bootstrap.FEWEST_PEOPLE:  # people are drawn; else the blocks of each
        strata = [[_sum(blocks) for blocks in strata]]
    square, degrees = 0.0, 0
    for cells in strata:
        number, (change, count) = len(cells), _sum(cells)
        if number > 1:
            residuals = [own - change / count * size for own, size in cells]
            square += number / (number - 1) * sum(r * r for r in residuals)
            degrees += number - 1
    if not degrees:
        return None
    total = sum(count for _, count in changes.values())
    half = float(special.stdtrit(degrees, 0.975)) * math.sqrt(square) / total
    return difference - half, difference + half


def _sum(cells: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(change for change, _ in cells), sum(count for _, count in cells)


def verdict_of(
    difference: float, interval: Interval | None, sign: float
) -> Literal["behind", "tied", "ahead"]:
    """Return whether a difference is worse than 0, not distinguishable from it, or better.

    Args:
        difference: of a metric.
        interval: of the difference; None: only its sign counts.
        sign: 1 if more is better, else -1.
    """
    gain = sign * difference
    if gain == 0 or (interval is not None and interval[0] <= 0 <= interval[1]):
        return "tied"
    low = gain if interval is None else min(sign * end for end in interval)
    return "ahead" if low > 0 else "behind"


def _with_difference(
    summary: ConfigurationSummary, contest: BaselineContest | None
) -> ConfigurationSummary:
    """Add the difference of a baseline from the best of the front."""
    if contest is None:
        return summary
    change = None if contest.interval is None else (-contest.interval[1], -contest.interval[0])
    mean = contest.baseline_value - contest.value
    return replace(
        summary,
        difference=Difference(other=contest.configuration, mean=mean, interval=change),
    )
