"""Command-line entry point.

Exit codes: 0 success; 1 failure; 2 wrong command line or study file; 130 interrupted. Heavy
packages (Ray, torch, MLflow) are imported inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.data import data
from sftsearch.orchestrator.cli.deploy import export, verify
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import (
    dataset_option,
    json_option,
    plugin_option,
    root_option,
    runs_option,
    uri_option,
)
from sftsearch.orchestrator.cli.output import make_output_lasting
from sftsearch.orchestrator.cli.plugins import check_model
from sftsearch.orchestrator.cli.reports import compare, confirm, pareto
from sftsearch.orchestrator.cli.spaces import check, init, models, price, schema
from sftsearch.orchestrator.cli.studies import delete, list_, show, status, ui
from sftsearch.orchestrator.cli.tables import simulate, table

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMMANDS = (
    check,
    price,
    init,
    models,
    check_model,
    schema,
    data,
    pareto,
    compare,
    confirm,
    export,
    verify,
    list_,
    status,
    show,
    delete,
    ui,
    table,
    simulate,
)

# \b keeps click from joining the lines below it.
HELP = """Find the Pareto front of accuracy against compute for multimodal fusion models.

\b
Quick start with the shipped study `stride`:
  sftsearch check   stride    validate the study file and report all errors
  sftsearch price   stride    compute the costs, without training
  sftsearch run     stride    search; add --resume to continue later
  sftsearch pareto  stride    report the front as HTML and other files
  sftsearch confirm stride    evaluate the front on the test split, once
  sftsearch export  stride    write the best model as ONNX; add --out FOLDER
  sftsearch ui                browse all trials in MLflow
"""


@click.group(context_settings=CONTEXT, help=HELP)
@click.version_option(package_name="sftsearch")
def main() -> None:
    """Group the commands; the help text is `HELP`."""
    make_output_lasting()


for command in COMMANDS:
    main.add_command(command)


@main.command(
    epilog="\b\nExamples:\n"
    "  sftsearch run stride\n"
    "  sftsearch run stride --resume\n"
    "  sftsearch run stride --dataset mine --runs s3://BUCKET/PREFIX"
)
@click.argument("file")
@click.option(
    "--resume", is_flag=True, help="Resume a study that has begun, or extend one that has ended."
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Address of a Ray cluster; `auto` finds the one that runs on this machine.",
)
@click.option("--ship-code", is_flag=True, help="Send this version of sftsearch to the nodes.")
@dataset_option
@root_option
@runs_option
@uri_option
@plugin_option
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
    and in MLflow. After an interruption, repeat the command with --resume.

    Press Ctrl-C once to finish the running trials and write the report, twice to stop now. To
    extend a study that has ended, raise `search.trials`, `max_epochs`, `max_hours` or
    `max_gpu_hours` in FILE and use --resume.
    """
    from rich.console import Console

    from sftsearch.orchestrator.cli.progress import ConsoleProgress
    from sftsearch.orchestrator.study import run_study

    if ship_code and address is None:
        raise click.UsageError("--ship-code needs a cluster: add --address.")
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
        call = console.resume_command(file, where, dataset, root, address, ship_code=ship_code)
        click.echo(f"Interrupted. Resume with: {call}", err=True)
        sys.exit(130)
    if not any(trial.status == "finished" for trial in result.record.trials):
        raise click.ClickException(
            f"No trial finished. `sftsearch status {result.name}{where}` shows the reasons."
        )
