"""Build terminal tables of a front, a confirmed front and a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sftsearch.orchestrator.analysis.parameters import abbreviate_parameter, varying_parameters
from sftsearch.orchestrator.metrics import metric, what_is_counted
from sftsearch.orchestrator.report.cells import (
    format_gain,
    format_mean,
    format_replicates,
    gain_heading,
    status_label,
)
from sftsearch.orchestrator.report.comparison import describe_comparison
from sftsearch.orchestrator.report.confirmation import (
    COLUMNS,
    confirmation_headers,
    confirmation_rows,
    describe_confirmation,
)
from sftsearch.orchestrator.report.fitting_table import FittingColumn, FittingTable
from sftsearch.orchestrator.report.sections import (
    confirmation_section,
    describe_route_levels,
    effects_section,
    families_section,
    importance_section,
    modalities_section,
    rising_section,
    standings_section,
    tokens_section,
)
from sftsearch.orchestrator.report.text import (
    describe_certainty,
    describe_test_split,
    describe_trials,
    describe_values,
    headline,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.compare import Comparison
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.report.sections import Section, TextTable

MOST_EFFECTS = 8
"""Parameters whose values are compared on a terminal; files have all."""


def front_table(analysis: Analysis) -> Group:
    """Return the front for a terminal; with `top`, the best configurations instead.

    Parameters are listed below the table, so that 80 columns are enough.
    """
    front = analysis.front
    found = [] if front.baselines is None else reversed(front.baselines.summaries)
    shown = [*front.points, *found] if front.top is None else front.table
    names = varying_parameters(front.configurations)
    lines = [f"{_named(c)}  {_describe(c, names, front)}" for c in shown]
    lines = [line for line in lines if not line.endswith("  ")]
    below = [Text("\n".join(lines), style="dim"), Text()] if lines else []
    parts = (
        confirmation_section(analysis),
        modalities_section(analysis),
        rising_section(analysis),
        tokens_section(analysis),
        # Files have all sections; a terminal has one about models and one about parameters.
        standings_section(analysis, intervals=False) or families_section(analysis, intervals=False),
        effects_section(analysis) or importance_section(analysis),
    )
    routes = describe_route_levels(analysis)
    sentences = [
        what_is_counted(front.objectives.names),
        describe_trials(front),
        describe_certainty(front.study) if front.front_probability_source == "posterior" else "",
        describe_test_split(front),
    ]
    return Group(
        Text(headline(front), style="bold"),
        "",
        _points(shown, front),
        "",
        *(
            [Text(f"{describe_values(front)} {_describe_gain(front)}"), Text()]
            if front.points
            else []
        ),
        *below,
        *(part for section in parts if section is not None for part in _section(section)),
        *([Text(routes, style="dim"), Text()] if routes else []),
        Text(" ".join(filter(None, sentences))),
    )


def _section(section: Section) -> list[Table | Text]:
    """Return a section: title, sentences, table and notes."""
    shown = section.sentences
    if section.key == "effects" and len(shown) > MOST_EFFECTS:
        more = f"{len(shown) - MOST_EFFECTS} more parameters are in the report files."
        shown = (*shown[:MOST_EFFECTS], more)
    parts: list[Table | Text] = [Text(section.title, style="bold")]
    if shown:
        parts += [Text("\n".join(shown)), Text()]
    return [*parts, *_matrix(section.table)]


def _points(shown: Sequence[ConfigurationSummary], front: Front) -> FittingTable:
    """Return the table of configurations."""
    x, *others = front.objectives.names[1:]
    columns = [
        FittingColumn(header="", cells=[_status(c) for c in shown]),
        FittingColumn(header="configuration", cells=[_identity(c) for c in shown]),
        FittingColumn(header="model", cells=[c.model for c in shown]),
        FittingColumn(
            header=metric(front.y).label,
            cells=[format_mean(c, front.y) for c in shown],
            is_number=True,
        ),
        *(
            FittingColumn(
                header=metric(name).label,
                cells=[metric(name).format(c.values.get(name)) for c in shown],
                is_number=True,
                rank=0 if name == x else 1,
            )
            for name in (x, *others)
        ),
        FittingColumn(
            header=gain_heading(front),
            cells=[_marked(format_gain(c, front)) for c in shown],
            short=[_marked(format_gain(c, front, brief=True)) for c in shown],
            rank=2,
        ),
    ]
    if len({format_replicates(c) for c in front.finished}) > 1:
        replicates = [format_replicates(c) for c in shown]
        columns.append(FittingColumn(header="replicates", cells=replicates, is_number=True, rank=3))
    return FittingTable(columns, bold=[c.is_knee for c in shown])


def _describe_gain(front: Front) -> str:
    baselines = "; of a baseline: over the best of the front" if front.baselines else ""
    return (
        f"{gain_heading(front).capitalize()}: over the next cheaper configuration of the "
        f"front{baselines}; ~ within noise."
    )


def _marked(gain: str) -> str:
    return gain.replace(", within noise", " ~")


def _named(c: ConfigurationSummary) -> str:
    return f"baseline {c.model}" if c.status == "baseline" else c.configuration_id


def _status(c: ConfigurationSummary) -> str:
    return "" if c.status == "baseline" else status_label(c)


def _identity(c: ConfigurationSummary) -> str:
    return "baseline" if c.status == "baseline" else c.configuration_id


def _describe(c: ConfigurationSummary, names: Sequence[str], front: Front) -> str:
    """Return a configuration's parameters, or what a baseline is."""
    return "; ".join(c.reasons) if c.status == "baseline" else _parameters(c, names, front)


def _parameters(c: ConfigurationSummary, names: Sequence[str], front: Front) -> str:
    """Return a configuration's parameters, without line breaks inside one."""
    known = [name for name in names if c.parameters.get(name) is not None]
    texts = [f"{name}={abbreviate_parameter(c, name, front.configurations)}" for name in known]
    return ", ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts)


def _matrix(found: TextTable) -> list[Table | Text]:
    """Return a table, if it has rows, and the notes below it."""
    notes = [Text("\n".join(found.notes), style="dim"), Text()]
    if not found.rows:
        return [*notes]
    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(found.headers):
        table.add_column(Text(name), justify="right" if n else "left", no_wrap=n == 0)
    for cells in found.rows:
        table.add_row(*(Text(cell) for cell in cells))
    return [table, Text(), *notes]


def confirmed_table(analysis: Analysis) -> Group:
    """Return a confirmed front for a terminal: conclusions, validation and test values."""
    front = analysis.front
    headers = confirmation_headers(front)
    columns = [list(column) for column in zip(*confirmation_rows(front), strict=True)]
    columns[0] = ["baseline" if one.startswith("baseline-") else one for one in columns[0]]
    table = FittingTable(
        [
            FittingColumn(
                header=header,
                cells=cells,
                is_number=n >= len(COLUMNS),
                rank=1 if header == "validation" else 0,
                short=[cell.partition(" ")[0] for cell in cells],
                is_kept=True,
            )
            for n, (header, cells) in enumerate(zip(headers, columns, strict=True))
        ]
    )
    y = metric(front.y)
    seeds = "seeds" if front.study.folds is None else "replicates"
    fresh = "fresh " if any(c.is_fresh for c in front.points) else ""
    caption = (
        f"Mean {y.label} over {fresh}{seeds}; 95 % confidence intervals in brackets, over "
        f"subjects and {seeds}. {describe_test_split(front)}"
    )
    sentences = Text("\n".join(describe_confirmation(analysis)), style="bold")
    return Group(sentences, "", table, "", Text(caption))


def comparison_table(comparison: Comparison) -> Group:
    """Return a comparison of two studies or families for a terminal."""
    found = describe_comparison(comparison)
    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(found.headers):
        table.add_column(Text(name), justify="right" if n else "left")
    for cells in found.rows:
        table.add_row(*(Text(cell) for cell in cells))
    notes = [part for note in found.notes for part in ("", Text(note, style="dim"))]
    return Group(table, *notes)
