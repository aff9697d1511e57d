"""Tracking URIs: unknown schemes are refused before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.tracking.client import first_line
from sftsearch.orchestrator.tracking.uris import check_uri

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "http://localhost:5000",
        "https://user:secret@mlflow.example.org/team",
        "sqlite:////tmp/mlflow.db",
        "postgresql+psycopg2://user@host/db",
        "mysql+pymysql://user@host/db",
        "databricks",
        "databricks://profile",
    ],
)
def test_stores_of_mlflow_are_known(uri: str | None) -> None:
    check_uri(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://localhost:5000", "unknown scheme 'htp'. Did you mean 'http'"),
        ("postgres://host/db", "unknown scheme 'postgres'. Did you mean 'postgresql'"),
        ("ftp://host", "unknown scheme 'ftp'"),
        ("./mlruns", "MLflow has no file stores"),
        ("file:///tmp/mlruns", "MLflow has no file stores"),
        ("", "but got ''"),
        ("C:\\mlruns", "MLflow has no file stores|unknown scheme 'c'"),
    ],
)
def test_others_are_refused_in_one_line(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        check_uri(uri)
    assert "\n" not in str(raised.value)


def test_run_refuses_a_wrong_uri_before_it_writes_anything(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["run", "stride", "--runs", str(tmp_path / "runs"), "--tracking-uri", "htp://x"]
    )
    assert done.exit_code == 1
    assert "Did you mean 'http'" in done.output
    assert not (tmp_path / "runs").exists()


def test_the_reason_of_a_failed_request_is_kept_whole() -> None:
    text = (
        "API request to http://localhost:5999/api/2.0/mlflow/experiments/search failed with "
        "exception HTTPConnectionPool(host='localhost', port=5999): Max retries exceeded with url: "
        '/api/2.0/mlflow/experiments/search (Caused by NewConnectionError("HTTPConnection(host='
        "'localhost', port=5999): Failed to establish a new connection: [Errno 111] Connection "
        'refused"))'
    )
    assert first_line(RuntimeError(text)) == "Connection refused"
    assert first_line(RuntimeError("Max retries exceeded (read timed out)")) == "timed out"
    long = " ".join(["word"] * 300)
    assert first_line(RuntimeError(long)).endswith("word ...")
