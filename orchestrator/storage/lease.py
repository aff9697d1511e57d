"""Which driver has a remote study: the newest generation, as `driver.json` says.

Each driver takes a generation greater than those before. A driver that finds a greater one in
`driver.json` has lost the study and stops. So a study whose machine was given up, and came back,
cannot be run by two; nor one that two take in the same moment.
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
"""File of a study's local folder: the generation of the last driver that ran it here."""
MAX_DRIVER_BYTES = 1 << 16
HEARTBEAT_SECONDS = 60.0
"""After so long without an event, a driver writes `driver.json` anew: it is alive."""
QUIET_SECONDS = 5 * HEARTBEAT_SECONDS
"""A driver that did not for so long is taken for dead."""


class BackupError(UserError):
    """A backup that cannot be read, or a study that another driver has taken over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """What `driver.json` says of the driver that has the study."""

    generation: int
    through: int
    """The last event that is backed up."""
    host: str
    pid: int
    time: float
    """Of its last sign of life, Unix seconds."""
    ended: bool

    def __str__(self) -> str:
        """Say which one it is."""
        return f"process {self.pid} on '{self.host}'"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()


class Lease:
    """A driver's hold on a study, renewed by signs of life, until another driver takes over."""

    def __init__(self, study: RemoteFolder, folder: Path) -> None:
        """Choose a generation after all that were; the first `renew` takes the study over.

        Args:
            study: the remote folder of the study.
            folder: its local one.

        Raises:
            UserError: who has it cannot be read.
        """
        self._study = study
        before = read_driver(study)
        earlier = (before.generation if before else 0, generation_here(folder))
        # The time tells drivers apart that take the study in the same moment.
        self.generation = max(max(earlier) + 1, time.time_ns())
        self.taken_from = "" if before is None or before.is_here else str(before)
        """Which driver of another machine had the study last, if one had."""
        self.taken_by = ""
        """Which driver took the study over from this one; empty while it is ours."""
        self.through = 0
        """The last event that `driver.json` says is backed up."""
        self._renewed_at = -math.inf

    def is_due(self, last: int, *, ended: bool) -> bool:
        """Tell whether there is news, the journal's `last` event or its end, or none for long."""
        is_quiet = time.monotonic() - self._renewed_at >= HEARTBEAT_SECONDS
        return not self.taken_by and (ended or last != self.through or is_quiet)

    def holder(self) -> Driver | None:
        """Return who has the study as `driver.json` says, and note in `taken_by` if that is lost.

        Raises:
            UserError: it cannot be read.
        """
        driver = read_driver(self._study)
        if driver is not None and driver.generation > self.generation:
            self.taken_by = str(driver)
        return driver

    def renew(self, through: int, *, ended: bool) -> None:
        """Say that this driver has the study, and up to which event it is backed up.

        Raises:
            UserError: it cannot be said.
        """
        mine = Driver(
            generation=self.generation,
            through=through,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            ended=ended,
        )
        self._study.write(DRIVER, json.dumps(asdict(mine)).encode())
        self.through, self._renewed_at = through, time.monotonic()


def running_driver(folder: Path) -> str:
    """Return which driver of another machine runs a study of a local runs folder; empty if none.

    Raises:
        UserError: the backup cannot be read.
    """
    runs = remote_of(folder.parent)
    driver = read_driver(runs / folder.name) if runs else None
    if driver is None or driver.ended or driver.is_here:
        return ""
    return str(driver) if time.time() - driver.time < QUIET_SECONDS else ""


def read_driver(study: RemoteFolder) -> Driver | None:
    """Return what `driver.json` says; None where there is none.

    Raises:
        UserError: it is not one of a driver's.
    """
    if not study.has(DRIVER):
        return None
    try:
        found = json.loads(study.read(DRIVER, limit=MAX_DRIVER_BYTES))
        driver = Driver(**{field.name: found[field.name] for field in fields(Driver)})
        if _is_sound(driver):
            return driver
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
    raise damaged(study, f"'{DRIVER}' says nothing of a driver")


def _is_sound(driver: Driver) -> bool:
    types = {"generation": int, "through": int, "host": str, "pid": int, "time": float}
    types |= {"ended": bool}
    has_types = all(type(getattr(driver, name)) is kind for name, kind in types.items())
    # The host is shown to people.
    return has_types and re.fullmatch(r"[\w.-]{1,255}", driver.host) is not None


def generation_here(folder: Path) -> int:
    """Return the generation of the journal here, 0 where there is none (any more)."""
    file = folder / GENERATION
    if not ((folder / FILE_NAME).is_file() and file.is_file()):
        return 0
    text = file.read_text().strip()
    return int(text) if text.isdecimal() else 0


def note_generation_here(folder: Path, generation: int) -> None:
    """Note that the journal here is that of a driver's generation."""
    (folder / GENERATION).write_text(str(generation))


def damaged(study: RemoteFolder, problem: str) -> BackupError:
    """Return the error of a backup that cannot be read."""
    return BackupError(f"The backup in {study.uri} is damaged: {problem}.")
