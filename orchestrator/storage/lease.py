"""Ensure that only one driver runs a remote study: the newest generation in `driver.json`.

Each driver takes a generation greater than all before. A driver that finds a greater one in
`driver.json` has lost the study and stops. So two drivers cannot both run a study, neither after a
machine that was given up comes back, nor if both start at the same moment.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.storage.journal import FILE_NAME
from sftsearch.orchestrator.storage.runs_folder import remote_of

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.remote import RemoteFolder

DRIVER = "driver.json"
GENERATION = "generation"
"""File in a study's local folder: generation of the last driver that ran it on this machine."""
MAX_DRIVER_BYTES = 1 << 16
DRIVER_BYTES = 512
"""Length of `driver.json`, filled with spaces: object stores give the length of a file before its
content, so a reader would get the wrong length of one that is replaced in between."""
HEARTBEAT_SECONDS = 60.0
"""After this time without an event, a driver writes `driver.json` again as a heartbeat."""
QUIET_SECONDS = 5 * HEARTBEAT_SECONDS
"""A driver without a heartbeat for this time counts as dead."""


class BackupError(UserError):
    """The backup cannot be read, or another driver has taken over the study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """Content of `driver.json`: the driver that holds the study."""

    generation: int
    through: int
    """The last event in the backup."""
    host: str
    pid: int
    time: float
    """Last heartbeat, Unix seconds."""
    ended: bool

    def __str__(self) -> str:
        return f"process {self.pid} on '{self.host}'"

    @property
    def is_here(self) -> bool:
        """Whether it runs or ran on this machine."""
        return self.host == socket.gethostname()


class Lease:
    """A driver's lease on a study, renewed by heartbeats until another driver takes over."""

    def __init__(self, study: RemoteFolder, folder: Path) -> None:
        """Choose a generation greater than all earlier ones; the first `renew` takes over.

        Args:
            study: the remote folder of the study.
            folder: its local one.

        Raises:
            UserError: `driver.json` cannot be read.
        """
        self._study = study
        previous = read_driver(study)
        earlier = (previous.generation if previous else 0, local_generation(folder))
        # The time distinguishes drivers that take over at the same moment.
        self.generation = max(max(earlier) + 1, time.time_ns())
        self.taken_from = "" if previous is None or previous.is_here else str(previous)
        """The previous driver, if it was on another machine; else empty."""
        self._host = socket.gethostname()
        self.taken_by = ""
        """The driver that took the study over from this one; empty while this one holds it."""
        self.through = 0
        """The last event in the backup, according to `driver.json`."""
        self._renewed_at = -math.inf

    def is_due(self, last: int, *, ended: bool) -> bool:
        """Return whether to renew: a new `last` event, the end, or a heartbeat is due."""
        is_quiet = time.monotonic() - self._renewed_at >= HEARTBEAT_SECONDS
        return not self.taken_by and (ended or last != self.through or is_quiet)

    def holder(self) -> Driver | None:
        """Return the driver in `driver.json`; set `taken_by` if it has taken over the study.

        Raises:
            UserError: `driver.json` cannot be read.
        """
        driver = read_driver(self._study)
        if driver is not None and driver.generation > self.generation:
            self.taken_by = str(driver)
        return driver

    def renew(self, through: int, *, ended: bool) -> None:
        """Write to `driver.json` that this driver holds the study, and what is backed up.

        Raises:
            UserError: `driver.json` cannot be written.
        """
        driver = Driver(
            generation=self.generation,
            through=through,
            host=self._host,
            pid=os.getpid(),
            time=time.time(),
            ended=ended,
        )
        self._study.write(DRIVER, json.dumps(asdict(driver)).encode().ljust(DRIVER_BYTES))
        self.through, self._renewed_at = through, time.monotonic()


def running_driver(folder: Path) -> str:
    """Return the driver on another machine that runs the study; empty if there is none.

    Raises:
        UserError: the backup cannot be read.
    """
    runs = remote_of(folder.parent)
    driver = read_driver(runs / folder.name) if runs else None
    if driver is None or driver.ended or driver.is_here:
        return ""
    return str(driver) if time.time() - driver.time < QUIET_SECONDS else ""


def read_driver(study: RemoteFolder) -> Driver | None:
    """Read `driver.json`; return None if it does not exist.

    Raises:
        UserError: its content is invalid.
    """
    if not study.has(DRIVER):
        return None
    try:
        found = json.loads(study.read(DRIVER, limit=MAX_DRIVER_BYTES))
        driver = Driver(**{field.name: found[field.name] for field in fields(Driver)})
        if _is_valid(driver):
            return driver
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
    raise damaged(study, f"'{DRIVER}' does not describe a driver")


def _is_valid(driver: Driver) -> bool:
    types = {"generation": int, "through": int, "host": str, "pid": int, "time": float}
    types |= {"ended": bool}
    has_types = all(type(getattr(driver, name)) is kind for name, kind in types.items())
    # The host is shown to users, so it must be a plain name.
    return has_types and re.fullmatch(r"[\w.-]{1,255}", driver.host) is not None


def local_generation(folder: Path) -> int:
    """Return the generation of the local journal, 0 without a journal."""
    file = folder / GENERATION
    if not ((folder / FILE_NAME).is_file() and file.is_file()):
        return 0
    text = file.read_text().strip()
    return int(text) if text.isdecimal() else 0


def write_local_generation(folder: Path, generation: int) -> None:
    """Record the generation of the local journal."""
    (folder / GENERATION).write_text(str(generation))


def damaged(study: RemoteFolder, problem: str) -> BackupError:
    """Return the error of a backup that cannot be read."""
    return BackupError(f"The backup in {study.uri} is damaged: {problem}.")
