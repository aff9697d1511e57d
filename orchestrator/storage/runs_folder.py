"""Resolve the runs folder of all studies; a remote one has a local folder in the cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sftsearch.datasets.catalog import cache_folder
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import RemoteFolder, RemoteUnavailableError, is_remote

REMOTE_URI = "remote-uri"
"""File in the local folder of a remote runs folder: its URI."""


def local_runs_folder(runs: str | Path) -> Path:
    """Return the local folder of a runs folder, which may be a URI.

    For a remote runs folder, a folder of the cache has its journals, reports and MLflow's file.

    Raises:
        UserError: the URI's scheme is not supported.
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
    """Return the remote folder of a local runs folder; None if the runs folder is local.

    Only folders in our cache count: a folder from another user must not name a bucket that we then
    access with our credentials.
    """
    file = runs / REMOTE_URI
    if runs.parent != cache_folder() / "runs" or not file.is_file():
        return None
    return RemoteFolder(file.read_text().strip(), RemoteUnavailableError)


def describe_runs_folder(runs: Path) -> str:
    """Return the runs folder as the user specified it: a path or a URI."""
    remote = remote_of(runs)
    return remote.uri if remote else str(runs)
