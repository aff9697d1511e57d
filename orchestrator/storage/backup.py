"""Back up journals to a remote runs folder, from which any machine can resume a study.

The journal itself is in a local folder of the driver. A thread of the driver uploads new events in
segments while the driver holds the lease on the study.

Files below the URI:

| name | content |
| --- | --- |
| `STUDY/driver.json` | generation, last event in the backup, host, process, time, ended or not |
| `STUDY/journal/GENERATION/FIRST.jsonl` | events from number FIRST on, one a line |
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
    local_generation,
    read_driver,
    write_local_generation,
)
from sftsearch.orchestrator.storage.runs_folder import remote_of
from sftsearch.orchestrator.storage.segments import SegmentWriter, as_backed_up, read_segments
from sftsearch.search_spaces.study_name import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sftsearch.datasets.remote import RemoteFolder
    from sftsearch.orchestrator.storage.journal import Entry, Journal


class Backup:
    """Keeps a journal's backup up to date in its own thread while the driver holds the lease."""

    def __init__(self, journal: Journal, study: RemoteFolder, *, interval: float = 5.0) -> None:
        """Take over the study and upload the whole journal.

        Args:
            journal: of the study, open for writing.
            study: its remote folder.
            interval: seconds between two uploads.

        Raises:
            UserError: the remote folder cannot be written.
        """
        self.problem = ""
        """Why the last upload failed; empty if it succeeded."""
        self._journal, self._study, self._interval = journal, study, interval
        self._lease = Lease(study, journal.folder)
        self._writer = SegmentWriter(journal, study, self._lease.generation)
        self._update()
        write_local_generation(journal.folder, self._lease.generation)
        self._writer.remove_earlier()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="backup", daemon=True)
        self._thread.start()

    @property
    def taken_from(self) -> str:
        """The previous driver, if it was on another machine; else empty."""
        return self._lease.taken_from

    @property
    def taken_by(self) -> str:
        """The driver that took the study over from this one; empty while this one holds it."""
        return self._lease.taken_by

    def behind(self, listener: Callable[[Entry], None]) -> Callable[[Entry], None]:
        """Wrap a listener so that it runs in the backup's thread, where it may be slow."""
        return lambda entry: self._tasks.put(lambda: listener(entry))

    def check(self, entry: Entry) -> None:
        """Stop this driver if another one has taken over the study; a listener of the study.

        Raises:
            BackupError: another driver has taken over.
        """
        if self.taken_by:
            raise BackupError(
                f"The study '{self._journal.folder.name}' was taken over by {self.taken_by}: this "
                "driver stops."
            )

    def put_files(self, folder: str, files: Iterable[Path]) -> None:
        """Upload files to a folder beside the journal.

        Raises:
            UserError: the remote folder cannot be written.
        """
        for file in files:
            self._study.put(file, f"{folder}/{file.name}")

    def close(self, *, patience: float = 60.0) -> None:
        """Upload the remaining events; `problem` is set if some are missing."""
        self._tasks.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self.problem = self.problem or f"'{self._study.uri}' is too slow."

    def _follow(self) -> None:
        task: Callable[[], None] | None
        due, is_open = time.monotonic() + self._interval, True
        while is_open:
            try:
                task = self._tasks.get(timeout=max(0.0, due - time.monotonic()))
                is_open = task is not None
            except queue.Empty:
                task = None
            try:
                if task is not None:
                    task()
                if not is_open or time.monotonic() >= due:
                    due = time.monotonic() + self._interval
                    self._update(ended=not is_open)
                    self.problem = ""
            except Exception as error:  # never fail the study; try again at the next interval
                self.problem = str(error)

    def _update(self, *, ended: bool = False) -> None:
        """Upload new events; without any for a while, only renew the lease."""
        last = self._journal.last_id
        if not self._lease.is_due(last, ended=ended):
            return
        holder = self._lease.holder()
        if self.taken_by:
            return
        if holder is None:
            self._writer.start_over()
        self._writer.write(last)
        self._lease.renew(last, ended=ended)  # after the upload: it states what is backed up


def pull_all(runs: Path) -> None:
    """Update the local journals of all studies of a remote runs folder."""
    remote = remote_of(runs)
    for name in remote.folders() if remote else ():
        if re.fullmatch(NAME_PATTERN, name):  # a bucket's folders may have any name
            pull(runs / name)


def pull(folder: Path) -> None:
    """Update a study's local journal if a driver on another machine has continued the study.

    A local journal that conflicts with the backup is kept as `superseded-*`.

    Raises:
        UserError: the backup cannot be read.
    """
    runs = remote_of(folder.parent)
    if runs is None:
        return
    study = runs / folder.name
    driver = read_driver(study)
    if driver is None or driver.generation <= local_generation(folder):
        return
    rows = list(read_segments(study, driver))
    folder.mkdir(parents=True, exist_ok=True)
    local = list(read_rows(folder)) if (folder / FILE_NAME).is_file() else []
    try:
        if [as_backed_up(row) for row in local] != rows[: len(local)]:
            replace_journal(folder / f"superseded-{time.strftime('%Y%m%d-%H%M%S')}", local)
        replace_journal(folder, rows)
    except BusyError:
        return  # a driver on this machine runs the study: its journal is newer
    write_local_generation(folder, driver.generation)
