"""The Pareto front of a study: its points, a chart, and what a notebook shows."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator.api.records import Configuration, Records
from sftsearch.orchestrator.metrics import metric as metric_of
from sftsearch.orchestrator.metrics import sign_of
from sftsearch.orchestrator.report.cells import format_gain, format_mean, gain_heading, status_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from sftsearch.orchestrator.analysis import front as analysis

LIMIT = "max_"
"""Prefix of the limits of `best`."""
MAX_LISTED = 8
"""Points of a front that a message lists."""


class Front(Records[Configuration]):
    """The configurations that no other one dominates, by rising cost.

    A notebook shows it as a chart and a table.
    """

    def __init__(self, analyzed: analysis.Front, every: Records[Configuration]) -> None:
        """Take the front's configurations, which come first in `every`."""
        number = len(analyzed.points)
        super().__init__(every[:number], every._rows[:number])
        self._analyzed = analyzed

    @property
    def objectives(self) -> tuple[tuple[str, str], ...]:
        """Metric and direction (`maximize` or `minimize`): accuracy, cost, and any others."""
        found = self._analyzed.objectives
        return tuple(zip(found.names, found.directions, strict=True))

    @property
    def headline(self) -> str:
        """What the front shows, in sentences; the first says if a baseline is as good."""
        from sftsearch.orchestrator.report.text import headline

        return headline(self._analyzed)

    def __repr__(self) -> str:
        front = self._analyzed
        points = "1 configuration" if len(self) == 1 else f"{len(self)} configurations"
        return f"Front('{front.study.name}', {front.y} against {front.x}, {points})"

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw all finished configurations, the front with its intervals, and the baselines.

        Args:
            axes: of Matplotlib; None: those of a new figure of `matplotlib.pyplot`.

        Returns:
            The axes drawn on.
        """
        from sftsearch.orchestrator.report.figure import draw_front

        if axes is None:
            from matplotlib import pyplot as plt

            axes = plt.subplots(figsize=(10, 6.4), layout="constrained")[1]
        draw_front(axes, self._analyzed)
        return axes

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the headline, a chart and a table of the front."""
        image = base64.b64encode(self._draw()).decode()
        return (
            f"<p>{html.escape(self.headline)}</p>"
            f'<img alt="{html.escape(repr(self))}" src="data:image/png;base64,{image}">'
            f"{self._table()}"
        )

    def _draw(self) -> bytes:
        """Return the chart as PNG, without the state of `matplotlib.pyplot`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure, image = Figure(figsize=(8, 5), dpi=100, layout="constrained"), io.BytesIO()
        FigureCanvasAgg(figure)
        self.plot(figure.add_subplot())
        figure.savefig(image, format="png")
        return image.getvalue()

    def _table(self) -> str:
        front = self._analyzed
        costs = front.objectives.names[1:]
        labels = [metric_of(name).label for name in (front.y, *costs)]
        head = ["", "configuration", "model", *labels, gain_heading(front)]
        baselines = () if front.baselines is None else tuple(reversed(front.baselines.summaries))
        rows = [
            [
                "baseline" if c.status == "baseline" else status_label(c),
                c.configuration_id,
                c.model,
                format_mean(c, front.y),
                *(metric_of(name).format(c.values.get(name)) for name in costs),
                format_gain(c, front),
            ]
            for c in (*front.points, *baselines)
        ]
        lines = [_html_row("th", head), *(_html_row("td", row) for row in rows)]
        return f"<table>{''.join(lines)}</table>"

    def best(self, metric: str | None = None, **limits: float) -> Configuration:
        """Return the best configuration of the front within some limits.

        Args:
            metric: the best by this metric; None: by the study's accuracy. Of equal ones the
                cheapest is returned.
            limits: highest values, as `max_gflops=0.001` or `max_parameters=50_000`: `max_` and the
                name of a metric.

        Raises:
            UserError: nothing on the front is within the limits (the message lists the front), or a
                metric was not recorded.
        """
        front = self._analyzed
        name = front.y if metric is None else metric
        known = dict.fromkeys(key for c in self for key in c.values)
        if not known:
            raise UserError(f"The front of '{front.study.name}' is empty. {self.headline}")
        look_up(known, name, kind="metric of this front")
        allowed = {_limited(limit, known): value for limit, value in limits.items()}
        fitting = [c for c in self if name in c.values and _is_within(c, allowed)]
        if not fitting:
            raise UserError(self._describe_misfit(name, allowed))
        direction = dict(self.objectives).get(name) or metric_of(name).direction
        return max(fitting, key=lambda c: sign_of(direction) * c.values[name])

    def _describe_misfit(self, name: str, allowed: Mapping[str, float]) -> str:
        wanted = " and ".join(f"{key} up to {value:g}" for key, value in allowed.items())
        shown = [
            f"{c.id} ({', '.join(f'{key} {_rounded(c, key)}' for key in (*allowed, name))})"
            for c in self[:MAX_LISTED]
        ]
        more = "" if len(self) <= MAX_LISTED else f", and {len(self) - MAX_LISTED} more"
        return (
            f"No configuration on the front of '{self._analyzed.study.name}' has {wanted or name}. "
            f"The front has {', '.join(shown)}{more}."
        )


def _is_within(c: Configuration, allowed: Mapping[str, float]) -> bool:
    return all(c.values.get(key, math.inf) <= value for key, value in allowed.items())


def _rounded(c: Configuration, name: str) -> str:
    return f"{c.values[name]:.3g}" if name in c.values else "unknown"


def _limited(limit: str, known: Mapping[str, object]) -> str:
    """Return the metric that a limit is about.

    Raises:
        UserError: there is none.
    """
    name = limit.removeprefix(LIMIT)
    if limit == name or name not in known:
        names = ", ".join(f"{LIMIT}{key}" for key in known if metric_of(key).is_cost)
        raise UserError(f"No limit of this front is called '{limit}'. Known: {names}.")
    return name


def _html_row(cell: str, texts: list[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in texts)}</tr>"
