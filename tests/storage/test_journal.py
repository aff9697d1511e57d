"""Journals lose no acknowledged event, have one writer at a time and report damage in one line."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.events import Created, Opened, Recorded
from sftsearch.orchestrator.storage.journal import (
    FILE_NAME,
    LOCK_NAME,
    SCHEMA_VERSION,
    Journal,
    JournalError,
    read_entries,
    read_rows,
)
from sftsearch.orchestrator.storage.trial_events import Failed, Finished

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITER = """
import sys
from pathlib import Path
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.journal import Journal
from sftsearch.orchestrator.storage.trial_events import Failed
with Journal(Path(sys.argv[1])) as journal:
    while True:
        entry = journal.append(Failed(TrialKey("t", 0), f"{journal.last_id} " * 50))
        print(entry.id, flush=True)
"""


@contextlib.contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that appends events forever and prints the number of each written one."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


KEY = TrialKey("t", 0)


def ids_of(folder: Path, **part: Any) -> list[int]:
    return [entry.id for entry in read_entries(folder, **part)]


def test_journal_returns_events_as_they_were_appended(tmp_path: Path) -> None:
    ticks = itertools.count(100.5)
    events = [
        Failed(KEY, "broken \u2028 ü"),
        Recorded(),
        Finished(KEY, {"top1": 1e-300, "parameters": 2**53}, {"s1": [1.0, 2.0]}, {"gpu": None}),
    ]
    with Journal(tmp_path / "deep" / "study", clock=lambda: next(ticks)) as journal:
        appended = [journal.append(event) for event in events]
        assert list(journal.entries()) == appended
    assert [(entry.id, entry.time, entry.event) for entry in appended] == [
        (i + 1, 100.5 + i, event) for i, event in enumerate(events)
    ]


def test_journal_numbers_have_no_gaps_after_reopening(tmp_path: Path) -> None:
    for _ in range(4):
        with Journal(tmp_path) as journal:
            for _ in range(5):
                journal.append(Recorded())
    assert ids_of(tmp_path) == list(range(1, 21))
    assert ids_of(tmp_path, after=7, through=9) == [8, 9]
    assert ids_of(tmp_path, after=20) == []


def test_journal_allows_threads_to_append_and_read_concurrently(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:

        def append(name: int) -> None:
            for i in range(40):
                journal.append(Opened(trials=name, slots=i))
                list(journal.entries(after=journal.last_id - 1))

        threads = [threading.Thread(target=append, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    entries = list(read_entries(tmp_path))
    assert [entry.id for entry in entries] == list(range(1, 161))
    opened = [entry.event for entry in entries if isinstance(entry.event, Opened)]
    for name in range(4):
        assert [event.slots for event in opened if event.trials == name] == list(range(40))


def test_append_refuses_non_json_values_and_leaves_no_gap(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(Recorded())
        with pytest.raises(ValueError, match="JSON compliant"):
            journal.append(Finished(KEY, {"top1": float("nan")}, {}))
        with pytest.raises(TypeError, match="not JSON serializable"):
            journal.append(Finished(KEY, {}, {}, {"thing": object()}))
        journal.append(Recorded())
    assert ids_of(tmp_path) == [1, 2]


def test_read_entries_skips_retired_kinds_that_read_rows_keeps(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for _ in range(3):
            journal.append(Recorded())
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("UPDATE events SET kind = 'mirrored', body = '{}' WHERE id = 2")
        connection.commit()
    assert ids_of(tmp_path) == [1, 3]
    assert [row.id for row in read_rows(tmp_path)] == [1, 2, 3]


def test_journal_refuses_a_second_driver_and_names_the_first_ones_pid(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(JournalError) as caught:
            Journal(tmp_path)
        assert str(caught.value) == (
            f"The study in '{tmp_path}' is being run by another process (pid {process.pid}). Wait "
            "for it or stop it, then use --resume."
        )
    Journal(tmp_path).close()
    assert (tmp_path / LOCK_NAME).read_text() == str(os.getpid())


def test_journal_cannot_be_opened_twice_by_one_process(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(JournalError, match=f"pid {os.getpid()}"):
        Journal(tmp_path)
    Journal(tmp_path).close()


@pytest.mark.medium
def test_journal_loses_no_acknowledged_event_when_its_writer_is_killed(tmp_path: Path) -> None:
    """Kill the writer at five random moments: every printed event is in the journal, in order."""
    random_ = random.Random(0)
    acknowledged = 0
    for _ in range(5):
        with writer(tmp_path) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random_.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            printed = process.stdout.read().split("\n")[:-1]  # complete lines only
            process.wait()
        acknowledged = max([acknowledged, *map(int, printed)])
        ids = ids_of(tmp_path)
        assert ids == list(range(1, len(ids) + 1))
        assert acknowledged <= len(ids) <= acknowledged + 1  # killed before the last was printed
    assert acknowledged > 50
    with Journal(tmp_path) as journal:
        assert journal.last_id == len(ids_of(tmp_path))
    for entry in read_entries(tmp_path):
        assert entry.event == Failed(KEY, f"{entry.id - 1} " * 50)


@pytest.mark.medium
def test_read_entries_sees_a_complete_prefix_while_another_process_writes(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        assert process.stdout is not None
        seen, end = 0, time.monotonic() + 1
        acknowledged = int(process.stdout.readline())
        while time.monotonic() < end:
            ids = ids_of(tmp_path)
            assert ids == list(range(1, len(ids) + 1))
            assert len(ids) >= max(seen, acknowledged)
            seen, acknowledged = len(ids), int(process.stdout.readline())
        assert seen > 5
        assert process.poll() is None


# ------------------------------------------------------------------- damage


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return the folder of a journal with 400 events."""
    with Journal(tmp_path) as journal:
        for i in range(400):
            journal.append(Failed(TrialKey("t", i), "x" * 100))
    return tmp_path


def errors_of(folder: Path) -> list[str]:
    """Return the errors of a reader and of a driver; both must leave the file unchanged."""
    before = (folder / FILE_NAME).read_bytes()
    messages = []
    for use in (lambda: ids_of(folder), lambda: Journal(folder).close()):
        try:
            use()
        except JournalError as error:
            messages.append(str(error))
    assert (folder / FILE_NAME).read_bytes() == before
    return messages


def test_reader_and_driver_report_a_file_that_is_no_database(study: Path) -> None:
    (study / FILE_NAME).write_bytes(random.Random(0).randbytes(10_000))
    message = (
        f"The journal '{study / FILE_NAME}' is damaged (file is not a database). Restore it from a "
        "backup, or delete the study's folder to start from scratch."
    )
    assert errors_of(study) == [message, message]


@pytest.mark.parametrize("seed", range(5))
def test_random_damage_is_harmless_or_reported_in_one_line(study: Path, seed: int) -> None:
    random_ = random.Random(seed)
    content = bytearray((study / FILE_NAME).read_bytes())
    for _ in range(40):
        content[random_.randrange(100, len(content))] ^= 0xFF
    (study / FILE_NAME).write_bytes(content)
    for message in errors_of(study):
        assert "is damaged (" in message
        assert "\n" not in message


def test_reader_reports_a_truncated_file(study: Path) -> None:
    content = (study / FILE_NAME).read_bytes()
    (study / FILE_NAME).write_bytes(content[: len(content) // 2])
    assert "is damaged (database disk image is malformed)" in errors_of(study)[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DELETE FROM events WHERE id = 7", "is damaged (event 7 is missing)"),
        ("UPDATE events SET body = '{\"i\": ' WHERE id = 7", "is damaged (Expecting value"),
        ("UPDATE events SET body = CAST(x'ff22' AS TEXT) WHERE id = 7", "is damaged (Could not"),
        ("UPDATE events SET kind = 'tick' WHERE id = 7", "is damaged (`tick` is not an event of"),
        ("UPDATE events SET body = '{}' WHERE id = 7", "is damaged (`failed` has no `trial`)"),
        ("UPDATE events SET body = '[]' WHERE id = 7", "is damaged ("),
        ("UPDATE events SET body = replace(body, 't-6', '../t-6') WHERE id = 7",
         "is damaged ('../t-6' is not the key of a trial)"),
        ("DROP TABLE events; CREATE TABLE other (x)", "is damaged (no such table: events)"),
        (f"PRAGMA user_version={SCHEMA_VERSION + 1}", "has schema version 2, but this sftsearch "
         "reads 1. Use the sftsearch version that wrote it."),
        ("PRAGMA user_version=0", "has schema version 0, but this sftsearch reads 1"),
    ],
)  # fmt: skip
def test_reader_reports_a_modified_journal(study: Path, change: str, problem: str) -> None:
    with contextlib.closing(sqlite3.connect(study / FILE_NAME)) as connection:
        connection.executescript(change)
    with pytest.raises(JournalError) as caught:
        ids_of(study)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reader_reports_a_missing_journal_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"There is no study in '.*' \(no journal.sqlite\)"):
        ids_of(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("header", [b"", None], ids=["empty file", "no table yet"])
def test_journal_is_empty_if_its_driver_was_killed_while_creating_it(
    tmp_path: Path, header: bytes | None
) -> None:
    path = tmp_path / FILE_NAME
    path.touch()
    if header is None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        assert path.stat().st_size > 0
    assert ids_of(tmp_path) == []
    with Journal(tmp_path) as journal:
        created = Created(
            name="s", description="", dataset="d", num_seeds=1, objectives=[], facts={}
        )
        assert journal.append(created).id == 1
    assert ids_of(tmp_path) == [1]


def test_journal_reports_a_folder_and_a_file_in_the_wrong_place(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(JournalError, match="Cannot open the journal"):
        Journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"Cannot write the study's folder '.*': File exists"):
        Journal(tmp_path / "file")


# ------------------------------------------------------- another user's folder

AS_NOBODY = """
import os, sys
from pathlib import Path
from sftsearch.orchestrator.storage.journal import Journal, JournalError, read_entries
if os.getuid() == 0:  # root may write anywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
folder = Path(sys.argv[1])
print(len(list(read_entries(folder))))
for where in (folder, folder / "new"):
    try:
        Journal(where)
    except JournalError as error:
        print(error)
"""


@pytest.fixture
def readable(study: Path) -> Iterator[Path]:
    """Return a folder with a journal that its reader cannot write."""
    with tempfile.TemporaryDirectory() as outer:  # other users cannot read pytest's own folders
        folder = Path(outer) / "study"
        shutil.copytree(study, folder)
        for path in (Path(outer), folder, *folder.iterdir()):
            path.chmod(0o755 if path.is_dir() and os.getuid() == 0 else 0o555)
        yield folder
        for path in (Path(outer), folder):
            path.chmod(0o755)


def test_read_only_folder_can_be_read_and_not_opened_for_writing(readable: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(readable)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "400",
        f"Cannot write the study's folder '{readable}': Permission denied.",
        f"Cannot write the study's folder '{readable / 'new'}': Permission denied.",
    ]


def test_append_reports_a_full_disk_and_keeps_earlier_events(tmp_path: Path) -> None:
    """A limit on the size of files simulates the full disk."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.journal import Journal, JournalError
from sftsearch.orchestrator.storage.trial_events import Failed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path({str(tmp_path)!r}))
journal.append(Failed(TrialKey("t", 0), "x"))
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    while True:
        journal.append(Failed(TrialKey("t", 0), "x" * 5000))
except JournalError as error:
    print(error)
    print(journal.last_id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, last_id = done.stdout.splitlines()
    assert message.startswith(f"Cannot write the journal in '{tmp_path}': ")
    assert message.endswith("nothing is lost. Free disk space, then continue with --resume.")
    assert ids_of(tmp_path) == list(range(1, int(last_id) + 1))
