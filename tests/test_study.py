"""Run, resume, extend and confirm small studies on real Ray and MLflow."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator import confirm, studies
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.execution.cluster import connected
from sftsearch.orchestrator.storage import journal
from sftsearch.orchestrator.storage.journal import Row, read_rows
from sftsearch.orchestrator.storage.lease import BackupError
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.study import StudyResult, run_study
from sftsearch.orchestrator.tracking.client import open_client
from sftsearch.orchestrator.tracking.reader import read_study

from journals import Journal, read_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.orchestrator.storage.journal import Entry

STUDY = """
study: {{name: small, description: A test.}}
dataset: {{kind: synthetic}}
search: {{baselines: false, sampler: {{kind: exhaustive}}, trials: {trials}, replicates: 2}}
training: {{epochs: 3, batch_size: 64, learning_rate: 3e-3}}
resources: {{cpus: 1, concurrent_trials: {concurrent}}}
space:
  - kind: sft
    num_heads: 2
    stride: {{kind: choice, values: [1, 2]}}
    dim: {{kind: choice, values: {dims}}}
    fused_layers: 1
"""

pytestmark = [pytest.mark.medium, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Any:
    """Start Ray once for this file, because it takes seconds."""
    with connected(None):
        yield


def write(
    folder: Path, *, trials: int = 8, dims: str = "[8, 16]", concurrent: str = "auto"
) -> Path:
    file = folder / "small.yaml"
    file.write_text(STUDY.format(trials=trials, dims=dims, concurrent=concurrent))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("study")
    return run_study(write(folder), runs=folder / "runs")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_run_study_reports_the_front_of_real_trials(finished: StudyResult) -> None:
    assert finished.complete
    assert finished.tracking_problem == ""
    assert [trial.status for trial in finished.record.trials] == ["finished"] * 8
    assert {path.name for path in finished.report} == {
        "report.html", "report.csv", "report.json", "report.md", "report.png",
    }  # fmt: skip
    for trial in finished.record.trials:
        assert trial.values["top1"] == pytest.approx(
            sum(correct for correct, _ in trial.groups.values())
            / sum(count for _, count in trial.groups.values()),
            rel=1e-12,
        )
        assert trial.values["train_memory_mb"] > trial.values["inference_memory_mb"] > 0
        assert trial.values["train_step_ms"] > 0
        assert trial.values["latency_ms"] > 0
        assert trial.test_values is None


def test_mlflow_has_the_same_record(finished: StudyResult) -> None:
    runs = finished.folder.parent
    assert read_study(finished.tracking_uri, "small", runs) == finished.record
    client = open_client(finished.tracking_uri, runs)
    experiment = client.get_experiment_by_name("small")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 9
    parent = next(run for run in found if run.data.tags["sftsearch.trial"] == "")
    children = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    for run in children:
        assert len(client.get_metric_history(run.info.run_id, "epoch/top1")) == 3
        assert run.data.params["dim"] in ("8", "16")
        assert {"fingerprint", "torch", "device", "threads", "version"} <= {
            tag.removeprefix("sftsearch.") for tag in run.data.tags
        }
        assert not any("test" in name for name in run.data.metrics)
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    assert "report/report.html" in artifacts


@pytest.mark.slow
def test_resumed_run_reads_the_journal_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last event is read twice: the mirror compares it with its bookkeeping."""
    runs = tmp_path / "runs"
    first = run_study(write(tmp_path, trials=4), runs=runs, formats=())
    before = sum(1 for _ in read_events(first.folder))
    read: Counter[int] = Counter()

    def counted(*args: Any, **part: Any) -> Iterator[Row]:
        for row in read_rows(*args, **part):
            read[row.id] += 1
            yield row

    monkeypatch.setattr(journal, "read_rows", counted)
    result = run_study(write(tmp_path, trials=8), runs=runs, resume=True)
    assert len(result.record.trials) == 8
    assert [read[number] for number in range(1, before)] == [1] * (before - 1)
    assert max(read.values()) == 2


def test_trial_value_is_the_mean_of_the_last_three_epochs(finished: StudyResult) -> None:
    trial = finished.record.trials[0]
    epochs = [
        event.body["metrics"]["top1"]
        for event in read_events(finished.folder)
        if event.kind == "epoch" and event.body["trial"] == trial.key
    ]
    assert len(epochs) == 3
    assert trial.values["top1"] == pytest.approx(sum(epochs) / 3, rel=1e-12)


def test_trial_folder_has_weights_and_log_but_no_checkpoint(finished: StudyResult) -> None:
    for trial in finished.record.trials:
        folder = Path(studies.trial_folder(finished.folder, trial.key))
        assert sorted(file.name for file in folder.iterdir()) == [
            "owner",
            "trial.log",
            "weights.safetensors",
        ]
    shown = call("show", finished.record.trials[0].key, "--runs", finished.folder.parent)
    assert shown.exit_code == 0
    assert "finished after" in shown.output


def test_run_refuses_an_existing_study(finished: StudyResult, tmp_path: Path) -> None:
    runs = finished.folder.parent
    before = len(list(read_events(finished.folder)))
    again = call("run", write(tmp_path), "--runs", runs)
    assert again.exit_code == 1
    assert "8 of 8 trials done. Add --resume" in again.output
    other = call("run", write(tmp_path, dims="[8, 24]"), "--runs", runs, "--resume")
    assert other.exit_code == 1
    assert "exists with another definition (it differs in `space`)" in other.output
    with Journal(finished.folder):
        second = call("run", write(tmp_path), "--runs", runs, "--resume")
    assert second.exit_code == 1
    assert f"is being run by another process (pid {os.getpid()})" in second.output
    assert len(list(read_events(finished.folder))) == before


def test_resume_extends_with_a_larger_budget_only(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = run_study(write(tmp_path, trials=2), runs=runs, formats=())
    second = run_study(write(tmp_path, trials=4), runs=runs, resume=True, formats=())
    assert len(second.record.trials) == 4
    assert second.record.trials[:2] == first.record.trials
    third = run_study(write(tmp_path, trials=4), runs=runs, resume=True, formats=())
    assert third.record == second.record
    assert read_study(third.tracking_uri, "small", runs) == third.record


class QuickWorker:
    """Worker that trains nothing: three epochs whose accuracy grows with the width."""

    def start(self, job: Any) -> None:
        self.job, self.epoch = job, job.num_journalled

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        top1 = 0.5 + 0.01 * self.job.parameters["dim"] + 0.001 * self.job.seed
        report: dict[str, Any] = {"epochs": [{"epoch": self.epoch, "top1": top1, "seconds": 60.0}]}
        if self.epoch == 3:
            values = {"top1": top1, "seconds": 180.0, **self.job.cost}
            report["final"] = {"values": values, "groups": {}, "facts": {}}
        return report


class DiesBeforeDecision(StudyCallback):
    """Callback that fails after the report of an epoch, before the early-stopping decision."""

    def on_event(self, entry: Entry) -> None:
        if entry.event.kind == "epoch" and entry.event.epoch == 2:
            raise BackupError("the machine dies here")


class Recorder(StudyCallback):
    """Callback that records events and notices."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.notices: list[str] = []

    def on_event(self, entry: Entry) -> None:
        self.entries.append(entry)

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


def test_resumed_study_calls_back_for_its_first_decision(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    text = STUDY.format(trials=8, dims="[8, 16]", concurrent="1")
    rule = "replicates: 1, early_stopping: {kind: median, min_epochs: 1}"
    file.write_text(text.replace("replicates: 2", rule))
    with pytest.raises(BackupError, match="the machine dies here"):
        run_study(
            file, runs=tmp_path, worker=QuickWorker, callback=DiesBeforeDecision(), formats=()
        )
    folder = tmp_path / "small"
    before = max(event.id for event in read_events(folder))
    callback = Recorder()
    run_study(file, runs=tmp_path, resume=True, worker=QuickWorker, callback=callback, formats=())
    written = [event for event in read_events(folder, after=before) if event.kind != "opened"]
    assert [entry.id for entry in callback.entries] == [event.id for event in written]
    assert written[0].kind in ("judged", "stopped")


@pytest.mark.slow
def test_study_ends_at_its_limit_and_a_higher_one_extends_it(tmp_path: Path) -> None:
    """Also after the fresh replicates of the reported configurations."""
    text = STUDY.format(trials=8, dims="[8, 16]", concurrent="1")

    def run(max_epochs: int) -> StudyResult:
        file = tmp_path / "small.yaml"
        plan = f"replicates: {{min: 2, max: 2, fresh: 1}}, max_epochs: {max_epochs}"
        file.write_text(text.replace("replicates: 2", plan))
        return run_study(file, runs=tmp_path, resume=True, worker=QuickWorker, formats=())

    def frozen() -> list[Any]:
        return [e.body["seeds"] for e in read_events(tmp_path / "small") if e.kind == "frozen"]

    first = run(7)
    assert first.complete
    assert first.reason == "the limit of 7 epochs was reached"
    assert len(frozen()) == 1
    again = run(7)
    assert again.complete
    assert again.record == first.record
    assert len(frozen()) == 1
    higher = run(1000)
    assert higher.complete
    assert higher.reason == "all trials ran"
    assert len(frozen()) == 2
    fresh = [f"{i}-{seed}" for seeds in frozen() for i, own in seeds.items() for seed in own]
    keys = {trial.key for trial in higher.record.trials}
    assert {trial.key for trial in first.record.trials} <= keys
    assert len(keys) == 8 + len(set(fresh))
    ended = [event.body for event in read_events(tmp_path / "small") if event.kind == "ended"]
    assert [body["reason"] for body in ended] == [first.reason, first.reason, higher.reason]
    assert read_study(higher.tracking_uri, "small", tmp_path) == higher.record


def test_hours_count_only_while_trials_run(tmp_path: Path) -> None:
    """Time between two drivers does not count, even if events are written in it."""

    def run(trials: int) -> StudyResult:
        file = tmp_path / "small.yaml"
        text = STUDY.format(trials=trials, dims="[8, 16]", concurrent="1")
        file.write_text(text.replace("replicates: 2", "replicates: 1, max_hours: 0.5"))
        return run_study(file, runs=tmp_path, resume=True, worker=QuickWorker, formats=())

    assert run(2).reason == "all trials ran"
    with Journal(tmp_path / "small", clock=lambda: time.time() + 3600) as journal:
        journal.append("mirrored", through=journal.last_id)
    second = run(4)
    assert second.reason == "all trials ran"
    assert len(second.record.trials) == 4


def test_equal_trials_have_equal_values_in_other_processes(
    finished: StudyResult, tmp_path: Path
) -> None:
    alone = run_study(write(tmp_path, trials=2, concurrent="1"), runs=tmp_path, formats=())
    theirs = {trial.key: trial for trial in finished.record.trials}
    measured = {"latency_ms", "train_step_ms", "seconds"}
    for trial in alone.record.trials:
        same = theirs[trial.key]
        assert trial.groups == same.groups
        for name in trial.values.keys() - measured:
            assert trial.values[name] == same.values[name], name


def test_regression_minimizes_its_own_metric(tmp_path: Path) -> None:
    """Without objectives in the file the mean absolute error is minimized."""
    file = tmp_path / "rating.yaml"
    text = STUDY.format(trials=4, dims="[8, 16]", concurrent="auto")
    text = text.replace("kind: synthetic", "kind: synthetic_rating").replace(
        "replicates: 2", "replicates: 1"
    )
    file.write_text(text.replace("name: small", "name: rating").replace("epochs: 3", "epochs: 1"))
    result = run_study(file, runs=tmp_path, formats=("json",))
    assert result.record.objectives == (("mae", "minimize"), ("gflops", "minimize"))
    assert (result.analysis.front.x, result.analysis.front.y) == ("gflops", "mae")
    assert result.sampler_study is not None
    assert len(result.record.trials) == 4
    values = [(t.values["mae"], t.values["gflops"]) for t in result.record.trials]
    on_front = {one for one in values if not any(a < one[0] and b < one[1] for a, b in values)}
    best = {tuple(trial.values) for trial in result.sampler_study.best_trials}
    assert best == on_front


def test_confirm_evaluates_the_test_split_once(finished: StudyResult) -> None:
    runs = finished.folder.parent
    before = call("pareto", "small", "--runs", runs, "--json")
    assert "test" not in json.loads(before.output)["configurations"][0].get("values", {})
    confirmed = confirm.confirm_study(finished.folder)
    assert confirmed.confirmed
    on_front = [trial for trial in confirmed.trials if trial.test_values]
    assert 0 < len(on_front) <= len(confirmed.trials)
    assert {trial.seed for trial in on_front} == {0, 1}
    recorded = [event for event in read_events(finished.folder) if event.kind == "confirmed"]
    again = call("confirm", "small", "--runs", runs, "--json")
    assert again.exit_code == 0, again.output
    after = [event for event in read_events(finished.folder) if event.kind == "confirmed"]
    assert after == recorded
    assert read_study(finished.tracking_uri, "small", runs) == read_record(finished.folder)
    for trial in on_front:
        assert trial.test_values is not None
        assert trial.test_groups is not None
        correct = sum(right for right, _ in trial.test_groups.values())
        count = sum(number for _, number in trial.test_groups.values())
        assert trial.test_values["top1"] == pytest.approx(correct / count, rel=1e-12)
    more = call("run", write(finished.folder, trials=80), "--runs", runs, "--resume")
    assert more.exit_code == 1
    assert "was confirmed" in more.output


def test_confirm_evaluates_only_fresh_replicates(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    text = STUDY.format(trials=2, dims="[8]", concurrent="auto")
    file.write_text(text.replace("replicates: 2", "replicates: {min: 1, max: 1, fresh: 2}"))
    result = run_study(file, runs=tmp_path, formats=())
    assert result.complete
    fresh = {f"{identity}-{seed}" for identity, own in result.record.fresh.items() for seed in own}
    assert fresh
    confirmed = confirm.confirm_study(result.folder)
    evaluated = {trial.key for trial in confirmed.trials if trial.test_values}
    assert evaluated
    assert evaluated <= fresh  # those of configurations still on the front
    assert {key.rpartition("-")[2] for key in evaluated} == {"1", "2"}
    (event,) = [event for event in read_events(result.folder) if event.kind == "confirmed"]
    assert event.body["trials"].keys() == evaluated


def test_confirm_refuses_a_recorded_table(tmp_path: Path) -> None:
    file = write(tmp_path, trials=2)
    with Journal(tmp_path / "small") as journal:
        journal.append("recorded")
    run_study(file, runs=tmp_path, resume=True, worker=QuickWorker, formats=())
    result = call("confirm", "small", "--runs", tmp_path)
    assert result.exit_code == 1
    assert "is a recorded table: its trials evaluated the test split" in result.output
    assert "confirmed" not in {event.kind for event in read_events(tmp_path / "small")}


def test_confirm_refuses_an_unfinished_study(tmp_path: Path) -> None:
    run_study(write(tmp_path, trials=2), runs=tmp_path, formats=())
    with Journal(tmp_path / "small") as journal:
        journal.append("opened", trials=4, slots=1)
    with pytest.raises(studies.StudyError, match="is not finished"):
        confirm.confirm_study(tmp_path / "small")


class BreakingWorker:
    """Worker that fails in every way a trial can."""

    def start(self, job: Any) -> None:
        self.job = job

    def step(self) -> dict[str, Any]:
        case = (self.job.parameters["dim"], self.job.seed)
        if case == (8, 0):
            os._exit(1)  # as when the kernel kills a process that uses too much memory
        if case == (8, 1):
            raise RuntimeError("a bug in the worker itself")
        if case == (16, 0):
            return {"epochs": [{"epoch": 1, "top1": float("nan")}]}
        values = {"top1": 0.5, **self.job.cost}
        return {"epochs": [], "final": {"values": values, "groups": {}, "facts": {}}}


@pytest.mark.slow
def test_study_continues_after_failed_trials(tmp_path: Path) -> None:
    result = run_study(
        write(tmp_path, concurrent="1"), runs=tmp_path, worker=BreakingWorker, formats=()
    )
    assert result.complete
    by_case: dict[tuple[int, int], set[str]] = {}
    for trial in result.record.trials:
        case = (trial.configuration["dim"], trial.seed)
        by_case.setdefault(case, set()).add(trial.reason or trial.status)
    died = "the worker process died (out of memory, killed, or lost with its node)"
    assert by_case == {
        (8, 0): {died},
        (8, 1): {"RuntimeError: a bug in the worker itself"},
        (16, 0): {"`top1` is not finite in epoch 1"},
        (16, 1): {"finished"},
    }
    assert read_study(result.tracking_uri, "small", tmp_path) == result.record


def test_run_reads_a_study_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        written = threads.submit(
            pipe.write_text, STUDY.format(trials=2, dims="[8, 16]", concurrent="auto")
        )
        result = run_study(pipe, runs=tmp_path)
        written.result()
    assert {trial.status for trial in result.record.trials} == {"finished"}


def test_run_study_refuses_more_resources_than_the_machine_has(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(file.read_text().replace("cpus: 1,", "cpus: 1000,"))
    with pytest.raises(UserError, match="A trial requests 1000 CPUs and 0 GPUs, but the largest"):
        run_study(file, runs=tmp_path)
    file.write_text(file.read_text().replace("cpus: 1000,", "cpus: 1, gpus: 0.5,"))
    with pytest.raises(UserError, match=r"1 CPUs and 0\.5 GPUs, but the largest"):
        run_study(file, runs=tmp_path, resume=True)


def test_warm_start_is_recorded_and_reported(tmp_path: Path) -> None:
    file, runs = tmp_path / "small.yaml", tmp_path / "runs"
    text = STUDY.format(trials=8, dims="[8, 16]", concurrent="1")
    text = text.replace("{kind: exhaustive}", "ehvi")
    file.write_text(text.replace("name: small", "name: other"))
    run_study(file, runs=runs, worker=QuickWorker, formats=())
    callback = Recorder()
    file.write_text(f"{text}warm_start: {{study: other}}\n")
    result = run_study(file, runs=runs, worker=QuickWorker, formats=(), callback=callback)
    assert result.complete
    assert len(callback.notices) == 1
    assert "4 of its 4 configurations are in this space" in callback.notices[0]
    assert len(result.record.trials) == 8
    kinds = [event.kind for event in read_events(result.folder)]
    assert kinds.index("imported") < kinds.index("proposed")
    assert read_study(result.tracking_uri, "small", runs) == result.record
    file.write_text(
        f"{text}warm_start: {{study: {tmp_path / 'none' / 'such'}}}\n".replace("small", "third")
    )
    with pytest.raises(UserError, match="no study in"):
        run_study(file, runs=runs, worker=QuickWorker, formats=())


# ------------------------------------------------------------------ recorded tables


def test_table_is_recorded_and_simulate_runs_on_it(tmp_path: Path) -> None:
    file, out = write(tmp_path, trials=4, dims="[8]"), tmp_path / "tables" / "small.parquet"
    where = ("--out", out, "--runs", tmp_path / "runs")
    done = call("table", file, *where, "--near", 1, "--near-replicates", 3)
    assert done.exit_code == 0, done.output
    assert "2 configurations, 2 to 3 replicates, 3 epochs: 15 rows" in done.output
    assert f"sftsearch simulate {file} --table {out}" in done.output
    again = call("table", file, *where, "--near", 1, "--near-replicates", 3)
    assert again.exit_code == 0, again.output
    assert "15 rows" in again.output
    simulated = call("simulate", file, "--table", out, "--json")
    assert simulated.exit_code == 0, simulated.output
    output = json.loads(simulated.stdout)
    assert (output["finished"], output["reused"]) == (4, 0)
    assert 0 <= output["regret"] < 0.75  # below the regret of chance


def test_table_refuses_other_samplers(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(
        STUDY.format(trials=4, dims="[8]", concurrent="1").replace("exhaustive", "random")
    )
    result = call("table", file, "--out", tmp_path / "t.parquet", "--runs", tmp_path)
    assert result.exit_code == 1
    assert "recording a table requires `sampler: exhaustive`" in result.output
    assert not (tmp_path / "t.parquet").exists()
