"""Store a study's events in an append-only SQLite table, owned by the driver.

The journal is the only record of a study: Optuna's study, MLflow's runs and reports are rebuilt
from it. Once `append` returns, an event survives the death of the process (WAL, one transaction
per event). `events` defines the events.
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
from sftsearch.datasets.file_lock import take_lock
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
    """The journal cannot be opened, is damaged, or belongs to another driver or definition."""


class BusyError(JournalError):
    """Another driver holds the journal."""


class Row(NamedTuple):
    """One row of the journal as it is stored."""

    id: int
    """Position, from 1, without gaps."""
    time: float
    """Unix seconds."""
    kind: str
    body: str
    """JSON of the event."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the journal."""

    id: int
    """Position, from 1; positions of retired events are skipped."""
    time: float
    """Unix seconds."""
    event: Event


class Journal:
    """The journal of one study, open for writing: at most one process holds it.

    Appending is thread-safe.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the journal in `folder`; create both if missing.

        Raises:
            JournalError: another driver runs the study, the folder cannot be written, or the file
                is damaged or of another version.
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
                    f"Cannot write the journal in '{self.folder}': {error}. The study stops; "
                    "nothing is lost. Free disk space, then continue with --resume."
                ) from error
            self.last_id = entry.id
        return entry

    def entries(
        self, *, after: int = 0, through: int | None = None
    ) -> Generator[Entry, None, None]:
        """Yield the entries after the one numbered `after`, in order."""
        return read_entries(self.folder, after=after, through=through)

    def close(self) -> None:
        """Close the file and release the study for other drivers."""
        self._connection.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MemoryJournal:
    """A journal in memory, for simulated searches."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self.last_id = 0
        self._clock = clock
        self._entries: list[Entry] = []

    def append(self, event: Event) -> Entry:
        """Append one event and return its entry."""
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
    """Yield entries of a study's journal, read-only, also while a driver runs the study.

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
    """Yield rows of a study's journal as they are stored, to copy it.

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
    """Write a journal to `folder`, replacing the one that exists.

    Raises:
        BusyError: a driver holds the existing journal.
        JournalError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_take_lock(folder)):
            _write_new(folder / f"restored-{FILE_NAME}", rows)
            # These files, left by a killed driver, belong to the old journal.
            for suffix in ("-wal", "-shm"):
                (folder / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
            (folder / f"restored-{FILE_NAME}").replace(folder / FILE_NAME)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"Cannot write the journal in '{folder}': {error}.") from error


def _write_new(path: Path, rows: Iterable[Row]) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(_open_to_write(path)[0]) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, rows)
        connection.execute("COMMIT")


def _open_to_write(path: Path) -> tuple[sqlite3.Connection, int]:
    """Open a journal for writing, creating it if missing; return the last event's number too."""
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
        # Nothing is lost if the process dies; a power cut may lose the last events.
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
    """Create the table and its version in one transaction: a killed process leaves neither."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, "
        "body TEXT NOT NULL)"
    )
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, also if the folder belongs to another user."""
    options = "mode=ro"
    in_use = path.with_name(f"{path.name}-wal").exists()
    if not in_use and not os.access(path.parent, os.W_OK):
        options += "&immutable=1"  # SQLite could not create its lock files
    uri = f"{path.absolute().as_uri()}?{options}"
    try:
        return sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise JournalError(f"Cannot open the journal '{path}': {error}.") from error


def _is_new(connection: sqlite3.Connection) -> bool:
    """Return whether the file has no table yet: its driver is creating it, or died doing so."""
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise JournalError(
            f"The journal '{path}' has schema version {version}, but this sftsearch reads "
            f"{SCHEMA_VERSION}. Use the sftsearch version that wrote it."
        )


def _damaged(path: Path, problem: object) -> JournalError:
    return JournalError(
        f"The journal '{path}' is damaged ({problem}). Restore it from a backup, or delete the "
        "study's folder to start from scratch."
    )


def driver_of(folder: Path) -> str:
    """Return the id of the process that runs the study on this machine; empty if none does."""
    try:
        with (folder / LOCK_NAME).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "unknown"
    except OSError:  # the study was never started, or we may not open the file
        return ""
    return ""


def _take_lock(folder: Path) -> IO[str]:
    """Lock the study exclusively until the returned file is closed or the process ends."""
    lock = (folder / LOCK_NAME).open("a+")
    try:
        take_lock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise BusyError(
            f"The study in '{folder}' is being run by another process (pid {owner}). "
            "Wait for it or stop it, then use --resume."
        ) from error
    except OSError:
        lock.close()
        raise
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
