"""Disk space of a study: weights stay below a limit, and studies can be deleted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.retention import Retention
from sftsearch.orchestrator.storage.trial_events import Finished
from sftsearch.orchestrator.storage.trial_files import WEIGHTS, LocalTrialFolder
from sftsearch.orchestrator.tracking.client import TrackingError, default_uri, open_client
from sftsearch.orchestrator.tracking.mirror import Mirror
from sftsearch.orchestrator.tracking.reader import read_study

from journals import Journal
from mirrored_study import add_trials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1000


class Weights:
    """A journal of trials with weights of 1,000 bytes each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, Journal(folder)
        self.retention: Retention | None = None

    def folder_of(self, key: str) -> Path:
        return self.folder / key

    def limit(self, limit: float, direction: str = "maximize") -> None:
        """Keep the weights below a limit from now on."""
        events = (entry.event for entry in self.journal.entries())
        finished = [(e.trial, e.values) for e in events if isinstance(e, Finished)]
        axes: dict[str, Any] = {"accuracy": ("top1", direction), "cost": "gflops"}
        self.retention = Retention(
            lambda key: LocalTrialFolder(self.folder_of(str(key))), finished, limit=limit, **axes
        )

    def finish(self, key: str, top1: float, gflops: float) -> None:
        self.folder_of(key).mkdir(parents=True)
        (self.folder_of(key) / WEIGHTS).write_bytes(bytes(SIZE))
        values = {"top1": top1, "gflops": gflops}
        entry = self.journal.append(Finished(TrialKey.parse(key), values, {}))
        if self.retention is not None:
            self.retention.on_event(entry)

    def left(self) -> set[str]:
        return {path.parent.name for path in self.folder.glob(f"*/{WEIGHTS}")}


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Weights]:
    weights = Weights(tmp_path / "study")
    with weights.journal:
        yield weights


def test_retention_removes_weights_farthest_below_the_front_first(weights: Weights) -> None:
    weights.limit(4 * SIZE)
    weights.finish("a-0", 0.5, 1.0)
    weights.finish("b-0", 0.8, 2.0)
    weights.finish("c-0", 0.79, 3.0)
    weights.finish("d-0", 0.4, 4.0)
    assert weights.left() == {"a-0", "b-0", "c-0", "d-0"}
    weights.finish("e-0", 0.9, 5.0)
    assert weights.left() == {"a-0", "b-0", "e-0"}  # frees a tenth more than needed
    weights.finish("f-0", 0.7, 6.0)
    weights.finish("g-0", 0.85, 7.0)
    assert weights.left() == {"a-0", "b-0", "e-0"}


def test_retention_never_removes_weights_on_the_front(weights: Weights) -> None:
    weights.limit(SIZE)
    for i in range(5):
        weights.finish(f"c{i}-0", 0.1 * i, 1.0 + i)
    assert len(weights.left()) == 5


def test_retention_uses_the_mean_over_replicates(weights: Weights) -> None:
    weights.finish("a-0", 0.9, 1.0)
    weights.finish("a-1", 0.5, 1.0)
    weights.finish("b-0", 0.8, 2.0)
    weights.finish("c-0", 0.75, 3.0)
    weights.limit(4 * SIZE)
    weights.finish("d-0", 0.1, 9.0)
    assert weights.left() == {"a-0", "a-1", "b-0"}


def test_retention_minimizes_errors_and_counts_existing_weights_on_resume(weights: Weights) -> None:
    weights.finish("a-0", 0.5, 1.0)
    weights.finish("b-0", 0.9, 2.0)
    shutil.rmtree(weights.folder_of("b-0"))  # removed by the user
    weights.finish("c-0", 0.8, 3.0)
    weights.limit(2.5 * SIZE, "minimize")
    weights.finish("d-0", 0.4, 4.0)
    assert weights.left() == {"a-0", "d-0"}


# ------------------------------------------------------------------ deleting


def create_study(runs: Path) -> None:
    with Journal(runs / "mirrored") as journal:
        add_trials(journal, 0, 3)
        assert Mirror(journal, default_uri(runs), runs).close()


def delete(runs: Path, *options: str, **more: Any) -> Any:
    return CliRunner().invoke(main, ["delete", "mirrored", "--runs", str(runs), *options], **more)


@pytest.mark.medium
def test_delete_removes_a_study_and_frees_its_name(tmp_path: Path) -> None:
    for _ in range(2):  # the second study has the same name
        create_study(tmp_path)
        assert read_study(default_uri(tmp_path), "mirrored", tmp_path).trials
        result = delete(tmp_path, "--yes")
        assert result.exit_code == 0, result.output
        assert not (tmp_path / "mirrored").exists()
        with pytest.raises(TrackingError, match="has no study 'mirrored'"):
            read_study(default_uri(tmp_path), "mirrored", tmp_path)
    assert delete(tmp_path, "--yes").exit_code == 1


@pytest.mark.medium
def test_delete_needs_confirmation_and_refuses_a_running_study(tmp_path: Path) -> None:
    create_study(tmp_path)
    assert delete(tmp_path, input="n\n").exit_code == 1
    with Journal(tmp_path / "mirrored"):
        running = delete(tmp_path, "--yes")
    assert running.exit_code == 1
    assert "is being run by another process" in running.output
    assert (tmp_path / "mirrored" / "journal.sqlite").is_file()


@pytest.mark.medium
def test_delete_keeps_an_mlflow_experiment_that_is_not_a_study(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    client = open_client(uri, tmp_path)
    client.create_experiment("mirrored")
    with Journal(tmp_path / "mirrored") as journal:
        add_trials(journal, 0, 1)
    result = delete(tmp_path, "--yes")
    assert result.exit_code == 0
    assert "is not a study; it was kept" in result.output
    assert client.get_experiment_by_name("mirrored").lifecycle_stage == "active"
