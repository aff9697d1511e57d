"""Publish stores to remote storage and fetch them, once per node, with verification."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.file_lock import locked
from sftsearch.datasets.remote import RemoteFolder
from sftsearch.datasets.spec import MANIFEST, SPLITS
from sftsearch.datasets.store import MAX_MANIFEST_BYTES, open_store, verify
from sftsearch.datasets.writer import sync

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store


def publish(store: Store, root: str) -> str:
    """Upload a store to a folder of the root, manifest last, and return its URI.

    Raises:
        DatasetError: the root cannot be written to.
    """
    remote = RemoteFolder(root) / store.spec.name
    for name in (*(f"{split}.arrow" for split in SPLITS), MANIFEST):
        remote.put(store.path / name, name)
    return remote.uri


def stage(name: str, root: str, cache: Path) -> Path:
    """Return the local folder of a remote store; fetch it the first time.

    Concurrent trials wait for the one that fetches. The folder appears only when all checksums
    match the manifest.

    Raises:
        DatasetError: the root cannot be read, or the store is missing or damaged.
    """
    remote = RemoteFolder(root) / name
    manifest = remote.read(MANIFEST, limit=MAX_MANIFEST_BYTES)
    folder = cache / f"{name}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f".{folder.name}.lock", wait=True):
        if not folder.is_dir():
            _fetch(remote, manifest, folder)
    return folder


def _fetch(remote: RemoteFolder, manifest: bytes, folder: Path) -> None:
    building = folder.parent / f".building-{folder.name}-{secrets.token_hex(8)}"
    building.mkdir()
    try:
        (building / MANIFEST).write_bytes(manifest)
        for split in SPLITS:
            remote.fetch(f"{split}.arrow", building / f"{split}.arrow")
            sync(building / f"{split}.arrow")
        try:
            verify(open_store(building))
        except DatasetError as error:
            what = str(error).partition(" is damaged ")[2].partition(". Delete")[0] or str(error)
            raise DatasetError(f"The store {remote.uri} is damaged {what}.") from error
        sync(building)
        building.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
