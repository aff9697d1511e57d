"""Show the progress of a running study."""

from __future__ import annotations

import io
import itertools
import re
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from sftsearch.orchestrator.cli import progress
from sftsearch.orchestrator.study import run_study

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


STUDY = """
study: {name: watched}
dataset: {kind: synthetic}
search: {baselines: false, sampler: {kind: exhaustive}, trials: 6}
resources: {concurrent_trials: 1}
space: [{kind: sft, num_heads: 1, fused_layers: 1, dim: {kind: int, low: 1, high: 6}}]
"""


class Quick:
    """Worker that trains nothing; accuracy grows with the width."""

    def start(self, job: Any) -> None:
        self.job = job

    def step(self) -> dict[str, Any]:
        values = {"top1": self.job.parameters["dim"] / 10, **self.job.cost}
        return {"epochs": [], "final": {"values": values, "groups": {}, "facts": {}}}


@pytest.mark.medium
def test_progress_lines_have_count_time_left_and_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched.yaml").write_text(STUDY)
    text = io.StringIO()
    clock = itertools.count(step=3)  # without it, lines are printed at most every two seconds
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.ConsoleProgress(Console(file=text, width=200)) as callback:
        run_study(
            tmp_path / "watched.yaml", runs=tmp_path, callback=callback, worker=Quick, formats=()
        )
    lines = [line for line in text.getvalue().splitlines() if "of 6 trials" in line]
    assert len(lines) == 6
    pattern = r"(\d) of 6 trials, \d running, (about \d+ (?:s|min) left, )?best top1 0\.(\d)00, "
    found = [re.search(pattern, line) for line in lines]
    assert all(found), lines
    assert [one[1] for one in found if one] == list("123456")
    assert all(one[2] for one in found[:-1] if one)
    areas = [float(line.rpartition("hypervolume ")[2]) for line in lines]
    assert areas == sorted(areas)
    assert 0.1 < areas[0] + 0.05 < areas[-1] < 0.6


@pytest.mark.medium
def test_a_tracking_server_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "watched.yaml").write_text(STUDY)
    text = io.StringIO()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with progress.ConsoleProgress(Console(file=text, width=200)) as callback:
        result = run_study(
            tmp_path / "watched.yaml", runs=tmp_path, callback=callback, worker=Quick, formats=(),
            tracking_uri=uri,
        )  # fmt: skip
    notice, first = text.getvalue().find("MLflow does not answer: "), text.getvalue().find(" of 6 ")
    assert 0 < notice < first  # before the first trial
    assert "Connection refused. The study goes on" in text.getvalue()
    lines = [line for line in text.getvalue().splitlines() if " of 6 trials" in line]
    assert all("running, MLflow does not answer" in line for line in lines)
    assert result.complete
    assert "Connection refused" in result.tracking_problem
