"""Print the output of commands, as text or JSON."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sftsearch.orchestrator.cli.options import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.status import Status

    from sftsearch.orchestrator.storage.study_record import StudyRecord
    from sftsearch.orchestrator.study import StudyResult
    from sftsearch.trainables.models.source import Parameter


def spinner(text: str) -> Status:
    """Return a context that shows a spinner in a terminal."""
    from rich.console import Console

    return Console(stderr=True).status(f"{text} ...")


def echo_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def result_as_json(result: StudyResult) -> dict[str, object]:
    """Return the output of `run --json`."""
    from sftsearch.orchestrator.tracking.client import masked

    return {
        "study": result.name,
        "folder": str(result.folder),
        "complete": result.complete,
        "tracking_uri": masked(result.tracking_uri),
        "tracking_problem": result.tracking_problem,
        "report": [str(path) for path in result.report],
        **counts(result.record),
    }


def counts(record: StudyRecord) -> dict[str, object]:
    """Return the number of trials by state, and of refused configurations by reason."""
    statuses = [trial.status for trial in record.trials]
    return {
        "finished": statuses.count("finished"),
        "stopped": statuses.count("stopped"),
        "failed": statuses.count("failed"),
        "running": statuses.count("running"),
        "refused": record.refused,
    }


def describe_conclusion(record: StudyRecord) -> list[str]:
    """Return sentences on a study's stopped trials and on its conclusion."""
    from sftsearch.orchestrator.report.text import describe_certainty, describe_stops

    return [line for line in (describe_stops(record), describe_certainty(record)) if line]


def where_options(runs: Path, tracking_uri: str | None) -> str:
    """Return the command-line options to find the same study."""
    from sftsearch.orchestrator.storage.runs_folder import describe_runs_folder
    from sftsearch.orchestrator.tracking.client import masked

    options = "" if runs == Path("runs") else f" --runs {describe_runs_folder(runs)}"
    return options if tracking_uri is None else f"{options} --tracking-uri {masked(tracking_uri)}"


def resume_command(
    file: str,
    where: str,
    dataset: str | None,
    root: str | None,
    address: str | None,
    *,
    ship_code: bool,
) -> str:
    """Return the command that resumes a study, with every option that it was run with."""
    named = [("--dataset", dataset), ("--root", root), ("--address", address)]
    named += [("--plugin", str(one)) for one in click.get_current_context().meta.get(PLUGINS, ())]
    options = "".join(f" {name} {shlex.quote(value)}" for name, value in named if value)
    options += " --ship-code" if ship_code else ""
    return f"sftsearch run {shlex.quote(file)} --resume{options}{where}"


def print_result(result: StudyResult, where: str) -> None:
    """Print the front, the path of the report, and next commands."""
    from rich.console import Console
    from rich.markup import escape

    from sftsearch.orchestrator.report.table import front_table

    console = Console()
    if result.report:
        console.print()
        console.print(front_table(result.analysis))
    if result.tracking_problem:
        console.print(
            "[yellow]MLflow is incomplete.[/] The journal has all results; the next run with "
            f"--resume completes MLflow. {escape(result.tracking_problem)}",
            highlight=False,
        )
    if result.report:
        page = next((path for path in result.report if path.suffix == ".html"), result.report[0])
        console.print(f"\nReport: {page}", highlight=False, soft_wrap=True)
        next_steps = {
            "ui": "browse all trials",
            f"pareto {result.name}": "report the front again, with other axes",
            f"confirm {result.name}": "evaluate the front on the test split, once",
        }
        width = max(len(step) for step in next_steps)
        for label, (step, what) in zip(("Next:", "", ""), next_steps.items(), strict=True):
            call = f"sftsearch {step}{where}{' ' * (width - len(step))}"
            console.print(f"{label:<7} {call}  {what}", highlight=False, soft_wrap=True)


def study_row(folder: Path) -> dict[str, object]:
    """Return the row of a study in `list`, with the error if it cannot be read."""
    from sftsearch.datasets.errors import UserError
    from sftsearch.orchestrator.studies import read_record

    try:
        record = read_record(folder)
    except UserError as error:
        unknown: dict[str, object] = {"dataset": "?", "confirmed": False, "problem": str(error)}
        return {
            "study": folder.name,
            **unknown,
            "finished": 0,
            "stopped": 0,
            "failed": 0,
            "running": 0,
            "refused": {},
        }
    facts = {"dataset": record.dataset, "confirmed": record.confirmed, "problem": ""}
    return {"study": record.name, **facts, **counts(record)}


def print_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Print columns of at least one row as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for n, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if isinstance(rows[0][name], int) else "left"
        table.add_column(name, justify=justify, no_wrap=n == 0)  # names are copied whole
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    Console().print(table)


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def print_parameters(parameters: Sequence[Parameter]) -> None:
    """Print parameters with their types and defaults."""
    width = max(len(parameter["type"]) for parameter in parameters)
    for parameter in parameters:
        name, default = parameter["name"], parameter["default"]
        if default is None:
            default = "all of the dataset" if name == "modalities" else "none"
        click.echo(f"    {name:<17} {parameter['type']:<{width}} {default}")
