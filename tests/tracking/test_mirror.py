"""The mirror writes everything once to MLflow and catches up after an outage."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.storage import study_record
from sftsearch.orchestrator.storage.journal import FILE_NAME
from sftsearch.orchestrator.tracking import mirror as mirroring
from sftsearch.orchestrator.tracking.bookkeeping import BOOKKEEPING, num_mirrored
from sftsearch.orchestrator.tracking.client import TrackingError, default_uri, masked, open_client
from sftsearch.orchestrator.tracking.mirror import Mirror
from sftsearch.orchestrator.tracking.reader import read_study

from journals import Journal
from mirrored_study import COST, CREATED, add_trials, expected, lag, snapshot
from report_studies import summarize
from servers import MlflowServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.medium
def test_read_study_from_mlflow_equals_the_journal_s_record(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 12)
        mirror = Mirror(journal, uri, tmp_path)
        assert mirror.close()
        assert read_study(uri, "mirrored", tmp_path) == expected(journal)


def add_adaptive_study(journal: Journal) -> None:
    """Append a study with folds, a stopped, a replicated and two reported configurations."""
    journal.append("recorded")
    definition = {"folds": 3, "replicates": {"min": 1, "max": 4, "fresh": 2}, "space": ["long"]}
    journal.append("created", **(CREATED | {"definition": definition}))
    journal.append("opened", trials=4, slots=1)
    for i, name in enumerate("abc"):
        base = {"configuration_id": name, "model": "sft", "parameters": {"dim": i}}
        journal.append("proposed", number=i, branch=0, values={"dim": i})
        journal.append("admitted", number=i, seeds=[0], cost=COST, **base)
    finish(journal, "a", 0)
    start(journal, "b", 0)
    values = {"epoch": 2, "loss": 0.5, "top1": 0.25, **COST}
    more = {"reason": "unlikely", "withdrawn": [], "best": 0.5}
    journal.append("stopped", trial="b-0", epoch=2, values=values, **more)
    finish(journal, "c", 0)
    journal.append("replicated", configuration_id="a", seeds=[1])
    finish(journal, "a", 1)
    journal.append("frozen", seeds={"a": [2, 3], "c": [1, 2]})
    for name, seed in (("a", 2), ("a", 3), ("c", 1)):
        finish(journal, name, seed)
    start(journal, "c", 2)
    journal.append("failed", trial="c-2", reason="it broke")


def start(journal: Journal, name: str, seed: int) -> None:
    base = {"configuration_id": name, "model": "sft", "parameters": {"dim": "abc".index(name)}}
    journal.append("started", trial=f"{name}-{seed}", epoch=0, seed=seed, cost=COST, **base)


def finish(journal: Journal, name: str, seed: int) -> None:
    start(journal, name, seed)
    values = {"top1": 0.5 + seed / 10, **COST}
    groups = {f"s{seed % 3}": [5.0 + seed, 10.0]}
    facts = {"torch": "2"}
    journal.append("finished", trial=f"{name}-{seed}", values=values, groups=groups, facts=facts)


def conclude(journal: Journal, mean: float, *, audits: bool) -> None:
    posterior = {"mean": mean, "sd": 0.01, "on_front": 0.9}
    found = {"rate": 0.25, "low": 0.006, "high": 0.806, "num": 4} if audits else None
    posteriors = {"a": posterior, "c": posterior}
    facts = {"within_delta": 0.75, "audits": found, "num_stopped": 1}
    journal.append("concluded", reported=["a"], beliefs=posteriors, **facts)


@pytest.mark.medium
def test_read_study_of_an_adaptive_study_equals_the_journal_s_record(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)

    def mirrored() -> study_record.StudyRecord:
        assert Mirror(journal, uri, tmp_path).close()
        read = read_study(uri, "mirrored", tmp_path)
        assert read == expected(journal)
        theirs, ours = (
            json.loads(to_json(Analysis.of(summarize(study))))
            for study in (read, expected(journal))
        )
        assert theirs == ours
        return read

    with Journal(tmp_path / "s") as journal:
        add_adaptive_study(journal)
        running = mirrored()
        assert (running.folds, running.num_seeds, running.max_replicates) == (3, 1, 4)
        assert running.recorded
        assert running.fresh == {"a": (2, 3), "c": (1, 2)}
        assert running.conclusion is None
        stopped = next(t for t in running.trials if t.status == "stopped")
        assert (stopped.key, stopped.epoch, stopped.reason) == ("b-0", 2, "unlikely")
        assert stopped.values == {"loss": 0.5, "top1": 0.25, **COST}
        conclude(journal, 0.6, audits=True)
        first = mirrored().conclusion
        assert first is not None
        assert first.false_stops == study_record.FalseStops(rate=0.25, low=0.006, high=0.806, num=4)
        assert list(first.posteriors) == ["a"]  # a trial of `c` has failed since
        journal.append("opened", trials=9, slots=1)
        assert mirrored().conclusion is None  # the study runs again
        journal.append("replicated", configuration_id="a", seeds=[4])
        finish(journal, "a", 4)
        assert mirrored().fresh == {}
        conclude(journal, 0.7, audits=False)
        second = mirrored().conclusion
        assert second is not None
        assert (second.false_stops, second.posteriors["a"].mean) == (None, 0.7)


@pytest.mark.medium
def test_mirror_writes_stops_folds_and_conclusions(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_adaptive_study(journal)
        conclude(journal, 0.6, audits=True)
        assert Mirror(journal, uri, tmp_path).close()
    client = open_client(uri, tmp_path)
    experiment = client.get_experiment_by_name("mirrored")
    runs = {
        run.data.tags["sftsearch.trial"]: run
        for run in client.search_runs([experiment.experiment_id])
    }
    assert runs["b-0"].info.status == "KILLED"
    assert runs["b-0"].data.tags["sftsearch.stopped"] == "true"
    assert "top1" not in runs["b-0"].data.metrics  # it would look like a final value
    for seed in range(4):
        run = runs[f"a-{seed}"]
        assert run.data.tags["sftsearch.replicate"] == str(seed)
        assert run.data.tags["sftsearch.fold"] == str(seed % 3)
        assert run.data.tags["sftsearch.stopped"] == "false"
        assert run.data.metrics["front_probability"] == 0.9
    assert runs[""].data.metrics == {"within_delta": 0.75, "false_stop_rate": 0.25}


def add_concluded_study(journal: Journal) -> None:
    add_adaptive_study(journal)
    conclude(journal, 0.6, audits=True)
    journal.append("opened", trials=9, slots=1)


@pytest.mark.medium
@pytest.mark.parametrize("write", [lambda j: add_trials(j, 0, 6), add_concluded_study])
def test_mirror_changes_nothing_when_it_writes_everything_again(
    tmp_path: Path, write: Callable[[Journal], None]
) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        write(journal)
        assert Mirror(journal, uri, tmp_path).close()
        once = snapshot(uri, tmp_path)
        events = list(journal.events())
    # A folder without bookkeeping, as after a kill between the write and the bookkeeping.
    times = iter([event.time for event in events])
    with Journal(tmp_path / "again", clock=lambda: next(times)) as journal:
        for event in events:
            journal.append(event.kind, **event.body)
        assert Mirror(journal, uri, tmp_path).close()
    assert snapshot(uri, tmp_path) == once


@pytest.mark.medium
def test_mirror_of_a_later_driver_continues_where_the_last_one_stopped(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 3)
        assert Mirror(journal, uri, tmp_path).close()
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 3, 7)
        mirror = Mirror(journal, uri, tmp_path)
        assert mirror.close()
        assert lag(journal) == 0
        assert read_study(uri, "mirrored", tmp_path) == expected(journal)
    assert len(snapshot(uri, tmp_path)) == 8


@pytest.mark.medium
def test_mirror_writes_everything_to_a_new_store(tmp_path: Path) -> None:
    """As on another machine, whose default store is new."""
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 3)
        for name in ("first", "second"):
            uri = default_uri(tmp_path / name)
            assert Mirror(journal, uri, tmp_path / name).close()
            assert read_study(uri, "mirrored", tmp_path / name) == expected(journal)


@pytest.mark.medium
def test_mirror_catches_up_in_a_store_that_it_returns_to(tmp_path: Path) -> None:
    with Journal(tmp_path / "s") as journal:
        for number, name in enumerate(["first", "second", "first"], start=1):
            add_trials(journal, 2 * number - 2, 2 * number)
            uri = default_uri(tmp_path / name)
            assert Mirror(journal, uri, tmp_path / name).close()
            assert read_study(uri, "mirrored", tmp_path / name) == expected(journal)


@pytest.mark.medium
@pytest.mark.parametrize("damage", ["{}", "[]", '{"through": 99, "time": 0.0', ""])
def test_mirror_starts_from_scratch_if_its_bookkeeping_is_damaged(
    tmp_path: Path, damage: str
) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 2)
        assert Mirror(journal, uri, tmp_path).close()
        (tmp_path / "s" / BOOKKEEPING).write_text(damage)
        assert num_mirrored(tmp_path / "s") is None
        add_trials(journal, 2, 3)
        assert Mirror(journal, uri, tmp_path).close()
        assert num_mirrored(tmp_path / "s") == journal.last_id
        assert read_study(uri, "mirrored", tmp_path) == expected(journal)


@pytest.mark.medium
def test_mirror_ignores_runs_that_the_user_added_to_the_experiment(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 2)
        assert Mirror(journal, uri, tmp_path).close()
        client = open_client(uri, tmp_path)
        experiment = client.get_experiment_by_name("mirrored")
        for tags in ({}, {"sftsearch.trial": "best one!"}, {"sftsearch.trial": "-"}):
            client.create_run(experiment.experiment_id, tags=tags)
        add_trials(journal, 2, 4)
        mirror = Mirror(journal, uri, tmp_path)
        assert mirror.close(), mirror.problem
        assert read_study(uri, "mirrored", tmp_path) == expected(journal)


@pytest.mark.medium
def test_mirror_skips_events_of_retired_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "MAX_EVENTS", 5)
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 1)
        for _ in range(12):
            journal.append("mirrored", through=1)
        add_trials(journal, 1, 2)
        journal.append("mirrored", through=journal.last_id)
        assert Mirror(journal, uri, tmp_path).close()
        assert read_study(uri, "mirrored", tmp_path) == expected(journal)


@pytest.mark.medium
def test_mirror_starts_from_scratch_if_the_journal_was_replaced(tmp_path: Path) -> None:
    """As after a restore from a backup: the bookkeeping is of the old journal."""
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s", clock=itertools.count(1.0).__next__) as journal:
        add_trials(journal, 0, 2)
        assert Mirror(journal, uri, tmp_path).close()
    with Journal(tmp_path / "other", clock=itertools.count(1000.0).__next__) as journal:
        add_trials(journal, 0, 4)
    (tmp_path / "s" / FILE_NAME).write_bytes((tmp_path / "other" / FILE_NAME).read_bytes())
    with Journal(tmp_path / "s") as journal:
        assert Mirror(journal, uri, tmp_path).close()
        found = {trial.key: trial.values for trial in read_study(uri, "mirrored", tmp_path).trials}
        assert found == {trial.key: trial.values for trial in expected(journal).trials}


@pytest.mark.medium
def test_mirror_sets_the_parent_run_s_status(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)

    def parent_status() -> str:
        return next(status for run, status, *_ in snapshot(uri, tmp_path) if run == parent)

    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 2)
        mirror = Mirror(journal, uri, tmp_path)
        assert mirror.close()
        parent = mirror.parent_id
        assert parent_status() == "FINISHED"
        journal.append("opened", trials=4, slots=1)
        assert Mirror(journal, uri, tmp_path).close()
        assert parent_status() == "RUNNING"
        journal.append("ended", reason="interrupted", complete=False)
        assert Mirror(journal, uri, tmp_path).close()
        assert parent_status() == "KILLED"


@pytest.mark.medium
def test_mirror_refuses_an_experiment_of_another_study(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    client = open_client(uri, tmp_path)
    client.create_experiment("mirrored")
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 2)
        mirror = Mirror(journal, uri, tmp_path)
        assert not mirror.close(patience=0.5)
        assert "'mirrored'" in mirror.problem
        assert "belongs to another study" in mirror.problem
    experiment = client.get_experiment_by_name("mirrored")
    assert client.search_runs([experiment.experiment_id]) == []


@pytest.mark.medium
def test_mirror_does_not_recreate_a_deleted_run(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 3)
        assert Mirror(journal, uri, tmp_path).close()
        client = open_client(uri, tmp_path)
        deleted = snapshot(uri, tmp_path)[0][0]
        if client.get_run(deleted).data.tags["sftsearch.trial"] == "":
            deleted = snapshot(uri, tmp_path)[1][0]
        client.delete_run(deleted)
        journal.append("epoch", trial="c00000000000-0", epoch=4, metrics={"epoch": 4, "loss": 0.1})
        journal.append("epoch", trial="c00000000001-0", epoch=4, metrics={"epoch": 4, "loss": 0.1})
        journal.append("epoch", trial="c00000000002-0", epoch=4, metrics={"epoch": 4, "loss": 0.1})
        assert Mirror(journal, uri, tmp_path).close()
    assert len(snapshot(uri, tmp_path)) == 3


@pytest.mark.medium
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////proc/nowhere/mlflow.db", "MLflow does not answer at"),
        ("nonsense://x", "unknown scheme 'nonsense'"),
        ("http://127.0.0.1:9", "MLflow does not answer at"),
    ],
)
def test_read_study_reports_an_unreachable_store_in_one_line(
    tmp_path: Path, uri: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_study(uri, "mirrored", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:p@ss@h/x", "http://me@h/x"),
        ("https://me:p/w@h/x", "https://me@h/x"),
        ("postgresql://me:1/2@h/db", "postgresql://me@h/db"),
        ("postgresql://h/db?user=me&password=pw", "postgresql://h/db?user=me&password=***"),
        ("at http://h:5000/x, ask a@b", "at http://h:5000/x, ask a@b"),
    ],
)
def test_masked_removes_passwords_from_uris(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.medium
def test_read_study_reports_an_unknown_study(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="has no study 'nothing'"):
        read_study(default_uri(tmp_path), "nothing", tmp_path)


# ------------------------------------------------------------- a real server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path, f"sqlite:///{tmp_path / 'server.db'}") as server:
        yield server


@pytest.mark.service
@pytest.mark.timeout(300)
def test_mirror_catches_up_after_an_outage_without_duplicates(
    tmp_path: Path, server: MlflowServer
) -> None:
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 4)
        mirror = Mirror(journal, server.uri, tmp_path, interval=0.2)
        wait_until(lambda: lag(journal) == 0)
        server.kill()
        add_trials(journal, 4, 40)
        wait_until(lambda: mirror.problem != "")
        assert lag(journal) > 100
        server.start()
        assert mirror.close(patience=60), mirror.problem
        assert read_study(server.uri, "mirrored", tmp_path) == expected(journal)
        report = tmp_path / "report.json"
        report.write_text(json.dumps({"a": 1}))
        mirror.log_artifacts([report])
        client = open_client(server.uri, tmp_path)
        assert [f.path for f in client.list_artifacts(mirror.parent_id, "report")] == [
            "report/report.json"
        ]
    runs = snapshot(server.uri, tmp_path)
    assert len(runs) == 41
    for _, _, params, histories, _ in runs:
        if params:
            assert [step for step, *_ in histories["epoch/loss"]] == [1, 2, 3]


@pytest.mark.service
@pytest.mark.timeout(180)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_ui_serves_the_runs_folder_on_loopback_and_ends_all_its_processes(
    tmp_path: Path, end: signal.Signals
) -> None:
    uri = default_uri(tmp_path)
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 2)
        assert Mirror(journal, uri, tmp_path).close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sftsearch = Path(sys.executable).with_name("sftsearch")
    command = [str(sftsearch), "ui", "--runs", str(tmp_path), "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        page = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
        assert process.stdout.readline() == f"  mirrored: {page}\n"
        wait_until(lambda: answers(port), seconds=90)
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
        process.send_signal(end)
        assert process.wait(timeout=30) == 0
        assert not answers(port)
        assert not servers_on(port)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.service
@pytest.mark.timeout(300)
def test_mirror_says_once_that_mlflow_does_not_answer_and_that_it_does_again(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    server = MlflowServer(tmp_path, f"sqlite:///{tmp_path / 'server.db'}")
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 2)
        mirror = Mirror(journal, server.uri, tmp_path, interval=0.1, on_problem=said.append)
        wait_until(lambda: said)
        assert "Connection refused" in said[0]
        time.sleep(1)
        assert len(said) == 1
        with server:
            wait_until(lambda: len(said) > 1)
            assert said[1:] == [""]
            assert mirror.close()


def servers_on(port: int) -> list[str]:
    """Return the command lines of MLflow processes that contain the port."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(port) in line and "mlflow" in line]


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except OSError:
        return False


def wait_until(condition: Any, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
