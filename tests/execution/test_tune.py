"""Placement on a real Ray that is told of CPUs and GPUs this machine may not have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray

from sftsearch.orchestrator.execution import tune
from sftsearch.orchestrator.execution.placement import ResourceError, count_slots
from sftsearch.orchestrator.storage.journal import read_events
from sftsearch.orchestrator.study import run_study
from sftsearch.search_spaces.schema import Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.medium, pytest.mark.timeout(120)]

STUDY = """
study: {{name: placed}}
dataset: {{kind: synthetic}}
search: {{sampler: {{kind: exhaustive}}, trials: 6}}
resources: {{cpus: {cpus}, gpus: {gpus}, concurrent_trials: {concurrent}}}
space: [{{kind: sft, num_heads: 1, dim: {{kind: int, low: 1, high: 6}}}}]
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    tune.disconnect()


class Noting:
    """Trains nothing; notes when and with which GPU it ran."""

    def start(self, job: Any) -> None:
        self.job, self.began = job, time.time()
        Path(job.folder).mkdir(parents=True, exist_ok=True)

    def step(self) -> dict[str, Any]:
        if self.job.device == "cuda":  # the second process takes its time to start: wait for it
            deadline = time.monotonic() + 60
            while len(list(Path(self.job.folder).parent.iterdir())) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        time.sleep(0.3)
        note = {
            "began": self.began,
            "ended": time.time(),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "device": self.job.device,
            "threads": self.job.threads,
        }
        (Path(self.job.folder) / "note.json").write_text(json.dumps(note))
        values = {"top1": 0.5, **self.job.cost}
        return {"epochs": [], "final": {"values": values, "groups": {}, "facts": {}}}


def run(folder: Path, *, cpus: float, gpus: float, concurrent: str = "auto") -> list[Any]:
    file = folder / "placed.yaml"
    file.write_text(STUDY.format(cpus=cpus, gpus=gpus, concurrent=concurrent))
    result = run_study(file, runs=folder, worker=Noting, formats=())
    assert result.complete
    return [json.loads(path.read_text()) for path in result.folder.glob("trials/*/note.json")]


def most_at_once(notes: list[Any]) -> int:
    return max(
        sum(other["began"] <= note["began"] < other["ended"] for other in notes) for note in notes
    )


@pytest.mark.parametrize(
    ("cpus", "gpus", "concurrent", "slots"),
    [
        (1, 0, "auto", 4),
        (3, 0, "auto", 1),
        (0.5, 0, "auto", 8),
        (1, 1, "auto", 1),
        (1, 0.5, "auto", 2),
        (0.5, 0.25, "auto", 4),
        (1, 0.5, 1, 1),
        (1, 0, 99, 4),
    ],
)
def test_slots_are_what_fits(cpus: float, gpus: float, concurrent: Any, slots: int) -> None:
    resources = Resources(cpus=cpus, gpus=gpus, concurrent_trials=concurrent)
    assert count_slots(resources) == slots


def test_half_a_gpu_each_runs_two_at_a_time_on_the_same_gpu(tmp_path: Path) -> None:
    notes = run(tmp_path, cpus=1, gpus=0.5)
    assert len(notes) == 6
    assert most_at_once(notes) == 2
    assert {note["gpu"] for note in notes} == {"0"}
    assert {note["device"] for note in notes} == {"cuda"}


def test_concurrency_and_threads_follow_the_study_file(tmp_path: Path) -> None:
    notes = run(tmp_path, cpus=2, gpus=0, concurrent="1")
    assert most_at_once(notes) == 1
    assert {note["threads"] for note in notes} == {2}
    assert {note["device"] for note in notes} == {"cpu"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at '127.0.0.1:1'"),
        ("127.0.0.1:99999", "No Ray cluster answers"),
        ("nonsense", "must be `auto` or HOST:PORT"),
        ("ray://127.0.0.1:10001", "must be `auto` or HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # or the one of this file is used
    with pytest.raises(ResourceError, match=said) as caught, tune.connected(address):
        pass
    assert "\n" not in str(caught.value)


class Brief:
    """Trains nothing, in less time than a process takes to start; tells in which one it ran."""

    def start(self, job: Any) -> None:
        self.job = job

    def step(self) -> dict[str, Any]:
        time.sleep(0.1)
        final = {"values": {"top1": 0.5, **self.job.cost}, "groups": {}, "facts": {}}
        return {"epochs": [], "final": final | {"facts": {"process": os.getpid()}}}


def test_processes_start_while_trials_end_in_others(tmp_path: Path) -> None:
    """Tune alone ends a process that is starting as soon as another one is free for its trial."""
    file = tmp_path / "placed.yaml"
    text = STUDY.format(cpus=1, gpus=0, concurrent="auto")
    file.write_text(text.replace("trials: 6", "trials: 300").replace("high: 6", "high: 300"))
    before = len(ray._private.state.actors())
    result = run_study(file, runs=tmp_path, worker=Brief, formats=())
    assert result.complete
    finished = [e for e in read_events(result.folder) if e.kind == "finished"]
    assert len({event.body["facts"]["process"] for event in finished}) == 4
    assert len(ray._private.state.actors()) - before <= 5


# -------------------------------------------------------------------- Ray's end

LEAVING = """
import threading
import ray
from sftsearch.orchestrator.execution import tune

def work():
    while not left.wait(1e-5):
        ring = [references.pop()]
        ring.append(ring)
        del ring
        [[] for _ in range(1000)]  # so many that Python collects the ring

left = threading.Event()
with tune.connected(None):
    name = ray.put(0).binary()
    references = [ray.ObjectRef(name) for _ in range(100_000)]
    thread = threading.Thread(target=work)
    thread.start()
left.set()
thread.join()
print("left", len(references) > 0)
"""


def test_another_thread_that_collects_does_not_end_the_process_as_ray_shuts_down() -> None:
    command = [sys.executable, "-c", LEAVING]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "left True\n"), result.stderr


# ------------------------------------------------------------------- interrupts


def test_the_first_signal_is_counted_and_the_third_is_python_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with tune.Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.count == 1
        signal.raise_signal(signal.SIGINT)
        assert interruption.count == 2
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_stops_at_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with tune.Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.count == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    heard = []

    def enter() -> None:
        with tune.Interruption():
            heard.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGINT)]


# ------------------------------------------------------------ trials that hang


class Hanging(Noting):
    """Two of its trials never report: one hangs as it begins, one as it trains."""

    def start(self, job: Any) -> None:
        super().start(job)
        if job.parameters["dim"] == 2:
            time.sleep(3600)

    def step(self) -> dict[str, Any]:
        if self.job.parameters["dim"] == 5:
            time.sleep(3600)
        return super().step()


@pytest.mark.timeout(400)  # two processes are ended, and others started in their place
def test_a_trial_that_never_reports_fails_and_the_study_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "placed.yaml"
    text = STUDY.format(cpus=2, gpus=0, concurrent="2")
    file.write_text(text.replace("concurrent_trials: 2", "concurrent_trials: 2, trial_hours: 2e-3"))
    result = run_study(file, runs=tmp_path, worker=Hanging, formats=())
    assert result.complete
    assert result.reason == "all trials ran"
    outcomes = {t.configuration["dim"]: t.reason or t.status for t in result.record.trials}
    overdue = "it ran for longer than `resources.trial_hours` allows (0.002)"
    assert outcomes == {dim: overdue if dim in (2, 5) else "finished" for dim in range(1, 7)}


# ------------------------------------------------------------------- processes that do not start


def test_processes_that_cannot_start_stop_the_study_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster whose nodes lack a package: all trials would fail, each after some tries."""

    class Elsewhere(Noting):
        """Of a module that only the driver has."""

    module = types.ModuleType("of_the_driver_alone")
    module.Elsewhere = Elsewhere  # type: ignore[attr-defined]
    Elsewhere.__module__, Elsewhere.__qualname__ = module.__name__, "Elsewhere"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    file = tmp_path / "placed.yaml"
    file.write_text(STUDY.format(cpus=1, gpus=0, concurrent="auto"))
    with pytest.raises(ResourceError, match=r"ModuleNotFoundError.* 'of_the_driver_alone'"):
        run_study(file, runs=tmp_path, worker=Elsewhere, formats=())
    kinds = [event.kind for event in read_events(tmp_path / "placed")]
    assert not {"failed", "retried"} & set(kinds)
    result = run_study(file, runs=tmp_path, worker=Noting, resume=True, formats=())
    assert result.complete
    assert {trial.status for trial in result.record.trials} == {"finished"}
