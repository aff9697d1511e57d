"""The one record of a study: an append-only table of events in SQLite, owned by the driver.

Everything else (Optuna's study, MLflow's runs, reports) is rebuilt or completed from it. An event
is durable against the death of the process once `append` returns (WAL, one transaction an event).

The events of a study, by kind:

| kind | when | body |
| --- | --- | --- |
| `created` | the study began | name, data set, objectives, definition, refused, facts |
| `imported` | the warm start | the other study, alike, differs, configurations, starts |
| `opened` | a driver took the study | budget (trials), slots |
| `proposed` | the sampler named a point | number, branch, values, carried (by some) |
| `refused` | admission refused it | number, reason, detail, excess |
| `admitted` | admission took it | number, configuration_id, cost, seeds, epochs, warmup, group |
| `fitted` | the surrogate was fitted | num, its hyperparameters |
| `replicated` | a configuration earned more trials | configuration_id, seeds |
| `expected` | what going on may gain was computed | number, gain |
| `started` | a worker begins or goes on | trial, epoch, configuration, seed, cost |
| `retried` | a trial's process died, or it lacked memory beside others | trial, reason, alone |
| `epoch` | an epoch of a trial ended | trial, epoch, metrics |
| `judged` | a trial may go on, by the stopping rule | trial, epoch, best, the decision |
| `stopped` | the stopping rule ended a trial | trial, epoch, reason, values, withdrawn, decision |
| `finished` | a trial ended with values | trial, values, groups, facts |
| `failed` | a trial ended without | trial, reason |
| `told` | the sampler was told a configuration's outcome | number, state, values |
| `frozen` | what is reported was chosen; it gets fresh trials | seeds by configuration |
| `recorded` | the study is a table: its trials look at the test split | |
| `concluded` | what is believed at the end | reported, beliefs, within_delta, audits |
| `mirrored` | MLflow holds everything up to an event | through |
| `ended` | the driver stopped | reason, complete |
| `confirmed` | the test split was looked at, once | trials |
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
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SCHEMA_VERSION = 1
FILE_NAME = "journal.sqlite"
LOCK_NAME = "driver.lock"


class JournalError(UserError):
    """A journal that cannot be opened, is damaged, or belongs to another driver or definition."""


class BusyError(JournalError):
    """A journal that another driver holds."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal."""

    id: int
    """Position, from 1, without gaps."""
    time: float
    """Unix seconds."""
    kind: str
    body: dict[str, Any]


class Journal:
    """The journal of one study, open for writing: at most one process holds it.

    Appending is thread-safe. `listen` registers a function that is called after each append, in the
    appending thread.
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
        self._listeners: list[Callable[[Event], None]] = []
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

    def append(self, kind: str, **body: Any) -> Event:
        """Write one event durably and return it."""
        with self._mutex:
            event = Event(self.last_id + 1, self._clock(), kind, body)
            text = json.dumps(body, separators=(",", ":"), allow_nan=False)
            try:
                self._connection.execute(
                    "INSERT INTO events (id, time, kind, body) VALUES (?, ?, ?, ?)",
                    (event.id, event.time, kind, text),
                )
            except sqlite3.OperationalError as error:
                raise JournalError(
                    f"Cannot write the journal in '{self.folder}': {error}. The study stops here "
                    "and loses nothing: mend the disk and resume."
                ) from error
            self.last_id = event.id
        for listener in self._listeners:
            listener(event)
        return event

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event that is appended from now on."""
        self._listeners.append(listener)

    def events(self, *, after: int = 0, through: int | None = None) -> Iterator[Event]:
        """Yield the events after the one numbered `after`, in order."""
        return read_events(self.folder, after=after, through=through)

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
        self._events: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []

    def append(self, kind: str, **body: Any) -> Event:
        """Keep one event and return it."""
        self.last_id += 1
        event = Event(self.last_id, self._clock(), kind, body)
        self._events.append(event)
        for listener in self._listeners:
            listener(event)
        return event

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event that is appended from now on."""
        self._listeners.append(listener)

    def events(self, *, after: int = 0, through: int | None = None) -> Iterator[Event]:
        """Yield the events after the one numbered `after`, in order."""
        return iter(self._events[after:through])


def read_events(folder: Path, *, after: int = 0, through: int | None = None) -> Iterator[Event]:
    """Yield events of a study's journal without taking it from its driver, and without writing.

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
            rows = connection.execute(
                "SELECT id, time, kind, body FROM events WHERE id > ? AND id <= ? ORDER BY id",
                (after, through if through is not None else 2**62),
            )
            for id_, moment, kind, body in rows:
                if id_ != previous + 1:
                    raise _damaged(path, f"event {previous + 1} is missing")
                previous = id_
                yield Event(id_, moment, kind, json.loads(body))
    except (sqlite3.DatabaseError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(path, error) from error


def replace_journal(folder: Path, events: Iterable[Event]) -> None:
    """Put another journal in place of the one in `folder`, or where there is none.

    Raises:
        BusyError: a driver holds the one that is there.
        JournalError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_take_lock(folder)):
            _write_anew(folder / f"restored-{FILE_NAME}", events)
            # What a killed driver left beside the old file belongs to that one.
            for beside in ("-wal", "-shm"):
                (folder / f"{FILE_NAME}{beside}").unlink(missing_ok=True)
            (folder / f"restored-{FILE_NAME}").replace(folder / FILE_NAME)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"Cannot write the journal in '{folder}': {error}.") from error


def _write_anew(path: Path, events: Iterable[Event]) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(_open_to_write(path)[0]) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO events (id, time, kind, body) VALUES (?, ?, ?, ?)",
            ((e.id, e.time, e.kind, json.dumps(e.body, allow_nan=False)) for e in events),
        )
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


def _take_lock(folder: Path) -> Any:
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
