"""Build the table of a comparison of two studies or families, and its notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import MISSING, metric
from sftsearch.orchestrator.report.answers import AT_MOST
from sftsearch.orchestrator.report.cells import format_change
from sftsearch.orchestrator.report.sections import TextTable

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.compare import Comparison, Contest, Reached


def describe_comparison(comparison: Comparison) -> TextTable:
    """Return a row per limit: costs first, then equal tuning."""
    x, y = metric(comparison.x), metric(comparison.y)
    number, timed = comparison.at_number, comparison.at_seconds
    rows = [
        [f"{AT_MOST} {x.format(contest.limit)} {x.label}", *_contest_cells(contest, comparison)]
        for contest in comparison.at_cost
    ]
    rows.append([f"{number.limit:.0f} configurations", *_contest_cells(number, comparison)])
    rows.append([f"{timed.limit:,.0f} s of training", *_contest_cells(timed, comparison)])
    unit = "points" if y.is_share else y.label
    return TextTable(
        headers=["limit", *comparison.names, f"difference ({unit})", "P(first is better)"],
        rows=rows,
        notes=_comparison_notes(comparison),
    )


def _contest_cells(contest: Contest, comparison: Comparison) -> list[str]:
    y = metric(comparison.y)

    def format_value(reached: Reached | None) -> str:
        if reached is None:
            return MISSING
        of = reached.configuration_id or f"of {reached.num_drawn}"
        return f"{y.format(reached.value)} ({of})"

    change = MISSING
    if contest.difference is not None:
        change = format_change(contest.difference, contest.interval, comparison.y)
    sure = MISSING if contest.probability is None else f"{contest.probability:.2f}"
    return [format_value(contest.first), format_value(contest.second), change, sure]


def _comparison_notes(comparison: Comparison) -> list[str]:
    each = zip(comparison.names, comparison.num_configurations, comparison.seconds, strict=True)
    runs = ", ".join(f"{name} {number} in {seconds:,.0f} s" for name, number, seconds in each)
    what = metric(comparison.y).label
    chosen = (
        "Only reported configurations are compared, by their fresh replicates."
        if comparison.only_chosen
        else "Both are selected by the values shown, which favors the side with more results."
    )
    return [
        f"At equal cost: the best {what} of each side at or below the cost, with the id of its "
        f"configuration. {chosen}",
        "At equal tuning: the expected best of equally many configurations drawn from the finished "
        f"ones of each side ({runs}; the time includes stopped and failed trials), and of as many "
        "as each side finishes in equal time.",
        "Probabilities and 95 % confidence intervals are from draws over subjects and "
        "replicates, paired by subject. The selection of best configurations is not resampled.",
    ]
