"""Runs folders that lie elsewhere: trials keep their files there, and journals are backed up there.

The journal itself stays with the driver, in a folder of this machine. A thread of the driver puts
what it gained to the URI, in segments; on another machine the study goes on from there.

Each driver has a generation, greater than those before, and backs up below it. `driver.json` says
which one has the study: a driver that finds a greater one there stops. So a study whose machine
was given up, and came back, cannot be run by two; nor one that two take in the same moment.

Below the URI:

| name | what |
| --- | --- |
| `STUDY/driver.json` | generation, last event that is backed up, host, process, time, its end |
| `STUDY/journal/GENERATION/FIRST.jsonl` | events from the one numbered FIRST on, one a line |
| `STUDY/trials/TRIAL/TOKEN/...` | see `trial_folder` |
| `STUDY/report/...` | the report |
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.catalog import cache_folder
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.remote import Elsewhere, is_elsewhere
from sftsearch.orchestrator.storage.journal import (
    FILE_NAME,
    BusyError,
    Event,
    read_events,
    replace_journal,
)
from sftsearch.orchestrator.storage.trial_files import AwayError
from sftsearch.search_spaces.schema import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sftsearch.orchestrator.storage.journal import Journal

DRIVER = "driver.json"
PLACE = "elsewhere"
"""File of a local runs folder: the URI that it stands for."""
GENERATION = "generation"
"""File of a study's local folder: the generation of the last driver that ran it here."""
SEGMENT_BYTES = 4 << 20
MAX_SEGMENT_BYTES = 64 << 20
MAX_DRIVER_BYTES = 1 << 16
SIGN_SECONDS = 60.0
"""After so long without an event, a driver writes `driver.json` anew: it is alive."""
QUIET_SECONDS = 5 * SIGN_SECONDS
"""A driver that did not for so long is taken for dead."""


class BackupError(UserError):
    """A backup that cannot be read, or a study that another driver has taken over."""


def runs_folder(runs: str | Path) -> Path:
    """Return the local folder of a runs folder, which may be a URI.

    What is elsewhere has its journals, reports and MLflow's file in a folder of the cache.

    Raises:
        UserError: the URI is none that is known.
    """
    if not is_elsewhere(str(runs)):
        return Path(runs).absolute()
    uri = Elsewhere(str(runs), BackupError).uri
    name = re.sub(r"[^\w.-]+", "-", uri.partition("://")[2])[:60]
    folder = cache_folder() / "runs" / f"{name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLACE).write_text(uri)
    return folder


def elsewhere_of(runs: Path) -> Elsewhere | None:
    """Return what a local runs folder stands for; None where it is itself the runs folder.

    One that somebody else made names no bucket for us to ask with our credentials.
    """
    place = runs / PLACE
    if runs.parent != cache_folder() / "runs" or not place.is_file():
        return None
    return Elsewhere(place.read_text().strip(), AwayError)


def shown(runs: Path) -> str:
    """Return how a user named a runs folder: by its path, or the URI it stands for."""
    there = elsewhere_of(runs)
    return there.uri if there else str(runs)


def pull_all(runs: Path) -> None:
    """Bring the local journals of all studies elsewhere up to date."""
    there = elsewhere_of(runs)
    for name in there.folders() if there else ():
        if re.fullmatch(NAME_PATTERN, name):  # a bucket's folders may have any name
            pull(runs / name)


def pull(folder: Path) -> None:
    """Bring a study's local journal up to date, where another machine's driver went on with it.

    A journal here that says otherwise than the backup is kept beside, as `superseded-*`.

    Raises:
        UserError: the backup cannot be read.
    """
    runs = elsewhere_of(folder.parent)
    if runs is None:
        return
    there = runs / folder.name
    driver = _read_driver(there)
    if driver is None or driver["generation"] <= _generation_here(folder):
        return
    events = list(_restored(there, driver))
    folder.mkdir(parents=True, exist_ok=True)
    mine = list(read_events(folder)) if (folder / FILE_NAME).is_file() else []
    try:
        if mine != events[: len(mine)]:
            replace_journal(folder / f"superseded-{time.strftime('%Y%m%d-%H%M%S')}", mine)
        replace_journal(folder, events)
    except BusyError:
        return  # a driver of this machine is at it: what it has is newer
    (folder / GENERATION).write_text(str(driver["generation"]))


def running_driver(folder: Path) -> str:
    """Return which driver of another machine runs a study of a local runs folder; empty if none.

    Raises:
        UserError: the backup cannot be read.
    """
    runs = elsewhere_of(folder.parent)
    driver = _read_driver(runs / folder.name) if runs else None
    if driver is None or driver["ended"] or not _is_of_another(driver):
        return ""
    return _name_of(driver) if time.time() - driver["time"] < QUIET_SECONDS else ""


class Backup:
    """Puts what a study's journal gains to a URI, in a thread of its own."""

    def __init__(self, journal: Journal, there: Elsewhere, *, interval: float = 5.0) -> None:
        """Take the study over, and put all there that the journal has.

        Raises:
            UserError: nothing can be put there.
        """
        self.problem = ""
        """Why the last try failed; empty while all is well."""
        self._journal, self._there, self._interval = journal, there, interval
        before = _read_driver(there)
        earlier = (before["generation"] if before else 0, _generation_here(journal.folder))
        # The time tells drivers apart that take the study in the same moment.
        self._generation = max(max(earlier) + 1, time.time_ns())
        self._through, self._first = 0, 1  # that one is written anew until it is long enough
        self._sign_due = 0.0
        self._taken_by = ""
        self.taken_from = _name_of(before) if before and _is_of_another(before) else ""
        """Which driver of another machine had the study last, if one had."""
        self._put()
        (journal.folder / GENERATION).write_text(str(self._generation))
        self._remove_earlier()
        self._chores: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="backup", daemon=True)
        self._thread.start()

    def behind(self, listener: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a listener of the journal that is called in this thread, and may be slow."""
        return lambda event: self._chores.put(lambda: listener(event))

    def check(self, event: Event) -> None:
        """Stop a driver whose study another one has taken; a listener of the journal.

        Raises:
            BackupError: another driver has it.
        """
        if self._taken_by:
            raise BackupError(
                f"The study '{self._journal.folder.name}' was taken over by {self._taken_by}: this "
                "driver stops."
            )

    def put_files(self, folder: str, files: Iterable[Path]) -> None:
        """Put files to a folder beside the journal.

        Raises:
            UserError: they cannot be put there.
        """
        for file in files:
            self._there.put(file, f"{folder}/{file.name}")

    def close(self, *, patience: float = 60.0) -> None:
        """Put what is left; `problem` says whether something is missing."""
        self._chores.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problem = self.problem or f"'{self._there.uri}' is too slow."

    def _loop(self) -> None:
        chore: Callable[[], None] | None
        due, is_open = time.monotonic() + self._interval, True
        while is_open:
            try:
                chore = self._chores.get(timeout=max(0.0, due - time.monotonic()))
                is_open = chore is not None
            except queue.Empty:
                chore = None
            try:
                if chore is not None:
                    chore()
                if not is_open or time.monotonic() >= due:
                    due = time.monotonic() + self._interval
                    self._put(ended=not is_open)
                    self.problem = ""
            except Exception as error:  # whatever it is, the study goes on, this is tried again
                self.problem = str(error)

    def _put(self, *, ended: bool = False) -> None:
        """Put the events since the last time, and a sign of life where there are none for long."""
        last = self._journal.last_id
        is_due = ended or last != self._through or time.monotonic() >= self._sign_due
        if self._taken_by or not is_due:
            return
        driver = _read_driver(self._there)
        if driver is not None and driver["generation"] > self._generation:
            self._taken_by = _name_of(driver)
            return
        first = self._first if driver else 1  # where somebody deleted the backup, all of it anew
        if driver is None or last != self._through:
            first = self._put_segments(first, last)
        mine = {"generation": self._generation, "through": last, "host": socket.gethostname()}
        mine |= {"pid": os.getpid(), "time": time.time(), "ended": ended}
        self._there.write(DRIVER, json.dumps(mine).encode())
        self._through, self._first = last, first  # not before: what failed is tried again
        self._sign_due = time.monotonic() + SIGN_SECONDS

    def _put_segments(self, first: int, last: int) -> int:
        """Put these events; return the first one of the segment that the next ones belong to."""
        segment = bytearray()
        for event in self._journal.events(after=first - 1, through=last):
            line = json.dumps([event.id, event.time, event.kind, event.body], allow_nan=False)
            segment += line.encode() + b"\n"
            if event.id == last or len(segment) > SEGMENT_BYTES:
                name = f"{_segments(self._generation)}/{first:012d}.jsonl"
                self._there.write(name, bytes(segment))
                if event.id != last:
                    first, segment = event.id + 1, bytearray()
        return first

    def _remove_earlier(self) -> None:
        """Remove the backups of drivers before this one."""
        for name in self._there.sizes("journal"):
            if name < _segments(self._generation):
                self._there.remove(name)


def _generation_here(folder: Path) -> int:
    """Return the generation of the journal here, 0 where there is none (any more)."""
    file = folder / GENERATION
    if not ((folder / FILE_NAME).is_file() and file.is_file()):
        return 0
    text = file.read_text().strip()
    return int(text) if text.isdecimal() else 0


def _read_driver(there: Elsewhere) -> dict[str, Any] | None:
    """Return what `driver.json` says; None where there is none.

    Raises:
        UserError: it is not one of a driver's.
    """
    if not there.has(DRIVER):
        return None
    try:
        found = json.loads(there.read(DRIVER, limit=MAX_DRIVER_BYTES))
        types = {"generation": int, "through": int, "host": str, "pid": int}
        types |= {"time": float, "ended": bool}
        is_sound = all(type(found[name]) is kind for name, kind in types.items())
        if is_sound and re.fullmatch(r"[\w.-]{1,255}", found["host"]):  # it is shown to people
            return dict(found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
    raise _damaged(there, f"'{DRIVER}' says nothing of a driver")


def _restored(there: Elsewhere, driver: dict[str, Any]) -> Iterator[Event]:
    """Yield the events that a driver backed up.

    Raises:
        UserError: some are missing or are none.
    """
    last = 0
    for name in sorted(there.sizes(_segments(driver["generation"]))):
        for line in there.read(name, limit=MAX_SEGMENT_BYTES).splitlines():
            event = _parsed(line)
            if event is None or event.id != last + 1:
                raise _damaged(there, f"'{name}' has no event {last + 1}")
            if event.id > driver["through"]:
                return
            last = event.id
            yield event
    if last < driver["through"]:
        raise _damaged(there, f"events after {last} are missing")


def _parsed(line: bytes) -> Event | None:
    try:
        number, moment, kind, body = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    types = ((number, int), (moment, float), (kind, str), (body, dict))
    is_sound = all(type(value) is of for value, of in types)
    return Event(number, moment, kind, body) if is_sound else None


def _segments(generation: int) -> str:
    """Return the folder of a driver's segments; those of later drivers sort after it."""
    return f"journal/{generation:020d}"


def _name_of(driver: dict[str, Any]) -> str:
    return f"process {driver['pid']} on '{driver['host']}'"


def _is_of_another(driver: dict[str, Any]) -> bool:
    return bool(driver["host"] != socket.gethostname())


def _damaged(there: Elsewhere, problem: str) -> BackupError:
    return BackupError(f"The backup in {there.uri} is damaged: {problem}.")
