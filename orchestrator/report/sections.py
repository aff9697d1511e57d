"""Build the report sections next to the front: sentences, and tables with their notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sftsearch.orchestrator.analysis.parameters import abbreviate_parameter, varying_parameters
from sftsearch.orchestrator.analysis.routes import WEIGHT
from sftsearch.orchestrator.metrics import MISSING, metric
from sftsearch.orchestrator.report.advice import (
    describe_modalities,
    describe_rising,
    modalities_note,
    rising_note,
)
from sftsearch.orchestrator.report.answers import (
    AT_MOST,
    describe_effects,
    describe_standings,
    describe_tokens,
    effects_notes,
    standing_headers,
    standing_notes,
    standing_rows,
    tokens_note,
)
from sftsearch.orchestrator.report.cells import format_interval
from sftsearch.orchestrator.report.confirmation import (
    confirmation_headers,
    confirmation_rows,
    describe_confirmation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.families import (
        BestOfFamily,
        ExpectedBest,
        FamilyComparison,
    )
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.importance import Band
    from sftsearch.orchestrator.analysis.routes import RoutedConfiguration


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A table of text, and notes that explain it. The first column has the names of the rows."""

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section of a report: sentences, a table or both."""

    key: Literal[
        "confirmation",
        "modalities",
        "rising",
        "tokens",
        "standings",
        "effects",
        "families",
        "routes",
        "importance",
    ]
    title: str
    label: str
    """Description of the table for screen readers."""
    table: TextTable
    """Without rows, only its notes are shown."""
    sentences: tuple[str, ...] = ()
    """Shown before the table."""


def sections(analysis: Analysis) -> list[Section]:
    """Return the sections of a report that have content."""
    found = (
        confirmation_section(analysis),
        modalities_section(analysis),
        rising_section(analysis),
        tokens_section(analysis),
        standings_section(analysis),
        effects_section(analysis),
        families_section(analysis),
        routes_section(analysis),
        importance_section(analysis),
    )
    return [section for section in found if section is not None]


def confirmation_section(analysis: Analysis) -> Section | None:
    """Return what the test split says; None until the study is confirmed."""
    if analysis.confirmation is None:
        return None
    front = analysis.front
    return Section(
        key="confirmation",
        title="Confirmed on the test split",
        label="Validation and test values of the front and the baselines",
        table=TextTable(
            headers=confirmation_headers(front), rows=confirmation_rows(front), notes=[]
        ),
        sentences=tuple(describe_confirmation(analysis)),
    )


# ------------------------------------------------------------------ answers in sentences


def modalities_section(analysis: Analysis) -> Section | None:
    """Return a verdict per modality; None if none was tried with and without."""
    sentences = describe_modalities(analysis)
    if not sentences:
        return None
    return Section(
        key="modalities",
        title="Modalities to keep",
        label="",
        table=TextTable(headers=[], rows=[], notes=[modalities_note(analysis.front)]),
        sentences=tuple(sentences),
    )


def rising_section(analysis: Analysis) -> Section | None:
    """Return whether the trials were long enough; None without learning curves."""
    sentences = describe_rising(analysis)
    if not sentences:
        return None
    return Section(
        key="rising",
        title="Length of training",
        label="",
        table=TextTable(headers=[], rows=[], notes=[rising_note(analysis)]),
        sentences=tuple(sentences),
    )


def tokens_section(analysis: Analysis) -> Section | None:
    """Return the strides and token budgets on the front, by modality; None if all pool alike."""
    sentences = describe_tokens(analysis)
    if not sentences:
        return None
    return Section(
        key="tokens",
        title="Strides and tokens on the front",
        label="",
        table=TextTable(headers=[], rows=[], notes=[tokens_note()]),
        sentences=tuple(sentences),
    )


def standings_section(analysis: Analysis, *, intervals: bool = True) -> Section | None:
    """Return each model at equal compute and equal tuning; None with too few configurations."""
    found, front = analysis.standings, analysis.front
    if found is None:
        return None
    return Section(
        key="standings",
        title="Models at equal compute and equal tuning",
        label="Expected best of equally many configurations within each budget",
        table=TextTable(
            headers=standing_headers(found, front),
            rows=standing_rows(found, front, intervals=intervals),
            notes=standing_notes(found, front),
        ),
        sentences=tuple(describe_standings(analysis)),
    )


def effects_section(analysis: Analysis) -> Section | None:
    """Return what the values of parameters are worth; None with too few configurations."""
    if analysis.effects is None:
        return None
    return Section(
        key="effects",
        title="What each value is worth",
        label="",
        table=TextTable(headers=[], rows=[], notes=effects_notes(analysis.effects, analysis.front)),
        sentences=tuple(describe_effects(analysis)),
    )


# ------------------------------------------------------------------ families


def families_section(analysis: Analysis, *, intervals: bool = True) -> Section | None:
    """Return a row per family: its best at each cost and its expected best after equal tuning.

    `*` marks the best of a column, `~` families whose difference from it is within noise. None
    with fewer than two families.
    """
    front, families = analysis.front, analysis.families
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
    sign = AT_MOST if front.objectives.is_cost_minimized else ""
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
        "Equal compute: the best configuration of each family at or below each cost. Equal tuning: "
        f"the expected best of {k} {what} drawn from the finished ones of each family ({counts}); "
        f"{k} is the size of the smallest family.",
        "* marks the best of a column; ~ marks families whose difference from it is within noise "
        "(95 % confidence interval). The selection of best configurations is not "
        "resampled.",
    ]


# ------------------------------------------------------------------ routes


def routes_section(analysis: Analysis) -> Section | None:
    """Return shares of samples by route, a row per configuration; None without gated models."""
    if not analysis.routes:
        return None
    return Section(
        key="routes",
        title="Routes",
        label="Shares of samples by route",
        table=_routes_table(analysis),
    )


def _routes_table(analysis: Analysis) -> TextTable:
    front, routed = analysis.front, analysis.routes
    most = max(len(one.shares) for one in routed)
    names = [name for name in varying_parameters(front.configurations) if name != "model"]
    routes = [f"route {i}" for i in range(1, most + 1)]
    labels = [metric(name).label for name in (front.y, "gflops_expected")]
    return TextTable(
        headers=["configuration", *names, *labels, *routes, "by class"],
        rows=[_route_row(one, names, most, front) for one in routed],
        notes=[
            "Share of validation samples on each route, mean over replicates. Expected "
            "multiply-adds: those of the gate plus those of the routes, weighted by their shares. "
            "By class: the share of a class's samples on the last route.",
            *filter(None, [describe_route_levels(analysis)]),
        ],
    )


def _route_row(
    one: RoutedConfiguration, names: Sequence[str], most: int, front: Front
) -> list[str]:
    """Return the cells of a configuration."""
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


def describe_route_levels(analysis: Analysis) -> str:
    """Describe the effect of the resource weight; empty with fewer than two weights."""
    levels = analysis.route_levels
    if not levels:
        return ""
    steps = "; ".join(
        f"{level.weight:g}: {metric('gflops_expected').format(level.expected)} multiply-adds, "
        f"{' / '.join(f'{share:.2f}' for share in level.shares)}"
        for level in levels
    )
    return f"Mean expected cost and shares of routes by `{WEIGHT}`: {steps}."


# ------------------------------------------------------------------ parameter importance


def importance_section(analysis: Analysis) -> Section | None:
    """Return parameter importance, a column per budget; None with too few configurations."""
    front, bands = analysis.front, analysis.importance
    if not bands:
        return None
    x = metric(front.x)
    return Section(
        key="importance",
        title="Parameter importance by budget",
        label="Importance of parameters by budget",
        table=TextTable(
            headers=["parameter", *(f"{AT_MOST} {x.format(b.limit)} {x.label}" for b in bands)],
            rows=_importance_rows(bands, varying_parameters(front.configurations)),
            notes=[_importance_note(bands)],
        ),
    )


def _importance_rows(bands: tuple[Band, ...], varying: Sequence[str]) -> list[list[str]]:
    """Return a row per parameter, by falling maximum importance; always that of `modalities`."""

    def share(band: Band, name: str) -> float:
        return band.importances.get(name, 0.0)

    def format_value(band: Band, name: str) -> str:
        return f"{100 * share(band, name):.0f} %" if band.importances else MISSING

    names = {name for band in bands for name in band.importances}
    most = {name: max(share(band, name) for band in bands) for name in names}
    always = {"modalities"} & set(varying)
    kept = (name for name in names if most[name] >= 0.01 or name in always)
    shown = sorted(kept, key=lambda n: (-most[n], n))
    return [[name, *(format_value(band, name) for band in bands)] for name in shown]


def _importance_note(bands: tuple[Band, ...]) -> str:
    numbers = ", ".join(str(band.num_configurations) for band in bands)
    predicted = ""
    if any(band.num_predicted for band in bands):
        predicted = (
            f", of which {', '.join(str(band.num_predicted) for band in bands)} were stopped early "
            "and count with the final values that finished trials predict"
        )
    return (
        f"PED-ANOVA importance, computed from the configurations within each budget ({numbers}"
        f"{predicted}): how much a parameter's distribution in the best tenth (at least four "
        "configurations) differs from that in all, as a share of the sum over parameters. "
        "Parameters below 1 % at every budget are omitted. (Watanabe, Bansal and Hutter 2023, "
        "arXiv:2304.10255.)"
    )
