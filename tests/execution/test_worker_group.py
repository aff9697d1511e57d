"""Trials with several workers, retries, shared GPUs and full disks, on a real Ray."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.execution.placement import ResourceError
from sftsearch.orchestrator.execution.reports import FailureCause, failure
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.search.engine import MAX_LOSSES
from sftsearch.orchestrator.study import run_study

from idle_workers import Idle, finished
from journals import read_events
from ray_state import check_nothing_is_left

if TYPE_CHECKING:
    from sftsearch.orchestrator.execution.reports import WorkerReport
    from sftsearch.orchestrator.study import StudyResult

pytestmark = [
    pytest.mark.medium,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("four_cpus_and_a_gpu"),
]

STUDY = """
study: {{name: group}}
dataset: {{kind: synthetic}}
search: {{baselines: false, sampler: {{kind: exhaustive}}, trials: {trials}{search}}}
training: {{epochs: 3, batch_size: 250}}
resources: {{{resources}}}
space: [{{kind: sft, num_heads: 1, fused_layers: 1, dim: {{kind: int, low: 1, high: {trials}}}}}]
"""
TWO = "cpus: 1, workers: 2"


def run(
    folder: Path,
    resources: str,
    worker: type[Any] = TrainingWorker,
    *,
    trials: int = 3,
    search: str = "",
) -> StudyResult:
    file = folder / "group.yaml"
    file.write_text(STUDY.format(trials=trials, resources=resources, search=search))
    result = run_study(file, runs=folder, worker=worker, formats=())
    check_nothing_is_left()
    return result


def events(result: StudyResult, kind: str) -> list[dict[str, Any]]:
    return [event.body for event in read_events(result.folder) if event.kind == kind]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Return a study whose trials have one worker each."""
    return run(tmp_path_factory.mktemp("single"), "cpus: 1")


def values(result: StudyResult) -> dict[str, tuple[float, float]]:
    return {t.key: (t.values["loss"], t.values["top1"]) for t in result.record.trials}


def test_worker_group_gives_the_values_of_one_worker(tmp_path: Path, single: StudyResult) -> None:
    result = run(tmp_path, TWO)
    assert result.complete
    own, others = values(result), values(single)
    assert own.keys() == others.keys()
    for key, (loss, top1) in own.items():
        assert loss == pytest.approx(others[key][0], rel=1e-4)
        assert top1 == pytest.approx(others[key][1], abs=0.01)
    for body in events(result, "finished"):
        assert body["facts"]["workers"] == 2
    folder = result.folder / "trials" / result.record.trials[0].key
    assert sorted(path.name for path in folder.iterdir()) == [
        "owner",
        "trial.log",
        "weights.safetensors",
    ]


class Breaking(TrainingWorker):
    """Dies once, in the second epoch of the second configuration."""

    times = 1

    def step(self) -> WorkerReport:
        spec = self.spec
        if spec.parameters["dim"] == 2 and self.fit.epoch == 1:
            mark = Path(spec.folder) / "broken"
            broken = len(mark.read_text()) if mark.exists() else 0
            if broken < self.times and spec.rank == spec.workers - 1:
                mark.write_text("x" * (broken + 1))
                self.fail()
        return super().step()

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class AlwaysBreaking(Breaking):
    times = 99


class Raising(Breaking):
    times = 99

    def fail(self) -> None:
        raise RuntimeError("a bug in one of the workers")


ONE_OR_TWO = [
    pytest.param("cpus: 1", id="one"),
    pytest.param(TWO, id="two", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("resources", ONE_OR_TWO)
def test_trial_resumes_from_its_checkpoint_after_its_process_is_killed(
    tmp_path: Path, single: StudyResult, resources: str
) -> None:
    result = run(tmp_path, resources, Breaking)
    (retried,) = events(result, "retried")
    assert "died" in retried["reason"]
    epochs = Counter((body["trial"], body["epoch"]) for body in events(result, "epoch"))
    assert set(epochs.values()) == {1}
    assert len(epochs) == 9
    if resources == TWO:
        for key, (loss, _) in values(result).items():
            assert loss == pytest.approx(values(single)[key][0], rel=1e-4)
    else:
        assert values(result) == values(single)
    log = (result.folder / "trials" / retried["trial"] / "trial.log").read_text()
    assert "resuming after epoch 1" in log


@pytest.mark.slow
@pytest.mark.parametrize("resources", ["cpus: 1", TWO])
def test_trial_fails_after_its_process_died_too_often(tmp_path: Path, resources: str) -> None:
    result = run(tmp_path, resources, AlwaysBreaking)
    assert len(events(result, "retried")) == MAX_LOSSES - 1
    (failed,) = events(result, "failed")
    assert "died" in failed["reason"]
    assert Counter(trial.status for trial in result.record.trials) == {"finished": 2, "failed": 1}


@pytest.mark.slow
def test_worker_group_ends_a_trial_that_fails_in_one_worker(tmp_path: Path) -> None:
    result = run(tmp_path, TWO, Raising)
    (failed,) = events(result, "failed")
    assert failed["reason"] == "RuntimeError: a bug in one of the workers"
    assert not events(result, "retried")


@pytest.mark.slow
def test_worker_group_leaves_no_placement_group_of_stopped_trials(tmp_path: Path) -> None:
    stopping = ", early_stopping: {kind: median, min_epochs: 1, audit_share: 0}"
    result = run(tmp_path, TWO, trials=8, search=stopping)
    assert result.complete
    assert events(result, "stopped")


# ------------------------------------------------------------------- memory of a shared GPU


class Crowded(Idle):
    """Runs out of memory in two trials: in one if the GPU is shared, in the other always."""

    def step(self) -> WorkerReport:
        dim, share = self.spec.parameters["dim"], self.spec.resources["GPU"]
        if dim == 3 or (dim == 2 and share < 1):
            reason = "out of memory: CUDA out of memory. Tried to allocate"
            return failure(reason, FailureCause.OUT_OF_MEMORY)
        return finished({"top1": share, **self.spec.cost})


@pytest.mark.slow
def test_trial_out_of_memory_on_a_shared_gpu_is_retried_alone_once(tmp_path: Path) -> None:
    result = run(tmp_path, "cpus: 1, gpus: 0.25", Crowded)
    outcomes = {t.configuration["dim"]: t.values.get("top1") for t in result.record.trials}
    assert outcomes == {1: 0.25, 2: 1.0, 3: None}
    assert all(body["alone"] for body in events(result, "retried"))
    assert len(events(result, "retried")) == 2
    (failed,) = events(result, "failed")
    assert failed["reason"].startswith("out of memory: CUDA out of memory")


def test_trial_out_of_memory_on_its_own_gpu_fails(tmp_path: Path) -> None:
    result = run(tmp_path, "cpus: 1, gpus: 1", Crowded)
    assert not events(result, "retried")
    assert len(events(result, "failed")) == 1


# ------------------------------------------------------------------- by configuration


class ResourceReporter(Idle):
    """Reports its resources as metrics."""

    def step(self) -> WorkerReport:
        given = self.spec.resources
        values = {"top1": given["CPU"], "threads": self.spec.threads, **self.spec.cost}
        values |= {"gpu": given.get("GPU", 0.0), "memory": given.get("memory", 0.0)}
        return finished(values)


def test_placement_applies_the_study_file_s_overrides(tmp_path: Path) -> None:
    rules = "overrides: [{metric: parameters, above: 150, cpus: 2, gpus: 1, memory_gb: 0.5}]"
    result = run(tmp_path, f"cpus: 1, gpus: 0.25, {rules}", ResourceReporter)
    for trial in result.record.trials:
        is_large = trial.values["parameters"] > 150
        given = [trial.values[name] for name in ("top1", "threads", "gpu", "memory")]
        assert given == ([2, 2, 1, 5e8] if is_large else [1, 1, 0.25, 0])
    assert len({trial.values["gpu"] for trial in result.record.trials}) == 2


# ------------------------------------------------------------------- a full disk


class DiskFull(TrainingWorker):
    """Finds the disk full, once."""

    def run_epoch(self) -> None:
        mark = Path(self.spec.folder).parents[1] / "was-full"
        if self.spec.parameters["dim"] == 2 and not mark.exists():
            mark.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().run_epoch()


def test_run_stops_on_a_full_disk_without_failing_a_trial(
    tmp_path: Path, single: StudyResult
) -> None:
    """Tune treats an error that is raised while it processes a report as the trial's error."""
    with pytest.raises(ResourceError, match=r"cannot write .* No space left on device"):
        run(tmp_path, "cpus: 1", DiskFull)
    result = run_study(tmp_path / "group.yaml", runs=tmp_path, resume=True, formats=())
    assert result.complete
    assert not events(result, "failed")
    assert values(result) == values(single)
