"""Workers resume from checkpoints, check costs and report errors instead of raising."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.execution import measurements
from sftsearch.orchestrator.execution.measurements import measuring_alone
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.storage.trial_files import CHECKPOINT, LOG, OWNER, WEIGHTS
from sftsearch.trainables.memory import count_memory

from trial_specs import TRAINING, run, trial_spec

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.execution.trial_spec import TrialSpec

UNREPEATABLE = {"seconds", "latency_ms", "train_step_ms"}


def epochs(reports: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in epoch.items() if name not in UNREPEATABLE}
        for report in reports
        for epoch in report["epochs"]
    ]


def start(spec: TrialSpec, worker_type: type[TrainingWorker] = TrainingWorker) -> TrainingWorker:
    worker = worker_type()
    worker.start(spec)
    return worker


@pytest.mark.medium
def test_worker_reports_each_epoch_once_and_saves_weights(tmp_path: Path) -> None:
    reports = run(start(trial_spec(tmp_path)))
    assert [epoch["epoch"] for epoch in epochs(reports)] == [1, 2, 3, 4]
    final = reports[-1]["final"]
    assert final["values"]["top1"] == pytest.approx(
        sum(epoch["top1"] for epoch in epochs(reports)[1:]) / 3
    )
    assert final["facts"] == {"torch": torch.__version__, "device": "cpu", "threads": 1}
    assert (tmp_path / WEIGHTS).is_file()


@pytest.mark.medium
@pytest.mark.parametrize(("dataset", "metric"), [("rating", "mae"), ("tags", "map")])
def test_worker_trains_other_tasks_with_lengths(tmp_path: Path, dataset: str, metric: str) -> None:
    training = {"epochs": 2, "batch_size": 256, "mixup": "manifold", "mixup_warmup": 1}
    training |= {"precision": "bfloat16", "score_epoch": "best"}
    final = run(start(trial_spec(tmp_path, f"synthetic_{dataset}", training=training)))[-1]["final"]
    assert 0 < final["values"][metric] < 2
    assert final["values"]["latency_ms"] > 0
    assert final["values"]["gflops_expected"] == final["values"]["gflops"]  # no gates
    assert bool(final["groups"]) == (dataset == "rating")


@pytest.mark.medium
@pytest.mark.parametrize("num_journalled", [0, 1, 2])
def test_worker_resumes_and_reports_epochs_missing_from_the_journal(
    tmp_path: Path, num_journalled: int
) -> None:
    undisturbed = run(start(trial_spec(tmp_path / "a")))
    first = start(trial_spec(tmp_path / "b"))
    for _ in range(2):
        first.step()
    second = run(start(trial_spec(tmp_path / "b", num_journalled=num_journalled)))
    assert epochs(second) == epochs(undisturbed)[num_journalled:]
    assert "resuming after epoch 2" in (tmp_path / "b" / LOG).read_text()
    ours, theirs = second[-1]["final"], undisturbed[-1]["final"]
    for name in theirs["values"].keys() - UNREPEATABLE:
        assert ours["values"][name] == theirs["values"][name]
    assert ours["groups"] == theirs["groups"]


@pytest.mark.medium
def test_worker_repeats_every_epoch_after_a_damaged_checkpoint(tmp_path: Path) -> None:
    undisturbed = run(start(trial_spec(tmp_path / "a")))
    first = start(trial_spec(tmp_path / "b"))
    for _ in range(2):
        first.step()
    (tmp_path / "b" / CHECKPOINT).write_bytes(b"\x80\x04garbage")
    second = run(start(trial_spec(tmp_path / "b", num_journalled=2)))
    assert epochs(second) == epochs(undisturbed)  # the search compares them
    assert "starting from scratch" in (tmp_path / "b" / LOG).read_text()


@pytest.mark.medium
def test_worker_repeats_the_final_report_of_a_finished_trial(tmp_path: Path) -> None:
    once = run(start(trial_spec(tmp_path)))
    again = run(start(trial_spec(tmp_path, num_journalled=4)))
    assert epochs(again) == []
    assert again[-1]["final"]["groups"] == once[-1]["final"]["groups"]


@pytest.mark.medium
def test_worker_counts_memory_unless_it_is_known(tmp_path: Path) -> None:
    known = {"train_memory_mb": 1.5, "inference_memory_mb": 1.0, "weights_mb": 0.5}
    spec = trial_spec(tmp_path / "a", training=TRAINING | {"epochs": 1})
    counted = run(start(spec))[-1]["final"]["values"]
    dataset = describe("synthetic")
    bound = bind("sft", spec.parameters, spec.training, dataset)
    expected = count_memory("sft", dataset, bound.model_config, bound.train_config)
    assert {name: counted[name] for name in known} == expected.as_dict()
    second = trial_spec(tmp_path / "b", training=spec.training, cost=spec.cost | known)
    assert run(start(second))[-1]["final"]["values"].items() >= known.items()


@pytest.mark.medium
def test_worker_marks_times_that_were_measured_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "lock_file", lambda: tmp_path / "missing" / "lock")
    final = run(start(trial_spec(tmp_path, training=TRAINING | {"epochs": 1})))[-1]["final"]
    assert final["facts"]["times"].startswith("disturbed")
    assert final["values"]["train_step_ms"] > 0


@pytest.mark.medium
def test_worker_measures_its_part_of_a_batch(tmp_path: Path) -> None:
    """Of three workers, the first has 86 of 256 samples; it does not wait for the others."""
    spec = trial_spec(tmp_path, training=TRAINING | {"epochs": 1})
    worker = start(spec)
    assert worker._measured_fit() is worker.fit
    worker._spec = dataclasses.replace(spec, workers=3)
    fit = worker._measured_fit()
    assert (fit.config.batch_size, fit.workers.count) == (86, 1)
    assert fit.model is not worker.fit.model


def test_measuring_alone_waits_for_the_others_and_gives_up(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with measuring_alone(file) as first, measuring_alone(file, patience=0.05) as second:
        assert (first, second) == (True, False)
    with measuring_alone(file, patience=0.0) as third:
        assert third
    with measuring_alone(tmp_path / "missing" / "lock") as unwritable:
        assert not unwritable


@pytest.mark.medium
def test_a_killed_process_releases_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    code = (
        "import sys, pathlib, time\n"
        "from sftsearch.orchestrator.execution.measurements import measuring_alone\n"
        "with measuring_alone(pathlib.Path(sys.argv[1])) as alone:\n"
        "    print(alone, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with measuring_alone(file, patience=0.05) as alone:
            assert not alone
        holder.kill()
    with measuring_alone(file, patience=5.0) as alone:
        assert alone


@pytest.mark.medium
def test_worker_fails_a_trial_with_a_wrong_cost(tmp_path: Path) -> None:
    wrong = trial_spec(tmp_path).cost | {"gmacs": 1.0}
    report = start(trial_spec(tmp_path, cost=wrong)).step()
    assert report["failed"].startswith("RuntimeError: The closed form of 'sft' is wrong: it gives")
    assert "gmacs=1.0, but counting on the built model gives" in report["failed"]


@pytest.mark.medium
def test_worker_trains_another_trial_after_a_failure(tmp_path: Path) -> None:
    worker = TrainingWorker()
    worker.start(trial_spec(tmp_path / "bad", parameters={"dim": 7, "num_heads": 2}))
    report = worker.step()
    assert report["failed"].startswith("ConfigError: `num_heads` must divide `dim`")
    assert "Traceback" in (tmp_path / "bad" / LOG).read_text()
    worker.start(trial_spec(tmp_path / "good"))
    fresh = run(start(trial_spec(tmp_path / "fresh")))
    assert epochs(run(worker)) == epochs(fresh)


class MemoryHungry(TrainingWorker):
    """Allocates more memory than any machine has."""

    def run_epoch(self) -> None:
        torch.empty(2**50)


def test_worker_reports_that_memory_ran_out(tmp_path: Path) -> None:
    worker = start(trial_spec(tmp_path), MemoryHungry)
    assert worker.step()["failed"].startswith("out of memory: ")


def test_worker_reports_a_diverging_trial(tmp_path: Path) -> None:
    training = TRAINING | {"learning_rate": 1e30, "clip_norm": 1e30}
    reports = run(start(trial_spec(tmp_path, training=training)))
    assert "failed" in reports[-1]
    assert "TrainingDiverged" in reports[-1]["failed"]


def test_worker_reports_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = start(trial_spec(tmp_path / "file" / "trial")).step()
    assert report["failed"].startswith("NotADirectoryError: ")


WITHOUT_COMPILER = """
import sys
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.worker import TrainingWorker
worker = TrainingWorker()
worker.start(TrialSpec.from_json(sys.argv[1]))
print(worker.step()["failed"])
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_worker_reports_a_missing_compiler(tmp_path: Path) -> None:
    training = TRAINING | {"compile": True}
    spec = trial_spec(tmp_path / "trial", training=training).to_json()
    command = [sys.executable, "-P", "-c", WITHOUT_COMPILER, spec]
    environment = os.environ | {"CXX": "/no/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("CompileError: `compile` needs a C++ compiler, and Triton on")
    assert "InvalidCxxCompiler" in done.stdout
    assert done.stdout.endswith("Install them, or remove `compile`.\n")


# ------------------------------------------------------------------- fencing tokens


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.medium
def test_worker_writes_nothing_after_it_was_replaced(tmp_path: Path) -> None:
    """As after a resume, if a worker outlives its driver."""
    old, new = TrainingWorker(), TrainingWorker()
    old.start(trial_spec(tmp_path, fencing_token=7))
    assert len(old.step()["epochs"]) == 1
    new.start(trial_spec(tmp_path, fencing_token=12))
    before = contents(tmp_path)
    late = old.step()
    assert (
        late["failed"]
        == f"StaleTokenError: The trial in '{tmp_path}' was assigned to another worker."
    )
    again = TrainingWorker()
    again.start(trial_spec(tmp_path, fencing_token=11))
    assert again.step()["failed"].startswith("StaleTokenError: The trial in ")
    assert contents(tmp_path) == before
    reports = run(new)
    assert epochs([{"epochs": reports[0]["epochs"]}])
    assert "final" in reports[-1]
    undisturbed = TrainingWorker()
    undisturbed.start(trial_spec(tmp_path / "other"))
    assert reports[-1]["final"]["values"]["loss"] == run(undisturbed)[-1]["final"]["values"]["loss"]


def test_worker_takes_over_a_folder_with_a_damaged_owner_file(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("")
    worker = TrainingWorker()
    worker.start(trial_spec(tmp_path, fencing_token=3))
    assert "epochs" in worker.step()
    (tmp_path / OWNER).write_bytes(b"\xff?")
    assert worker.step()["failed"].startswith("StaleTokenError")


@pytest.mark.medium
def test_worker_log_has_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftsearch.orchestrator.storage.trial_files.MAX_LOG_BYTES", 400)
    worker = TrainingWorker()
    worker.start(trial_spec(tmp_path, training=TRAINING | {"epochs": 8}))
    run(worker)
    assert (tmp_path / LOG).stat().st_size < 700
