"""Remote stores: published once, fetched once a node, verified, shared by its trials."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.remote import RemoteFolder
from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.store import MANIFEST, MAX_MANIFEST_BYTES, open_store, verify
from sftsearch.datasets.writer import locked, sync

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store


def publish(store: Store, root: str) -> str:
    """Put a store below a root, its manifest last, and return its URI.

    Raises:
        DatasetError: the root cannot be written to.
    """
    remote = RemoteFolder(root) / store.spec.name
    for name in (*(f"{split}.arrow" for split in SPLITS), MANIFEST):
        remote.put(store.path / name, name)
    return remote.uri


def stage(name: str, root: str, cache: Path) -> Path:
    """Return the folder of a store on this machine, fetched from its root the first time.

    Trials that ask at the same time wait for the one that fetches. What is fetched has its name
    only when all its checksums are those of the manifest.

    Raises:
        DatasetError: the root cannot be read, or what is there is no store or a damaged one.
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
