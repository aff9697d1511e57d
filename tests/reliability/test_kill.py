"""A study resumed after any end of its driver equals the undisturbed one in all stores.

The driver ends by SIGKILL at any moment, by Ctrl-C once or twice, or by SIGTERM.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.tracking.bookkeeping import num_mirrored
from sftsearch.orchestrator.tracking.client import default_uri, open_client
from sftsearch.orchestrator.tracking.reader import read_study

import drive_study
from journals import read_events

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """
study: {name: kill}
dataset: {kind: synthetic}
# deterministic: the configurations, too, must equal those of the undisturbed study
search: {sampler: {kind: tpe, startup_configurations: 2}, trials: 8, replicates: 2,
  deterministic: true, baselines: false}
constraints: [{metric: parameters, max: 6000}]
training: {epochs: 3, batch_size: 256}
space:
  - kind: sft
    num_heads: 2
    stride: {kind: choice, values: [1, 2]}
    dim: {kind: int, low: 4, high: 24, step: 4}
    fused_layers: {kind: int, low: 1, high: 3}
  - kind: concat
    num_heads: 2
    dim: {kind: int, low: 4, high: 24, step: 4}
    num_layers: {kind: int, low: 1, high: 3}
"""
MEASURED = {"latency_ms", "train_step_ms", "seconds"}
EVENTS = ["proposed", "admitted", "started", "epoch", "finished", "told", "ended"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(runs: Path, *options: str, text: str = STUDY) -> subprocess.Popen[str]:
    file = runs.parent / "kill.yaml"
    file.write_text(text)
    return drive_study.start(file, runs, *options)


def finish(runs: Path, *options: str, text: str = STUDY) -> dict[str, Any]:
    process = start(runs, *options, text=text)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    return check(runs, finish(runs))


def check(runs: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Check that the three stores of a finished study agree; return what must not change."""
    folder = runs / "kill"
    events = list(read_events(folder))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    ended = Counter(e.body["trial"] for e in events if e.kind in ("finished", "failed"))
    assert len(ended) == 8
    assert set(ended.values()) == {1}
    epochs = Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "epoch")
    assert len(epochs) == 8 * 3
    assert set(epochs.values()) == {1}
    told = Counter(e.body["number"] for e in events if e.kind == "told")
    assert set(told.values()) == {1}
    assert result["complete"]
    states = Counter(trial["state"] for trial in result["optuna"])
    assert states["COMPLETE"] == len(told) == 4 - states["RUNNING"]
    journal = read_record(folder)
    mlflow = read_study(default_uri(runs), "kill", runs)
    assert mlflow == journal
    assert runs_by_trial(runs) == dict.fromkeys((trial.key for trial in journal.trials), (1, 3))
    return {
        "optuna": result["optuna"],
        "trials": {
            trial.key: (
                trial.status,
                {k: v for k, v in trial.values.items() if k not in MEASURED},
                trial.groups,
            )
            for trial in journal.trials
        },
    }


def runs_by_trial(runs: Path) -> dict[str, tuple[int, int]]:
    """Return MLflow's runs and epochs of validation loss by trial."""
    client = open_client(default_uri(runs), runs)
    experiment = client.get_experiment_by_name("kill")
    found: dict[str, tuple[int, int]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        key = run.data.tags.get("sftsearch.trial")  # runs of baselines have none
        if key:
            steps = len(client.get_metric_history(run.info.run_id, "epoch/loss"))
            found[key] = (found.get(key, (0, 0))[0] + 1, steps)
    return found


@pytest.mark.parametrize("kind", EVENTS)
def test_driver_killed_after_an_event_is_resumed(
    tmp_path: Path, kind: str, undisturbed: dict[str, Any]
) -> None:
    number = "1" if kind in ("ended", "told") else "3"
    runs = tmp_path / "runs"
    killed = start(runs, "--kill-after", kind, number)
    killed.communicate(timeout=240)
    assert killed.returncode == -9
    last = [event.kind for event in read_events(runs / "kill")]
    assert kind in last[-5:]  # the other thread may append a few more before the signal arrives
    assert check(runs, finish(runs, "--resume")) == undisturbed


def test_driver_killed_after_the_mirror_s_bookkeeping_is_resumed(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    runs = tmp_path / "runs"
    killed = start(runs, "--kill-after", "mirrored", "3")
    killed.communicate(timeout=240)
    assert killed.returncode == -9
    assert num_mirrored(runs / "kill")
    assert check(runs, finish(runs, "--resume")) == undisturbed


@pytest.mark.parametrize(("kind", "number"), [("finished", "1"), ("baselines", "1")])
def test_driver_killed_before_or_after_the_baselines_are_known_has_them_once(
    tmp_path: Path, kind: str, number: str, undisturbed: dict[str, Any]
) -> None:
    """The decisions of a deterministic study are the same with baselines and without."""
    runs, text = tmp_path / "runs", STUDY.replace("baselines: false", "baselines: true")
    killed = start(runs, "--kill-after", kind, number, text=text)
    killed.communicate(timeout=240)
    assert killed.returncode == -9
    before = [event.kind for event in read_events(runs / "kill")].count("baselines")
    assert before == (kind == "baselines")
    resumed = check(runs, finish(runs, "--resume", text=text))
    assert [event.kind for event in read_events(runs / "kill")].count("baselines") == 1
    assert resumed == undisturbed


@pytest.mark.parametrize("seed", [0, 1])
def test_driver_killed_five_times_is_resumed(
    tmp_path: Path, seed: int, undisturbed: dict[str, Any]
) -> None:
    runs, random_ = tmp_path / "runs", random.Random(seed)
    for _ in range(5):
        process = start(runs, "--resume")
        before = len(list(read_events(runs / "kill"))) if (runs / "kill").is_dir() else 0
        wait_for_events(runs / "kill", before + random_.randint(1, 12), process)
        time.sleep(random_.random() / 5)
        process.kill()
        process.communicate(timeout=60)
    assert check(runs, finish(runs, "--resume")) == undisturbed


def wait_for_events(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if (folder / "journal.sqlite").is_file() and len(list(read_events(folder))) >= number:
            return
        time.sleep(0.05)


# ------------------------------------------------------------------- interrupts

CLI = [sys.executable, "-c", "from sftsearch.orchestrator.cli.main import main; main()"]
LONG = """
study: {name: long}
dataset: {kind: synthetic}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 5}
training: {epochs: 12, batch_size: 256}
resources: {cpus: 1, concurrent_trials: 2}
space:
  - {kind: sft, num_heads: 2, fused_layers: 1, dim: {kind: choice, values: [4, 6, 8, 10, 12]}}
"""


def run_command(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command in its own session, as a terminal does."""
    file = folder / "long.yaml"
    file.write_text(LONG)
    return subprocess.Popen(
        [*CLI, "run", str(file), "--runs", str(folder / "runs"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )


def wait_for_kind(folder: Path, kind: str, number: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        known = read_events(folder) if (folder / "journal.sqlite").is_file() else ()
        if sum(event.kind == kind for event in known) >= number:
            return
        time.sleep(0.05)


def count(folder: Path, kind: str) -> int:
    return sum(event.kind == kind for event in read_events(folder))


def check_resumed(folder: Path) -> None:
    """Resume the study to its end and check that it has every trial and epoch once."""
    resumed = run_command(folder, "--resume")
    out, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, out[-3000:]
    assert "Ended: all trials ran." in out
    events = list(read_events(folder / "runs" / "long"))
    finished = Counter(e.body["trial"] for e in events if e.kind == "finished")
    assert sorted(finished.values()) == [1] * 5
    epochs = Counter((e.body["trial"], e.body["epoch"]) for e in events if e.kind == "epoch")
    assert sorted(epochs.values()) == [1] * 5 * 12
    assert not any(event.kind == "failed" for event in events)


def test_driver_finishes_running_trials_at_ctrl_c_and_reports(tmp_path: Path) -> None:
    study = tmp_path / "runs" / "long"
    process = run_command(tmp_path)
    wait_for_kind(study, "epoch", 3, process)
    started = count(study, "started")
    os.killpg(process.pid, signal.SIGINT)  # the workers get it too
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 130, out[-3000:]
    assert "No new trials" in out
    assert "Press Ctrl-C again to stop now" in " ".join(out.split())
    assert "--resume" in out.splitlines()[-1]
    assert "Traceback" not in out
    assert "Trial " not in out  # Tune would print it
    assert count(study, "started") == started
    assert 1 <= count(study, "finished") <= 2  # one more was queued but had not started
    assert {e.body["trial"] for e in read_events(study) if e.kind == "epoch"} == {
        e.body["trial"] for e in read_events(study) if e.kind == "finished"
    }
    assert [e.body for e in read_events(study) if e.kind == "ended"] == [
        {"reason": "interrupted", "complete": False}
    ]
    assert (study / "report" / "report.html").is_file()
    check_resumed(tmp_path)


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_driver_stops_now_at_the_second_ctrl_c_or_sigterm(
    tmp_path: Path, signals: list[signal.Signals]
) -> None:
    study = tmp_path / "runs" / "long"
    process = run_command(tmp_path)
    wait_for_kind(study, "epoch", 3, process)
    output = ""
    for i, number in enumerate(signals):
        assert process.stdout is not None
        while i and "No new trials" not in output:  # two signals at a time could count as one
            output += process.stdout.readline()
        os.kill(process.pid, number)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 130, out[-3000:]
    assert "Stopping now." in out
    assert "Traceback" not in out
    assert count(study, "failed") == 0
    assert count(study, "ended") == 1
    trained = {event.body["trial"] for event in read_events(study) if event.kind == "epoch"}
    assert trained - {e.body["trial"] for e in read_events(study) if e.kind == "finished"}
    check_resumed(tmp_path)


def test_driver_reports_that_the_ray_head_node_is_gone_and_is_resumed(tmp_path: Path) -> None:
    study = tmp_path / "runs" / "long"
    process = run_command(tmp_path)
    wait_for_kind(study, "epoch", 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    (head,) = (child for child in children if child.name() == "gcs_server")
    head.kill()
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 1, out[-3000:]
    assert "does not answer. Unless it is back within a minute" in " ".join(out.split())
    assert count(study, "failed") == 0
    check_resumed(tmp_path)
