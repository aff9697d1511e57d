"""Commands that report results: pareto, compare and confirm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli.console import echo_json
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import (
    json_option,
    plugin_option,
    runs_option,
    uri_option,
)

if TYPE_CHECKING:
    from rich.console import Console

    from sftsearch.orchestrator.storage.study_record import StudyRecord


@click.command(
    epilog="\b\nExamples:\n"
    "  sftsearch pareto stride --x gmacs --max-gflops 0.001\n"
    "  sftsearch pareto stride --by pooling --format csv --out tables"
)
@click.argument("study")
@click.option("--x", default=None, help="Metric of the cost axis. Default: the study's cost.")
@click.option(
    "--y", default=None, help="Metric of the accuracy axis. Default: the study's accuracy."
)
@click.option(
    "--by",
    multiple=True,
    help="Parameter that defines families, in addition to the model; repeatable. Default: those "
    "that differ between branches of the space.",
)
@click.option("--max-gflops", type=float, help="Leave out configurations that cost more.")
@click.option(
    "--top", type=click.IntRange(min=1), help="Show this many configurations, the best by accuracy."
)
@click.option(
    "--thin",
    is_flag=True,
    help="Remove front points if another costs at most 2 % more and is at most 0.5 points worse.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("html", "csv", "json", "markdown", "png"),
    help="html, csv, json, markdown or png; repeatable. Default: all.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files. Default: `report` in the study's folder, or STUDY-report.",
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
    """Print the Pareto front of STUDY and write it to files.

    The study is read from MLflow only, so with --tracking-uri no runs folder is needed.
    """
    from rich.console import Console

    from sftsearch.orchestrator.analysis.analyse import analyse
    from sftsearch.orchestrator.analysis.front import FrontOptions
    from sftsearch.orchestrator.report.formats import write_report
    from sftsearch.orchestrator.report.json_report import to_json
    from sftsearch.orchestrator.report.table import front_table
    from sftsearch.orchestrator.tracking.client import default_uri
    from sftsearch.orchestrator.tracking.reader import read_study

    uri = tracking_uri or default_uri(runs)
    options = FrontOptions(x=x, y=y, by=by or None, max_gflops=max_gflops, top=top, thin=thin)
    analysis = analyse(read_study(uri, study, runs), options)
    home = runs / study
    folder = out or (home / "report" if home.is_dir() else Path(f"{study}-report"))
    files = write_report(analysis, formats, folder)
    if as_json:
        click.echo(to_json(analysis))
        return
    console = Console()
    console.print(front_table(analysis))
    console.print()
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)


@click.command(
    epilog="\b\nExamples:\n"
    "  sftsearch compare first second\n"
    "  sftsearch compare stride --families sft concat"
)
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--families",
    nargs=2,
    metavar="NAME NAME",
    help="Compare two families of study A, by their names in its report.",
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
    """Compare the studies A and [B], or two families of A.

    Shows the best accuracy at equal inference cost, and the expected best accuracy at equal tuning:
    with equally many configurations, and with equal training time. Each row has the probability
    that the first is better. Both must have the same data, folds and metrics.
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
@click.option("--yes", is_flag=True, help="Do not ask before the test split is evaluated.")
@click.option(
    "--refit",
    is_flag=True,
    help="Train the front again before, on training and validation, and export these weights.",
)
@runs_option
@uri_option
@plugin_option
@json_option
@user_errors
def confirm(
    study: str, yes: bool, refit: bool, runs: Path, tracking_uri: str | None, as_json: bool
) -> None:
    """Evaluate the front of STUDY on the test split, once.

    The baselines are evaluated, too. Says which configurations stand, whether their order turned,
    and what to take. The result is recorded; a second call shows the recorded values. Afterwards
    the study cannot be extended.

    With --refit the configurations of the front and the baselines are trained again before, on
    training and validation together, and `export` then has these weights.
    """
    from rich.console import Console

    from sftsearch.orchestrator.analysis.analyse import analyse
    from sftsearch.orchestrator.confirm import check_confirmable, confirm_study
    from sftsearch.orchestrator.report.formats import FORMATS, write_report
    from sftsearch.orchestrator.report.json_report import to_json
    from sftsearch.orchestrator.report.note import describe_study
    from sftsearch.orchestrator.report.table import confirmed_table
    from sftsearch.orchestrator.studies import find_study, mirror_study

    console = Console(stderr=as_json)
    folder = find_study(study, runs)
    record = check_confirmable(folder)
    if not record.confirmed and not yes:
        _ask(record, console)
    with console.status("evaluating the front on the test split ...") as status:
        record = confirm_study(
            folder,
            refit=refit,
            progress=lambda done, of: status.update(f"training again: {done} of {of} ..."),
        )
        analysis = analyse(record)
        note = describe_study(analysis)
        problem = mirror_study(folder, runs, tracking_uri, note=note)
    files = write_report(analysis, tuple(FORMATS), folder / "report")
    if as_json:
        click.echo(to_json(analysis))
    else:
        console.print(confirmed_table(analysis))
        console.print(f"\nReport: {files[0]}", highlight=False, soft_wrap=True)
    if problem:
        click.echo(f"MLflow lacks the test values ({problem}). Repeat the command later.", err=True)


def _ask(record: StudyRecord, console: Console) -> None:
    """Show what validation says, and ask whether to evaluate the test split.

    Raises:
        UserError: nobody can answer.
        Abort: the answer is no.
    """
    from sftsearch.datasets.errors import UserError
    from sftsearch.orchestrator.analysis.front import FrontOptions, build_front, mark_front
    from sftsearch.orchestrator.report.text import headline

    if not _can_ask():
        raise UserError(
            f"`confirm` asks before it evaluates the test split of '{record.name}', and nobody can "
            "answer here. Add --yes."
        )
    front = build_front(mark_front(record, FrontOptions()))
    console.print(headline(front), highlight=False, markup=False)
    click.confirm(
        f"Evaluate the {len(front.points)} configurations of the front on the test split? This can "
        "be done once, and the study can then not be extended.",
        abort=True,
        err=True,
    )


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _read_study(name: str, runs: Path, tracking_uri: str | None) -> StudyRecord:
    """Read a study from its journal if it is in the runs folder, else from MLflow."""
    from sftsearch.orchestrator.studies import find_study, list_studies, read_record
    from sftsearch.orchestrator.tracking.reader import read_study

    if tracking_uri is None or name in {folder.name for folder in list_studies(runs)}:
        return read_record(find_study(name, runs))
    return read_study(tracking_uri, name, runs)
