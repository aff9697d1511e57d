"""Tracking for teams: a real MLflow server with a login, on a real PostgreSQL, over HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from servers import PASSWORD, find_postgres, team_servers
from test_tracking import add_trials, expected, snapshot

from sftsearch.orchestrator import tracking
from sftsearch.orchestrator.journal import Journal

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
    with team_servers(login=False) as both:
        yield both


@pytest.fixture
def server(
    servers: tuple[Postgres, MlflowServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    yield servers[1]
    client = tracking.open_client(servers[1].uri, servers[1]._folder)
    for experiment in client.search_experiments():
        if experiment.name == "mirrored":
            client.rename_experiment(experiment.experiment_id, f"over-{experiment.experiment_id}")


def test_1000_trials_are_caught_up_in_a_minute(
    servers: tuple[Postgres, MlflowServer], server: MlflowServer, tmp_path: Path
) -> None:
    with Journal(tmp_path / "s") as journal:
        add_trials(journal, 0, 20)
        mirror = tracking.Mirror(journal, server.uri, tmp_path)
        wait_for(lambda: mirror.lag() == 0)
        server.kill()
        add_trials(journal, 20, 1020)
        wait_for(lambda: bool(mirror.problem))
        server.start()
        began = time.monotonic()
        wait_for(lambda: mirror.lag() == 0, seconds=200)
        seconds = time.monotonic() - began
        print(f"1,000 trials in {seconds:.1f} s")
        assert mirror.close()
        assert tracking.read_study(server.uri, "mirrored", tmp_path) == expected(journal)
    assert seconds < 60


def wait_for(condition: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
