"""Commands about the studies of a runs folder: list, status, show, delete and ui."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sftsearch.orchestrator.cli import console
from sftsearch.orchestrator.cli.console import echo_json
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import json_option, runs_option, uri_option

if TYPE_CHECKING:
    from pathlib import Path

MAX_PAGES = 10
"""Number of studies whose pages `ui` lists."""


@click.command(name="list")
@runs_option
@json_option
@user_errors
def list_(runs: Path, as_json: bool) -> None:
    """List the studies of the runs folder."""
    from sftsearch.orchestrator.storage.runs_folder import describe_runs_folder
    from sftsearch.orchestrator.studies import list_studies

    rows = [console.study_row(folder) for folder in list_studies(runs)]
    if as_json:
        echo_json(rows)
    elif not rows:
        click.echo(
            f"No studies in '{describe_runs_folder(runs)}'. Start with: sftsearch run stride"
        )
    else:
        console.print_rows(
            rows, ("study", "dataset", "finished", "stopped", "failed", "running", "confirmed")
        )
        for row in rows:
            if row["problem"]:
                click.echo(f"{row['study']}: {row['problem']}", err=True)


@click.command()
@click.argument("study")
@runs_option
@json_option
@user_errors
def status(study: str, runs: Path, as_json: bool) -> None:
    """Show the progress and the failures of STUDY.

    Shows the number of trials by state, the reasons of failures and refusals, the audited share of
    wrong stops, how many events MLflow lacks, and the plug-ins that the study needs.
    """
    from sftsearch.orchestrator.plugins import FACT
    from sftsearch.orchestrator.studies import find_study, read_record, read_state

    folder = find_study(study, runs)
    record, state = read_record(folder), read_state(folder)
    plugins = {name: text for name, text in record.facts.items() if name.startswith(FACT)}
    facts = {"study": record.name, "folder": str(folder), **asdict(state), **console.counts(record)}
    facts["plugins"] = {name.removeprefix(FACT): text for name, text in plugins.items()}
    if as_json:
        echo_json(facts)
        return
    click.echo(f"{record.name}: {state.state} ({folder})")
    click.echo(
        f"{facts['finished']} of {state.trials} trials finished, {facts['stopped']} stopped, "
        f"{facts['failed']} failed, {facts['running']} unfinished"
        + ("." if state.unmirrored is None else f"; MLflow lacks {state.unmirrored} events.")
    )
    for name, text in plugins.items():
        click.echo(f"{name}: {text}")
    for line in console.describe_conclusion(record):
        click.echo(line)
    for reason, number in record.refused.items():
        click.echo(f"refused: {number} x {reason}")
    for trial in record.trials:
        if trial.status == "failed":
            click.echo(f"failed:  {trial.key}  {trial.reason}")


@click.command()
@click.argument("trial")
@runs_option
@json_option
@user_errors
def show(trial: str, runs: Path, as_json: bool) -> None:
    """Show the values and the log of one TRIAL.

    TRIAL is a trial's key, `CONFIGURATION-SEED`, or the first characters of it.
    """
    import dataclasses

    from sftsearch.orchestrator.studies import find_trial

    record, folder, log = find_trial(trial, runs)
    if as_json:
        echo_json(dataclasses.asdict(record) | {"folder": str(folder), "log": log})
        return
    when = "" if record.epoch is None else f" after epoch {record.epoch}"
    why = f": {record.reason}" if record.reason else ""
    click.echo(f"trial {record.key}: {record.status}{when}{why}")
    click.echo(f"{record.model} {json.dumps(record.configuration)} seed {record.seed}")
    for name, value in record.values.items():
        click.echo(f"  {name:<18} {value:.6g}")
    click.echo(f"{folder}\n")
    click.echo(log or "(no log)")


@click.command()
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@runs_option
@uri_option
@user_errors
def delete(study: str, yes: bool, runs: Path, tracking_uri: str | None) -> None:
    """Delete STUDY with its weights and its MLflow experiment.

    A running study is not deleted. MLflow keeps deleted experiments until `mlflow gc`.
    """
    from sftsearch.orchestrator.studies import delete_study, find_study

    folder = find_study(study, runs)
    if not yes:
        click.confirm(f"Delete '{folder}' and its experiment in MLflow?", abort=True)
    problem = delete_study(folder, runs, tracking_uri)
    click.echo(f"Deleted {folder}.")
    if problem:
        click.echo(f"MLflow still has the study: {problem}", err=True)


@click.command()
@click.option(
    "--port",
    default=5000,
    type=click.IntRange(1, 65535),
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 is all addresses of this machine.",
)
@click.option(
    "--login",
    is_flag=True,
    help="Require a login; the first user's password is $MLFLOW_AUTH_ADMIN_PASSWORD.",
)
@click.option(
    "--without-login", is_flag=True, help="Allow other machines to connect without a login."
)
@runs_option
@uri_option
@user_errors
def ui(
    port: int, host: str, login: bool, without_login: bool, runs: Path, tracking_uri: str | None
) -> None:
    """Serve the MLflow UI of the runs folder. Ctrl-C stops it.

    Only this machine can connect, unless --host is given.
    """
    from sftsearch.orchestrator.tracking import ui
    from sftsearch.orchestrator.tracking.client import default_uri, masked

    uri = tracking_uri or default_uri(runs)
    if uri.startswith(("http:", "https:")):
        where = masked(uri)
        click.echo(f"The MLflow server of these studies is {where}: open it in a browser.")
        return
    if host not in ("127.0.0.1", "localhost", "::1") and not (login or without_login):
        raise click.UsageError(
            f"With --host {host}, anyone who can reach port {port} of this machine could read, "
            "change and delete all studies. Add --login, or --without-login to allow this."
        )
    if tracking_uri is None and not runs.is_dir():
        raise click.UsageError(f"There is no folder '{runs}'. Say where the studies are: --runs.")
    pages = ui.pages_of_studies(uri, runs)
    server = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    click.echo(f"MLflow UI of {masked(uri)} on {server} (Ctrl-C stops it)")
    for name, page in list(pages.items())[:MAX_PAGES]:
        click.echo(f"  {name}: {server}/{page}")
    sys.exit(ui.serve_ui(uri, runs, port, host=host, login=login))
