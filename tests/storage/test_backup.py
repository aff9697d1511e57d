"""Remote runs folders on a local S3 server: trial files and journal backups."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sftsearch.datasets.remote import RemoteFolder
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.execution.reports import FailureCause
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.storage import lease, segments
from sftsearch.orchestrator.storage.backup import Backup, pull
from sftsearch.orchestrator.storage.lease import BackupError
from sftsearch.orchestrator.storage.runs_folder import local_runs_folder
from sftsearch.orchestrator.storage.trial_files import (
    CHECKPOINT,
    LOG,
    WEIGHTS,
    RemoteTrialFolder,
    StaleTokenError,
)
from sftsearch.orchestrator.studies import (
    StudyError,
    delete_study,
    find_trial,
    list_studies,
    read_record,
    read_state,
)
from sftsearch.orchestrator.study import run_study

from journals import Journal, read_events
from servers import s3_client, s3_server
from trial_specs import TRAINING, run, trial_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.orchestrator.storage.journal import Entry

pytestmark = [pytest.mark.service, pytest.mark.timeout(240)]

RUNS = "s3://features/team/runs"
STUDY = """
study: {name: remote}
dataset: {kind: synthetic}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 4}
training: {epochs: 3, batch_size: 250}
space: [{kind: sft, num_heads: 1, fused_layers: 1, dim: {kind: int, low: 1, high: 4}}]
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that simulates a move to another machine with an empty disk."""
    (tmp_path / "remote.yaml").write_text(STUDY)

    def move_to(name: str) -> Path:
        monkeypatch.setenv("SFTSEARCH_CACHE", str(tmp_path / name))
        monkeypatch.setattr("socket.gethostname", lambda: name)
        return local_runs_folder(RUNS)

    with s3_server(monkeypatch):
        yield move_to


def names() -> set[str]:
    return set(RemoteFolder(RUNS).sizes())


class StopAfter(StudyCallback):
    """Ends the driver after some epochs, as if its machine died."""

    def __init__(self, num_epochs: int) -> None:
        self.left = num_epochs
        self.notices: list[str] = []

    def on_event(self, entry: Entry) -> None:
        self.left -= entry.event.kind == "epoch"
        if self.left == 0:
            raise BackupError("the machine died")

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


def outcome(folder: Path) -> dict[str, tuple[str, float | None]]:
    return {t.key: (t.status, t.values.get("loss")) for t in read_record(folder).trials}


@pytest.mark.slow
def test_study_resumes_on_another_machine(machine: Any, tmp_path: Path) -> None:
    file = tmp_path / "remote.yaml"
    undisturbed = run_study(file, runs=tmp_path / "local", formats=())
    machine("first")
    with pytest.raises(BackupError, match="the machine died"):
        run_study(file, runs=RUNS, callback=StopAfter(5), formats=())
    assert any(name.endswith(CHECKPOINT) for name in names())
    local = machine("second")
    assert not any(local.glob("*/*"))
    never = StopAfter(-1)
    result = run_study(file, runs=RUNS, resume=True, callback=never, formats=("csv",))
    assert result.complete
    assert result.folder.parent == local
    assert never.notices[0].startswith("Taken over from process ")
    assert "on 'first'" in never.notices[0]
    assert outcome(result.folder) == outcome(undisturbed.folder)
    left = {name.rsplit("/", 1)[-1] for name in names() if "/trials/" in name}
    assert left == {"owner", LOG, WEIGHTS}
    assert {name for name in names() if "/report/" in name} == {"remote/report/report.csv"}
    # The first machine comes back and gets the events of the second.
    first = machine("first")
    assert outcome(first / "remote") != outcome(result.folder)
    assert [folder.name for folder in list_studies(RUNS)] == ["remote"]
    assert list(read_events(first / "remote")) == list(read_events(result.folder))
    key = result.record.trials[0].key
    _, where, log = find_trial(key, RUNS)
    assert where == f"{RUNS}/remote/trials/{key}"
    assert log.count("epoch=1 ") == 1
    confirmed = CliRunner().invoke(main, ["confirm", "remote", "--yes", "--runs", RUNS])
    assert confirmed.exit_code == 0, confirmed.output
    machine("third")
    shown = CliRunner().invoke(main, ["status", "remote", "--runs", RUNS, "--json"])
    assert json.loads(shown.output)["state"] == "confirmed"
    deleted = CliRunner().invoke(main, ["delete", "remote", "--yes", "--runs", RUNS])
    assert deleted.exit_code == 0, deleted.output
    assert not names()


# ------------------------------------------------------------------ the journal


def filled(folder: Path, count: int) -> Journal:
    journal = Journal(folder)
    for number in range(count):
        journal.append("epoch", trial="a-0", epoch=number, metrics={"top1": 0.1 * number})
    return journal


def test_pull_restores_a_backup(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 2000)
    first = machine("first") / "s"
    with filled(first, 50) as journal:
        backup = Backup(journal, RemoteFolder(RUNS) / "s", interval=0.05)
        for number in range(100):
            journal.append("judged", trial="a-0", epoch=number)
        backup.close()
        assert not backup.problem
    assert len([name for name in names() if "/journal/" in name]) > 3
    second = machine("second") / "s"
    pull(second)
    assert list(read_events(second)) == list(read_events(first))
    assert len(list(read_events(second))) == 150
    before = (second / "journal.sqlite").stat().st_ino
    pull(second)
    assert (second / "journal.sqlite").stat().st_ino == before


def test_pull_reads_backups_of_the_first_version(machine: Any) -> None:
    """Names and contents must stay readable: they are in users' buckets."""
    study = RemoteFolder(RUNS) / "s"
    study.write(
        "driver.json",
        b'{"generation": 1764486000000000000, "through": 2, "host": "first", "pid": 7,'
        b' "time": 1764486001.5, "ended": true}',
    )
    study.write(
        "journal/01764486000000000000/000000000001.jsonl",
        b'[1, 1764486000.5, "opened", {"trials": 9, "slots": 1}]\n'
        b'[2, 1764486001.5, "epoch", {"trial": "a-0", "epoch": 1, "metrics": {"top1": 0.1}}]\n',
    )
    folder = machine("second") / "s"
    pull(folder)
    assert [(event.id, event.kind) for event in read_events(folder)] == [
        (1, "opened"),
        (2, "epoch"),
    ]
    assert [event.time for event in read_events(folder)] == [1764486000.5, 1764486001.5]
    assert (folder / "generation").read_text() == "1764486000000000000"
    with Journal(folder) as journal:
        Backup(journal, study).close()
    newest = study.sizes("journal")
    assert len(newest) == 1
    assert next(iter(newest)).endswith("/000000000001.jsonl")
    assert json.loads(study.read("driver.json", limit=9999)).keys() == {
        "generation", "through", "host", "pid", "time", "ended",
    }  # fmt: skip


def test_backup_stops_a_driver_whose_study_was_taken_over(machine: Any) -> None:
    first = machine("first") / "s"
    with filled(first, 5) as journal:
        backup = Backup(journal, RemoteFolder(RUNS) / "s", interval=0.05)
        journal.listen(backup.check)
        second = machine("second") / "s"
        pull(second)
        with Journal(second) as other:
            theirs = Backup(other, RemoteFolder(RUNS) / "s", interval=0.05)
            other.append("opened", trials=9, slots=1)
            theirs.close()
        assert "'first'" in theirs.taken_from
        journal.append("judged", trial="a-0", epoch=0)
        while not backup.taken_by:
            time.sleep(0.05)
        with pytest.raises(BackupError, match=r"taken over by process \d+ on 'second'"):
            journal.append("judged", trial="a-0", epoch=1)
        backup.close()
    machine("first")
    pull(first)
    assert [event.kind for event in read_events(first)] == ["epoch"] * 5 + ["opened"]
    (superseded,) = first.glob("superseded-*")
    assert [event.kind for event in read_events(superseded)][5:] != ["opened"]


def test_lease_stops_one_of_two_drivers_that_start_at_the_same_moment(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = RemoteFolder(RUNS) / "s"
    with (
        filled(machine("first") / "s", 5) as journal,
        filled(machine("second") / "s", 5) as other,
    ):
        machine("first")
        mine = Backup(journal, study, interval=0.05)
        written = study.read("driver.json", limit=9999)
        machine("second")
        with monkeypatch.context() as patched:
            patched.setattr(RemoteFolder, "has", lambda *_: False)  # neither finds the other
            theirs = Backup(other, study, interval=0.05)
        assert not theirs.taken_from
        study.write("driver.json", written)  # the first driver's file arrives last
        other.append("opened", trials=9, slots=1)
        theirs.close()
        assert not theirs.taken_by
        journal.append("judged", trial="a-0", epoch=0)
        mine.close()
        assert "'second'" in mine.taken_by
    machine("third")
    third = local_runs_folder(RUNS) / "s"
    pull(third)
    assert [event.kind for event in read_events(third)] == ["epoch"] * 5 + ["opened"]


@pytest.mark.parametrize("kind", [".jsonl", "driver.json"])
def test_backup_retries_while_the_store_is_down(machine: Any, monkeypatch: Any, kind: str) -> None:
    first = machine("first") / "s"
    original = RemoteFolder.write
    is_down = [False]

    def write(self: RemoteFolder, name: str, content: bytes) -> None:
        if is_down[0] and name.endswith(kind):
            raise BackupError("the store is down")
        original(self, name, content)

    with filled(first, 5) as journal:
        backup = Backup(journal, RemoteFolder(RUNS) / "s", interval=0.05)
        monkeypatch.setattr(RemoteFolder, "write", write)
        is_down[0] = True
        journal.append("judged", trial="a-0", epoch=0)
        while not backup.problem:
            time.sleep(0.05)
        time.sleep(0.3)  # some retries
        assert backup.problem == "the store is down"
        is_down[0] = False
        backup.close()
        assert not backup.problem
    second = machine("second") / "s"
    pull(second)
    assert list(read_events(second)) == list(read_events(first))


def test_running_driver_is_visible_on_other_machines(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = RemoteFolder(RUNS) / "s"
    first = machine("first") / "s"
    with filled(first, 5) as journal:
        journal.append("opened", trials=9, slots=1)
        assert read_state(first).state.startswith(f"running (process {os.getpid()})")
        backup = Backup(journal, study, interval=0.05)
        second = machine("second") / "s"
        pull(second)
        assert read_state(second).state.startswith("running (process ")
        assert "on 'first'" in read_state(second).state
        with pytest.raises(StudyError, match=r"'s' is being run by process \d+ on 'first': stop"):
            delete_study(second, RUNS, None)
        assert names()
        written = json.loads(content := study.read("driver.json", limit=9999))
        assert len(content) == lease.DRIVER_BYTES
        quiet = json.dumps(written | {"time": time.time() - 400})
        study.write("driver.json", quiet.encode().ljust(lease.DRIVER_BYTES))
        assert read_state(second).state.startswith("killed")
        machine("first")
        with monkeypatch.context() as patched:
            patched.setattr(lease, "HEARTBEAT_SECONDS", 0.0)  # the next heartbeat is due
            while json.loads(study.read("driver.json", limit=9999))["time"] < written["time"]:
                time.sleep(0.05)
        machine("second")
        assert "on 'first'" in read_state(second).state
        machine("first")
        backup.close()
        machine("second")
        assert read_state(second).state.startswith("killed")
        machine("first")
        assert read_state(first).state.startswith("running")
    assert read_state(first).state.startswith("killed")
    machine("second")
    assert delete_study(second, RUNS, None) == ""
    assert not names()


def test_backup_is_uploaded_again_after_it_was_deleted(machine: Any) -> None:
    first = machine("first") / "s"
    with filled(first, 5) as journal:
        backup = Backup(journal, RemoteFolder(RUNS) / "s", interval=0.05)
        (RemoteFolder(RUNS) / "s").remove_all()
        journal.append("judged", trial="a-0", epoch=0)
        backup.close()
    second = machine("second") / "s"
    pull(second)
    assert list(read_events(second)) == list(read_events(first))


def test_pull_restores_a_deleted_local_journal(machine: Any) -> None:
    first = machine("first") / "s"
    with filled(first, 5) as journal:
        Backup(journal, RemoteFolder(RUNS) / "s").close()
    before = list(read_events(first))
    (first / "journal.sqlite").unlink()
    pull(first)
    assert list(read_events(first)) == before


def test_pull_ignores_differences_in_json_formatting(machine: Any) -> None:
    """An earlier version, or another library, may format JSON differently."""
    first = machine("first") / "s"
    filled(first, 3).close()
    with contextlib.closing(sqlite3.connect(first / "journal.sqlite")) as file, file:
        file.execute("UPDATE events SET body = replace(replace(body, ',', ' , '), ':', ' : ')")
    with Journal(first) as journal:
        Backup(journal, RemoteFolder(RUNS) / "s").close()
    second = machine("second") / "s"
    pull(second)
    with Journal(second) as other:
        other.append("opened", trials=9, slots=1)
        Backup(other, RemoteFolder(RUNS) / "s").close()
    machine("first")
    pull(first)
    assert [event.kind for event in read_events(first)] == ["epoch"] * 3 + ["opened"]
    assert not list(first.glob("superseded-*"))


def test_pull_keeps_a_local_journal_that_is_in_use(machine: Any) -> None:
    with filled(machine("first") / "s", 5) as journal:
        Backup(journal, RemoteFolder(RUNS) / "s").close()
    second = machine("second") / "s"
    with filled(second, 2):
        pull(second)
    assert len(list(read_events(second))) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("driver.json", b"{}", "does not describe a driver"),
        ("driver.json", b"\x80\x04pickle", "does not describe a driver"),
        (
            "driver.json",
            b'{"generation": 9, "through": 1, "host": "a\\u001b[2J", "pid": 1, "time": 1.0,'
            b'"ended": true}',
            "does not describe a driver",
        ),
        ("driver.json", b"[" * 60_000, "does not describe a driver"),
        ("000000000001.jsonl", b"[1, 2]\n", "has no event 1"),
        ("000000000001.jsonl", b"[" * 99_999, "has no event 1"),
        ("000000000001.jsonl", b'[2, 1.0, "epoch", {}]\n', "has no event 1"),
        ("000000000001.jsonl", b'[1, 1.0, "epoch", {}]\n', "after 1 are missing"),
    ],
)
def test_pull_refuses_a_damaged_backup(
    machine: Any, name: str, content: bytes, message: str
) -> None:
    with filled(machine("first") / "s", 3) as journal:
        Backup(journal, RemoteFolder(RUNS) / "s").close()
    (path,) = (path for path in names() if path.endswith(name))
    RemoteFolder(RUNS).write(path, content)
    second = machine("second") / "s"
    with pytest.raises(BackupError, match=rf"The backup in {RUNS}/s is damaged: .*{message}"):
        pull(second)
    assert not second.exists()


def test_pull_all_ignores_folders_that_are_not_studies(machine: Any) -> None:
    local = machine("first")
    RemoteFolder("s3://features").write("team/runs/../x", b"")
    RemoteFolder(RUNS).write("not a study/file", b"")
    assert list_studies(RUNS) == []
    assert [path.name for path in local.iterdir()] == ["remote-uri"]


def test_runs_folder_of_another_user_cannot_name_a_bucket(machine: Any, tmp_path: Path) -> None:
    machine("first")
    RemoteFolder(RUNS).write("s/driver.json", b"{}")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "remote-uri").write_text(RUNS)
    assert list_studies(theirs) == []  # reading the bucket's damaged study would raise


def test_command_line_refuses_bad_uris() -> None:
    answer = CliRunner().invoke(main, ["list", "--runs", "ftp://host/path"])
    assert answer.exit_code == 2
    assert "must begin with s3://" in answer.output


# ------------------------------------------------------------------ a trial's files


def remote_spec(**changes: Any) -> Any:
    return dataclasses.replace(trial_spec(Path("unused"), **changes), folder=f"{RUNS}/s/trials/c-0")


def test_worker_resumes_from_the_checkpoint_of_another_node(machine: Any, tmp_path: Path) -> None:
    machine("first")
    first, second = TrainingWorker(), TrainingWorker()
    first.start(remote_spec(fencing_token=3))
    first.step()
    second.start(remote_spec(fencing_token=8))
    reports = run(second)
    local = TrainingWorker()
    local.start(trial_spec(tmp_path / "local"))
    assert reports[-1]["final"]["values"]["loss"] == run(local)[-1]["final"]["values"]["loss"]
    log = RemoteTrialFolder(f"{RUNS}/s/trials/c-0").read_log()
    assert log.count("epoch=1 ") == 1
    assert "resuming after epoch 1" in log
    # Files that the first worker still writes are unused.
    assert first.step()["failed"].startswith(
        f"StaleTokenError: The trial in '{RUNS}/s/trials/c-0' was"
    )
    assert RemoteTrialFolder(f"{RUNS}/s/trials/c-0").read_log() == log


def test_trial_folder_refuses_an_earlier_worker(machine: Any) -> None:
    machine("first")
    folder = RemoteTrialFolder(f"{RUNS}/s/trials/c-0")
    assert folder.owner() == -1
    folder.take_over(5)
    assert folder.owner() == 5
    with pytest.raises(StaleTokenError):
        RemoteTrialFolder(f"{RUNS}/s/trials/c-0").take_over(4)
    with pytest.raises(StaleTokenError):
        folder.save(4, WEIGHTS, Path.touch)
    folder.save(5, WEIGHTS, lambda path: path.write_bytes(b"12345") and None)
    folder.take_over(6)
    assert folder.size(WEIGHTS) == 5
    folder.remove(WEIGHTS)
    assert folder.size(WEIGHTS) == 0
    with folder.load(WEIGHTS) as path:
        assert path is None


def test_trial_folder_keeps_a_log_for_each_worker(machine: Any) -> None:
    machine("first")
    where = f"{RUNS}/s/trials/c-0"
    both = [RemoteTrialFolder(where, rank) for rank in range(2)]
    for folder in both:
        folder.take_over(5)
    for line in ("one", "two"):
        for rank, folder in enumerate(both):
            folder.log(5, f"{line} of {rank}")
    assert RemoteTrialFolder(where).read_log() == "one of 0\ntwo of 0\none of 1\ntwo of 1\n"


def test_worker_trains_without_remote_checkpoints_and_fails_without_weights(
    machine: Any,
) -> None:
    machine("first")
    worker = TrainingWorker()
    worker.start(remote_spec(training=TRAINING | {"epochs": 3}))
    store = s3_client(os.environ["AWS_ENDPOINT_URL"])
    RemoteFolder(RUNS).remove_all()
    for listed in store.list_objects_v2(Bucket="features")["Contents"]:
        store.delete_object(Bucket="features", Key=listed["Key"])
    store.delete_bucket(Bucket="features")
    assert len(worker.step()["epochs"]) == 1
    worker.step()
    report = worker.step()
    assert report["cause"] == FailureCause.NO_SPACE
    assert report["failed"].startswith("RemoteUnavailableError: Cannot ")
