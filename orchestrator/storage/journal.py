"""The one record of a study: an append-only table of events in SQLite, owned by the driver.

Everything else (Optuna's study, MLflow's runs, reports) is rebuilt or completed from it. An event
is durable against the death of the process once `append` returns (WAL, one transaction an event).

The events themselves are in `events`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NamedTuple

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.storage.events import RETIRED, parse_event

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from sftsearch.orchestrator.storage.event import Event

SCHEMA_VERSION = 1
FILE_NAME = "journal.sqlite"
LOCK_NAME = "driver.lock"
INSERT = "INSERT INTO events (id, time, kind, body) VALUES (?, ?, ?, ?)"
SELECT = "SELECT id, time, kind, body FROM events WHERE id > ? AND id <= ? ORDER BY id"


class JournalError(UserError):
    """A journal that cannot be opened, is damaged, or belongs to another driver or definition."""


class BusyError(JournalError):
    """A journal that another driver holds."""


class Row(NamedTuple):
    """One line of the journal as it is stored."""

    id: int
    """Position, from 1, without gaps."""
    time: float
    """Unix seconds."""
    kind: str
    body: str
    """JSON of the event."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    id: int
    """Position, from 1; what a retired version wrote is left out."""
    time: float
    """Unix seconds."""
    event: Event


class Journal:
    """The journal of one study, open for writing: at most one process holds it.

    Appending is thread-safe.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the journal in `folder`, making both if they are missing.

        Raises:
            JournalError: another driver has the study, the folder cannot be written, or the file is
            damaged or of another version.
        """
        self.folder = folder
        self._clock = clock
        self._mutex = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(folder)
        except OSError as error:
            raise JournalError(
                f"Cannot write the study's folder '{folder}': {error.strerror}."
            ) from error
        try:
            self._connection, self.last_id = _open_to_write(folder / FILE_NAME)
        except JournalError:
            self._lock.close()
            raise

    def append(self, event: Event) -> Entry:
        """Write one event durably and return its entry."""
        text = json.dumps(event.to_json(), separators=(",", ":"), allow_nan=False)
        with self._mutex:
            entry = Entry(self.last_id + 1, self._clock(), event)
            try:
                self._connection.execute(INSERT, (entry.id, entry.time, event.kind, text))
            except sqlite3.OperationalError as error:
                raise JournalError(
                    f"Cannot write the journal in '{self.folder}': {error}. The study stops here "
                    "and loses nothing: mend the disk and resume."
                ) from error
            self.last_id = entry.id
        return entry

    def entries(
        self, *, after: int = 0, through: int | None = None
    ) -> Generator[Entry, None, None]:
        """Yield the entries after the one numbered `after`, in order."""
        return read_entries(self.folder, after=after, through=through)

    def close(self) -> None:
        """Close the file and let other drivers have the study."""
        self._connection.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MemoryJournal:
    """A journal that is kept nowhere, for searches that are simulated."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.last_id = 0
        self._clock = clock
        self._entries: list[Entry] = []

    def append(self, event: Event) -> Entry:
        """Keep one event and return its entry."""
        self.last_id += 1
        entry = Entry(self.last_id, self._clock(), event)
        self._entries.append(entry)
        return entry

    def entries(self, *, after: int = 0, through: int | None = None) -> Iterator[Entry]:
        """Yield the entries after the one numbered `after`, in order."""
        return iter(self._entries[after:through])


def read_entries(
    folder: Path, *, after: int = 0, through: int | None = None
) -> Generator[Entry, None, None]:
    """Yield entries of a study's journal without taking it from its driver, and without writing.

    Raises:
        JournalError: there is no journal, or it is damaged or of another version.
    """
    for row in read_rows(folder, after=after, through=through):
        if row.kind not in RETIRED:
            try:
                event = parse_event(row.kind, json.loads(row.body))
            except (ValueError, TypeError, RecursionError) as error:
                raise _damaged(folder / FILE_NAME, error) from error
            yield Entry(row.id, row.time, event)


def read_rows(folder: Path, *, after: int = 0, through: int | None = None) -> Iterator[Row]:
    """Yield lines of a study's journal as they are stored, for a copy of it.

    Raises:
        JournalError: there is no journal, or it is damaged or of another version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise JournalError(f"There is no study in '{folder}' (no {FILE_NAME}).")
    previous = after
    try:
        with contextlib.closing(_open_to_read(path)) as connection:
            if _is_new(connection):
                return
            _check_version(connection, path)
            rows = connection.execute(SELECT, (after, through if through is not None else 2**62))
            for row in map(Row._make, rows):
                if row.id != previous + 1:
                    raise _damaged(path, f"event {previous + 1} is missing")
                previous = row.id
                yield row
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def replace_journal(folder: Path, rows: Iterable[Row]) -> None:
    """Put another journal in place of the one in `folder`, or where there is none.

    Raises:
        BusyError: a driver holds the one that is there.
        JournalError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_take_lock(folder)):
            _write_anew(folder / f"restored-{FILE_NAME}", rows)
            # What a killed driver left beside the old file belongs to that one.
            for beside in ("-wal", "-shm"):
                (folder / f"{FILE_NAME}{beside}").unlink(missing_ok=True)
            (folder / f"restored-{FILE_NAME}").replace(folder / FILE_NAME)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"Cannot write the journal in '{folder}': {error}.") from error


def _write_anew(path: Path, rows: Iterable[Row]) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(_open_to_write(path)[0]) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, rows)
        connection.execute("COMMIT")


def _open_to_write(path: Path) -> tuple[sqlite3.Connection, int]:
    """Return a connection that writes, with the number of the last event; make what is missing."""
    try:
        connection = sqlite3.connect(
            path, timeout=30, isolation_level=None, check_same_thread=False
        )
    except sqlite3.OperationalError as error:
        raise JournalError(f"Cannot open the journal '{path}': {error}.") from error
    try:
        if _is_new(connection):
            _create(connection)
        _check_version(connection, path)
        # The process may die at any moment and nothing is lost; after a power cut the last events
        # may be.
        connection.execute("PRAGMA synchronous=NORMAL")
        row = connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    except JournalError:
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, error) from error
    return connection, row[0]


def _create(connection: sqlite3.Connection) -> None:
    """Make the table and its version at once: killed half-way, there is neither."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, "
        "body TEXT NOT NULL)"
    )
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write, also where the folder is another user's."""
    options = "mode=ro"
    in_use = path.with_name(f"{path.name}-wal").exists()
    if not in_use and not os.access(path.parent, os.W_OK):
        options += "&immutable=1"  # SQLite could not make the files by which it locks
    uri = f"{path.absolute().as_uri()}?{options}"
    try:
        return sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise JournalError(f"Cannot open the journal '{path}': {error}.") from error


def _is_new(connection: sqlite3.Connection) -> bool:
    """Tell whether the file holds nothing yet: its driver is making it, or died doing so."""
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise JournalError(
            f"The journal '{path}' has schema version {version}, but this sftsearch reads "
            f"{SCHEMA_VERSION}: use the version of sftsearch that wrote it."
        )


def _damaged(path: Path, problem: object) -> JournalError:
    return JournalError(
        f"The journal '{path}' is damaged ({problem}). Restore it from a backup, or delete the "
        "study's folder to start anew."
    )


def driver_of(folder: Path) -> str:
    """Return the process that runs the study on this machine; empty if none does."""
    try:
        with (folder / LOCK_NAME).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "unknown"
    except OSError:  # never begun, or not ours to open
        return ""
    return ""


def _take_lock(folder: Path) -> IO[str]:
    """Hold an exclusive lock for as long as the returned file is open; it ends with the process."""
    lock = (folder / LOCK_NAME).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise BusyError(
            f"The study in '{folder}' is being run by another process (pid {owner}). "
            "Wait for it, or stop it, and use --resume."
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
