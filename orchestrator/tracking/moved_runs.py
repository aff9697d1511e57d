"""Correct the artifact locations of an MLflow store whose runs folder was moved or copied.

MLflow stores them as absolute URIs.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, next to the store."""
COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"))


def follow_moved_runs(store: Path) -> int:
    """Point the artifact locations of an SQLite store to the folder next to it.

    Only locations in a folder `mlartifacts` that no longer exists are changed, and only if the
    folder next to the store exists. Nothing is changed in a store that cannot be written.

    Args:
        store: the file, such as `runs/mlflow.db`.

    Returns:
        The number of experiments and runs that were changed.
    """
    here = store.parent.absolute() / ARTIFACTS
    if not here.is_dir() or not store.is_file():
        return 0
    changed = 0
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(store)) as found:
        for old in _locations(found):
            if old != here.as_uri() and not _path(old).exists():
                with found:  # a transaction
                    changed += _replace(found, old, here.as_uri())
    return changed


def _locations(store: sqlite3.Connection) -> set[str]:
    """Return the URIs of the `mlartifacts` folders of all experiments."""
    rows = store.execute("SELECT artifact_location FROM experiments").fetchall()
    uris = (str(uri).rstrip("/") for (uri,) in rows)
    return {uri for uri in uris if uri.startswith("file:") and uri.endswith(f"/{ARTIFACTS}")}


def _replace(store: sqlite3.Connection, old: str, new: str) -> int:
    changed = 0
    for table, column in COLUMNS:
        done = store.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # names are constants
            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )
        changed += done.rowcount
    return changed


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
