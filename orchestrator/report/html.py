"""Write a report as one self-contained HTML file: no server, no network, no other file.

All text of a study is escaped, in HTML, in chart labels and in the data block. The content security
policy allows the two scripts by their hashes and no connections, so that unescaped text could
neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import format_number, metric
from sftsearch.orchestrator.report.cells import status_label
from sftsearch.orchestrator.report.charts import charts_as_json
from sftsearch.orchestrator.report.columns import columns
from sftsearch.orchestrator.report.sections import sections
from sftsearch.orchestrator.report.text import (
    describe_replicates,
    displayed_facts,
    headline,
    notes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.report.columns import Column
    from sftsearch.orchestrator.report.sections import Section

_HERE = Path(__file__).parent
_CROSSES = " Crosses and dotted lines are baselines."
_ROUTES_CHART = (
    '<div id="routes-chart" class="chart" role="figure" '
    'aria-label="Shares of routes and expected cost by resource weight, as in the table below.">'
    "</div>"
)


def to_html(analysis: Analysis) -> str:
    """Return the HTML page."""
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    script = _read("page.js")
    front = analysis.front
    shown = columns(front)
    parts = {
        "policy": _policy(plotly, script),
        "style": _read("page.css"),
        "plotly": plotly,
        "script": script,
        "data": charts_as_json(analysis),
        "title": escape(f"{front.study.name} · sftsearch"),
        "name": escape(front.study.name),
        "dataset": escape(front.study.dataset),
        "headline": _note(headline(front)),
        "description": escape(front.study.description),
        "tiles": _tiles(front),
        "head": "".join(_head(column, number) for number, column in enumerate(shown)),
        "rows": "\n".join(_row(c, shown) for c in front.table),
        "num_rows": str(len(front.table)),
        "caption": escape(_caption(front)),
        "sections": "".join(_section(section, analysis) for section in sections(analysis)),
        "notes": "".join(f"<li>{_note(note)}</li>" for note in notes(front)),
        "lists": _lists(front),
        "facts": _definitions(displayed_facts(front.study)),
    }
    return Template(_read("page.html")).substitute(parts)


def _caption(front: Front) -> str:
    unit = "seeds" if front.study.folds is None else "replicates"
    bars = ""
    if front.num_groups:
        bars = "Error bars: half of the 95 % confidence interval. "
    elif any(front.y in c.deviations for c in front.finished):
        bars = f"Error bars: ± standard deviation over the {unit}. "
    return (
        f"{bars}The line is the Pareto front: the best accuracy at each cost. Front points are "
        "bold, dominated points light. Hover over a point to see its configuration; click it to "
        f"find its row.{'' if front.baselines is None else _CROSSES}"
    )


def _note(text: str) -> str:
    """Return a sentence as HTML, with text in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    # Plotly adds style elements and attributes, and creates its downloads from blobs.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _tiles(front: Front) -> str:
    study = front.study
    statuses = [trial.status for trial in study.trials]
    number, unit = describe_replicates(study).rsplit(" ", 1)
    figures = {
        "on the front": f"{len(front.points)} of {len(front.finished)}",
        "trials finished": f"{statuses.count('finished')} of {len(statuses)}",
        "trials stopped": str(statuses.count("stopped")),
        f"{unit.rstrip('s')}s each": number,
        "refused before training": str(sum(study.refused.values())),
        "hypervolume": format_number(front.hypervolume),
    }
    if not statuses.count("stopped"):
        del figures["trials stopped"]
    if study.conclusion is not None and front.front_probability_source == "posterior":
        figures["P(within half a point of the best)"] = (
            f"{100 * study.conclusion.within_delta:.0f} %"
        )
    if front.max_gflops is not None:
        limit = metric("gflops")
        figures[f"above {limit.format(front.max_gflops)} {limit.label}, left out"] = str(
            front.num_filtered
        )
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in figures.items()
    )


def _head(column: Column, number: int) -> str:
    kind = ' class="number"' if column.is_number else ""
    label = escape(column.header) or "<span class='unseen'>status</span>↕"
    return (
        f'<th scope="col"{kind} aria-sort="none">'
        f'<button type="button" data-column="{number}">{label}</button></th>'
    )


def _row(c: ConfigurationSummary, shown: list[Column]) -> str:
    cells = []
    for column in shown:
        key = column.key(c)
        order = "" if key is None else f' data-key="{escape(str(key))}"'
        kind = ' class="number"' if column.is_number else ""
        kind += (
            f' title="{escape(column.format_full(c))}"' if column.format_full is not None else ""
        )
        text = escape(column.format(c))
        if column.header == "" and text:
            text = f'<span class="badge">{text}</span>'
        cells.append(f"<td{kind}{order}>{text}</td>")
    status = escape(status_label(c) or "dominated")
    return f'<tr class="{status}" data-id="{escape(c.configuration_id)}">{"".join(cells)}</tr>'


def _section(section: Section, analysis: Analysis) -> str:
    """Return a section: sentences, chart, table and notes."""
    has_chart = section.key == "routes" and analysis.route_levels
    sentences = "".join(f"<li>{_note(sentence)}</li>" for sentence in section.sentences)
    return (
        f"<section><h2>{section.title}</h2>"
        f"{f'<ul>{sentences}</ul>' if sentences else ''}{_ROUTES_CHART if has_chart else ''}"
        f"{_matrix(section) if section.table.rows else ''}"
        '<ul class="notes">'
        f"{''.join(f'<li>{_note(note)}</li>' for note in section.table.notes)}</ul>"
        "</section>"
    )


def _matrix(section: Section) -> str:
    """Return the table of a section."""
    heads = [f'<th scope="col">{escape(head)}</th>' for head in section.table.headers]
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in section.table.rows]
    return (
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{section.label}"><table class="matrix" id="{section.key}"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>"
        f"{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table></div>"
    )


def _lists(front: Front) -> str:
    """Return the lists of refusals, failed trials and stopped trials that are not empty."""
    failed = {
        trial.key: trial.reason or "no reason given"
        for trial in front.study.trials
        if trial.status == "failed"
    }
    stopped = {
        trial.key: f"after epoch {trial.epoch}: {trial.reason}"
        for trial in front.study.trials
        if trial.status == "stopped"
    }
    refused = {reason: str(count) for reason, count in front.study.refused.items()}
    sections = {
        "Refused before training": refused,
        "Failed trials": failed,
        "Stopped trials": stopped,
    }
    return "".join(
        f"<section><h2>{title}</h2>{_definitions(entries)}</section>"
        for title, entries in sections.items()
        if entries
    )


def _definitions(entries: Mapping[str, str]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items()
    )
    return f'<dl class="facts">{rows}</dl>' if rows else "<p>None recorded.</p>"
