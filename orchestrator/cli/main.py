"""Run the command line: each command parses, calls one function, prints, sets the exit code.

Exit codes: 0 all is well; 1 something went wrong; 2 the command or the study file is wrong; 130
interrupted. Heavy imports (Ray, torch, MLflow) are inside the commands, so that `--help` answers at
once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.data import data
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import (
    dataset_option,
    json_option,
    root_option,
    runs_option,
    uri_option,
)
from sftsearch.orchestrator.cli.reports import compare, confirm, pareto
from sftsearch.orchestrator.cli.spaces import check, models, price, schema
from sftsearch.orchestrator.cli.studies import delete, list_, show, status, ui
from sftsearch.orchestrator.cli.tables import simulate, table

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMMANDS = (
    check,
    price,
    models,
    schema,
    data,
    pareto,
    compare,
    confirm,
    list_,
    status,
    show,
    delete,
    ui,
    table,
    simulate,
)

# \b keeps click from folding the lines below it into one paragraph.
HELP = """Find the Pareto front of accuracy against compute for multimodal fusion models.

\b
A first walk:
  sftsearch check  stride     read a study file and say all its mistakes
  sftsearch price  stride     what its configurations cost, untrained
  sftsearch run    stride     search; --resume goes on after any interruption
  sftsearch pareto stride     write the front as a page and as files
  sftsearch confirm stride    look at the test split, once
  sftsearch ui                browse every trial in MLflow
"""


@click.group(context_settings=CONTEXT, help=HELP)
@click.version_option(package_name="sftsearch")
def main() -> None:
    """Hold the commands together; the help is `HELP`."""


for command in COMMANDS:
    main.add_command(command)


@main.command()
@click.argument("file")
@click.option(
    "--resume", is_flag=True, help="Go on with a study that has begun; extend one that ended."
)
@click.option("--address", metavar="ADDRESS", help="A Ray cluster; `auto`: the one started here.")
@click.option("--ship-code", is_flag=True, help="Send this sftsearch to the cluster's nodes.")
@dataset_option
@root_option
@runs_option
@uri_option
@json_option
@user_errors
def run(
    file: str,
    resume: bool,
    address: str | None,
    ship_code: bool,
    dataset: str | None,
    root: str | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Search the study FILE and report its front.

    FILE is a YAML file, or the name of a shipped study. Trials are recorded in the study's journal
    and in MLflow; whatever interrupts the search, the same command with --resume goes on where it
    stopped.

    Ctrl-C once adds no more trials, finishes those that run and reports; twice stops now. A study
    that has ended goes on with --resume too, when FILE asks for more: `search.trials`,
    `max_epochs`, `max_hours`, `max_gpu_hours`.
    """
    from rich.console import Console

    from sftsearch.orchestrator.cli.progress import ConsoleProgress
    from sftsearch.orchestrator.study import run_study

    if ship_code and address is None:
        raise click.UsageError("--ship-code is for a cluster: name it with --address.")
    with ConsoleProgress(Console(stderr=as_json)) as callback:
        result = run_study(
            file,
            runs=runs,
            resume=resume,
            tracking_uri=tracking_uri,
            address=address,
            ship_code=ship_code,
            dataset=dataset,
            root=root,
            callback=callback,
        )
    where = console.where_options(runs, tracking_uri)
    if as_json:
        console.echo_json(console.result_as_json(result) | {"ended": result.reason})
    else:
        console.print_result(result, where)
        if result.complete:
            click.echo(f"Ended: {result.reason}.")
    if not result.complete:
        click.echo(f"Interrupted. Go on with: sftsearch run {file} --resume{where}", err=True)
        sys.exit(130)
    if not any(trial.status == "finished" for trial in result.record.trials):
        raise click.ClickException("No trial finished: see the reasons above, or `sftsearch show`.")
