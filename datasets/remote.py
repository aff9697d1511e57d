"""Remote folders, behind a URI: `s3://BUCKET/PREFIX`, `gs://...`, `hdfs://...`.

They are read and written through Arrow's file systems; the last two are accepted, and not tested.
Credentials and endpoints come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...)
or the usual files, never from the URI.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sftsearch.datasets.errors import DatasetError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMES = ("s3", "gs", "hdfs")
CHUNK_BYTES = 8 << 20
CONNECT_SECONDS, REQUEST_SECONDS = 10, 60  # or a server that is gone would be waited for forever


def is_remote(text: str) -> bool:
    """Tell whether a text means a URI and not a path."""
    return "://" in text


class RemoteUnavailableError(UserError):
    """What is remote cannot be read or written now."""


class RemoteFolder:
    """A folder of files behind a URI; a file appears there when all of it has been written."""

    def __init__(self, uri: str, error: type[UserError] = DatasetError) -> None:
        """Take a URI; nothing is asked there yet. All problems raise `error`.

        Raises:
            error: it is none of `SCHEMES`, or has credentials, which would be recorded.
        """
        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES or not parts.netloc:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            got = _without_secrets(uri)
            raise error(f"A folder elsewhere must begin with {known}, but got '{got}'.")
        if "@" in parts.netloc or parts.query:
            raise error(
                f"Credentials and endpoints are read from the environment, not from a URI: leave "
                f"them out of '{_without_secrets(uri)}'."
            )
        self.uri = uri.rstrip("/")
        self._error = error

    def __truediv__(self, name: str) -> RemoteFolder:
        """Return the folder `name` in this one."""
        return RemoteFolder(f"{self.uri}/{name}", self._error)

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a file's content.

        Raises:
            error: there is no such file, it is longer than `limit`, or cannot be read.
        """
        with (
            self._explained("read", name),
            self._system.open_input_stream(self._path(name)) as stream,
        ):
            content: bytes = stream.read(limit + 1)
        if len(content) > limit:
            raise self._error(f"Cannot read {self.uri}: its '{name}' is too long.")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file."""
        with (
            self._explained("write", name),
            self._system.open_output_stream(self._path(name)) as stream,
        ):
            stream.write(content)

    def put(self, file: Path, name: str) -> None:
        """Put a file there."""
        with (
            self._explained("write", name),
            file.open("rb") as read,
            self._system.open_output_stream(self._path(name)) as write,
        ):
            shutil.copyfileobj(read, write, CHUNK_BYTES)

    def fetch(self, name: str, file: Path) -> None:
        """Fetch a file, which is there when it is complete."""
        unfinished = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
        try:
            with (
                self._explained("read", name),
                self._system.open_input_stream(self._path(name)) as read,
                unfinished.open("wb") as write,
            ):
                shutil.copyfileobj(read, write, CHUNK_BYTES)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of all files in a folder and those below, by name from here."""
        from pyarrow import fs

        start = self._path(folder) if folder else self._place
        with self._explained("read"):
            found = self._system.get_file_info(
                fs.FileSelector(start, recursive=True, allow_not_found=True)
            )
        cut = len(self._place.rstrip("/")) + 1
        return {info.path[cut:]: info.size for info in found if info.is_file}

    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one."""
        from pyarrow import fs

        with self._explained("read"):
            found = self._system.get_file_info(fs.FileSelector(self._place, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        with self._explained("read", name):
            return bool(self._system.get_file_info(self._path(name)).is_file)

    def remove(self, name: str) -> None:
        """Remove a file; that there is none is no mistake."""
        with self._explained("write"), contextlib.suppress(FileNotFoundError):
            self._system.delete_file(self._path(name))

    def remove_all(self) -> None:
        """Remove the folder."""
        with self._explained("write"), contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(self._place)

    def _path(self, name: str) -> str:
        return f"{self._place}/{name}"

    @property
    def _place(self) -> str:
        place: str = self._opened[1]
        return place

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        from pyarrow import fs

        parts = urlsplit(self.uri)
        if parts.scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            system = fs.S3FileSystem(
                endpoint_override=endpoint,
                region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
                connect_timeout=CONNECT_SECONDS,
                request_timeout=REQUEST_SECONDS,
            )
            return system, f"{parts.netloc}{parts.path}"
        found: tuple[Any, str] = fs.FileSystem.from_uri(self.uri)
        return found

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str = "") -> Iterator[None]:
        """Turn what a file system raises into one line."""
        from pyarrow import ArrowException

        try:
            yield
        except FileNotFoundError as error:
            raise self._error(f"Cannot {verb} {self.uri}: there is no '{name}'.") from error
        except (OSError, ArrowException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            what = " ".join(str(error).split())[:300].rstrip(".")
            raise self._error(f"Cannot {verb} {self.uri}: {what}.") from error


def _without_secrets(uri: str) -> str:
    """Strip from a URI what may be secret."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
