"""A study with a plug-in on real Ray: killed, refused with another source, resumed, confirmed."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.plugins import PluginFileError, load_plugins
from sftsearch.orchestrator.studies import read_record
from sftsearch.orchestrator.study import run_study

import drive_study
from journals import read_events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STUDY = """
study: {name: own}
dataset: {kind: synthetic}
search: {sampler: {kind: tpe, startup_configurations: 2}, trials: 4, replicates: 2,
  deterministic: true, baselines: false}
training: {epochs: 3, batch_size: 256}
space:
  - kind: mean_mlp
    width: {kind: int, low: 4, high: 24, step: 4}
    depth: {kind: choice, values: [1, 2]}
"""
MEASURED = {"latency_ms", "train_step_ms", "seconds"}


def finish(file: Path, runs: Path, *options: str) -> dict[str, Any]:
    out, err = (process := drive_study.start(file, runs, *options)).communicate(timeout=280)
    assert process.returncode == 0, err[-3000:]
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result


def trials(folder: Path) -> dict[str, Any]:
    """Return the status and the repeatable values of every trial."""
    return {
        trial.key: (trial.status, {k: v for k, v in trial.values.items() if k not in MEASURED})
        for trial in read_record(folder).trials
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_study_with_a_plugin_resumes_and_is_confirmed(
    mean_mlp: Path, tmp_path: Path, no_plugins: Callable[[], None]
) -> None:
    """It equals an undisturbed one, whose plug-in had another name and was deleted meanwhile."""
    file = tmp_path / "own.yaml"
    file.write_text(STUDY)
    whole, runs = tmp_path / "whole", tmp_path / "runs"
    plugin = ("--plugin", str(mean_mlp))
    process = drive_study.start(file, runs, *plugin, "--kill-after", "epoch", "4")
    process.communicate(timeout=280)
    assert process.returncode == -9
    with pytest.raises(PluginFileError, match=r"uses 'mean_mlp' of the plug-in mean_mlp"):
        run_study(file, runs=runs, resume=True)
    edited = mean_mlp.with_name("edited.py")
    edited.write_text(mean_mlp.read_text().replace("relu", "tanh"))
    with pytest.raises(PluginFileError, match=r"but got edited\.py"):
        run_study(file, runs=runs, resume=True, plugins=[edited])
    assert finish(file, runs, *plugin, "--resume")["complete"]
    ended = Counter(e.body["trial"] for e in read_events(runs / "own") if e.kind == "finished")
    assert set(ended.values()) == {1}
    assert len(ended) == 4
    assert finish(file, whole, "--plugin", str(mean_mlp.rename(mean_mlp.with_name("moved.py"))))
    assert trials(runs / "own") == trials(whole / "own")
    no_plugins()
    refused = confirm(runs)
    assert refused.exit_code == 1
    assert "Add --plugin FILE" in refused.output
    load_plugins([mean_mlp.with_name("moved.py")])
    assert confirm(runs).exit_code == 0
    no_plugins()
    record = read_record(runs / "own")
    assert record.confirmed
    assert record.facts["plug-in of mean_mlp"].startswith("mean_mlp.py (sha256 ")
    page = (runs / "own" / "report" / "report.html").read_text()
    assert "plug-in of mean_mlp" in page
    assert confirm(runs).exit_code == 0  # what is recorded needs no plug-in


def confirm(runs: Path) -> Any:
    return CliRunner().invoke(main, ["confirm", "own", "--yes", "--runs", str(runs)])
