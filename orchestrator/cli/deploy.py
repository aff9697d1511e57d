"""Commands that take models out of a study: export and verify."""

from __future__ import annotations

import dataclasses
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
    from sftsearch.orchestrator.deployment.card import Format
    from sftsearch.orchestrator.deployment.export import Export


@click.command(
    epilog="\b\nExamples:\n"
    "  sftsearch export stride --best --to onnx --out model\n"
    "  sftsearch export stride --max-gmacs 1e-5 --to pt2 --out model\n"
    "  sftsearch export stride 0ae7 --ensemble --to mlflow --out model --register activity"
)
@click.argument("study")
@click.argument("configuration", required=False)
@click.option(
    "--best", is_flag=True, help="The most accurate configuration of the front (default)."
)
@click.option("--max-gflops", type=float, help="The most accurate of the front up to this cost.")
@click.option("--max-gmacs", type=float, help="The most accurate of the front up to this cost.")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["onnx", "pt2", "safetensors", "mlflow"]),
    default="onnx",
    show_default=True,
    help="onnx: ONNX Runtime; pt2: torch.export; safetensors: weights alone; mlflow: MLflow model.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; it must not exist.",
)
@click.option(
    "--replicate",
    metavar="SEED",
    type=click.IntRange(min=0),
    help="Replicate to export. Default: the first with weights; of fresh replicates, if any.",
)
@click.option(
    "--ensemble", is_flag=True, help="Export the mean of all replicates, or of all fresh ones."
)
@click.option("--register", metavar="NAME", help="Register the MLflow model under this name.")
@runs_option
@uri_option
@plugin_option
@json_option
@user_errors
def export(
    study: str,
    configuration: str | None,
    best: bool,
    max_gflops: float | None,
    max_gmacs: float | None,
    kind: Format,
    out: Path,
    replicate: int | None,
    ensemble: bool,
    register: str | None,
    runs: Path,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Export a trained [CONFIGURATION] of STUDY to a folder.

    The folder works without this package. CONFIGURATION is its id, or the first characters of it.
    The export is compared with the trained model on validation samples; if it differs, nothing is
    written.
    """
    from sftsearch.orchestrator.deployment.choice import Choice
    from sftsearch.orchestrator.deployment.export import export_model
    from sftsearch.orchestrator.studies import find_study

    has_limit = max_gflops is not None or max_gmacs is not None
    if bool(configuration) + best + has_limit > 1:
        raise click.UsageError("Give a CONFIGURATION, or --best, or a limit.")
    if ensemble and replicate is not None:
        raise click.UsageError("Give --replicate or --ensemble.")
    if register and kind != "mlflow":
        raise click.UsageError("--register needs --to mlflow.")
    choice = Choice(configuration=configuration, max_gflops=max_gflops, max_gmacs=max_gmacs)
    folder = find_study(study, runs)
    made = export_model(folder, choice, kind=kind, out=out, replicate=replicate, ensemble=ensemble)
    version = _log(made, study, runs, tracking_uri, register) if kind == "mlflow" else ""
    if as_json:
        echo_json(dataclasses.asdict(made) | {"folder": str(made.folder), "version": version})
    else:
        _print(made, register, version)


def _log(
    made: Export, study: str, runs: Path, tracking_uri: str | None, register: str | None
) -> str:
    """Log a model to MLflow; without a name to register, a failure is only a notice."""
    from sftsearch.orchestrator.deployment.mlflow_model import log_export
    from sftsearch.orchestrator.tracking.client import TrackingError, default_uri

    trial = f"{made.configuration_id}-{made.seeds[0]}"
    uri = tracking_uri or default_uri(runs)
    try:
        return log_export(
            made.folder, study=study, trial=trial, uri=uri, runs=runs, register=register
        )
    except TrackingError as error:
        if register:
            raise
        click.echo(f"The model is not in MLflow: {error}", err=True)
        return ""


def _print(made: Export, register: str | None, version: str) -> None:
    fresh = "fresh " if made.is_fresh else ""
    which = f"{fresh}replicate {made.seeds[0]}"
    if len(made.seeds) > 1:
        which = f"mean of the {fresh}replicates {', '.join(map(str, made.seeds))}"
    click.echo(f"{made.model} {made.configuration_id}, {which}: {made.folder}")
    for name, size in made.files.items():
        click.echo(f"  {name:<24} {size / 1000:9.1f} kB")
    if v := made.verification:
        click.echo(
            f"Compared with the trained model on {v.num_samples} validation samples: largest "
            f"difference of a score {v.largest_error:.1e}, {v.num_decisions} decisions are equal."
        )
    if register:
        click.echo(f"Registered as version {version} of '{register}'.")
    elif made.kind == "onnx":
        click.echo(f"Try it: python {made.folder / 'predict.py'} sample.npz")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@user_errors
def verify(folder: Path) -> None:
    """Compare the files of an export in FOLDER with its checksums."""
    from sftsearch.orchestrator.deployment.folder import check_folder

    check_folder(folder)
    click.echo(f"All files of '{folder}' are as they were written.")
