"""Options shared by several commands."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import is_remote

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="Use this dataset instead of the file's, and add _NAME to the study's name. If it has "
    "other modalities, each alone and all together are searched.",
)
root_option = click.option(
    "--root", metavar="ROOT", help="Folder or URI of prepared datasets. Default: the local cache."
)


class RunsFolder(click.Path):
    """A parameter that accepts a folder or a URI."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Return the folder, or the local folder of the URI."""
        if not is_remote(str(value)):
            return Path(os.fsdecode(super().convert(value, param, ctx)))
        from sftsearch.orchestrator.storage.runs_folder import local_runs_folder

        try:
            return local_runs_folder(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)


runs_option = click.option(
    "--runs",
    type=RunsFolder(file_okay=False, path_type=Path),
    metavar="FOLDER",
    default=Path("runs"),
    show_default=True,
    envvar="SFTSEARCH_RUNS",
    help="Folder of all studies: a path or s3://BUCKET/PREFIX. Also $SFTSEARCH_RUNS.",
)
uri_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="URI of the MLflow server or store. Default: mlflow.db in the runs folder.",
)


PLUGINS = "sftsearch.plugins"
"""Key of the given plug-ins in click's context."""


def _load_plugins(
    ctx: click.Context, param: click.Parameter, files: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Import the given plug-ins before the command runs, which then knows the models by name."""
    if not files or ctx.resilient_parsing:
        return files
    from sftsearch.orchestrator.plugins import load_plugins

    ctx.meta[PLUGINS] = files
    try:
        load_plugins(files)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    return files


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=_load_plugins,
    expose_value=False,
    help="Python file with models or readers of your own, which is imported. May be repeated.",
)
