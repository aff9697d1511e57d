"""Analyse a study once per command; all formats and MLflow have equal numbers."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.analysis.analyse import analyse
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.report.formats import write_report
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.tracking.client import open_client
from sftsearch.orchestrator.tracking.reader import read_study

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """
study: {name: NAME}
dataset: {kind: synthetic}
search: {baselines: false, sampler: exhaustive, trials: 6, replicates: 2}
training: {epochs: 1, batch_size: 64}
resources: {cpus: 1}
space:
  shared: {num_heads: 2, dim: 8}
  models:
    - {kind: sft, fused_layers: 1, stride: {kind: choice, values: [1, 2]}}
    - {kind: concat, num_layers: 1}
"""

pytestmark = [pytest.mark.medium, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished studies in one runs folder."""
    folder = tmp_path_factory.mktemp("analysed")
    for name in ("first", "second"):
        file = folder / f"{name}.yaml"
        file.write_text(STUDY.replace("NAME", name))
        run_study(file, runs=folder / "runs", formats=())
    return folder / "runs"


@pytest.fixture
def resampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of configurations of each call of the bootstrap."""
    calls: list[int] = []

    def counted(configurations: Any, **more: Any) -> Any:
        if configurations:
            calls.append(len(configurations))
        return resample(configurations, **more)

    resample = bootstrap.resample_accuracies
    monkeypatch.setattr(bootstrap, "resample_accuracies", counted)
    return calls


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_run_and_its_report_bootstrap_once(tmp_path: Path, resampled: list[int]) -> None:
    file = tmp_path / "third.yaml"
    file.write_text(STUDY.replace("NAME", "third"))
    call("run", file, "--runs", tmp_path / "runs")
    assert resampled == [3]
    assert (tmp_path / "runs" / "third" / "report" / "report.html").is_file()


def test_pareto_bootstraps_once(runs: Path, tmp_path: Path, resampled: list[int]) -> None:
    call("pareto", "first", "--runs", runs, "--out", tmp_path)
    assert resampled == [3]


def test_compare_bootstraps_both_studies_together_once(runs: Path, resampled: list[int]) -> None:
    call("compare", "first", "second", "--runs", runs)
    assert resampled == [6]
    resampled.clear()
    call("compare", "first", "--families", "sft", "concat", "--runs", runs)
    assert resampled == [3]


def test_confirm_bootstraps_each_split_once(runs: Path, resampled: list[int]) -> None:
    output = json.loads(call("confirm", "second", "--runs", runs, "--yes", "--json"))
    num_tested = sum(c["test_interval"] is not None for c in output["configurations"])
    assert num_tested == len(output["front"]["configuration_ids"])
    assert resampled == [3, num_tested]


def test_all_formats_and_mlflow_show_equal_numbers(runs: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    record = read_study(uri, "first", runs)
    analysis = analyse(record)
    paths = {
        p.suffix: p for p in write_report(analysis, ["json", "csv", "markdown", "html"], tmp_path)
    }
    document = json.loads(paths[".json"].read_text())
    rows = {
        row["configuration_id"]: row
        for row in csv.DictReader(io.StringIO(paths[".csv"].read_text()))
    }
    client = open_client(uri, runs)
    experiment = client.get_experiment_by_name("first")
    logged: dict[str, list[float]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        if "top1" in run.data.metrics:
            logged.setdefault(run.data.tags["sftsearch.configuration_id"], []).append(
                run.data.metrics["top1"]
            )
    assert len(document["configurations"]) == len(rows) == len(logged) == 3
    for c in document["configurations"]:
        row = rows[c["configuration_id"]]
        for name in ("top1", "gflops"):
            assert float(row[name]) == c["values"][name]
            shown = metric(name).format(c["values"][name])
            assert shown in paths[".md"].read_text()
            assert shown in paths[".html"].read_text()
        assert [float(row["top1_interval_low"]), float(row["top1_interval_high"])] == c["interval"]
        values = logged[c["configuration_id"]]
        assert sum(values) / len(values) == pytest.approx(c["values"]["top1"], abs=1e-12)
        assert int(row["on_front"]) == c["on_front"]
