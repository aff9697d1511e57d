"""Conclude from the test split: which configurations stand, whether the order holds, what to take.

Everything was chosen on validation; the test split only confirms it. Differences are paired by
subject, with the interval of `baselines.paired_interval`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sftsearch.orchestrator.analysis.baselines import paired_interval, verdict_of
from sftsearch.orchestrator.analysis.configurations import Difference
from sftsearch.orchestrator.metrics import metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import Groups, StudyRecord

    Verdict = Literal["stands", "fell", "rose"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """What the test split says about a front."""

    verdicts: dict[str, Verdict | None]
    """By configuration of the front, by rising cost. `stands`: the test interval overlaps that of
    validation; `fell`: it is worse; `rose`: it is better; None: there is no interval."""
    turned: tuple[tuple[str, Difference], ...]
    """Configurations that are better on test than their costlier neighbor, with the difference."""
    take: str
    """The configuration to take: the best on validation, or a cheaper one that is as good or better
    on test; see `confirmation_of`."""
    alternative: Difference | None
    """The cheapest configuration within noise of it on test, and its difference from it."""
    baseline: Difference | None
    """The difference of the configuration to take from the best baseline by validation, on test;
    None without baselines."""
    baseline_verdict: Literal["behind", "tied", "ahead"] | None
    """Whether the configuration to take is better than the baseline; see `BaselineContest`."""


def confirmation_of(front: Front) -> Confirmation | None:
    """Return the conclusions of a confirmed study; None if its front has no test values of y.

    To take is the configuration of the front that is best on validation. If cheaper ones are at
    least as good on test, it is the cheapest of them.
    """
    y = front.y
    points = [c for c in front.points if y in c.test_values]
    if not points:
        return None
    best = max(reversed(points), key=front.quality)
    cheaper = [c for c in points if _gain(c, best, front) >= 0]
    take = cheaper[0]  # by rising cost; at least the best itself
    rival = None if front.baselines is None else front.baselines.best
    against = None
    if rival is not None and y in rival.test_values:
        against = _difference(take, rival, front)
    return Confirmation(
        verdicts={c.configuration_id: _verdict(c, front) for c in points},
        turned=tuple(_turned(points, front)),
        take=take.configuration_id,
        alternative=_alternative(points, take, front),
        baseline=against,
        baseline_verdict=None
        if against is None
        else verdict_of(against.mean, against.interval, front.objectives.sign),
    )


def _gain(c: ConfigurationSummary, other: ConfigurationSummary, front: Front) -> float:
    """Return how much better a configuration is on test than another one."""
    return front.objectives.sign * (c.test_values[front.y] - other.test_values[front.y])


def _verdict(c: ConfigurationSummary, front: Front) -> Verdict | None:
    if c.interval is None or c.test_interval is None:
        return None
    if c.interval[0] <= c.test_interval[1] and c.test_interval[0] <= c.interval[1]:
        return "stands"
    rose = front.objectives.sign * (c.test_interval[0] - c.interval[1]) > 0
    return "rose" if rose else "fell"


def _turned(points: Sequence[ConfigurationSummary], front: Front) -> list[tuple[str, Difference]]:
    """Return neighbors whose order on test is not that of validation."""
    return [
        (cheap.configuration_id, _difference(cheap, costly, front))
        for cheap, costly in itertools.pairwise(points)
        if _gain(cheap, costly, front) > 0 and front.quality(cheap) < front.quality(costly)
    ]


def _alternative(
    points: Sequence[ConfigurationSummary], take: ConfigurationSummary, front: Front
) -> Difference | None:
    for c in points[: points.index(take)]:
        change = _difference(c, take, front)
        if change.within_noise:
            return replace(change, other=c.configuration_id)
    return None


def _difference(c: ConfigurationSummary, other: ConfigurationSummary, front: Front) -> Difference:
    """Return the paired difference of two configurations on test."""
    mean = c.test_values[front.y] - other.test_values[front.y]
    interval = None
    own, theirs = (_mean_counts(_test_groups(one, front.study)) for one in (c, other))
    if metric(front.y).is_counted:
        interval = paired_interval([(own, theirs)], mean)
    return Difference(other=other.configuration_id, mean=mean, interval=interval)


def _test_groups(c: ConfigurationSummary, study: StudyRecord) -> list[Groups]:
    """Return the test counts of a configuration's replicates or of a baseline's folds."""
    if c.status == "baseline":
        return [
            one.test_groups for one in study.baselines if one.name == c.model and one.test_groups
        ]
    own = (t for t in study.trials if t.configuration_id == c.configuration_id)
    return [t.test_groups for t in own if t.test_groups]


def _mean_counts(groups: Sequence[Groups]) -> Groups:
    """Return the mean of the replicates' counts, which all have the same test samples."""
    total: Groups = {}
    for own in groups:
        for name, (right, count) in own.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + right / len(groups), before[1] + count / len(groups))
    return total
