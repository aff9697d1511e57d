"""Commands that benchmark samplers on recorded tables: table and simulate."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.console import echo_json, spinner
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import (
    json_option,
    plugin_option,
    runs_option,
    uri_option,
)


@click.command(epilog="\b\nExample:\n  sftsearch table digits_table --out digits.parquet")
@click.argument("file")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="T.parquet",
    help="Table to write when all trials have ended.",
)
@click.option(
    "--near",
    default=60,
    type=click.IntRange(min=0),
    show_default=True,
    help="Number of configurations nearest the front that get more replicates.",
)
@click.option(
    "--near-replicates",
    default=20,
    type=click.IntRange(min=1),
    show_default=True,
    help="Number of replicates of those configurations.",
)
@runs_option
@uri_option
@plugin_option
@user_errors
def table(
    file: str, out: Path, near: int, near_replicates: int, runs: Path, tracking_uri: str | None
) -> None:
    """Train all configurations of the study FILE; record a table.

    FILE needs the sampler `exhaustive` and a fixed number of replicates. Every epoch of every trial
    is recorded. Then the configurations nearest the front get more replicates, because small
    differences matter there. After an interruption, repeat the command to continue.

    `sftsearch simulate` runs searches on the table. The trials evaluate the test split, so such a
    study cannot be confirmed.
    """
    from rich.console import Console

    from sftsearch.orchestrator.benchmark.record import record_table
    from sftsearch.orchestrator.benchmark.table import read_table
    from sftsearch.orchestrator.cli.progress import ConsoleProgress

    with ConsoleProgress(Console()) as callback:
        complete = record_table(
            file,
            out,
            near=near,
            near_replicates=near_replicates,
            runs=runs,
            tracking_uri=tracking_uri,
            callback=callback,
        )
    if not complete:
        click.echo("Interrupted. Repeat the command to continue.", err=True)
        sys.exit(130)
    recorded = read_table(out)
    replicates = recorded.num_replicates
    click.echo(
        f"{out}: {len(recorded.ids)} configurations, {replicates.min()} to {replicates.max()} "
        f"replicates, {recorded.num_epochs} epochs: {replicates.sum() * recorded.num_epochs:,} "
        f"rows, {out.stat().st_size / 1e6:.2f} MB."
    )
    click.echo(f"Next:   sftsearch simulate {file} --table {out}")


@click.command(epilog="\b\nExample:\n  sftsearch simulate mine.yaml --table digits.parquet")
@click.argument("file")
@click.option(
    "--table",
    "table_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="T.parquet",
    help="Table recorded by `sftsearch table`.",
)
@click.option(
    "--workers",
    default=4,
    type=click.IntRange(1, 100_000),
    show_default=True,
    help="Number of concurrent trials.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1_000_000),
    help="Repeat with other seeds and replicates, and print means.",
)
@plugin_option
@json_option
@user_errors
def simulate(
    file: str, table_file: Path, workers: int, repetitions: int | None, as_json: bool
) -> None:
    """Run the study FILE on a recorded table, in seconds.

    The search is the same as in a real run, on a simulated clock: trials take as long as they took
    when the table was recorded. FILE has the dataset, training and space of the table (or a part of
    the space), and the sampler, early stopping and replicates to measure.

    The budget regret is the distance of the reported front below the best front of the table,
    averaged over all budgets on a log scale of the cost.
    """
    from sftsearch.orchestrator.benchmark import regret
    from sftsearch.orchestrator.benchmark.table import read_table
    from sftsearch.orchestrator.objectives import Objectives
    from sftsearch.orchestrator.study_file import check_study

    with spinner("reading the study file and the table"):
        source, _, admission = check_study(file)
        recorded = read_table(table_file)
    with spinner("simulating"):
        measured = regret.measure(
            source, admission, recorded, workers=workers, repetitions=repetitions
        )
    objectives = Objectives.of_study(source.study)
    if as_json:
        echo_json(measured)
        return
    rows = regret.front_rows(measured, objectives.y, objectives.searched_cost)
    if rows:
        console.print_rows(rows, tuple(rows[0]))
        click.echo()
    click.echo(regret.describe(measured, objectives.y))
