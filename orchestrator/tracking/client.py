"""Configure MLflow's client and find a study's experiment and runs."""

from __future__ import annotations

import glob
import logging
import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

# MLflow reads these at each request. Fail fast, as the mirror retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import URL, make_url

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.file_lock import locked
from sftsearch.orchestrator.storage.event import KEY_PATTERN
from sftsearch.orchestrator.tracking.moved_runs import follow_moved_runs
from sftsearch.orchestrator.tracking.uris import check_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import Run

    from sftsearch.orchestrator.storage.events import Created

PREFIX = "sftsearch."
BASELINE = "baseline "
"""Prefix of the keys of the runs of baselines, which have the tag `sftsearch.baseline`."""
TEST = "test_"
POSTERIOR = {"mean": "posterior_mean", "sd": "posterior_sd", "on_front": "front_probability"}
"""Field of a configuration's posterior -> metric in the runs of its trials."""
_PASSWORDS = (
    (r"(://[^/@\s]*?):[^/\s]*@", r"\1@"),
    # SQLAlchemy allows `/` in a password; after http://host: digits are a port.
    (r"((?<!http)(?<!https)://[^/@:\s]*):[^@\s]*@", r"\1@"),
    (r"(://[^/@:\s]*):(?!\d+/)[^@\s]*@", r"\1@"),
    (r"([?&](?:ssl)?passw(?:or)?d=)[^&\s'\")]*", r"\1***"),
)
"""Patterns of passwords in URIs, with their replacements."""

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)


class TrackingError(UserError):
    """MLflow cannot be reached, or does not have the study."""


def default_uri(runs: Path) -> str:
    """Return the default tracking URI: an SQLite file in the runs folder."""
    return sqlite_uri((runs / "mlflow.db").absolute())


def masked(text: str) -> str:
    """Remove passwords from a URI or a text with URIs: `postgresql://user@host/db`."""
    for pattern, shown in _PASSWORDS:
        text = re.sub(pattern, shown, text)
    return text


def sqlite_uri(path: Path) -> str:
    """Return the URI of a file, with the characters escaped that a URI cannot hold."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def open_client(uri: str, runs: Path) -> MlflowClient:
    """Return a client after checking that its store answers.

    Concurrent creations of an SQLite store would break each other, so it is created under a lock.
    One that exists may belong to somebody else, in a folder that only they can write.

    Raises:
        UserError: MLflow does not support the URI.
        TrackingError: the store does not answer.
    """
    check_uri(uri)
    try:
        if _is_missing(uri):
            runs.mkdir(parents=True, exist_ok=True)
            with locked(runs / "mlflow.lock", wait=True):
                _create_store(uri)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        if uri == default_uri(runs):
            follow_moved_runs(runs / "mlflow.db")
    except Exception as error:  # of MLflow, SQLAlchemy or requests
        raise no_answer(uri, error) from None  # the cause's text may contain the password
    return client


def _is_missing(uri: str) -> bool:
    """Return whether a store is an SQLite file that does not exist."""
    if not uri.startswith("sqlite:"):
        return False
    file = make_url(uri).database
    return file not in (None, "", ":memory:") and not Path(str(file)).exists()


def _create_store(uri: str) -> None:
    """Create an SQLite store that is missing, complete or not at all.

    MLflow creates the tables in many steps. If it is killed in between, it refuses the file.
    """
    if not _is_missing(uri):  # any more
        return
    path = Path(str(make_url(uri).database))
    unfinished = path.with_name(f"{path.name}.unfinished")
    for left in path.parent.glob(f"{glob.escape(unfinished.name)}*"):  # with SQLite's journal
        left.unlink()
    created = MlflowClient(tracking_uri=sqlite_uri(unfinished))
    created.search_experiments(max_results=1)
    unfinished.replace(path)


def find_experiment(client: MlflowClient, created: Created, runs: Path, uri: str) -> str:
    """Return the id of the study's experiment; create it if it is missing.

    Raises:
        TrackingError: the experiment of this name was deleted or belongs to another study.
    """
    name, definition = created.name, created.definition_hash
    found = client.get_experiment_by_name(name)
    if found is None:
        # With a local store the artifacts are in the runs folder; a server chooses their location.
        local = uri.startswith("sqlite:")
        where = (runs / "mlartifacts").absolute().as_uri() if local else None
        # Makes MLflow's UI show model training instead of traces of language models.
        tags = {f"{PREFIX}definition": definition}
        tags["mlflow.experimentKind"] = "custom_model_development"
        created_id: str = client.create_experiment(name, artifact_location=where, tags=tags)
        return created_id
    theirs = found.tags.get(f"{PREFIX}definition")
    if found.lifecycle_stage != "active" or theirs != definition:
        why = "was deleted" if found.lifecycle_stage != "active" else "belongs to another study"
        raise TrackingError(
            f"The MLflow experiment '{name}' at '{masked(uri)}' {why}: rename this study, or use "
            "another --tracking-uri."
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def find_runs(client: MlflowClient, experiment_id: str) -> dict[str, Run]:
    """Return a study's runs by trial key; the parent run's key is empty.

    The key of a baseline's run begins with `BASELINE`. Runs without a valid key are skipped: the
    user may have added them to the experiment.
    """
    runs = {}
    for run in _all_runs(client, experiment_id):
        key, baseline = (run.data.tags.get(f"{PREFIX}{name}") for name in ("trial", "baseline"))
        if baseline is not None:
            runs[f"{BASELINE}{baseline}"] = run
        elif key is not None and (not key or KEY_PATTERN.fullmatch(key)):
            runs[key] = run
    return runs


def _all_runs(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    """Yield the active runs of an experiment."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def delete_study(uri: str, name: str, runs: Path) -> None:
    """Delete a study's experiment and free its name; do nothing if it does not exist.

    Raises:
        TrackingError: MLflow does not answer, or the experiment is not a study.
    """
    client = open_client(uri, runs)
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return
        if f"{PREFIX}definition" not in experiment.tags:
            raise TrackingError(f"The MLflow experiment '{name}' is not a study; it was kept.")
        number = experiment.experiment_id
        if experiment.lifecycle_stage != "active":  # in MLflow's UI; only active ones are renamed
            client.restore_experiment(number)
        client.rename_experiment(number, f"{name} (deleted, experiment {number})")
        client.delete_experiment(number)
    except MlflowException as error:
        raise no_answer(uri, error) from None


def no_answer(uri: str, error: Exception) -> TrackingError:
    """Return the error for a server that does not answer."""
    return TrackingError(f"MLflow does not answer at '{masked(uri)}': {first_line(error)}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without passwords.

    Of the long messages of HTTP clients, only the operating system's reason is kept.
    """
    lines = masked(str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    if "Max retries exceeded" in lines[0]:
        reasons = list(re.finditer(r"\[Errno -?\d+\] ([^'\")(]+)|timed out", lines[0]))
        if reasons:
            return (reasons[-1][1] or reasons[-1][0]).strip()
    return textwrap.shorten(lines[0], 600, placeholder=" ...")
