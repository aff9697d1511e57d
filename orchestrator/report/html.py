"""Write a front as one HTML file that needs nothing else: no server, no network, no other file.

Everything that comes from a study is text: escaped where it stands in HTML, in the charts' labels
(which know tags of their own) and in the data block. The page's policy allows the two scripts by
their hashes and no connection at all, so even a mistake here could not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.routes import levels_of, routes_of
from sftsearch.orchestrator.metrics import format_number
from sftsearch.orchestrator.report.cells import standing
from sftsearch.orchestrator.report.charts import charts_as_json
from sftsearch.orchestrator.report.columns import columns
from sftsearch.orchestrator.report.sections import sections
from sftsearch.orchestrator.report.text import describe_replicates, headline, notes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.report.columns import Column
    from sftsearch.orchestrator.report.sections import Section

_HERE = Path(__file__).parent
_ROUTES_CHART = (
    '<div id="routes-chart" class="chart" role="figure" '
    'aria-label="Shares of routes and expected cost by lambda; told in words below."></div>'
)


def to_html(front: Front) -> str:
    """Return the page."""
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    script = _read("page.js")
    shown = columns(front)
    parts = {
        "policy": _policy(plotly, script),
        "style": _read("page.css"),
        "plotly": plotly,
        "script": script,
        "data": charts_as_json(front),
        "title": escape(f"{front.study.name} · sftsearch"),
        "name": escape(front.study.name),
        "dataset": escape(front.study.dataset),
        "headline": escape(headline(front)),
        "description": escape(front.study.description),
        "tiles": _tiles(front),
        "head": "".join(_head(column, number) for number, column in enumerate(shown)),
        "rows": "\n".join(_row(c, shown) for c in front.table),
        "num_rows": str(len(front.table)),
        "caption": escape(_caption(front)),
        "sections": "".join(_section(section, front) for section in sections(front)),
        "notes": "".join(f"<li>{_note(note)}</li>" for note in notes(front)),
        "lists": _lists(front),
        "facts": _definitions(front.study.facts),
    }
    return Template(_read("page.html")).substitute(parts)


def _caption(front: Front) -> str:
    unit = "seeds" if front.study.folds is None else "replicates"
    shown = any(front.y in c.deviations for c in front.finished)
    bars = f"Error bars: ± standard deviation over the {unit}. " if shown else ""
    return (
        f"{bars}The line is the best that each cost affords; points on it are bold, dominated ones "
        "light. Point at one to see its configuration, click it to find its row."
    )


def _note(text: str) -> str:
    """Return a sentence as HTML, with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    # Plotly writes its own style elements and attributes, and draws its downloads from blobs.
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
        "refused unrun": str(sum(study.refused.values())),
        "hypervolume": format_number(front.hypervolume),
    }
    if not statuses.count("stopped"):
        del figures["trials stopped"]
    if study.conclusion is not None and front.front_probability_is == "posterior":
        figures["near the best at every budget"] = f"{100 * study.conclusion.within_delta:.0f} %"
    if front.max_gflops is not None:
        figures[f"above {format_number(front.max_gflops)} GFLOPs, left out"] = str(
            front.num_filtered
        )
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in figures.items()
    )


def _head(column: Column, number: int) -> str:
    kind = ' class="number"' if column.is_number else ""
    label = escape(column.header) or "<span class='unseen'>standing</span>↕"
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
            f' title="{escape(column.format_whole(c))}"' if column.format_whole is not None else ""
        )
        text = escape(column.format(c))
        if column.header == "" and text:
            text = f'<span class="badge">{text}</span>'
        cells.append(f"<td{kind}{order}>{text}</td>")
    place = escape(standing(c) or "dominated")
    return f'<tr class="{place}" data-id="{escape(c.configuration_id)}">{"".join(cells)}</tr>'


def _section(section: Section, front: Front) -> str:
    """Return a table whose first column is names, its chart above and its notes below it."""
    has_chart = section.key == "routes" and levels_of(routes_of(front))
    heads = [f'<th scope="col">{escape(head)}</th>' for head in section.table.headers]
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in section.table.rows]
    return (
        f"<section><h2>{section.title}</h2>{_ROUTES_CHART if has_chart else ''}"
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{section.label}"><table class="matrix" id="{section.key}"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>"
        f"{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table></div>"
        '<ul class="notes">'
        f"{''.join(f'<li>{_note(note)}</li>' for note in section.table.notes)}</ul>"
        "</section>"
    )


def _lists(front: Front) -> str:
    """Return what was refused and the failed and stopped trials, where there are any."""
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
