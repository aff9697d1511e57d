"""Real servers for tests: PostgreSQL and MLflow in their own processes, and S3 in a thread.

PostgreSQL and MLflow can be killed, and keep their port and data when started again.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

HOST = "127.0.0.1"
PASSWORD = "pa55-of-tests"


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if it is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    found = shutil.which("postgres")
    return installed[-1].parent if installed else Path(found).parent if found else None


class Server(ABC):
    """A server process that can be killed with its children and started again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that starts the server."""

    def environment(self) -> dict[str, str]:
        """Return the server's environment variables."""
        return dict(os.environ)

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server is ready."""

    user: int | None = None

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        self._process = subprocess.Popen(
            self.command(),
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=self.user,
        )
        _wait(self.answers, self._process)

    def kill(self) -> None:
        """Kill the server and all its children."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def _wait(answers: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not answers():
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.1)


class Postgres(Server):
    """PostgreSQL with a password, in its own folder; root starts it as user `nobody`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(free_port())
        programs = find_postgres()
        assert programs is not None, "PostgreSQL is not installed"
        self._programs, self._data = programs, folder / "pg"
        self._data.mkdir()
        if os.geteuid() == 0:
            self.user = pwd.getpwnam("nobody").pw_uid
            os.chown(self._data, self.user, -1)
        password = folder / "pg-password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        subprocess.run(
            [str(programs / "initdb"), "-D", str(self._data), "-U", "mlflow", "-A", "scram-sha-256",
             "--pwfile", str(password), "--no-sync", "-E", "UTF8", "--no-locale"],
            check=True, capture_output=True, user=self.user, cwd="/",
        )  # fmt: skip

    @property
    def uri(self) -> str:
        """Return the URI of the database for SQLAlchemy."""
        return f"postgresql+psycopg2://mlflow:{PASSWORD}@{HOST}:{self.port}/postgres"

    def command(self) -> list[str]:
        """Return the command that starts the server."""
        options = ["-h", HOST, "-p", str(self.port), "-k", "", "-c", "max_connections=60"]
        return [str(self._programs / "postgres"), "-D", str(self._data), *options]

    def answers(self) -> bool:
        """Return whether the server accepts connections."""
        import psycopg2

        try:
            psycopg2.connect(
                host=HOST, port=self.port, user="mlflow", password=PASSWORD, dbname="postgres"
            ).close()
        except psycopg2.OperationalError:
            return False
        return True


class MlflowServer(Server):
    """MLflow's server over HTTP, with or without a login."""

    def __init__(self, folder: Path, store: str, *, login: bool = False) -> None:
        super().__init__(free_port())
        self.folder, self._store, self.login = folder, store, login
        if login:
            text = (
                "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 30\n"
                f"database_uri = sqlite:///{folder / 'login.db'}\nadmin_username = admin\n"
                f"admin_password = {PASSWORD}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            (folder / "login.ini").write_text(text)

    @property
    def uri(self) -> str:
        """Return the server's address."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        """Return the command that starts the server."""
        artifacts = (self.folder / "artifacts").absolute().as_uri()
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server"]
        command += ["--host", HOST, "--port", str(self.port), "--workers", "2"]
        command += ["--backend-store-uri", self._store, "--artifacts-destination", artifacts]
        return command + (["--app-name", "basic-auth"] if self.login else [])

    def environment(self) -> dict[str, str]:
        """Return the server's environment variables."""
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        if self.login:
            more["MLFLOW_AUTH_CONFIG_PATH"] = str(self.folder / "login.ini")
            more["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "of-tests"
        return dict(os.environ) | more

    def answers(self) -> bool:
        """Return whether the health check succeeds."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def team_servers(*, login: bool = False) -> Iterator[tuple[Postgres, MlflowServer]]:
    """Run PostgreSQL and an MLflow server that uses it, for the duration of the block."""
    with tempfile.TemporaryDirectory(prefix="team-") as name:  # PostgreSQL cannot read pytest's
        folder = Path(name)
        folder.chmod(0o755)
        with (
            Postgres(folder) as postgres,
            MlflowServer(folder, postgres.uri, login=login) as server,
        ):
            yield postgres, server


# ------------------------------------------------------------------ S3


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an S3 server with an empty bucket `features`; set the environment to use it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    use_s3(monkeypatch, endpoint)
    # The content of an earlier server in this process is still there.
    urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"", timeout=10).close()
    s3_client(endpoint).create_bucket(Bucket="features")
    yield endpoint
    server.stop()


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Set the endpoint and the credentials in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


def s3_client(endpoint: str) -> Any:
    """Return a boto3 client, independent of the product's."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="someone",
        aws_secret_access_key="s3cret",
    )
