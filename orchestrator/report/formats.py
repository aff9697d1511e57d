"""Reports of a study: one page, a table, a picture or plain data, from the same front.

To add a format, add a function and its line in `FORMATS`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator.analysis import families, routes
from sftsearch.orchestrator.analysis.front import Front, summarise
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.report.html import PALETTE, staircase, to_html
from sftsearch.orchestrator.report.text import (
    brief_parameter,
    certainty,
    columns,
    gain,
    gain_heading,
    headline,
    importance,
    importance_headers,
    importance_note,
    importance_rows,
    notes,
    replicates,
    seal,
    show_mean,
    show_replicates,
    standing,
    stops,
    varying,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from sftsearch.orchestrator.analysis.front import Configuration
    from sftsearch.orchestrator.storage.study_record import StudyRecord

__all__ = [
    "FORMATS",
    "Format",
    "Front",
    "headline",
    "rich_table",
    "summarise",
    "test_table",
    "write",
]

_MARKERS = "osD^Pp*h"
SCHEMA_VERSION = 1
"""Of the JSON report; raised whenever a key changes its name or meaning."""


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a front down."""

    file_name: str
    to_text: Callable[[Front], str | bytes]


def write(
    study: StudyRecord,
    formats: Sequence[str],
    folder: Path,
    *,
    x: str = "gflops",
    y: str = "top1",
    by: Sequence[str] | None = None,
    max_gflops: float | None = None,
    top: int | None = None,
    thin: bool = False,
) -> list[Path]:
    """Write the study's front in every format, and return the files' paths in that order.

    A file appears whole or not at all; one of an earlier report is replaced.

    Args:
        study: the record to report.
        formats: names out of `FORMATS`.
        folder: where the files go; made if it is missing.
        x: the metric that is the cost.
        y: the metric that is the quality.
        by: parameters that set families apart, beside the model; see `summarise`.
        max_gflops: leave out configurations that cost more.
        top: rows of the table, the best by y.
        thin: leave out front points that others stand for; see `summarise`.

    Raises:
        UserError: a format or metric is not known, a limit is not positive, the front cannot be
            thinned, or the folder cannot be written to.
    """
    chosen = [look_up(FORMATS, name, kind="report format") for name in formats]
    front = summarise(study, x=x, y=y, by=by, max_gflops=max_gflops, top=top, thin=thin)
    paths = []
    for style in chosen:
        text = style.to_text(front)
        content = text.encode() if isinstance(text, str) else text
        path = folder / style.file_name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, content)
        except OSError as error:
            raise UserError(f"Cannot write the report {path}: {error.strerror}.") from error
        paths.append(path)
    return paths


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def rich_table(front: Front) -> Group:
    """Return the front for a terminal; with `top`, the best configurations instead.

    The parameters stand below the table, a line a configuration, so that 80 columns are enough.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = front.points if front.top is None else front.table
    table = Table(box=None, pad_edge=False)
    for name in ("", "configuration", "model"):
        table.add_column(name, no_wrap=True)
    for name in front.objectives:
        table.add_column(Text(metric(name).label), justify="right", no_wrap=True)
    table.add_column(Text(gain_heading(front)))
    is_adaptive = len({show_replicates(c) for c in front.finished}) > 1
    if is_adaptive:
        table.add_column("replicates", justify="right")
    for c in shown:
        cells = (
            standing(c),
            c.configuration_id,
            c.model,
            show_mean(c, front.y),
            *(metric(name).show(c.values.get(name)) for name in front.objectives[1:]),
            gain(c, front),
            *([show_replicates(c)] if is_adaptive else []),
        )
        # Text, not str: brackets in a name are not markup.
        table.add_row(*(Text(cell) for cell in cells), style="bold" if c.is_knee else None)
    names = varying(front.configurations)
    lines = [f"{c.configuration_id}  {_parameters(c, names, front)}" for c in shown if names]
    told = [
        f"Means ± standard deviations over {replicates(front.study)}; 95 % intervals in brackets.",
        stops(front.study),
        certainty(front.study) if front.membership_is == "posterior" else "",
        seal(front),
    ]
    below = [Text("\n".join(lines), style="dim"), Text()] if lines else []
    parts = (Text(headline(front), style="bold"), "", table, "", *below, *_rich_families(front))
    more = (*_rich_routes(front), *_rich_importance(front))
    return Group(*parts, *more, Text(" ".join(filter(None, told))))


def _rich_importance(front: Front) -> list[Table | Text]:
    from rich.text import Text

    bands = importance(front)
    if not bands:
        return []
    table = _rich_matrix(importance_headers(bands, front), importance_rows(bands))
    return [table, Text(), Text(importance_note(bands), style="dim"), Text()]


def _rich_routes(front: Front) -> list[Text]:
    from rich.text import Text

    levels = routes.notes(routes.routes_of(front))[1:]
    return [Text(levels[0], style="dim"), Text()] if levels else []


def _rich_matrix(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is names."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(heads):
        table.add_column(Text(name), justify="right" if n else "left", no_wrap=n == 0)
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _rich_families(front: Front) -> list[Table | Text]:
    from rich.text import Text

    compared = families.compare_families(front)
    if compared is None:
        return []
    rows = families.rows(compared, front, intervals=False)
    table = _rich_matrix(families.headers(compared, front), rows)
    return [table, Text(), Text("\n".join(families.notes(compared, front)), style="dim"), Text()]


def test_table(front: Front) -> Group:
    """Return the confirmed front for a terminal: validation beside test, each with its interval."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    y, x = metric(front.y), metric(front.x)
    for name in ("configuration", "model"):
        table.add_column(name, no_wrap=True)
    for name in (x.label, "validation", "test"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for c in front.points:
        cells = (
            c.configuration_id,
            c.model,
            x.show(c.values.get(front.x)),
            _with_interval(y.show(c.values.get(front.y)), c.interval),
            _with_interval(y.show(c.test_values.get(front.y)), c.test_interval),
        )
        table.add_row(*(Text(cell) for cell in cells))
    seeds = "seeds" if front.study.folds is None else "replicates"
    fresh = "fresh " if any(c.is_fresh for c in front.points) else ""
    caption = (
        f"Mean {y.label} over {fresh}{seeds}; 95 % intervals by bootstrap over subjects and "
        f"{seeds}. {seal(front)}"
    )
    return Group(table, "", Text(caption))


def _with_interval(shown: str, interval: tuple[float, float] | None) -> str:
    return shown if interval is None else f"{shown} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _parameters(c: Configuration, names: Sequence[str], front: Front) -> str:
    """Return the parameters that a configuration has, with no line break within one."""
    known = [name for name in names if c.parameters.get(name) is not None]
    texts = [f"{name}={brief_parameter(c, name, front)}" for name in known]
    return ", ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts)


def to_csv(front: Front) -> str:
    """Return a row a configuration of the table, flat, every number at full precision."""
    rows = [_flat(c, front) for c in front.table]
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(c: Configuration, front: Front) -> dict[str, Any]:
    row: dict[str, Any] = {
        "configuration_id": c.configuration_id,
        "model": c.model,
        "status": c.status,
        "on_front": int(c.on_front),
        "knee": int(c.is_knee),
        "indistinguishable": int(c.indistinguishable),
        "num_seeds": len(c.seeds),
        "fresh": int(c.is_fresh),
        "thinned": int(c.is_thinned),
    }
    for name, value in c.values.items():
        row[name] = value
        row[f"{name}_sd"] = c.deviations.get(name, "")
    row |= _ends(f"{front.y}_interval", c.interval)
    row["front_membership"] = "" if c.membership is None else c.membership
    row["difference_to"] = "" if c.difference is None else c.difference.other
    row["difference"] = "" if c.difference is None else c.difference.mean
    row |= _ends("difference", None if c.difference is None else c.difference.interval)
    row |= {f"test_{name}": value for name, value in c.test_values.items()}
    if front.study.confirmed:
        row |= _ends(f"test_{front.y}_interval", c.test_interval)
    row |= {f"parameter.{name}": _cell(value) for name, value in c.parameters.items()}
    row["reasons"] = "; ".join(c.reasons)
    return row


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, float | str]:
    low, high = ("", "") if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


def _cell(value: object) -> object:
    return value if isinstance(value, (str, int, float)) else json.dumps(value)


def to_json(front: Front) -> str:
    """Return everything, whatever `top` says; keys stay as they are, see `SCHEMA_VERSION`."""
    study = asdict(front.study)
    trials = study.pop("trials")
    compared = families.compare_families(front)
    document = {
        "schema_version": SCHEMA_VERSION,
        "study": study,
        "front": {
            "x": front.x,
            "y": front.y,
            "directions": dict(zip(front.objectives, front.directions, strict=True)),
            "configuration_ids": [c.configuration_id for c in front.points],
            "headline": headline(front),
            "notes": notes(front),
            "max_gflops": front.max_gflops,
            "num_filtered": front.num_filtered,
            "num_groups": front.num_groups,
            "membership_is": front.membership_is,
            "num_chosen": front.num_chosen,
            "hypervolume": front.hypervolume,
            "progress": [asdict(step) for step in front.progress],
        },
        "configurations": [
            asdict(c) | {"indistinguishable": c.indistinguishable, "verdict": verdict(c, front)}
            for c in front.configurations
        ],
        "families": None if compared is None else asdict(compared),
        "routes": [asdict(level) for level in routes.levels_of(routes.routes_of(front))],
        "importance": [asdict(band) for band in importance(front)],
        "trials": trials,
    }
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return the value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(front: Front) -> str:
    """Return headline, table, notes and facts in GitHub's Markdown."""
    study = front.study
    shown = columns(front)
    lines = [f"# {_escape(study.name)}", "", _escape(headline(front)), ""]
    if study.description:
        lines += [_escape(study.description), ""]
    lines.append(_row(column.header for column in shown))
    lines.append(_row("---:" if column.is_number else "---" for column in shown))
    lines += [_row(_escape(column.show(c)) for column in shown) for c in front.table]
    lines += ["", *(f"- {_escape(note)}" for note in notes(front))]
    lines += _families(front) + _routes(front) + _importance(front)
    lines += _section("Refused before training", study.refused)
    lines += _section("Facts", study.facts)
    return "\n".join(lines) + "\n"


def _families(front: Front) -> list[str]:
    compared = families.compare_families(front)
    if compared is None:
        return []
    return _matrix(
        "Families compared",
        families.headers(compared, front),
        families.rows(compared, front),
        families.notes(compared, front),
    )


def _routes(front: Front) -> list[str]:
    routed = routes.routes_of(front)
    if not routed:
        return []
    heads, rows = routes.headers(routed, front), routes.rows(routed, front)
    return _matrix("Routes", heads, rows, routes.notes(routed))


def _importance(front: Front) -> list[str]:
    bands = importance(front)
    if not bands:
        return []
    heads, rows = importance_headers(bands, front), importance_rows(bands)
    return _matrix("What matters, by budget", heads, rows, [importance_note(bands)])


def _matrix(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], told: Sequence[str]
) -> list[str]:
    """Return a section with a table whose first column is names, and notes below it."""
    heads = [_escape(head) for head in headers]
    table = [[_escape(cell) for cell in cells] for cells in rows]
    ruler = ["---", *("---:" for _ in heads[1:])]
    below = [f"- {_escape(note)}" for note in told]
    return ["", f"## {title}", "", *map(_row, [heads, ruler, *table]), "", *below]


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _section(title: str, entries: Mapping[str, object]) -> list[str]:
    rows = [f"- {_escape(name)}: {_escape(str(value))}" for name, value in entries.items()]
    return ["", f"## {title}", "", *rows] if rows else []


_MARKDOWN = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]|"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return text.translate(_MARKDOWN)


def to_png(front: Front) -> bytes:
    """Return the front as a picture of 1500 x 960 pixels, drawn without a display.

    Where a gate chooses routes under several weights, they are drawn beside it, in 2400 x 960.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = routes.levels_of(routes.routes_of(front))
    figure = Figure(figsize=(16 if levels else 10, 6.4), dpi=150, layout="constrained")
    _draw(figure.add_subplot(1, 2 if levels else 1, 1), front)
    if levels:
        _draw_routes(figure.add_subplot(1, 2, 2), levels)
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Axes, front: Front) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    models = sorted({c.model for c in front.finished})
    for number, model in enumerate(models):
        colour = PALETTE[number % len(PALETTE)]
        for on_front in (False, True):
            chosen = [c for c in front.finished if c.model == model and c.on_front == on_front]
            axes.errorbar(
                [c.values[front.x] for c in chosen],
                [c.values[front.y] for c in chosen],
                yerr=[c.deviations.get(front.y, 0.0) for c in chosen],
                fmt=_MARKERS[number % len(_MARKERS)],
                color=colour,
                alpha=1.0 if on_front else 0.35,
                markersize=9 if on_front else 6,
                markeredgecolor="white",
                elinewidth=1.2,
                zorder=4 if on_front else 2,
            )
        axes.plot(
            [], [], _MARKERS[number % len(_MARKERS)], color=colour, label=model.replace("$", r"\$")
        )
    xs, ys = staircase(front)
    axes.plot(xs, ys, drawstyle="steps-post", color="#444444", linewidth=1.2, zorder=3)
    if xs and min(c.values[front.x] for c in front.finished) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(metric(front.x).label.replace("$", r"\$"))
    axes.set_ylabel(f"{metric(front.y).label}, validation".replace("$", r"\$"))
    axes.set_title(
        f"{front.study.name}: {metric(front.y).label} against cost".replace("$", r"\$"), loc="left"
    )
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if models:
        axes.legend(frameon=False, loc="lower right")


def _draw_routes(axes: Axes, levels: Sequence[routes.Level]) -> None:
    places = range(len(levels))
    for number in range(len(levels[0].shares)):
        shares = [level.shares[number] for level in levels]
        axes.plot(
            places,
            shares,
            marker=_MARKERS[number % len(_MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            label=f"route {number + 1}",
        )
    axes.set_xticks(places, [f"{level.weight:g}" for level in levels])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("lambda, the weight of a route's price in the loss")
    axes.set_ylabel("share of validation samples")
    costs = axes.twinx()
    expected = [level.expected for level in levels]
    costs.plot(places, expected, "x--", color="#444444", label="expected GFLOPs")
    costs.set_ylim(bottom=0)
    costs.set_ylabel("expected GFLOPs")
    costs.spines[["top"]].set_visible(False)
    axes.set_title("Routes against the weight of their price", loc="left")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.spines[["top"]].set_visible(False)
    handles = [*axes.get_legend_handles_labels()[0], *costs.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, loc="center right")


FORMATS: dict[str, Format] = {
    "html": Format("report.html", to_html),
    "csv": Format("report.csv", to_csv),
    "json": Format("report.json", to_json),
    "markdown": Format("report.md", to_markdown),
    "png": Format("report.png", to_png),
}
