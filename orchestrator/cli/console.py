"""Print what the commands say, for a person or as JSON for a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.status import Status

    from sftsearch.orchestrator.storage.study_record import StudyRecord
    from sftsearch.orchestrator.study import StudyResult


class ParameterRow(TypedDict):
    """Describe a parameter of a model, as `models` lists it."""

    name: str
    type: str
    default: object


def spinner(text: str) -> Status:
    """Return a context that shows, in a terminal, that something goes on."""
    from rich.console import Console

    return Console(stderr=True).status(f"{text} ...")


def echo_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def result_as_json(result: StudyResult) -> dict[str, object]:
    """Return what `run` says of a study for a script."""
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
    """Return how many trials are in which state, and why configurations were refused."""
    statuses = [trial.status for trial in record.trials]
    return {
        "finished": statuses.count("finished"),
        "stopped": statuses.count("stopped"),
        "failed": statuses.count("failed"),
        "running": statuses.count("running"),
        "refused": record.refused,
    }


def describe_conclusion(record: StudyRecord) -> list[str]:
    """Return what a study says of its stops and of what it reports, a sentence each."""
    from sftsearch.orchestrator.report.text import describe_certainty, describe_stops

    return [line for line in (describe_stops(record), describe_certainty(record)) if line]


def where_options(runs: Path, tracking_uri: str | None) -> str:
    """Return the options that a next command needs to find the same study."""
    from sftsearch.orchestrator.storage.runs_folder import describe_runs_folder
    from sftsearch.orchestrator.tracking.client import masked

    options = "" if runs == Path("runs") else f" --runs {describe_runs_folder(runs)}"
    return options if tracking_uri is None else f"{options} --tracking-uri {masked(tracking_uri)}"


def print_result(result: StudyResult, where: str) -> None:
    """Print the front, where the report is, and the next commands."""
    from rich.console import Console
    from rich.markup import escape

    from sftsearch.orchestrator.analysis.front import summarise
    from sftsearch.orchestrator.report.table import front_table
    from sftsearch.orchestrator.studies import axes_of

    console = Console()
    if result.report:
        x, y = axes_of(result.record)
        console.print()
        console.print(front_table(summarise(result.record, x=x, y=y)))
    if result.tracking_problem:
        console.print(
            "[yellow]MLflow lacks a part of the record;[/] nothing is lost: the next run with "
            f"--resume completes it. {escape(result.tracking_problem)}",
            highlight=False,
        )
    if result.report:
        page = next((path for path in result.report if path.suffix == ".html"), result.report[0])
        console.print(f"\nReport: {page}", highlight=False, soft_wrap=True)
        next_steps = {
            "ui": "browse every trial",
            f"pareto {result.name}": "write the report anew, with other axes",
            f"confirm {result.name}": "evaluate the front on the test split, once",
        }
        width = max(len(step) for step in next_steps)
        for label, (step, what) in zip(("Next:", "", ""), next_steps.items(), strict=True):
            call = f"sftsearch {step}{where}{' ' * (width - len(step))}"
            console.print(f"{label:<7} {call}  {what}", highlight=False, soft_wrap=True)


def study_row(folder: Path) -> dict[str, object]:
    """Return a study's line of the list; one that cannot be read does not hide the others."""
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
    """Print some columns of at least one row as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for n, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if isinstance(rows[0][name], int) else "left"
        table.add_column(name, justify=justify, no_wrap=n == 0)  # a name is to be copied
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    Console().print(table)


def _cell(value: object) -> str:
    from rich.markup import escape

    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def print_parameters(parameters: Sequence[ParameterRow]) -> None:
    """Print parameters of a model, each with its type and default."""
    width = max(len(parameter["type"]) for parameter in parameters)
    for parameter in parameters:
        name, default = parameter["name"], parameter["default"]
        if default is None:
            default = "all of the data set" if name == "modalities" else "none"
        click.echo(f"    {name:<17} {parameter['type']:<{width}} {default}")
