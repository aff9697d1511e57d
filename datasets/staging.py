"""Stores that lie elsewhere: put there once, fetched once a node, verified, shared by its trials.

`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` and `hdfs://HOST:PORT/PATH` are read through Arrow's file
systems; the last two are accepted, and not tested. Credentials and endpoints come from the
environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...) or the usual files, never from the URI.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.store import MANIFEST, MAX_MANIFEST_BYTES, open_store, verify
from sftsearch.datasets.writing import locked, sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sftsearch.datasets.store import Store

SCHEMES = ("s3", "gs", "hdfs")
CHUNK_BYTES = 8 << 20
_CONNECT_SECONDS, _REQUEST_SECONDS = 10, 60  # or a server that is gone would be waited for forever


def check_uri(uri: str) -> str:
    """Return a URI without its last slash.

    Raises:
        DatasetError: it is none of `SCHEMES`, or has credentials, which would be recorded.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES or not parts.netloc:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise DatasetError(f"A root elsewhere must begin with {known}, but got '{_shown(uri)}'.")
    if "@" in parts.netloc or parts.query:
        raise DatasetError(
            f"Credentials and endpoints are read from the environment, not from a URI: leave them "
            f"out of '{_shown(uri)}'."
        )
    return uri.rstrip("/")


def _shown(uri: str) -> str:
    """Return a URI without what may be secret."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def publish(store: Store, root: str) -> str:
    """Put a store below a root, its manifest last, and return its URI.

    Raises:
        DatasetError: the root cannot be written to.
    """
    uri = f"{check_uri(root)}/{store.spec.name}"
    with _told("write", uri):
        system, path = _open(uri)
        for name in (*(f"{split}.arrow" for split in SPLITS), MANIFEST):
            with (
                (store.path / name).open("rb") as read,
                system.open_output_stream(f"{path}/{name}") as write,
            ):
                shutil.copyfileobj(read, write, CHUNK_BYTES)
    return uri


def stage(name: str, root: str, cache: Path) -> Path:
    """Return the folder of a store on this machine, fetched from its root the first time.

    Trials that ask at the same time wait for the one that fetches. What is fetched has its name
    only when all its checksums are those of the manifest.

    Raises:
        DatasetError: the root cannot be read, or what is there is no store or a damaged one.
    """
    uri = f"{check_uri(root)}/{name}"
    with _told("read", uri):
        system, path = _open(uri)
        with system.open_input_stream(f"{path}/{MANIFEST}") as stream:
            manifest = stream.read(MAX_MANIFEST_BYTES + 1)
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise DatasetError(f"Cannot read {uri}: its manifest is too long.")
    folder = cache / f"{name}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f".{folder.name}.lock", wait=True):
        if not folder.is_dir():
            _fetch(system, path, uri, manifest, folder)
    return folder


def _fetch(system: Any, path: str, uri: str, manifest: bytes, folder: Path) -> None:
    building = folder.parent / f".building-{folder.name}-{secrets.token_hex(8)}"
    building.mkdir()
    try:
        (building / MANIFEST).write_bytes(manifest)
        for split in SPLITS:
            file = f"{split}.arrow"
            with (
                _told("read", uri),
                system.open_input_stream(f"{path}/{file}") as read,
                (building / file).open("wb") as write,
            ):
                shutil.copyfileobj(read, write, CHUNK_BYTES)
            sync(building / file)
        try:
            verify(open_store(building))
        except DatasetError as error:
            what = str(error).partition(" is damaged ")[2].partition(". Delete")[0] or str(error)
            raise DatasetError(f"The store {uri} is damaged {what}.") from error
        sync(building)
        building.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _open(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path in it."""
    from pyarrow import fs

    parts = urlsplit(uri)
    if parts.scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        system = fs.S3FileSystem(
            endpoint_override=endpoint,
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_REQUEST_SECONDS,
        )
        return system, f"{parts.netloc}{parts.path}"
    found: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    return found


@contextlib.contextmanager
def _told(verb: str, uri: str) -> Iterator[None]:
    """Turn what a file system raises into one line."""
    from pyarrow import ArrowException

    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"Cannot {verb} {uri}: there is no such store.") from error
    except (OSError, ArrowException, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        what = " ".join(str(error).split())[:300].rstrip(".")
        raise DatasetError(f"Cannot {verb} {uri}: {what}.") from error
