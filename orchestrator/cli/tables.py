"""Record a space as a table, and measure searches on it: table and simulate."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.console import echo_json, spinner
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import json_option, runs_option, uri_option


@click.command()
@click.argument("file")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="T.parquet",
    help="The table to write, when everything is trained.",
)
@click.option(
    "--near",
    default=60,
    type=click.IntRange(min=0),
    show_default=True,
    help="How many configurations nearest the front get more replicates.",
)
@click.option(
    "--near-replicates",
    default=20,
    type=click.IntRange(min=1),
    show_default=True,
    help="How many replicates those have in the end.",
)
@runs_option
@uri_option
@user_errors
def table(
    file: str, out: Path, near: int, near_replicates: int, runs: Path, tracking_uri: str | None
) -> None:
    """Train the whole space of the study FILE into a table.

    FILE has the sampler `exhaustive` and a fixed number of replicates. Every epoch of every trial
    is recorded; then the configurations nearest the front get more replicates, for there a search
    must tell small differences. After any interruption the same command goes on.

    Searches are measured on the table with `sftsearch simulate`. The trials look at the test split,
    so such a study is never confirmed.
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
        click.echo("Interrupted. Go on with the same command.", err=True)
        sys.exit(130)
    recorded = read_table(out)
    replicates = recorded.num_replicates
    click.echo(
        f"{out}: {len(recorded.ids)} configurations, {replicates.min()} to {replicates.max()} "
        f"replicates, {recorded.num_epochs} epochs: {replicates.sum() * recorded.num_epochs:,} "
        f"rows, {out.stat().st_size / 1e6:.2f} MB."
    )
    click.echo(f"Next:   sftsearch simulate {file} --table {out}")


@click.command()
@click.argument("file")
@click.option(
    "--table",
    "table_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="T.parquet",
    help="What training would give, as `sftsearch table` recorded it.",
)
@click.option(
    "--workers",
    default=4,
    type=click.IntRange(1, 100_000),
    show_default=True,
    help="Trials that run at a time, asynchronously.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1_000_000),
    help="Simulate so many times with other seeds and replicates; print means.",
)
@json_option
@user_errors
def simulate(
    file: str, table_file: Path, workers: int, repetitions: int | None, as_json: bool
) -> None:
    """Run the study FILE on a recorded table, in seconds.

    It is the very same search with a simulated clock: trials take as long as they took when the
    table was recorded. FILE has the space and the training of the table, or a part of that space,
    and whichever sampler, stopping and replicates are to be measured.

    The budget regret is how far the reported front lies below the best of the table, on average
    over all budgets (the logarithm of the cost).
    """
    from sftsearch.orchestrator.benchmark import regret
    from sftsearch.orchestrator.benchmark.table import read_table
    from sftsearch.orchestrator.studies import check_study

    with spinner("reading the study file and the table"):
        source, _, admission = check_study(file)
        recorded = read_table(table_file)
    with spinner("simulating"):
        measured = regret.measure(
            source, admission, recorded, workers=workers, repetitions=repetitions
        )
    accuracy, cost = regret.axes_of(source)
    if as_json:
        echo_json(measured)
        return
    rows = regret.front_rows(measured, accuracy, cost)
    if rows:
        console.print_rows(rows, tuple(rows[0]))
        click.echo()
    click.echo(regret.describe(measured, accuracy))
