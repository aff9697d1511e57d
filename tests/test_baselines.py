"""Fit the baselines of studies, and show them everywhere, on real Ray and MLflow."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.cli import reports
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.execution import baselines
from sftsearch.orchestrator.execution.cluster import connected
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.tracking.client import default_uri, open_client
from sftsearch.orchestrator.tracking.reader import read_study

import shown_classes
from journals import read_events

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.storage.journal import Entry

STUDY = """
study: {{name: {name}, description: A test.}}
dataset: {{kind: {name}, root: "{root}", folds: 3}}
search: {{sampler: exhaustive, trials: 2, replicates: {{min: 1, max: 1, fresh: 2}}}}
training: {{epochs: {epochs}, batch_size: 16, learning_rate: {rate}}}
space:
  - kind: late_fusion
    modalities: [a, b]
    patch: 4
    num_heads: 2
    dim: {{kind: choice, values: [4, 8]}}
    num_layers: 1
"""
LOSES = {"epochs": 1, "rate": 1e-6}
WINS = {"epochs": 8, "rate": 0.01}

pytestmark = [pytest.mark.medium, pytest.mark.timeout(400)]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Any:
    """Start Ray once for this file, because it takes seconds; fit baselines for 12 seconds."""
    with pytest.MonkeyPatch.context() as patched, connected(None):
        patched.setattr(baselines, "MAX_SECONDS", 12.0)
        yield


def write(folder: Path, name: str, **training: Any) -> Path:
    shown_classes.write(folder / "stores", name)
    file = folder / f"{name}.yaml"
    file.write_text(STUDY.format(name=name, root=folder / "stores", **training))
    return file


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a study whose models hardly train, on data that a linear rule solves."""
    folder = tmp_path_factory.mktemp("linear")
    run_study(write(folder, "linear", **LOSES), runs=folder / "runs")
    return folder / "runs"


def call(*arguments: str | Path, **options: Any) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, env={"COLUMNS": "100"}, **options)


def note_of(runs: Path, name: str) -> str:
    client = open_client(default_uri(runs), runs)
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.data.tags.get("sftsearch.trial") == ""]
    return str(parent.data.tags["mlflow.note.content"])


def test_study_journals_baselines_of_every_fold_once(linear: Path) -> None:
    events = [event for event in read_events(linear / "linear") if event.kind == "baselines"]
    (event,) = events
    found = {(one["name"], one["fold"]) for one in event.body["results"]}
    assert found == {(n, k) for n in ("majority", "linear", "mlp") for k in range(3)}
    for one in event.body["results"]:
        right, count = (sum(column) for column in zip(*one["groups"].values(), strict=True))
        assert one["values"]["top1"] == pytest.approx(right / count, rel=1e-12)
        assert count == 2 * shown_classes.SAMPLES_EACH  # two of six people a fold
    record = read_record(linear / "linear")
    assert len(record.trials) == 6  # two configurations with a replicate and two fresh ones


def test_linear_baseline_is_near_the_best_possible(linear: Path) -> None:
    """The sum of both constants has a standard deviation of sqrt(2), the noise of the label 0.4.

    The sign of the sum is that of the label with probability 1 - arctan(0.4 / sqrt(2)) / pi.
    """
    record = read_record(linear / "linear")
    values = [one.values["top1"] for one in record.baselines if one.name == "linear"]
    best = 1 - math.atan(0.4 / math.sqrt(2)) / math.pi
    assert sum(values) / 3 == pytest.approx(best, abs=0.04)  # two deviations with 360 samples


def test_headline_says_first_that_the_baseline_wins(linear: Path) -> None:
    document = json.loads((linear / "linear" / "report" / "report.json").read_text())
    assert document["front"]["headline"].startswith("The best baseline beats the front: `")
    contest = document["baselines"]["contest"]
    assert (contest["verdict"], contest["basis"]) == ("behind", "unseen")
    assert contest["interval"][1] < 0
    for name in ("report.html", "report.md", "report.csv"):
        assert "baseline-linear" in (linear / "linear" / "report" / name).read_text(), name


def test_mlflow_has_the_baselines_and_says_that_they_win(linear: Path) -> None:
    record = read_record(linear / "linear")
    assert read_study(default_uri(linear), "linear", linear) == record
    note = note_of(linear, "linear")
    assert note.startswith("The best baseline beats the front: `")
    assert note.endswith("A test.")


def test_pareto_says_first_that_the_baseline_wins(linear: Path, tmp_path: Path) -> None:
    result = call("pareto", "linear", "--runs", linear, "--out", tmp_path, "--x", "gmacs")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("The best baseline beats the front: ")
    assert "fresh replicates on folds that neither was chosen on" in " ".join(result.output.split())
    rows = [line for line in result.output.splitlines() if line.startswith("baseline ")]
    assert len(rows) == 3


def test_confirm_asks_and_then_says_that_the_baseline_wins(
    linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = call("confirm", "linear", "--runs", linear)
    assert refused.exit_code == 1
    assert "Add --yes." in refused.output

    monkeypatch.setattr(reports, "_can_ask", lambda: True)
    refused = call("confirm", "linear", "--runs", linear, input="n\n")
    assert "The best baseline beats the front" in refused.output
    assert "on the test split? This can be done once" in " ".join(refused.output.split())
    assert refused.exit_code == 1
    assert not read_record(linear / "linear").confirmed
    done = call("confirm", "linear", "--runs", linear, input="y\n")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "The best baseline by validation beats it: `" in text
    assert "Take the baseline." in text
    record = read_record(linear / "linear")
    assert read_study(default_uri(linear), "linear", linear) == record
    for one in record.baselines:
        assert one.test_values is not None
        if one.name != "majority":
            assert one.test_values["top1"] > 0.8
    assert "Take the baseline." in note_of(linear, "linear")


class Kinds(StudyCallback):
    """Callback that lists the kinds of events and the notices."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.notices: list[str] = []

    def on_event(self, entry: Entry) -> None:
        self.kinds.append(entry.event.kind)

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


def test_front_that_wins_says_nothing_of_baselines_first(tmp_path: Path) -> None:
    file, heard = write(tmp_path, "shape", **WINS), Kinds()
    result = run_study(file, runs=tmp_path / "runs", formats=("json",), callback=heard)
    assert heard.kinds.count("baselines") == 1
    document = json.loads(result.report[0].read_text())
    assert "of 2 configurations" in document["front"]["headline"].partition(";")[0]
    assert document["baselines"]["contest"]["verdict"] == "ahead"
    assert len(document["baselines"]["results"]) == 3
    assert any("against the best baseline" in note for note in document["front"]["notes"])
    # A resumed run does not repeat them.
    again = Kinds()
    run_study(file, runs=tmp_path / "runs", resume=True, callback=again, formats=())
    assert "baselines" not in again.kinds


def test_error_of_a_baseline_is_a_notice_and_a_resumed_run_tries_again(
    tmp_path: Path,
) -> None:
    file, heard = write(tmp_path, "linear", **LOSES), Kinds()

    def break_down(_: Any) -> str:
        raise ValueError("the disk is on fire")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(baselines, "fit_as_text", break_down)
        result = run_study(file, runs=tmp_path / "runs", formats=("json",), callback=heard)
    assert result.complete
    assert heard.notices == ["No baselines: ValueError: the disk is on fire"]
    assert result.record.baselines == ()
    result = run_study(file, runs=tmp_path / "runs", resume=True, formats=("json",))
    assert len(result.record.baselines) == 9
    assert len(result.record.trials) == 6


def test_study_without_baselines_fits_none(tmp_path: Path) -> None:
    file = write(tmp_path, "linear", **LOSES)
    file.write_text(file.read_text().replace("trials: 2,", "trials: 2, baselines: false,"))
    result = run_study(file, runs=tmp_path / "runs", formats=("json", "png", "html"))
    assert result.record.baselines == ()
    assert json.loads(result.report[0].read_text())["baselines"] is None


WAITING = """
study: {{name: {name}}}
dataset: {{kind: {name}, root: "{root}"}}
search: {{sampler: {{kind: ehvi, startup_configurations: 3}}, trials: 6, deterministic: true}}
training: {{epochs: 1, batch_size: 64}}
space:
  - kind: late_fusion
    modalities: [a, b]
    patch: 4
    num_heads: 2
    dim: {{kind: choice, values: [4, 8, 12, 16, 20, 24, 28, 32]}}
    num_layers: 1
"""


@pytest.mark.slow
def test_a_deterministic_study_continues_when_its_baselines_are_fitted(tmp_path: Path) -> None:
    """No trial runs meanwhile: the startup configurations take less time than the baselines."""
    shown_classes.write(tmp_path / "stores", "waiting")
    file = tmp_path / "waiting.yaml"
    file.write_text(WAITING.format(name="waiting", root=tmp_path / "stores"))
    result = run_study(file, runs=tmp_path / "runs", formats=())
    assert result.complete
    kinds = [event.kind for event in read_events(tmp_path / "runs" / "waiting")]
    assert kinds.count("started") == 6
    fitted = kinds.index("baselines")
    assert kinds[:fitted].count("started") == 3


def test_ctrl_c_ends_a_study_that_waits_for_its_baselines(tmp_path: Path) -> None:
    shown_classes.write(tmp_path / "stores", "stopped")
    file = tmp_path / "stopped.yaml"
    file.write_text(WAITING.format(name="stopped", root=tmp_path / "stores"))
    waited = []

    class Interrupting(StudyCallback):
        def on_event(self, entry: Entry) -> None:
            """Interrupt the study two seconds after its last startup configuration."""
            waited.append(entry.event.kind)
            if waited.count("finished") == 3 and waited[-1] == "finished":
                threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(baselines, "fit_as_text", _never)
        result = run_study(file, runs=tmp_path / "runs", callback=Interrupting(), formats=())
    assert not result.complete
    assert waited.count("started") == 3


def _never(spec: object) -> str:
    time.sleep(600)
    return ""
