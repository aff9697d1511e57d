"""A trial where it runs: from its checkpoint, with the price it was promised, never raising."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sftsearch.orchestrator.execution.worker import Job, TrainingWorker
from sftsearch.orchestrator.storage.trial_files import CHECKPOINT, LOG, OWNER, WEIGHTS

from worker_jobs import TRAINING, job, run

if TYPE_CHECKING:
    from pathlib import Path

UNREPEATABLE = {"seconds", "latency_ms", "peak_memory_mb"}


def epochs(reports: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in epoch.items() if name not in UNREPEATABLE}
        for report in reports
        for epoch in report["epochs"]
    ]


def start(job: Job) -> TrainingWorker:
    worker = TrainingWorker()
    worker.start(job)
    return worker


@pytest.mark.medium
def test_a_trial_reports_each_epoch_once_and_leaves_weights(tmp_path: Path) -> None:
    reports = run(start(job(tmp_path)))
    assert [epoch["epoch"] for epoch in epochs(reports)] == [1, 2, 3, 4]
    final = reports[-1]["final"]
    assert final["values"]["top1"] == pytest.approx(
        sum(epoch["top1"] for epoch in epochs(reports)[1:]) / 3
    )
    assert final["facts"] == {"torch": torch.__version__, "device": "cpu", "threads": 1}
    assert (tmp_path / WEIGHTS).is_file()


@pytest.mark.medium
@pytest.mark.parametrize(("dataset", "metric"), [("rating", "mae"), ("tags", "map")])
def test_other_tasks_with_lengths_are_trials_too(tmp_path: Path, dataset: str, metric: str) -> None:
    training = {"epochs": 2, "batch_size": 256, "mixup": "manifold", "mixup_warmup": 1}
    training |= {"precision": "bfloat16", "value": "best"}
    final = run(start(job(tmp_path, f"synthetic_{dataset}", training=training)))[-1]["final"]
    assert 0 < final["values"][metric] < 2
    assert final["values"]["latency_ms"] > 0
    assert final["values"]["gflops_expected"] == final["values"]["gflops"]  # no gate chooses
    assert bool(final["groups"]) == (dataset == "rating")


@pytest.mark.medium
@pytest.mark.parametrize("num_journalled", [0, 1, 2])
def test_another_worker_goes_on_and_reports_what_the_journal_lacks(
    tmp_path: Path, num_journalled: int
) -> None:
    undisturbed = run(start(job(tmp_path / "a")))
    first = start(job(tmp_path / "b"))
    for _ in range(2):
        first.step()
    second = run(start(job(tmp_path / "b", num_journalled=num_journalled)))
    assert epochs(second) == epochs(undisturbed)[num_journalled:]
    assert "going on after epoch 2" in (tmp_path / "b" / LOG).read_text()
    ours, theirs = second[-1]["final"], undisturbed[-1]["final"]
    for name in theirs["values"].keys() - UNREPEATABLE:
        assert ours["values"][name] == theirs["values"][name]
    assert ours["groups"] == theirs["groups"]


@pytest.mark.medium
def test_a_lost_or_damaged_checkpoint_trains_again_and_repeats_every_epoch(tmp_path: Path) -> None:
    undisturbed = run(start(job(tmp_path / "a")))
    first = start(job(tmp_path / "b"))
    for _ in range(2):
        first.step()
    (tmp_path / "b" / CHECKPOINT).write_bytes(b"\x80\x04garbage")
    second = run(start(job(tmp_path / "b", num_journalled=2)))
    assert epochs(second) == epochs(undisturbed)  # to be compared with the journal's
    assert "starting anew" in (tmp_path / "b" / LOG).read_text()


@pytest.mark.medium
def test_a_trial_that_had_finished_reports_its_end_again(tmp_path: Path) -> None:
    once = run(start(job(tmp_path)))
    again = run(start(job(tmp_path, num_journalled=4)))
    assert epochs(again) == []
    assert again[-1]["final"]["groups"] == once[-1]["final"]["groups"]


@pytest.mark.medium
def test_a_wrong_price_fails_the_trial(tmp_path: Path) -> None:
    wrong = job(tmp_path).cost | {"gmacs": 1.0}
    report = start(job(tmp_path, cost=wrong)).step()
    assert report["failed"].startswith("RuntimeError: The price says gmacs=1.0, but the model")


@pytest.mark.medium
def test_one_worker_takes_trial_after_trial_also_after_a_failure(tmp_path: Path) -> None:
    worker = TrainingWorker()
    worker.start(job(tmp_path / "bad", parameters={"dim": 7, "num_heads": 2}))
    report = worker.step()
    assert report["failed"].startswith("ConfigError: `num_heads` must divide `dim`")
    assert "Traceback" in (tmp_path / "bad" / LOG).read_text()
    worker.start(job(tmp_path / "good"))
    fresh = run(start(job(tmp_path / "fresh")))
    assert epochs(run(worker)) == epochs(fresh)


def test_running_out_of_memory_is_a_reason(tmp_path: Path) -> None:
    worker = start(job(tmp_path))

    def out_of_memory() -> None:
        torch.empty(2**50)  # a real allocation that no machine can give

    worker._fit.run_epoch = out_of_memory
    assert worker.step()["failed"].startswith("out of memory: ")


def test_a_diverging_trial_says_where(tmp_path: Path) -> None:
    training = TRAINING | {"learning_rate": 1e30, "clip_norm": 1e30}
    reports = run(start(job(tmp_path, training=training)))
    assert "failed" in reports[-1]
    assert "TrainingDiverged" in reports[-1]["failed"]


def test_a_folder_that_cannot_be_made_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = start(job(tmp_path / "file" / "trial")).step()
    assert report["failed"].startswith("NotADirectoryError: ")


WITHOUT_COMPILER = """
import json, sys
from sftsearch.orchestrator.execution.worker import Job, TrainingWorker
worker = TrainingWorker()
worker.start(Job(**json.loads(sys.argv[1])))
print(worker.step()["failed"])
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_compiling_without_a_compiler_is_a_clear_reason(tmp_path: Path) -> None:
    training = TRAINING | {"compile": True}
    described = json.dumps(dataclasses.asdict(job(tmp_path / "trial", training=training)))
    command = [sys.executable, "-P", "-c", WITHOUT_COMPILER, described]
    environment = os.environ | {"CXX": "/no/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("CompileError: `compile` needs a C++ compiler, and Triton on")
    assert "InvalidCxxCompiler" in done.stdout
    assert done.stdout.endswith("Install them, or leave `compile` out.\n")


# ------------------------------------------------------------------- who may write


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.medium
def test_a_worker_that_was_replaced_writes_nothing_any_more(tmp_path: Path) -> None:
    """As after a resume, where a worker outlives its driver."""
    old, new = TrainingWorker(), TrainingWorker()
    old.start(job(tmp_path, token=7))
    assert len(old.step()["epochs"]) == 1
    new.start(job(tmp_path, token=12))
    before = contents(tmp_path)
    late = old.step()
    assert late["failed"] == f"LostTrial: The trial in '{tmp_path}' was handed to another worker."
    again = TrainingWorker()
    again.start(job(tmp_path, token=11))
    assert again.step()["failed"].startswith("LostTrial: The trial in ")
    assert contents(tmp_path) == before
    reports = run(new)
    assert epochs([{"epochs": reports[0]["epochs"]}])
    assert "final" in reports[-1]
    undisturbed = TrainingWorker()
    undisturbed.start(job(tmp_path / "other"))
    assert reports[-1]["final"]["values"]["loss"] == run(undisturbed)[-1]["final"]["values"]["loss"]


@pytest.mark.medium
def test_an_owner_that_was_cut_off_half_way_belongs_to_nobody(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text("")
    worker = TrainingWorker()
    worker.start(job(tmp_path, token=3))
    assert "epochs" in worker.step()
    (tmp_path / OWNER).write_bytes(b"\xff?")
    assert worker.step()["failed"].startswith("LostTrial")


@pytest.mark.medium
def test_a_log_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftsearch.orchestrator.storage.trial_files.MAX_LOG_BYTES", 400)
    worker = TrainingWorker()
    worker.start(job(tmp_path, training=TRAINING | {"epochs": 8}))
    run(worker)
    assert (tmp_path / LOG).stat().st_size < 700
