"""Define the options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import is_remote

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="Another data set than the file's; where it has other modalities, each alone and all "
    "together are searched. The study is called FILE_NAME.",
)
root_option = click.option(
    "--root", metavar="ROOT", help="Folder or URI of prepared data sets. Default: this machine's."
)


class RunsFolder(click.Path):
    """Take a folder, or a URI, for which there is a folder."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Return the local folder."""
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
    help="Of all studies: a path, or s3://BUCKET/PREFIX. Also $SFTSEARCH_RUNS.",
)
uri_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="MLflow's server or store. Default: mlflow.db in the runs folder.",
)
