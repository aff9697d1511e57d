"""Read and write remote folders: `s3://BUCKET/PREFIX`, `gs://...`, `hdfs://...`.

The implementation uses the file systems of Arrow; gs and hdfs are untested.
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
CONNECT_SECONDS, REQUEST_SECONDS = 10, 60  # without limits a dead server blocks forever


def is_remote(text: str) -> bool:
    """Return whether a text is a URI rather than a path."""
    return "://" in text


class RemoteUnavailableError(UserError):
    """Remote storage cannot be read or written now."""


class RemoteFolder:
    """A remote folder; a file appears in it when it has been written completely."""

    def __init__(self, uri: str, error: type[UserError] = DatasetError) -> None:
        """Parse a URI without connecting. All problems raise `error`.

        Raises:
            error: the scheme is not in `SCHEMES`, or the URI has credentials, which would be
                recorded.
        """
        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES or not parts.netloc:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            got = _without_secrets(uri)
            raise error(f"A remote folder must begin with {known}, but got '{got}'.")
        if "@" in parts.netloc or parts.query:
            raise error(
                f"Credentials and endpoints are read from the environment, not from a URI. Remove "
                f"them from '{_without_secrets(uri)}'."
            )
        self.uri = uri.rstrip("/")
        self._error = error

    def __truediv__(self, name: str) -> RemoteFolder:
        """Return the subfolder `name`."""
        return RemoteFolder(f"{self.uri}/{name}", self._error)

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the content of a file.

        Raises:
            error: the file is missing, longer than `limit`, or cannot be read.
        """
        with (
            self._convert_errors("read", name),
            self._filesystem.open_input_stream(self._path(name)) as stream,
        ):
            content: bytes = stream.read(limit + 1)
        if len(content) > limit:
            raise self._error(f"Cannot read {self.uri}: '{name}' has more than {limit} bytes.")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file completely."""
        with (
            self._convert_errors("write", name),
            self._filesystem.open_output_stream(self._path(name)) as stream,
        ):
            stream.write(content)

    def put(self, file: Path, name: str) -> None:
        """Upload a file."""
        with (
            self._convert_errors("write", name),
            file.open("rb") as read,
            self._filesystem.open_output_stream(self._path(name)) as write,
        ):
            shutil.copyfileobj(read, write, CHUNK_BYTES)

    def fetch(self, name: str, file: Path) -> None:
        """Download a file; it appears when it is complete."""
        unfinished = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
        try:
            with (
                self._convert_errors("read", name),
                self._filesystem.open_input_stream(self._path(name)) as read,
                unfinished.open("wb") as write,
            ):
                shutil.copyfileobj(read, write, CHUNK_BYTES)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of all files in a folder, recursively, by path relative to this one."""
        from pyarrow import fs

        start = self._path(folder) if folder else self._root
        with self._convert_errors("read"):
            found = self._filesystem.get_file_info(
                fs.FileSelector(start, recursive=True, allow_not_found=True)
            )
        prefix = len(self._root.rstrip("/")) + 1
        return {info.path[prefix:]: info.size for info in found if info.is_file}

    def folders(self) -> list[str]:
        """Return the names of the direct subfolders."""
        from pyarrow import fs

        with self._convert_errors("read"):
            selector = fs.FileSelector(self._root, allow_not_found=True)
            found = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        with self._convert_errors("read", name):
            return bool(self._filesystem.get_file_info(self._path(name)).is_file)

    def remove(self, name: str) -> None:
        """Remove a file; a missing file is not an error."""
        with self._convert_errors("write"), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name))

    def remove_all(self) -> None:
        """Remove the folder."""
        with self._convert_errors("write"), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._root)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @property
    def _root(self) -> str:
        root: str = self._opened[1]
        return root

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path of the folder in it."""
        from pyarrow import fs

        parts = urlsplit(self.uri)
        if parts.scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            filesystem = fs.S3FileSystem(
                endpoint_override=endpoint,
                region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
                connect_timeout=CONNECT_SECONDS,
                request_timeout=REQUEST_SECONDS,
            )
            return filesystem, f"{parts.netloc}{parts.path}"
        found: tuple[Any, str] = fs.FileSystem.from_uri(self.uri)
        return found

    @contextlib.contextmanager
    def _convert_errors(self, verb: str, name: str = "") -> Iterator[None]:
        """Convert the errors of a file system to one line."""
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
    """Remove credentials and the query from a URI."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
