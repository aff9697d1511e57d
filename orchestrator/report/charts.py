"""Build the Plotly charts of the HTML report: front, hypervolume and routes.

Plotly interprets some HTML tags in labels, so all text of a study is escaped.
"""

from __future__ import annotations

import json
import math
import textwrap
from html import escape
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.parameters import format_parameter
from sftsearch.orchestrator.metrics import format_number, metric
from sftsearch.orchestrator.report.baselines import split_lines
from sftsearch.orchestrator.report.cells import format_mean, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.baselines import Baselines
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.routes import WeightLevel

    JSON = dict[str, object]

PALETTE = ("#4e79a7", "#e8812b", "#4f9d55", "#b0629b", "#d94f54", "#3fa7a0", "#9c755f", "#8a8f2f")
BASELINE_COLOR = "#7d7d7d"
_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
_HOVER_WIDTH = 42
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon")


def charts_as_json(analysis: Analysis) -> str:
    """Return the charts as JSON that is safe inside a script element."""
    front = analysis.front
    charts: dict[str, JSON] = {"front": _front_chart(front), "progress": _progress_chart(front)}
    if analysis.route_levels:
        charts["routes"] = _routes_chart(analysis.route_levels)
    text = json.dumps(charts, allow_nan=False, ensure_ascii=True)
    # `<` could end the script element or open a comment; in JSON \u003c is equivalent.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _front_chart(front: Front) -> JSON:
    xs, ys = front.staircase()
    line: JSON = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [metric(front.x).scaled(x) for x in xs],
        "y": ys,
        "line": {"shape": "hv", "width": 1.5},
        "hoverinfo": "skip",
        "meta": "staircase",
    }
    models = sorted({c.model for c in front.finished})
    traces: list[JSON] = [line] if xs else []
    for on_front in (False, True):
        for number, model in enumerate(models):
            chosen = [c for c in front.finished if c.model == model and c.on_front == on_front]
            if chosen:
                traces.append(_points(front, chosen, number, on_front=on_front))
    if front.baselines is not None:
        traces += [_baseline_points(front, front.baselines)]
    named: set[object] = set()
    for trace in reversed(traces):  # one legend entry a model, preferably of its front points
        trace["showlegend"] = trace["name"] not in named
        named.add(trace["name"])
    costs = [c.values[front.x] for c in front.finished]
    if front.baselines is not None and costs:
        costs += [c.values[front.x] for c in front.baselines.at_a_cost(front.x)]
    is_log = bool(costs) and min(costs) > 0
    title_y = f"{metric(front.y).label}, validation"
    labels = [_knee_label(c, front, is_log) for c in front.points if c.is_knee]
    inside, outside = split_lines(front)
    labels += [_outside_label(n, text) for n, (text, _) in enumerate(outside)]
    layout = {
        "xaxis": _axis(metric(front.x).label, is_log=is_log)
        | (_log_ticks(costs) if is_log else {})
        | ({} if metric(front.x).unit is None else {"tickformat": "~s"}),
        "yaxis": _axis(title_y),
        "annotations": labels,
        "shapes": [_baseline_line(text, value) for text, value in inside],
    }
    return {"traces": traces, "layout": layout}


def _points(
    front: Front, chosen: Sequence[ConfigurationSummary], number: int, *, on_front: bool
) -> JSON:
    """Return a model's points, on the front or off it."""
    color = PALETTE[number % len(PALETTE)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _escape_label(chosen[0].model),
        "legendgroup": f"model {number}",
        "legendrank": 1001 + number,  # after the front line, which has Plotly's default rank 1000
        "x": [metric(front.x).scaled(c.values[front.x]) for c in chosen],
        "y": [c.values[front.y] for c in chosen],
        "error_y": {
            "type": "data",
            "array": [c.spread(front.y) or 0.0 for c in chosen],
            "thickness": 1.5 if on_front else 1,
            "width": 3 if on_front else 0,
        },
        "marker": {
            "color": color,
            "symbol": _SYMBOLS[number % len(_SYMBOLS)],
            "size": 12 if on_front else 8,
        },
        "opacity": 1.0 if on_front else 0.5,
        "hovertext": [_hover(c, front) for c in chosen],
        "hoverinfo": "text",
        "customdata": [c.configuration_id for c in chosen],
        "meta": "front" if on_front else "dominated",
    }


def _baseline_points(front: Front, baselines: Baselines) -> JSON:
    """Return the baselines with a cost, each with its name."""
    chosen = baselines.at_a_cost(front.x)
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "baseline",
        "x": [metric(front.x).scaled(c.values[front.x]) for c in chosen],
        "y": [c.values[front.y] for c in chosen],
        "text": [_escape_label(c.model) for c in chosen],
        "textposition": "top center",
        "marker": {"color": BASELINE_COLOR, "symbol": "x", "size": 10},
        "hovertext": [_hover(c, front) for c in chosen],
        "hoverinfo": "text",
        "customdata": [c.configuration_id for c in chosen],
        "meta": "baseline",
    }


def _baseline_line(text: str, value: float) -> JSON:
    """Return a baseline without a cost as a line."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"color": BASELINE_COLOR, "width": 1.5, "dash": "dot"},
        "label": {
            "text": _escape_label(text),
            "textposition": "start",
            "font": {"color": BASELINE_COLOR, "size": 12},
        },
    }


def _outside_label(n: int, text: str) -> JSON:
    """Return the label of a line that is out of range, in the lower left corner."""
    return {
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 0,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 16 * n,
        "text": f"not in range: {_escape_label(text)}",
        "showarrow": False,
        "font": {"color": BASELINE_COLOR, "size": 12},
    }


def _hover(c: ConfigurationSummary, front: Front) -> str:
    """Return the hover text of a configuration, with the tags that Plotly interprets."""
    y = metric(front.y)
    lines = [f"<b>{_escape_label(c.configuration_id)}</b> · {_escape_label(c.model)}"]
    unit = "seed" if front.study.folds is None else "replicate"
    seeds = (
        f"{len(c.seeds)}{' fresh' if c.is_fresh else ''} {unit}{'s' if len(c.seeds) > 1 else ''}"
    )
    lines.append(f"{_escape_label(y.label)} {format_mean(c, front.y)} ({seeds})")
    if c.interval is not None:
        lines.append(f"95 % CI {y.format(c.interval[0])} to {y.format(c.interval[1])}")
    names = [front.x, "gflops", "gmacs", "parameters", "train_memory_mb", "latency_ms"]
    costs = [
        f"{metric(name).label} {metric(name).format(c.values[name])}"
        for name in dict.fromkeys(names)
        if name in c.values
    ]
    chosen = [f"{name}={format_parameter(c, name)}" for name in c.parameters if name != "model"]
    for facts in ([verdict(c, front)], costs, chosen):
        # Narrow enough for a phone; a fact is broken only if it alone is too long.
        text = ", ".join(
            fact.replace(" ", _NO_BREAK_SPACE) if len(fact) < _HOVER_WIDTH else fact
            for fact in facts
        )
        wrapped = textwrap.wrap(text, _HOVER_WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [_escape_label(line) for line in wrapped]
    return "<br>".join(line.replace(_NO_BREAK_SPACE, " ") for line in lines)


def _escape_label(text: str) -> str:
    return escape(text, quote=False)


def _knee_label(c: ConfigurationSummary, front: Front, is_log: bool) -> JSON:
    x = metric(front.x).scaled(c.values[front.x])
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


def _axis(title: str, *, is_log: bool = False) -> JSON:
    axis: JSON = {"title": {"text": _escape_label(title)}, "zeroline": False}
    return axis | ({"type": "log"} if is_log else {})


def _log_ticks(values: Sequence[float]) -> JSON:
    """Return ticks at 1, 2 and 5 of each decade, or Plotly's choice for other ranges."""
    decades = math.log10(max(values) / min(values))
    # With this format Plotly prints 0.002; by default it abbreviates it to "2".
    ticks: JSON = {"tickformat": ".3~g"}
    return ticks | ({"dtick": "D2"} if 0.7 < decades < 4 else {})


def _progress_chart(front: Front) -> JSON:
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [step.num_trials for step in front.progress],
        "y": [step.hypervolume for step in front.progress],
        "line": {"shape": "hv", "width": 2, "color": PALETTE[0]},
        "fill": "tozeroy",
        "fillcolor": "rgba(78, 121, 167, 0.12)",
        "hovertext": [
            f"after {step.num_trials} trials, {_format_time(step.seconds)}: "
            f"{format_number(step.hypervolume)}"
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


def _routes_chart(levels: Sequence[WeightLevel]) -> JSON:
    """Return shares of routes and, on the right axis, expected cost by resource weight."""
    # A categorical axis, because weights may differ by orders of magnitude.
    weights = [f"{level.weight:g}" for level in levels]
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
        "name": metric("gflops_expected").label,
        "x": weights,
        "y": [metric("gflops_expected").scaled(level.expected) for level in levels],
        "yaxis": "y2",
        "line": {"dash": "dash", "color": PALETTE[6]},
        "marker": {"symbol": "x", "size": 8},
    }
    costs = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
    layout = {
        "xaxis": _axis("resource weight (lambda)") | {"type": "category"},
        "yaxis": _axis("share of validation samples") | {"range": [-0.03, 1.03]},
        "yaxis2": _axis(metric("gflops_expected").label) | costs | {"tickformat": "~s"},
    }
    return {"traces": [*traces, expected], "layout": layout}


def _format_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
