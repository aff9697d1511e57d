"""Tracking for teams: a real MLflow server with a login, on a real PostgreSQL database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.tracking.client import TrackingError, open_client
from sftsearch.orchestrator.tracking.mirror import Mirror
from sftsearch.orchestrator.tracking.reader import read_study

from journals import Journal
from mirrored_study import add_trials, expected, lag, snapshot
from servers import PASSWORD, find_postgres, team_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import MlflowServer, Postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.service,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_postgres() is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Postgres, MlflowServer]]:
    with team_servers(login=True) as both:
        yield both


@pytest.fixture
def server(
    servers: tuple[Postgres, MlflowServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    yield servers[1]
    client = open_client(servers[1].uri, servers[1].folder)
    for experiment in client.search_experiments():
        if experiment.name == "mirrored":
            client.rename_experiment(experiment.experiment_id, f"over-{experiment.experiment_id}")


def test_mirror_catches_up_after_the_server_was_killed(
    servers: tuple[Postgres, MlflowServer], server: MlflowServer, tmp_path: Path
) -> None:
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 20)
        mirror = Mirror(journal, server.uri, tmp_path)
        wait_for(lambda: lag(journal) == 0)
        server.kill()
        add_trials(journal, 20, 80)
        wait_for(lambda: bool(mirror.problem))
        server.start()
        check_complete(mirror, journal, server, num_runs=81)


def test_mirror_loses_nothing_when_postgres_is_killed(
    servers: tuple[Postgres, MlflowServer], server: MlflowServer, tmp_path: Path
) -> None:
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 10)
        mirror = Mirror(journal, server.uri, tmp_path)
        for first in range(10, 40, 15):
            add_trials(journal, first, first + 15)
            wait_for(lambda: lag(journal) > 0)
            servers[0].kill()
            wait_for(lambda: bool(mirror.problem))
            servers[0].start()
        check_complete(mirror, journal, server, num_runs=41)


@pytest.mark.parametrize("password", ["wrong-of-tests", ""])
def test_read_study_reports_a_wrong_password_in_one_line(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    with monkeypatch.context() as other:
        other.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(TrackingError, match="You are not authenticated") as caught:
            read_study(server.uri, "mirrored", tmp_path)
    assert "\n" not in str(caught.value)
    assert not password or password not in str(caught.value)


def check_complete(
    mirror: Mirror, journal: Journal, server: MlflowServer, *, num_runs: int
) -> None:
    """Check that the mirror catches up and that MLflow has every run exactly once."""
    wait_for(lambda: lag(journal) == 0, seconds=120)
    assert mirror.close()
    runs = journal.folder.parent
    assert read_study(server.uri, "mirrored", runs) == expected(journal)
    seen = snapshot(server.uri, runs)
    assert len({run[4]["sftsearch.trial"] for run in seen}) == len(seen) == num_runs


def wait_for(condition: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
