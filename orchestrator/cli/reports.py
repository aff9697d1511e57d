"""Report what a study found: pareto, compare and confirm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli.console import echo_json
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import json_option, runs_option, uri_option

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@click.command()
@click.argument("study")
@click.option("--x", default=None, help="Cost axis. Default: the study's.")
@click.option("--y", default=None, help="Accuracy axis. Default: the study's.")
@click.option(
    "--by",
    multiple=True,
    help="Parameter that sets families apart, beside the model; may be repeated. "
    "Default: those that tell the study's branches apart.",
)
@click.option("--max-gflops", type=float, help="Leave out configurations that cost more.")
@click.option("--top", type=click.IntRange(min=1), help="Rows of the table, the best by accuracy.")
@click.option(
    "--thin",
    is_flag=True,
    help="Leave out front points where one hardly dearer (2 %) is hardly worse (half a point).",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("html", "csv", "json", "markdown", "png"),
    help="html, csv, json, markdown or png; may be repeated. Default: all.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the files. Default: the study's folder, or STUDY-report.",
)
@runs_option
@uri_option
@json_option
@user_errors
def pareto(
    study: str,
    x: str | None,
    y: str | None,
    by: tuple[str, ...],
    max_gflops: float | None,
    top: int | None,
    thin: bool,
    formats: tuple[str, ...],
    out: Path | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Write the front of STUDY as a page and as files.

    It is read from MLflow alone, so it also works where the runs folder is not, by --tracking-uri.
    """
    from rich.console import Console

    from sftsearch.orchestrator.analysis.front import summarise
    from sftsearch.orchestrator.report.formats import write_front
    from sftsearch.orchestrator.report.json_report import to_json
    from sftsearch.orchestrator.report.table import front_table
    from sftsearch.orchestrator.studies import axes_of
    from sftsearch.orchestrator.tracking.client import default_uri
    from sftsearch.orchestrator.tracking.reader import read_study

    uri = tracking_uri or default_uri(runs)
    record = read_study(uri, study, runs)
    cost, accuracy = axes_of(record)
    front = summarise(
        record,
        x=x or cost,
        y=y or accuracy,
        by=by or None,
        max_gflops=max_gflops,
        top=top,
        thin=thin,
    )
    beside = runs / study
    folder = out or (beside / "report" if beside.is_dir() else Path(f"{study}-report"))
    files = write_front(front, formats, folder)
    if as_json:
        click.echo(to_json(front))
        return
    console = Console()
    console.print(front_table(front))
    console.print()
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)


@click.command()
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--families",
    nargs=2,
    metavar="NAME NAME",
    help="Compare two families of study A instead, by their names in its report.",
)
@runs_option
@uri_option
@json_option
@user_errors
def compare(
    a: str,
    b: str | None,
    families: tuple[str, str] | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Say which of two studies is better, A or [B].

    At equal inference cost, the best that each has for it; at equal tuning, the expected best of as
    many configurations, and of as many as each trains in the same time. Each with the probability
    that A is better. The two must be of the same data, folds and metrics.
    """
    import dataclasses

    from rich.console import Console

    from sftsearch.orchestrator.analysis import compare as comparisons
    from sftsearch.orchestrator.report.table import comparison_table

    if (b is None) == (families is None):
        raise click.UsageError("Name a second study, or two families with --families.")
    first = _read_study(a, runs, tracking_uri)
    if families is not None:
        found = comparisons.compare_families(first, families)
    else:
        found = comparisons.compare_studies(first, _read_study(str(b), runs, tracking_uri))
    if as_json:
        echo_json(dataclasses.asdict(found))
    else:
        Console().print(comparison_table(found))


@click.command()
@click.argument("study")
@runs_option
@uri_option
@json_option
@user_errors
def confirm(study: str, runs: Path, tracking_uri: str | None, as_json: bool) -> None:
    """Evaluate the front of STUDY on the test split, once.

    The look is recorded; a second call shows what the first one saw. Afterwards the study takes no
    further trials.
    """
    from rich.console import Console

    from sftsearch.orchestrator.analysis.front import summarise
    from sftsearch.orchestrator.confirm import confirm_study
    from sftsearch.orchestrator.report.formats import FORMATS, write_front
    from sftsearch.orchestrator.report.json_report import to_json
    from sftsearch.orchestrator.report.table import confirmed_table
    from sftsearch.orchestrator.studies import axes_of, find_study, mirror_study

    console = Console(stderr=as_json)
    folder = find_study(study, runs)
    with console.status("evaluating the front on the test split ..."):
        record = confirm_study(folder)
        problem = mirror_study(folder, runs, tracking_uri)
    x, y = axes_of(record)
    front = summarise(record, x=x, y=y)
    files = write_front(front, tuple(FORMATS), folder / "report")
    if as_json:
        click.echo(to_json(front))
    else:
        console.print(confirmed_table(front))
        console.print(f"\nReport: {files[0]}", highlight=False, soft_wrap=True)
    if problem:
        click.echo(f"MLflow lacks the test figures ({problem}); call this again later.", err=True)


def _read_study(name: str, runs: Path, tracking_uri: str | None) -> StudyRecord:
    """Read a study from its journal where that is here, else from MLflow."""
    from sftsearch.orchestrator.studies import find_study, list_studies, read_record
    from sftsearch.orchestrator.tracking.reader import read_study

    if tracking_uri is None or name in {folder.name for folder in list_studies(runs)}:
        return read_record(find_study(name, runs))
    return read_study(tracking_uri, name, runs)
