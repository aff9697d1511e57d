"""The command that checks models of one's own: check-model."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from sftsearch.orchestrator.cli.console import echo_json
from sftsearch.orchestrator.cli.errors import user_errors
from sftsearch.orchestrator.cli.options import json_option, root_option


@click.command(name="check-model", epilog="\b\nExample:\n  sftsearch check-model my_model.py")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--dataset", metavar="NAME", help="Check on the modalities of this dataset. Default: examples."
)
@root_option
@json_option
@user_errors
def check_model(file: Path, dataset: str | None, root: str | None, as_json: bool) -> None:
    """Check that the models in a Python FILE can be searched.

    FILE is imported, and each of its models and encoders is built with its default parameters. The
    checks are those of the shipped models: price, outputs, gradients, padding, missing modalities,
    saving. The exit code is 1 if one fails.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sftsearch.datasets.catalog import describe
    from sftsearch.orchestrator.plugins import ENCODER, contents_of, read_plugin
    from sftsearch.trainables.encoders import probe
    from sftsearch.trainables.plugin_checks import check_model as run_checks
    from sftsearch.trainables.plugin_checks import checked_spec

    spec = describe(dataset or "synthetic", root=root)
    if dataset is None:
        spec = checked_spec(spec)
    plugin = read_plugin(file)
    contents = contents_of(plugin)
    encoders = {name: probe(one) for name, one in contents.functions[ENCODER].items()}
    models = {**contents.models, **encoders}
    found = {name: run_checks(model, spec) for name, model in models.items()}
    failed = sum(not one.passed for checks in found.values() for one in checks)
    if as_json:
        results = {name: [dataclasses.asdict(one) for one in own] for name, own in found.items()}
        echo_json({"file": plugin.name, "sha256": plugin.sha256, "models": results})
        sys.exit(min(failed, 1))
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("model", "check", "", ""):
        table.add_column(column)
    for name, checks in found.items():
        for one in checks:
            verdict = Text("ok", "green") if one.passed else Text("FAILED", "red")
            table.add_row(Text(name), Text(one.name), verdict, Text(one.message))
    Console().print(table)
    if failed:
        raise click.ClickException(f"{failed} checks failed on {plugin}.")
    click.echo(f"{plugin} can be used: add --plugin {file} to `sftsearch run`.")
