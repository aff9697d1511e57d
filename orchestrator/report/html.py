"""The front as one HTML file that needs nothing else: no server, no network, no other file.

Everything that comes from a study is text: escaped where it stands in HTML, in the charts' labels
(which know tags of their own) and in the data block. The page's policy allows the two scripts by
their hashes and no connection at all, so even a mistake here could not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import textwrap
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.analysis import families, routes
from sftsearch.orchestrator.metrics import metric, show_number
from sftsearch.orchestrator.report.text import (
    columns,
    headline,
    importance,
    importance_headers,
    importance_note,
    importance_rows,
    notes,
    replicates,
    show_mean,
    show_parameter,
    standing,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.orchestrator.analysis.front import Configuration, Front
    from sftsearch.orchestrator.report.text import Column

_HERE = Path(__file__).parent
PALETTE = ("#4e79a7", "#e8812b", "#4f9d55", "#b0629b", "#d94f54", "#3fa7a0", "#9c755f", "#8a8f2f")
_HARD_SPACE = "\N{NO-BREAK SPACE}"
_HOVER_WIDTH = 42
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon")


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
        "data": to_data(front),
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
        "families": _families(front) + _routes(front) + _importance(front),
        "notes": "".join(f"<li>{_note(note)}</li>" for note in notes(front)),
        "lists": _lists(front),
        "facts": _definitions(front.study.facts),
    }
    return Template(_read("page.html")).substitute(parts)


def to_data(front: Front) -> str:
    """Return the charts as JSON that may stand inside a script element."""
    charts = {"front": _front_chart(front), "progress": _progress_chart(front)}
    if levels := routes.levels_of(routes.routes_of(front)):
        charts["routes"] = _routes_chart(levels)
    text = json.dumps(charts, allow_nan=False, ensure_ascii=True)
    # Within a script element only `<` can end it or open a comment; JSON has the same as \u003c.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def staircase(front: Front) -> tuple[list[float], list[float]]:
    """Return the best y that each x affords: corners of steps, the last up to the highest cost."""
    points = front.points
    if not points:
        return [], []
    costs = [c.values[front.x] for c in front.finished]
    end = max(costs) if front.directions[1] == "minimize" else min(costs)
    xs = [c.values[front.x] for c in points] + [end]
    # Of more than two objectives, a dearer point of the front need not be a better one.
    better = max if front.directions[0] == "maximize" else min
    ys = list(itertools.accumulate((c.values[front.y] for c in points), better))
    return xs, [*ys, ys[-1]]


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


def _front_chart(front: Front) -> dict[str, Any]:
    xs, ys = staircase(front)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": xs,
        "y": ys,
        "line": {"shape": "hv", "width": 1.5},
        "hoverinfo": "skip",
        "meta": "staircase",
    }
    models = sorted({c.model for c in front.finished})
    traces: list[dict[str, Any]] = [line] if xs else []
    for on_front in (False, True):
        for number, model in enumerate(models):
            chosen = [c for c in front.finished if c.model == model and c.on_front == on_front]
            if chosen:
                traces.append(_points(front, chosen, number, on_front=on_front))
    named: set[object] = set()
    for trace in reversed(traces):  # a model is named once, by its boldest points
        trace["showlegend"] = trace["name"] not in named
        named.add(trace["name"])
    costs = [c.values[front.x] for c in front.finished]
    is_log = bool(costs) and min(costs) > 0
    title_y = f"{metric(front.y).label}, validation"
    layout = {
        "xaxis": _axis(metric(front.x).label, is_log=is_log)
        | (_log_ticks(costs) if is_log else {}),
        "yaxis": _axis(title_y),
        "annotations": [_knee_label(c, front, is_log) for c in front.points if c.is_knee],
    }
    return {"traces": traces, "layout": layout}


def _points(
    front: Front, chosen: list[Configuration], number: int, *, on_front: bool
) -> dict[str, Any]:
    """Return a model's points, on the front or off it."""
    colour = PALETTE[number % len(PALETTE)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _escape_label(chosen[0].model),
        "legendgroup": f"model {number}",
        "legendrank": 1001 + number,  # as Plotly counts from 1000, where the front's line is
        "x": [c.values[front.x] for c in chosen],
        "y": [c.values[front.y] for c in chosen],
        "error_y": {
            "type": "data",
            "array": [c.deviations.get(front.y, 0.0) for c in chosen],
            "thickness": 1.5 if on_front else 1,
            "width": 3 if on_front else 0,
        },
        "marker": {
            "color": colour,
            "symbol": _SYMBOLS[number % len(_SYMBOLS)],
            "size": 12 if on_front else 8,
        },
        "opacity": 1.0 if on_front else 0.5,
        "hovertext": [_hover(c, front) for c in chosen],
        "hoverinfo": "text",
        "customdata": [c.configuration_id for c in chosen],
        "meta": "front" if on_front else "dominated",
    }


def _hover(c: Configuration, front: Front) -> str:
    """Return everything known of a configuration, in the tags that charts know."""
    y = metric(front.y)
    lines = [f"<b>{_escape_label(c.configuration_id)}</b> · {_escape_label(c.model)}"]
    unit = "seed" if front.study.folds is None else "replicate"
    seeds = (
        f"{len(c.seeds)}{' fresh' if c.is_fresh else ''} {unit}{'s' if len(c.seeds) > 1 else ''}"
    )
    lines.append(f"{_escape_label(y.label)} {show_mean(c, front.y)} ({seeds})")
    if c.interval is not None:
        lines.append(f"95 % interval {y.show(c.interval[0])} to {y.show(c.interval[1])}")
    names = [front.x, "gflops", "gmacs", "parameters", "latency_ms", "peak_memory_mb"]
    costs = [
        f"{metric(name).label} {metric(name).show(c.values[name])}"
        for name in dict.fromkeys(names)
        if name in c.values
    ]
    chosen = [f"{name}={show_parameter(c, name)}" for name in c.parameters if name != "model"]
    for facts in ([verdict(c, front)], costs, chosen):
        # Narrow enough for a phone, and broken within a fact only if it alone is too long.
        text = ", ".join(
            fact.replace(" ", _HARD_SPACE) if len(fact) < _HOVER_WIDTH else fact for fact in facts
        )
        wrapped = textwrap.wrap(text, _HOVER_WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [_escape_label(line) for line in wrapped]
    return "<br>".join(line.replace(_HARD_SPACE, " ") for line in lines)


def _escape_label(text: str) -> str:
    return escape(text, quote=False)


def _knee_label(c: Configuration, front: Front, is_log: bool) -> dict[str, Any]:
    x = c.values[front.x]
    return {
        "x": math.log10(x) if is_log else x,
        "y": c.values[front.y],
        "text": "knee",
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "bottom",
        "xshift": -8,
        "yshift": 4,
    }


def _axis(title: str, *, is_log: bool = False) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": _escape_label(title)}, "zeroline": False}
    return axis | ({"type": "log"} if is_log else {})


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Return ticks in full numbers, at 1, 2 and 5 of a decade or closer, as there is room."""
    decades = math.log10(max(values) / min(values))
    # With a format of its own the axis prints 0.002 where it would print a small "2".
    return {"tickformat": ".3~g"} | ({"dtick": "D2"} if 0.7 < decades < 4 else {})


def _progress_chart(front: Front) -> dict[str, Any]:
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [step.num_trials for step in front.progress],
        "y": [step.hypervolume for step in front.progress],
        "line": {"shape": "hv", "width": 2, "color": PALETTE[0]},
        "fill": "tozeroy",
        "fillcolor": "rgba(78, 121, 167, 0.12)",
        "hovertext": [
            f"after {step.num_trials} trials, {_show_time(step.seconds)}: "
            f"{show_number(step.hypervolume)}"
            for step in front.progress
        ],
        "hoverinfo": "text",
        "showlegend": False,
    }
    layout = {
        "xaxis": _axis("finished trials") | {"range": [0, 1.02 * len(front.progress)]},
        "yaxis": _axis("hypervolume") | {"rangemode": "tozero"},
    }
    return {"traces": [trace] if front.progress else [], "layout": layout}


def _routes_chart(levels: Sequence[routes.Level]) -> dict[str, Any]:
    """Return shares of routes, and expected cost at the right, by the weight of their price."""
    weights = [f"{level.weight:g}" for level in levels]  # places, for weights may be far apart
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"route {number + 1}",
            "x": weights,
            "y": [level.shares[number] for level in levels],
            "line": {"color": PALETTE[number % len(PALETTE)]},
            "marker": {"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 9},
        }
        for number in range(len(levels[0].shares))
    ]
    expected = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "expected GFLOPs",
        "x": weights,
        "y": [level.expected for level in levels],
        "yaxis": "y2",
        "line": {"dash": "dash", "color": PALETTE[6]},
        "marker": {"symbol": "x", "size": 8},
    }
    costs = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
    layout = {
        "xaxis": _axis("lambda, the weight of a route's price in the loss") | {"type": "category"},
        "yaxis": _axis("share of validation samples") | {"range": [-0.03, 1.03]},
        "yaxis2": _axis("expected GFLOPs") | costs,
    }
    return {"traces": [*traces, expected], "layout": layout}


def _show_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _tiles(front: Front) -> str:
    study = front.study
    statuses = [trial.status for trial in study.trials]
    number, unit = replicates(study).rsplit(" ", 1)
    figures = {
        "on the front": f"{len(front.points)} of {len(front.finished)}",
        "trials finished": f"{statuses.count('finished')} of {len(statuses)}",
        "trials stopped": str(statuses.count("stopped")),
        f"{unit.rstrip('s')}s each": number,
        "refused unrun": str(sum(study.refused.values())),
        "hypervolume": show_number(front.hypervolume),
    }
    if not statuses.count("stopped"):
        del figures["trials stopped"]
    if study.conclusion is not None and front.membership_is == "posterior":
        figures["near the best at every budget"] = f"{100 * study.conclusion.within_delta:.0f} %"
    if front.max_gflops is not None:
        figures[f"above {show_number(front.max_gflops)} GFLOPs, left out"] = str(front.num_filtered)
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


def _row(c: Configuration, shown: list[Column]) -> str:
    cells = []
    for column in shown:
        key = column.key(c)
        order = "" if key is None else f' data-key="{escape(str(key))}"'
        kind = ' class="number"' if column.is_number else ""
        kind += f' title="{escape(column.tell(c))}"' if column.tell is not None else ""
        text = escape(column.show(c))
        if column.header == "" and text:
            text = f'<span class="badge">{text}</span>'
        cells.append(f"<td{kind}{order}>{text}</td>")
    place = escape(standing(c) or "dominated")
    return f'<tr class="{place}" data-id="{escape(c.configuration_id)}">{"".join(cells)}</tr>'


def _families(front: Front) -> str:
    """Return the section that compares the families, where there are several."""
    compared = families.compare_families(front)
    if compared is None:
        return ""
    return _section(
        "Families compared",
        "families",
        "Families at equal compute and equal tuning",
        families.headers(compared, front),
        families.rows(compared, front),
        families.notes(compared, front),
    )


def _routes(front: Front) -> str:
    """Return the section of where gates send samples, where there are gates."""
    routed = routes.routes_of(front)
    if not routed:
        return ""
    chart = (
        '<div id="routes-chart" class="chart" role="figure" '
        'aria-label="Shares of routes and expected cost by lambda; told in words below."></div>'
    )
    return _section(
        "Routes",
        "routes",
        "Shares of samples by route",
        routes.headers(routed, front),
        routes.rows(routed, front),
        routes.notes(routed),
        chart=chart if routes.levels_of(routed) else "",
    )


def _importance(front: Front) -> str:
    """Return the section of what matters at which budget, where enough has finished."""
    bands = importance(front)
    if not bands:
        return ""
    return _section(
        "What matters, by budget",
        "importance",
        "Importance of parameters by budget",
        importance_headers(bands, front),
        importance_rows(bands),
        [importance_note(bands)],
    )


def _section(
    title: str,
    identity: str,
    label: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    told: Sequence[str],
    *,
    chart: str = "",
) -> str:
    """Return a section with a table whose first column is names, and notes below it."""
    heads = [f'<th scope="col">{escape(head)}</th>' for head in headers]
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return (
        f'<section><h2>{title}</h2>{chart}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{label}"><table class="matrix" id="{identity}"><thead><tr>'
        f"{''.join(heads)}</tr></thead><tbody>"
        f"{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table></div>"
        '<ul class="notes">'
        f"{''.join(f'<li>{_note(note)}</li>' for note in told)}</ul>"
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
