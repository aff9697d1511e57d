"""What commands have in common: options, how a mistake is shown, JSON, a sign of what goes on."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import is_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


class _StudyFileMistakes(click.ClickException):
    """The study file is wrong or not there, as a command may be."""

    exit_code = 2


def user_errors(command: F) -> F:
    """Show a user's mistake as one line (a study file's as one line each), without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            from sftsearch.search_spaces.load import NoStudyFileError
            from sftsearch.search_spaces.mistakes import StudyFileError

            in_file = isinstance(error, NoStudyFileError | StudyFileError)
            kind = _StudyFileMistakes if in_file else click.ClickException
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(130)

    return wrapped  # type: ignore[return-value]


def spinner(text: str) -> Any:
    """Return a context that shows, in a terminal, that something goes on."""
    from rich.console import Console

    return Console(stderr=True).status(f"{text} ...")


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


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
    """A folder, or a URI, for which there is a folder."""

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        """Return the local folder."""
        from sftsearch.orchestrator.storage.backup import runs_folder

        if not is_elsewhere(str(value)):
            return super().convert(value, param, context)
        try:
            return runs_folder(value)
        except UserError as error:
            self.fail(str(error), param, context)


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
