"""Opening MLflow's store: complete or not at all, whenever the process dies."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.tracking.client import default_uri, delete_study, open_client

if TYPE_CHECKING:
    from pathlib import Path

OPEN = """
import sys
from pathlib import Path
from sftsearch.orchestrator.tracking.client import default_uri, open_client
runs = Path(sys.argv[1])
open_client(default_uri(runs), runs)
"""


@pytest.mark.medium
@pytest.mark.timeout(180)
def test_store_is_complete_after_a_process_died_while_it_created_it(tmp_path: Path) -> None:
    unfinished = tmp_path / "mlflow.db.unfinished"
    for wait in (0.0, 0.2, 0.5):
        process = subprocess.Popen([sys.executable, "-P", "-c", OPEN, str(tmp_path)])
        while process.poll() is None and not unfinished.exists():
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        process.wait()
        assert unfinished.exists()
        assert not (tmp_path / "mlflow.db").exists()
    client = open_client(default_uri(tmp_path), tmp_path)
    client.create_experiment("one")
    again = open_client(default_uri(tmp_path), tmp_path)
    assert {found.name for found in again.search_experiments()} >= {"one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.lock"]


@pytest.mark.medium
def test_store_in_a_folder_with_odd_characters_is_created(tmp_path: Path) -> None:
    runs = tmp_path / "50%20 [of] runs?"
    open_client(default_uri(runs), runs)
    assert (runs / "mlflow.db").is_file()


@pytest.mark.medium
def test_delete_frees_the_name_of_an_experiment_deleted_in_the_ui(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    client = open_client(uri, tmp_path)
    number = client.create_experiment("one", tags={"sftsearch.definition": "x"})
    client.delete_experiment(number)  # as MLflow's UI does
    delete_study(uri, "one", tmp_path)
    assert client.get_experiment_by_name("one") is None
    assert client.get_experiment(number).lifecycle_stage == "deleted"
    client.create_experiment("one")


@pytest.mark.medium
def test_store_of_somebody_else_is_opened_without_writing(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    open_client(uri, tmp_path).create_experiment("theirs")
    (tmp_path / "mlflow.lock").unlink()
    tmp_path.chmod(0o555)
    try:
        found = open_client(uri, tmp_path).get_experiment_by_name("theirs")
    finally:
        tmp_path.chmod(0o755)
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
