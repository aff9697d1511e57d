"""What a trial keeps: its log, checkpoint and weights, in a folder or behind a URI.

It belongs to the worker that the trial was handed to last: each handing-out has a fencing token,
greater than those before, and whoever comes with a smaller one keeps nothing any more. So a worker
that outlives its driver, or its node's connection, cannot spoil what a later one does.
"""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.remote import RemoteFolder, RemoteUnavailableError, is_remote
from sftsearch.datasets.writer import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
LOG = "trial.log"
OWNER = "owner"
"""File of a folder with the fencing token of the worker that may write there; also its lock."""
MAX_LOG_BYTES = 1 << 20


class StaleTokenError(RuntimeError):
    """The trial was handed to another worker meanwhile: this one must not touch it any more."""


class TrialFolder(ABC):
    """The files of one trial, whichever worker wrote them."""

    @abstractmethod
    def owner(self) -> int:
        """Return the fencing token of the worker that the trial was handed to; -1 for none."""

    @abstractmethod
    def take_over(self, fencing_token: int) -> None:
        """Let the worker with this token write, and none with a smaller one.

        Raises:
            StaleTokenError: somebody holds a greater one.
        """

    @abstractmethod
    def save(self, fencing_token: int, name: str, write: Callable[[Path], None]) -> None:
        """Keep what `write` writes to the path that it is given.

        Raises:
            StaleTokenError: another worker has the trial.
        """

    @abstractmethod
    def log(self, fencing_token: int, line: str) -> None:
        """Add a line to the log, unless that is long enough.

        Raises:
            StaleTokenError: another worker has the trial.
        """

    @abstractmethod
    def load(self, name: str) -> contextlib.AbstractContextManager[Path | None]:
        """Give the path of a file for the time of a block, None if the trial has none such."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the bytes of a file, 0 if the trial has none of this name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    def read_log(self) -> str:
        """Return the trial's log; empty where there is none."""
        return self._read(LOG)

    def _read(self, name: str) -> str:
        with self.load(name) as path:
            return path.read_text(errors="replace") if path else ""


def open_trial_folder(where: str, rank: int = 0) -> TrialFolder:
    """Return the trial's folder at a path or a URI, for one of the trial's workers."""
    return RemoteTrialFolder(where, rank) if is_remote(where) else LocalTrialFolder(Path(where))


class LocalTrialFolder(TrialFolder):
    """A folder that all workers see as it is: of this machine, or of a file system they share."""

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
        """Hold the folder for as long as the block runs."""
        with locked(self._path / OWNER, wait=True):
            if self.owner() != fencing_token:
                raise _stale(self._path)
            yield


class RemoteTrialFolder(TrialFolder):
    """Files behind a URI, below the token of the worker that wrote them.

    Object stores know no locks, so no worker writes where another one does. A later worker goes on
    from the newest file that one before it left; what a replaced worker still writes, nobody reads.
    """

    def __init__(self, uri: str, rank: int = 0) -> None:
        self._remote = RemoteFolder(uri, RemoteUnavailableError)
        # Workers of one trial have one fencing token: each writes a log of its own.
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
        """Return the logs of the trial's workers, the first one's first."""
        names = {name for _, name in self._files() if name.startswith(LOG)}
        return "".join(self._read(name) for name in sorted(names))

    def _files(self) -> dict[tuple[int, str], int]:
        """Return the sizes of what there is, by token and name."""
        found = {}
        for path, size in self._remote.sizes().items():
            token, _, name = path.partition("/")
            if token.isdecimal():
                found[int(token), name] = size
        return found


def _below(fencing_token: int, name: str) -> str:
    """Return where behind a URI a worker keeps a file."""
    return f"{fencing_token:012d}/{name}"


def _stale(folder: Path | str) -> StaleTokenError:
    return StaleTokenError(f"The trial in '{folder}' was handed to another worker.")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
