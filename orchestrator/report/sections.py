"""Put into words what stands beside the front: families, routes, what matters, two compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sftsearch.orchestrator.analysis.families import families_of
from sftsearch.orchestrator.analysis.importance import importance_of
from sftsearch.orchestrator.analysis.parameters import abbreviate_parameter, varying_parameters
from sftsearch.orchestrator.analysis.routes import WEIGHT, levels_of, routes_of
from sftsearch.orchestrator.metrics import MISSING, metric
from sftsearch.orchestrator.report.cells import format_change, format_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.compare import Comparison, Contest, Reached
    from sftsearch.orchestrator.analysis.families import (
        BestOfFamily,
        ExpectedBest,
        FamilyComparison,
    )
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.importance import Band
    from sftsearch.orchestrator.analysis.routes import RoutedConfiguration

_AT_MOST = "\N{LESS-THAN OR EQUAL TO}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """Hold a table in words: its first column is names, and notes say how it is to be read."""

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Hold a part of a report: a table with a title."""

    key: Literal["families", "routes", "importance"]
    title: str
    label: str
    """What the table is, for those who cannot see it."""
    table: TextTable


def sections(front: Front) -> list[Section]:
    """Return the sections that a front has."""
    found = (families_section(front), routes_section(front), importance_section(front))
    return [section for section in found if section is not None]


# ------------------------------------------------------------------ families


def families_section(front: Front, *, intervals: bool = True) -> Section | None:
    """Compare the families: a row each, its best at each cost and what equal tuning reaches.

    The best of a column is marked `*`, and what the data cannot tell from it, `~`. None where
    there are not two.
    """
    families = families_of(front)
    if families is None:
        return None
    return Section(
        key="families",
        title="Families compared",
        label="Families at equal compute and equal tuning",
        table=TextTable(
            headers=_family_headers(families, front),
            rows=_family_rows(families, front, intervals=intervals),
            notes=_family_notes(families),
        ),
    )


def _family_headers(families: FamilyComparison, front: Front) -> list[str]:
    x = metric(front.x)
    sign = _AT_MOST if front.objectives.is_cost_minimized else ""
    levels = [f"{sign} {x.format(level.cost)} {x.label}".strip() for level in families.levels]
    return ["family", *levels, f"expected best of {families.num_drawn}"]


def _family_rows(families: FamilyComparison, front: Front, *, intervals: bool) -> list[list[str]]:
    y = metric(front.y)

    def format_value(found: BestOfFamily | ExpectedBest) -> str:
        text = f"{y.format(found.value)}{_mark(found)}"
        if intervals and found.interval:
            return f"{text} [{format_interval(found.interval)}]"
        return text

    table = []
    for name, tuned in zip(families.names, families.tuned, strict=True):
        cells = [name]
        for level in families.levels:
            own = next((best for best in level.families if best.family == name), None)
            cells.append(MISSING if own is None else format_value(own))
        table.append([*cells, format_value(tuned)])
    return table


def _mark(found: BestOfFamily | ExpectedBest) -> str:
    if found.difference is None:
        return "*"
    return "~" if found.difference.within_noise else ""


def _family_notes(families: FamilyComparison) -> list[str]:
    counts = ", ".join(f"{tuned.family} {tuned.num_run}" for tuned in families.tuned)
    k = families.num_drawn
    what = "configuration" if k == 1 else "configurations"
    return [
        "Equal compute: under each cost stands the best that a family reached without being "
        f"dearer. Equal tuning: the expected best of {k} {what} drawn from those that a family "
        f"finished ({counts}), as many as the least tried one has.",
        "* is the best of its column; ~ is not distinguishable from it, by the bootstrap that the "
        "front uses. Which configurations are the best ones is taken as found.",
    ]


# ------------------------------------------------------------------ routes


def routes_section(front: Front) -> Section | None:
    """Say where gates send samples, a row a configuration; None where there are no gates."""
    routed = routes_of(front)
    if not routed:
        return None
    return Section(
        key="routes",
        title="Routes",
        label="Shares of samples by route",
        table=_routes_table(routed, front),
    )


def _routes_table(routed: Sequence[RoutedConfiguration], front: Front) -> TextTable:
    most = max(len(one.shares) for one in routed)
    names = [name for name in varying_parameters(front.configurations) if name != "model"]
    routes = [f"route {i}" for i in range(1, most + 1)]
    labels = [metric(name).label for name in (front.y, "gflops_expected")]
    return TextTable(
        headers=["configuration", *names, *labels, *routes, "by class"],
        rows=[_route_row(one, names, most, front) for one in routed],
        notes=[
            "Shares of validation samples that take each route, means over replicates; expected "
            "GFLOPs are those of the routes, weighted by their shares, with the gate's. By class: "
            "the share of a class's samples that take the last route.",
            *filter(None, [describe_route_levels(routed)]),
        ],
    )


def _route_row(
    one: RoutedConfiguration, names: Sequence[str], most: int, front: Front
) -> list[str]:
    """Return the cells of a configuration; by class, the share of the last route."""
    c = one.configuration
    shares = [f"{share:.2f}" for share in one.shares]
    by_class = [f"{name} {shares[-1]:.2f}" for name, shares in one.by_class.items()]
    return [
        c.configuration_id,
        *(
            MISSING
            if c.parameters.get(name) is None
            else abbreviate_parameter(c, name, front.configurations)
            for name in names
        ),
        metric(front.y).format(c.values.get(front.y)),
        metric("gflops_expected").format(one.expected),
        *(shares + [MISSING] * (most - len(shares))),
        ", ".join(by_class) or MISSING,
    ]


def describe_route_levels(routed: Sequence[RoutedConfiguration]) -> str:
    """Return what the weight of a route's price does; empty where there are not two weights."""
    levels = levels_of(routed)
    if not levels:
        return ""
    steps = "; ".join(
        f"{level.weight:g}: {metric('gflops_expected').format(level.expected)} GFLOPs, "
        f"{' / '.join(f'{share:.2f}' for share in level.shares)}"
        for level in levels
    )
    return f"By `{WEIGHT}`, expected cost and shares of routes, on average: {steps}."


# ------------------------------------------------------------------ what matters, by budget


def importance_section(front: Front) -> Section | None:
    """Say what matters at which budget, a column each; None where too few have finished."""
    bands = importance_of(front)
    if not bands:
        return None
    x = metric(front.x)
    return Section(
        key="importance",
        title="What matters, by budget",
        label="Importance of parameters by budget",
        table=TextTable(
            headers=["parameter", *(f"{_AT_MOST} {x.format(b.limit)} {x.label}" for b in bands)],
            rows=_importance_rows(bands),
            notes=[_importance_note(bands)],
        ),
    )


def _importance_rows(bands: tuple[Band, ...]) -> list[list[str]]:
    """Return a row a parameter, the one that matters most at some budget first."""

    def share(band: Band, name: str) -> float:
        return band.importances.get(name, 0.0)

    def format_value(band: Band, name: str) -> str:
        return f"{100 * share(band, name):.0f} %" if band.importances else MISSING

    names = {name for band in bands for name in band.importances}
    most = {name: max(share(band, name) for band in bands) for name in names}
    shown = sorted((name for name in names if most[name] >= 0.01), key=lambda n: (-most[n], n))
    return [[name, *(format_value(band, name) for band in bands)] for name in shown]


def _importance_note(bands: tuple[Band, ...]) -> str:
    numbers = ", ".join(str(band.num_configurations) for band in bands)
    return (
        f"Among the configurations that a budget affords ({numbers}): how far a parameter's values "
        "in their best tenth differ from those in all, as a share of the sum over parameters. "
        "Those under 1 % everywhere are left out. PED-ANOVA (Watanabe, Bansal and Hutter 2023, "
        "arXiv:2304.10255)."
    )


# ------------------------------------------------------------------ two studies, or two families


def describe_comparison(comparison: Comparison) -> TextTable:
    """Put two side by side: a row a limit, costs first, then tuning."""
    x, y = metric(comparison.x), metric(comparison.y)
    number, timed = comparison.at_number, comparison.at_seconds
    rows = [
        [f"{_AT_MOST} {x.format(contest.limit)} {x.label}", *_contest_cells(contest, comparison)]
        for contest in comparison.at_cost
    ]
    rows.append([f"{number.limit:.0f} configurations", *_contest_cells(number, comparison)])
    rows.append([f"{timed.limit:,.0f} s of training", *_contest_cells(timed, comparison)])
    unit = "points" if y.is_share else y.label
    return TextTable(
        headers=["at equal", *comparison.names, f"difference ({unit})", "P(first is better)"],
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
        "Only what was chosen to be reported competes there, by its fresh replicates. "
        if comparison.only_chosen
        else "Both are picked by the very values shown; the one that tried more is the luckier. "
    )
    return [
        f"At equal cost: the best {what} that each reached without being dearer, by configuration. "
        f"{chosen}".strip(),
        "At equal tuning: the expected best of so many configurations drawn from those that each "
        f"finished ({runs}, stopped and failed trials counted in the time), as many as the one "
        "with fewer finished, and as many as each finishes in the same time.",
        "Probabilities and 95 % intervals are by a bootstrap over subjects and replicates, paired "
        "by subject; which configurations are the best ones is taken as found.",
    ]
