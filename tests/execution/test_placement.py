"""Placement on a real Ray with simulated CPUs and GPUs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.execution.placement import count_concurrent_trials
from sftsearch.orchestrator.study import run_study
from sftsearch.search_spaces.schema import Resources

from idle_workers import Noting

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.medium,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("four_cpus_and_a_gpu"),
]

STUDY = """
study: {{name: placed}}
dataset: {{kind: synthetic}}
search: {{sampler: {{kind: exhaustive}}, trials: 6}}
resources: {{cpus: {cpus}, gpus: {gpus}, concurrent_trials: {concurrent}}}
space: [{{kind: sft, num_heads: 1, dim: {{kind: int, low: 1, high: 6}}}}]
"""


def run(folder: Path, *, cpus: float, gpus: float, concurrent: str = "auto") -> list[Any]:
    file = folder / "placed.yaml"
    file.write_text(STUDY.format(cpus=cpus, gpus=gpus, concurrent=concurrent))
    result = run_study(file, runs=folder, worker=Noting, formats=())
    assert result.complete
    return [json.loads(path.read_text()) for path in result.folder.glob("trials/*/note.json")]


def max_concurrent(notes: list[Any]) -> int:
    return max(
        sum(other["began"] <= note["began"] < other["ended"] for other in notes) for note in notes
    )


@pytest.mark.parametrize(
    ("cpus", "gpus", "concurrent", "fits"),
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
def test_count_concurrent_trials_counts_what_fits(
    cpus: float, gpus: float, concurrent: Any, fits: int
) -> None:
    resources = Resources(cpus=cpus, gpus=gpus, concurrent_trials=concurrent)
    assert count_concurrent_trials(resources) == fits


def test_placement_runs_two_trials_of_half_a_gpu_on_the_same_gpu(tmp_path: Path) -> None:
    notes = run(tmp_path, cpus=1, gpus=0.5)
    assert len(notes) == 6
    assert max_concurrent(notes) == 2
    assert {note["gpu"] for note in notes} == {"0"}
    assert {note["device"] for note in notes} == {"cuda"}


def test_placement_uses_the_study_file_s_concurrency_and_threads(tmp_path: Path) -> None:
    notes = run(tmp_path, cpus=2, gpus=0, concurrent="1")
    assert max_concurrent(notes) == 1
    assert {note["threads"] for note in notes} == {2}
    assert {note["device"] for note in notes} == {"cpu"}
