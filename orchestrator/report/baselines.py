"""Write the sentences of reports about baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.report.cells import format_change

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.baselines import BaselineContest
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front

BEHIND = "The best baseline beats the front"
TIED = "The front does not clearly beat the best baseline"
RANGE = 0.25
"""How far beyond the points a chart shows a line, as a share of their range."""
FEWEST = 3
"""Subjects from which intervals are about other subjects, too; see `paired_interval`."""
SUBJECTS = ("subject", "subjects")
GROUPS = ("group of samples", "groups of samples")


def describe_contest(front: Front) -> str:
    """Return that the best baseline is as good as the front or better; empty if the front wins."""
    found = front.baselines
    contest = None if found is None else found.contest
    if found is None or contest is None or contest.verdict == "ahead":
        return ""
    best, y, x = found.best, metric(front.y), metric(front.x)
    cost = f" at {x.format(best.values[front.x])} {x.label}" if front.x in best.values else ""
    what = f"{y.format(contest.baseline_value)} {y.label} on validation{cost}"
    advice = " Use the baseline, or search longer." if contest.verdict == "behind" else ""
    return (
        f"{BEHIND if contest.verdict == 'behind' else TIED}: {describe_baseline(best)} has {what}; "
        f"the best model of the front, {contest.configuration}, has {y.format(contest.value)} "
        f"({_describe_difference(contest, front)}).{advice}"
    )


def describe_baseline(c: ConfigurationSummary) -> str:
    """Return a baseline's name and what it is."""
    return f"`{c.model}` ({'; '.join(c.reasons)})"


def split_lines(
    front: Front,
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the baselines without a cost, as texts and values: within a chart's range, and below.

    A line far from all points would take most of a chart.
    """
    found, y = front.baselines, metric(front.y)
    if found is None:
        return [], []
    shown = [*front.finished, *found.at_a_cost(front.x)]
    values = [c.values[front.y] for c in shown]
    low, high = min(values, default=0.0), max(values, default=1.0)
    reach = RANGE * (high - low)
    lines = [
        (f"{c.model} {y.format(c.values[front.y])}", c.values[front.y])
        for c in found.lines(front.x)
    ]
    inside = [one for one in lines if low - reach <= one[1] <= high + reach]
    return inside, [one for one in lines if one not in inside]


def _describe_difference(contest: BaselineContest, front: Front) -> str:
    """Return the difference with its interval, what it is over, and what it rests on."""
    change = contest.value - contest.baseline_value
    text, _, interval = format_change(change, contest.interval, front.y).partition(" ")
    unit = " points" if metric(front.y).is_share else ""
    parts = [f"difference {text}{unit} {interval}".rstrip()]
    if contest.num_groups:
        one, several = GROUPS if front.num_people is None else SUBJECTS
        who = one if contest.num_groups == 1 else several
        parts[0] += f" over {contest.num_groups} {who}"
        if contest.interval is None:
            parts.append("too few for an interval")
        elif front.num_people is not None and contest.num_groups < FEWEST:
            parts.append("of these alone, not of others")
    if contest.verdict == "tied" and contest.interval is not None:
        parts.append("within noise")
    return ", ".join([*parts, _describe_basis(contest, front)])


def _describe_basis(contest: BaselineContest, front: Front) -> str:
    if contest.basis == "unseen":
        return "fresh replicates on folds that neither was chosen on"
    if contest.basis == "fresh":
        where = "the split" if front.study.folds is None else "folds"
        return f"fresh replicates on {where} that the front was chosen on"
    if contest.basis == "posterior":
        return "posterior mean, which corrects for the choice of the best"
    return "not corrected for the choice of the best, which favors the front"


def baseline_notes(front: Front) -> list[str]:
    """Return notes about the baselines: what they are and how the front compares with the best."""
    found = front.baselines
    if found is None:
        return []
    chosen = (
        "chosen by validation"
        if front.study.folds is None
        else "on each fold the one that is best on the other folds"
    )
    described = "; ".join(describe_baseline(c) for c in reversed(found.summaries))
    lines = [
        f"Baselines are no trials: they are fitted on the same data in seconds, {chosen}. "
        f"{described}."
    ]
    if found.contest is not None:
        lines.append(
            f"The best model of the front, {found.contest.configuration}, against the best "
            f"baseline, `{found.best.model}`: {_describe_difference(found.contest, front)}."
        )
    return lines
