"""What the commands print, for a person or as JSON for a script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.analysis.compare import Comparison
    from sftsearch.orchestrator.storage.study_record import StudyRecord
    from sftsearch.orchestrator.study import StudyResult


def result_as_json(result: StudyResult) -> dict[str, Any]:
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


def counts(record: StudyRecord) -> dict[str, Any]:
    """Return how many trials are in which state, and why configurations were refused."""
    statuses = [trial.status for trial in record.trials]
    return {
        "finished": statuses.count("finished"),
        "stopped": statuses.count("stopped"),
        "failed": statuses.count("failed"),
        "running": statuses.count("running"),
        "refused": record.refused,
    }


def concluded(record: StudyRecord) -> list[str]:
    """Return what a study says of its stops and of what it reports, a sentence each."""
    from sftsearch.orchestrator.report.text import certainty, stops

    return [line for line in (stops(record), certainty(record)) if line]


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

    from sftsearch.orchestrator.report import formats as report
    from sftsearch.orchestrator.studies import axes_of

    console = Console()
    if result.report:
        x, y = axes_of(result.record)
        console.print()
        console.print(report.rich_table(report.summarise(result.record, x=x, y=y)))
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


def print_comparison(comparison: Comparison) -> None:
    """Print two studies or families side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sftsearch.orchestrator.analysis import compare

    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(compare.headers(comparison)):
        table.add_column(Text(name), justify="right" if n else "left")
    for cells in compare.rows(comparison):
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    console.print(table)
    for note in compare.notes(comparison):
        console.print()
        console.print(Text(note, style="dim"))


def study_row(folder: Path) -> dict[str, Any]:
    """Return a study's line of the list; one that cannot be read does not hide the others."""
    from sftsearch.datasets.errors import UserError
    from sftsearch.orchestrator.studies import read_record

    try:
        record = read_record(folder)
    except UserError as error:
        unknown: dict[str, Any] = {"dataset": "?", "confirmed": False, "problem": str(error)}
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


def print_rows(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
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


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def print_parameters(parameters: list[dict[str, Any]]) -> None:
    """Print parameters of a model, each with its type and default."""
    width = max(len(parameter["type"]) for parameter in parameters)
    for parameter in parameters:
        name, default = parameter["name"], parameter["default"]
        if default is None:
            default = "all of the data set" if name == "modalities" else "none"
        click.echo(f"    {name:<17} {parameter['type']:<{width}} {default}")


def store_facts(store: Store) -> dict[str, Any]:
    """Return what `data info` says of a data set."""
    spec = store.spec
    return {
        "name": spec.name,
        "description": spec.description,
        "task": spec.task,
        "licence": spec.licence,
        "attribution": spec.attribution,
        "source": spec.source,
        "fingerprint": spec.fingerprint,
        "store": str(store.path),
        "modalities": {
            modality: {
                "num_tokens": m.num_tokens,
                "num_features": m.num_features,
                "variable_length": m.variable_length,
            }
            for modality, m in spec.modalities.items()
        },
        "splits": {
            split: {
                "samples": number,
                "subjects": list(spec.subjects[split]),
                "by class": dict(zip(spec.classes, store.class_counts[split], strict=True)),
            }
            for split, number in spec.num_samples.items()
        },
        "best_accuracy": spec.best_accuracy,
    }


def print_store(facts: dict[str, Any]) -> None:
    """Print `store_facts` for a person."""
    for key in ("name", "description", "task", *_ORIGIN):
        click.echo(f"{key + ':':<13} {facts[key]}")
    for modality, m in facts["modalities"].items():
        count = f"0 to {m['num_tokens']}" if m["variable_length"] else m["num_tokens"]
        click.echo(f"modality:     {modality}, {count} tokens x {m['num_features']}")
    for split, entry in facts["splits"].items():
        people = f", {len(entry['subjects'])} subjects" if entry["subjects"] else ""
        classes = ", ".join(f"{label} {number}" for label, number in entry["by class"].items())
        told = f"{entry['samples']} samples{people}" + (f"; {classes}" if classes else "")
        click.echo(f"{split + ':':<13} {told}")
    if facts["best_accuracy"] is not None:
        click.echo(f"best possible test accuracy (Bayes): {facts['best_accuracy']:.4f}")


_ORIGIN = ("licence", "attribution", "source", "fingerprint", "store")
