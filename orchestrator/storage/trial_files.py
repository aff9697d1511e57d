"""Store a trial's log, checkpoint and weights, in a local folder or at a URI.

The files belong to the worker to which the trial was assigned last. Each assignment has a fencing
token greater than all before, and a worker with a smaller token can no longer write. So a worker
that outlives its driver, or loses its connection, cannot damage the files of a later one.
"""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.file_lock import locked
from sftsearch.datasets.remote import RemoteFolder, RemoteUnavailableError, is_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
REFIT_WEIGHTS = "refit.safetensors"
"""Weights of a trial that was trained again on training and validation."""
LOG = "trial.log"
OWNER = "owner"
"""File with the fencing token of the worker that may write to the folder; also its lock."""
MAX_LOG_BYTES = 1 << 20


class StaleTokenError(RuntimeError):
    """The trial was assigned to another worker: this one must no longer write its files."""


class TrialFolder(ABC):
    """The files of one trial, written by any of its workers."""

    @abstractmethod
    def owner(self) -> int:
        """Return the fencing token of the worker that owns the trial; -1 if there is none."""

    @abstractmethod
    def take_over(self, fencing_token: int) -> None:
        """Allow the worker with this token to write, and none with a smaller one.

        Raises:
            StaleTokenError: another worker holds a greater token.
        """

    @abstractmethod
    def save(self, fencing_token: int, name: str, write: Callable[[Path], None]) -> None:
        """Save a file; `write` is called with the path to write to.

        Raises:
            StaleTokenError: another worker owns the trial.
        """

    @abstractmethod
    def log(self, fencing_token: int, line: str) -> None:
        """Append a line to the log, unless the log has reached its size limit.

        Raises:
            StaleTokenError: another worker owns the trial.
        """

    @abstractmethod
    def load(self, name: str) -> contextlib.AbstractContextManager[Path | None]:
        """Provide a local path of a file for the duration of a block; None if it does not exist."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the size of a file in bytes; 0 if it does not exist."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def read_log(self) -> str:
        """Return the trial's log; empty if there is none."""
        return self._read(LOG)

    def _read(self, name: str) -> str:
        with self.load(name) as path:
            return path.read_text(errors="replace") if path else ""


def open_trial_folder(where: str, rank: int = 0) -> TrialFolder:
    """Open the trial's folder at a path or a URI, for one of the trial's workers."""
    return RemoteTrialFolder(where, rank) if is_remote(where) else LocalTrialFolder(Path(where))


class LocalTrialFolder(TrialFolder):
    """A folder on this machine, or on a file system that all workers share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def owner(self) -> int:
        """See `TrialFolder.owner`."""
        try:
            text = (self._path / OWNER).read_text(errors="replace").strip()
        except FileNotFoundError:
            return -1
        return int(text) if text.isdecimal() else -1

    def take_over(self, fencing_token: int) -> None:
        """See `TrialFolder.take_over`."""
        self._path.mkdir(parents=True, exist_ok=True)
        with locked(self._path / OWNER, wait=True):
            if self.owner() > fencing_token:
                raise _stale(self._path)
            (self._path / OWNER).write_text(str(fencing_token))

    def save(self, fencing_token: int, name: str, write: Callable[[Path], None]) -> None:
        """See `TrialFolder.save`."""
        with self._owned(fencing_token):
            write(self._path / name)

    def log(self, fencing_token: int, line: str) -> None:
        """See `TrialFolder.log`."""
        with self._owned(fencing_token), (self._path / LOG).open("a", encoding="utf-8") as log:
            if log.tell() < MAX_LOG_BYTES:
                log.write(f"{line}\n")

    @contextlib.contextmanager
    def load(self, name: str) -> Iterator[Path | None]:
        """See `TrialFolder.load`."""
        path = self._path / name
        yield path if path.is_file() else None

    def size(self, name: str) -> int:
        """See `TrialFolder.size`."""
        path = self._path / name
        return path.stat().st_size if path.is_file() else 0

    def remove(self, name: str) -> None:
        """See `TrialFolder.remove`."""
        (self._path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _owned(self, fencing_token: int) -> Iterator[None]:
        """Lock the folder for the duration of the block."""
        with locked(self._path / OWNER, wait=True):
            if self.owner() != fencing_token:
                raise _stale(self._path)
            yield


class RemoteTrialFolder(TrialFolder):
    """Files at a URI, each below the fencing token of the worker that wrote it.

    Object stores have no locks, so each worker writes below its own token. A later worker resumes
    from the newest file of the earlier ones; files that a replaced worker still writes are unused.
    """

    def __init__(self, uri: str, rank: int = 0) -> None:
        self._remote = RemoteFolder(uri, RemoteUnavailableError)
        # The workers of one trial share a fencing token: each writes its own log.
        self._log_name = f"{LOG}.{rank}" if rank else LOG
        self._log = ""

    def owner(self) -> int:
        """See `TrialFolder.owner`."""
        return max((token for token, _ in self._files()), default=-1)

    def take_over(self, fencing_token: int) -> None:
        """See `TrialFolder.take_over`."""
        if self.owner() > fencing_token:
            raise _stale(self._remote.uri)
        self._log = self._read(self._log_name)
        self._remote.write(_below(fencing_token, OWNER), b"")

    def save(self, fencing_token: int, name: str, write: Callable[[Path], None]) -> None:
        """See `TrialFolder.save`."""
        if self.owner() > fencing_token:
            raise _stale(self._remote.uri)
        with tempfile.TemporaryDirectory(prefix="sftsearch-") as scratch:
            write(Path(scratch) / name)
            self._remote.put(Path(scratch) / name, _below(fencing_token, name))

    def log(self, fencing_token: int, line: str) -> None:
        """See `TrialFolder.log`."""
        if len(self._log) < MAX_LOG_BYTES:
            self._log += f"{line}\n"
            self.save(fencing_token, self._log_name, lambda path: _write_text(path, self._log))

    @contextlib.contextmanager
    def load(self, name: str) -> Iterator[Path | None]:
        """See `TrialFolder.load`."""
        written = [token for token, file in self._files() if file == name]
        if not written:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="sftsearch-") as scratch:
            self._remote.fetch(_below(max(written), name), Path(scratch) / name)
            yield Path(scratch) / name

    def size(self, name: str) -> int:
        """See `TrialFolder.size`."""
        return max((n for (_, file), n in self._files().items() if file == name), default=0)

    def remove(self, name: str) -> None:
        """See `TrialFolder.remove`."""
        for token, file in self._files():
            if file == name:
                self._remote.remove(_below(token, name))

    def read_log(self) -> str:
        """Return the logs of the trial's workers, in order of rank."""
        names = {name for _, name in self._files() if name.startswith(LOG)}
        return "".join(self._read(name) for name in sorted(names))

    def _files(self) -> dict[tuple[int, str], int]:
        """Return the sizes of all files, by token and name."""
        found = {}
        for path, size in self._remote.sizes().items():
            token, _, name = path.partition("/")
            if token.isdecimal():
                found[int(token), name] = size
        return found


def _below(fencing_token: int, name: str) -> str:
    """Return the path of a worker's file relative to the URI."""
    return f"{fencing_token:012d}/{name}"


def _stale(folder: Path | str) -> StaleTokenError:
    return StaleTokenError(f"The trial in '{folder}' was assigned to another worker.")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
