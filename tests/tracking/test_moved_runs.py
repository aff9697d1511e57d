"""A runs folder that was moved or copied: its artifacts are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sftsearch.orchestrator.tracking.client import default_uri, open_client
from sftsearch.orchestrator.tracking.moved_runs import follow_moved_runs

pytestmark = pytest.mark.medium


def store_with_artifact(runs: Path, where: Path) -> str:
    """Create a store with one run, whose artifacts are in `where`; return the run's id."""
    runs.mkdir(exist_ok=True)
    client = open_client(default_uri(runs), runs)
    experiment = client.create_experiment("mine", artifact_location=where.as_uri())
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "hello", "report/note.txt")
    return str(run.info.run_id)


def text_of(runs: Path, run_id: str, folder: Path) -> str:
    client = open_client(default_uri(runs), runs)
    folder.mkdir()
    file = client.download_artifacts(run_id, "report/note.txt", dst_path=str(folder))
    return Path(file).read_text()


@pytest.mark.parametrize("name", ["here", "My Project", "a%20b"])
def test_artifacts_of_moved_runs_are_found(tmp_path: Path, name: str) -> None:
    old = tmp_path / "old"
    run_id = store_with_artifact(old, old / "mlartifacts")
    new = tmp_path / name
    old.rename(new)
    assert text_of(new, run_id, tmp_path / "read") == "hello"
    uri = MlflowClient(default_uri(new)).get_run(run_id).info.artifact_uri
    assert uri.startswith((new / "mlartifacts").as_uri())
    assert follow_moved_runs(new / "mlflow.db") == 0  # nothing is left to be done


def test_a_copy_leaves_the_original_and_its_own_locations_alone(tmp_path: Path) -> None:
    """While the original folder exists, its artifacts are found where they are."""
    old = tmp_path / "old"
    run_id = store_with_artifact(old, old / "mlartifacts")
    shutil.copytree(old, tmp_path / "copy")
    assert follow_moved_runs(tmp_path / "copy" / "mlflow.db") == 0
    assert text_of(tmp_path / "copy", run_id, tmp_path / "read") == "hello"


def test_artifacts_of_other_folders_are_left_alone(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    store_with_artifact(runs, tmp_path / "other")
    (runs / "mlartifacts").mkdir()
    shutil.rmtree(tmp_path / "other")
    assert follow_moved_runs(runs / "mlflow.db") == 0


def test_stores_that_cannot_be_changed_are_left_alone(tmp_path: Path) -> None:
    assert follow_moved_runs(tmp_path / "mlflow.db") == 0
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlflow.db").write_text("not a database")
    assert follow_moved_runs(tmp_path / "mlflow.db") == 0
