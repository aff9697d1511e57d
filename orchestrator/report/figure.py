"""Plot a front as a PNG image; needs no display."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.metrics import format_count, metric
from sftsearch.orchestrator.report.baselines import split_lines
from sftsearch.orchestrator.report.charts import BASELINE_COLOR, PALETTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.baselines import Baselines
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.routes import WeightLevel
    from sftsearch.orchestrator.metrics import Metric

_MARKERS = "osD^Pp*h"


def to_png(analysis: Analysis) -> bytes:
    """Return the front as a PNG image of 1500 x 960 pixels.

    With several resource weights the shares of routes are plotted next to it, in 2400 x 960 pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    front, levels = analysis.front, analysis.route_levels
    figure = Figure(figsize=(16 if levels else 10, 6.4), dpi=150, layout="constrained")
    draw_front(figure.add_subplot(1, 2 if levels else 1, 1), front)
    if levels:
        _draw_routes(figure.add_subplot(1, 2, 2), levels)
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png")
    return image.getvalue()


def _bar(configuration: ConfigurationSummary, y: str) -> tuple[float, float]:
    """Return the lengths of an error bar below and above the mean."""
    value, interval = configuration.values[y], configuration.interval
    if interval is None:
        spread = configuration.spread(y) or 0.0
        return spread, spread
    return max(0.0, value - interval[0]), max(0.0, interval[1] - value)


def draw_front(axes: Axes, front: Front) -> None:
    """Draw a front with its intervals and baselines."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    x = metric(front.x)
    models = sorted({c.model for c in front.finished})
    for number, model in enumerate(models):
        color = PALETTE[number % len(PALETTE)]
        for on_front in (False, True):
            chosen = [c for c in front.finished if c.model == model and c.on_front == on_front]
            axes.errorbar(
                [x.scaled(c.values[front.x]) for c in chosen],
                [c.values[front.y] for c in chosen],
                yerr=np.array([_bar(c, front.y) for c in chosen]).reshape(-1, 2).T,
                fmt=_MARKERS[number % len(_MARKERS)],
                color=color,
                alpha=1.0 if on_front else 0.35,
                markersize=9 if on_front else 6,
                markeredgecolor="white",
                elinewidth=1.2,
                zorder=4 if on_front else 2,
            )
        axes.plot(
            [], [], _MARKERS[number % len(_MARKERS)], color=color, label=model.replace("$", r"\$")
        )
    if front.baselines is not None:
        _draw_baselines(axes, front, front.baselines)
    xs, ys = front.staircase()
    xs = [x.scaled(value) for value in xs]
    axes.plot(xs, ys, drawstyle="steps-post", color="#444444", linewidth=1.2, zorder=3)
    if xs and min(c.values[front.x] for c in front.finished) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x.label.replace("$", r"\$"))
    axes.set_ylabel(f"{metric(front.y).label}, validation".replace("$", r"\$"))
    axes.set_title(
        f"{front.study.name}: {metric(front.y).label} against cost".replace("$", r"\$"), loc="left"
    )
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if models:
        axes.legend(frameon=False, loc="lower right")
        axes.set_ylim(*_shown_values(front))


def _shown_values(front: Front) -> tuple[float, float]:
    """Return the ends of the axis: long error bars off the front are cut."""
    values = [c.values[front.y] for c in front.finished]
    if front.baselines is not None:
        values += [c.values[front.y] for c in front.baselines.at_a_cost(front.x)]
        values += [value for _, value in split_lines(front)[0]]
    for c in front.points:
        below, above = _bar(c, front.y)
        values += [c.values[front.y] - below, c.values[front.y] + above]
    margin = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def _draw_baselines(axes: Axes, front: Front, baselines: Baselines) -> None:
    """Draw baselines with a cost as named points, others as lines within the range of the rest."""
    placed = baselines.at_a_cost(front.x)
    xs = [metric(front.x).scaled(c.values[front.x]) for c in placed]
    ys = [c.values[front.y] for c in placed]
    axes.plot(xs, ys, "X", color=BASELINE_COLOR, markersize=8, zorder=5)
    for c, x, y in zip(placed, xs, ys, strict=True):
        axes.annotate(
            c.model.replace("$", r"\$"),
            (x, y),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            color="#555555",
        )
    inside, outside = split_lines(front)
    for text, value in inside:
        axes.axhline(value, color=BASELINE_COLOR, linestyle=":", linewidth=1.2)
        where = axes.get_yaxis_transform()
        axes.text(0.01, value, text.replace("$", r"\$"), transform=where, va="bottom")
    if outside:
        text = "not in range: " + ", ".join(text for text, _ in outside)
        axes.text(0.01, 0.01, text.replace("$", r"\$"), transform=axes.transAxes, color="#555555")


def _tick(value: float, shown: Metric) -> str:
    """Return the text of a tick on an axis of scaled values."""
    return f"{value:g}" if shown.unit is None else format_count(value)


def _draw_routes(axes: Axes, levels: Sequence[WeightLevel]) -> None:
    from matplotlib.ticker import FuncFormatter

    positions = range(len(levels))
    for number in range(len(levels[0].shares)):
        shares = [level.shares[number] for level in levels]
        axes.plot(
            positions,
            shares,
            marker=_MARKERS[number % len(_MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            label=f"route {number + 1}",
        )
    axes.set_xticks(positions, [f"{level.weight:g}" for level in levels])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("resource weight (lambda)")
    axes.set_ylabel("share of validation samples")
    costs = axes.twinx()
    cost = metric("gflops_expected")
    expected = [cost.scaled(level.expected) for level in levels]
    costs.plot(positions, expected, "x--", color="#444444", label=cost.label)
    costs.set_ylim(bottom=0)
    costs.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, cost)))
    costs.set_ylabel(cost.label)
    costs.spines[["top"]].set_visible(False)
    axes.set_title("Routes by resource weight", loc="left")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.spines[["top"]].set_visible(False)
    handles = [*axes.get_legend_handles_labels()[0], *costs.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, loc="center right")
