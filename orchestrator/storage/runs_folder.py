"""The folder of all studies, which may be remote: this machine then keeps a folder for it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sftsearch.datasets.catalog import cache_folder
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import RemoteFolder, RemoteUnavailableError, is_remote

REMOTE_URI = "remote-uri"
"""File of a local runs folder: the URI that it stands for."""


def local_runs_folder(runs: str | Path) -> Path:
    """Return the local folder of a runs folder, which may be a URI.

    A remote one has its journals, reports and MLflow's file in a folder of the cache.

    Raises:
        UserError: the URI is none that is known.
    """
    if not is_remote(str(runs)):
        return Path(runs).absolute()
    uri = RemoteFolder(str(runs), UserError).uri
    name = re.sub(r"[^\w.-]+", "-", uri.partition("://")[2])[:60]
    folder = cache_folder() / "runs" / f"{name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REMOTE_URI).write_text(uri)
    return folder


def remote_of(runs: Path) -> RemoteFolder | None:
    """Return what a local runs folder stands for; None where it is itself the runs folder.

    One that somebody else made names no bucket for us to ask with our credentials.
    """
    file = runs / REMOTE_URI
    if runs.parent != cache_folder() / "runs" or not file.is_file():
        return None
    return RemoteFolder(file.read_text().strip(), RemoteUnavailableError)


def describe_runs_folder(runs: Path) -> str:
    """Return how a user named a runs folder: by its path, or the URI it stands for."""
    remote = remote_of(runs)
    return remote.uri if remote else str(runs)
