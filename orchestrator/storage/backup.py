"""Backups of journals: a study whose runs folder is remote goes on from there on any machine.

The journal itself stays with the driver, in a folder of this machine. A thread of the driver puts
what it gained to the URI, in segments, for as long as its lease on the study lasts.

Below the URI:

| name | what |
| --- | --- |
| `STUDY/driver.json` | generation, last event that is backed up, host, process, time, its end |
| `STUDY/journal/GENERATION/FIRST.jsonl` | events from the one numbered FIRST on, one a line |
| `STUDY/trials/TRIAL/TOKEN/...` | see `trial_files` |
| `STUDY/report/...` | the report |
"""

from __future__ import annotations

import queue
import re
import threading
import time
from typing import TYPE_CHECKING

from sftsearch.orchestrator.storage.journal import (
    FILE_NAME,
    BusyError,
    read_rows,
    replace_journal,
)
from sftsearch.orchestrator.storage.lease import (
    BackupError,
    Lease,
    generation_here,
    note_generation_here,
    read_driver,
)
from sftsearch.orchestrator.storage.runs_folder import remote_of
from sftsearch.orchestrator.storage.segments import SegmentWriter, as_backed_up, read_segments
from sftsearch.search_spaces.schema import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sftsearch.datasets.remote import RemoteFolder
    from sftsearch.orchestrator.storage.journal import Entry, Journal


class Backup:
    """Keeps a journal's backup up to date, in a thread of its own, while its lease lasts."""

    def __init__(self, journal: Journal, study: RemoteFolder, *, interval: float = 5.0) -> None:
        """Take the study over, and put all there that the journal has.

        Args:
            journal: of the study, open for writing.
            study: its remote folder.
            interval: seconds between two looks at what the journal gained.

        Raises:
            UserError: nothing can be put there.
        """
        self.problem = ""
        """Why the last try failed; empty while all is well."""
        self._journal, self._study, self._interval = journal, study, interval
        self._lease = Lease(study, journal.folder)
        self._writer = SegmentWriter(journal, study, self._lease.generation)
        self._update()
        note_generation_here(journal.folder, self._lease.generation)
        self._writer.remove_earlier()
        self._chores: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="backup", daemon=True)
        self._thread.start()

    @property
    def taken_from(self) -> str:
        """Which driver of another machine had the study last, if one had."""
        return self._lease.taken_from

    @property
    def taken_by(self) -> str:
        """Which driver took the study over from this one; empty while it is ours."""
        return self._lease.taken_by

    def behind(self, listener: Callable[[Entry], None]) -> Callable[[Entry], None]:
        """Return a listener of the study that is called in this thread, and may be slow."""
        return lambda entry: self._chores.put(lambda: listener(entry))

    def check(self, entry: Entry) -> None:
        """Stop a driver whose study another one has taken; a listener of the study.

        Raises:
            BackupError: another driver has it.
        """
        if self.taken_by:
            raise BackupError(
                f"The study '{self._journal.folder.name}' was taken over by {self.taken_by}: this "
                "driver stops."
            )

    def put_files(self, folder: str, files: Iterable[Path]) -> None:
        """Put files to a folder beside the journal.

        Raises:
            UserError: they cannot be put there.
        """
        for file in files:
            self._study.put(file, f"{folder}/{file.name}")

    def close(self, *, patience: float = 60.0) -> None:
        """Put what is left; `problem` says whether something is missing."""
        self._chores.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problem = self.problem or f"'{self._study.uri}' is too slow."

    def _follow(self) -> None:
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
                    self._update(ended=not is_open)
                    self.problem = ""
            except Exception as error:  # whatever it is, the study goes on, this is tried again
                self.problem = str(error)

    def _update(self, *, ended: bool = False) -> None:
        """Put the events since the last time, and a sign of life where there are none for long."""
        last = self._journal.last_id
        if not self._lease.is_due(last, ended=ended):
            return
        holder = self._lease.holder()
        if self.taken_by:
            return
        if holder is None:
            self._writer.start_over()
        self._writer.write(last)
        self._lease.renew(last, ended=ended)  # only then: what it says is there


def pull_all(runs: Path) -> None:
    """Bring the local journals of all studies of a remote runs folder up to date."""
    remote = remote_of(runs)
    for name in remote.folders() if remote else ():
        if re.fullmatch(NAME_PATTERN, name):  # a bucket's folders may have any name
            pull(runs / name)


def pull(folder: Path) -> None:
    """Bring a study's local journal up to date, where another machine's driver went on with it.

    A journal here that says otherwise than the backup is kept beside, as `superseded-*`.

    Raises:
        UserError: the backup cannot be read.
    """
    runs = remote_of(folder.parent)
    if runs is None:
        return
    study = runs / folder.name
    driver = read_driver(study)
    if driver is None or driver.generation <= generation_here(folder):
        return
    rows = list(read_segments(study, driver))
    folder.mkdir(parents=True, exist_ok=True)
    mine = list(read_rows(folder)) if (folder / FILE_NAME).is_file() else []
    try:
        if [as_backed_up(row) for row in mine] != rows[: len(mine)]:
            replace_journal(folder / f"superseded-{time.strftime('%Y%m%d-%H%M%S')}", mine)
        replace_journal(folder, rows)
    except BusyError:
        return  # a driver of this machine is at it: what it has is newer
    note_generation_here(folder, driver.generation)
