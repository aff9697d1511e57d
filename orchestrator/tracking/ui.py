"""MLflow's UI on the store of a runs folder, for this machine, or with a login for others."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from sftsearch.orchestrator.tracking.client import PREFIX, TrackingError, open_client, sqlite_uri

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1"


def pages_of_studies(uri: str, runs: Path) -> dict[str, str]:
    """Return where in the UI the runs of each study are, the latest first.

    MLflow's own way to an experiment leads to pages about traces of language models.

    Raises:
        TrackingError: the store does not answer.
    """
    experiments = open_client(uri, runs).search_experiments(order_by=["last_update_time DESC"])
    return {
        one.name: f"#/experiments/{one.experiment_id}/runs?workflowType=machine_learning"
        for one in experiments
        if f"{PREFIX}definition" in one.tags
    }


def serve_ui(uri: str, runs: Path, port: int, *, host: str = LOOPBACK, login: bool = False) -> int:
    """Serve MLflow's UI until it is interrupted; return its exit code.

    Args:
        uri: of the store, not of a server.
        runs: the folder of all studies.
        port: where it listens.
        host: the address of this machine at which it does.
        login: whether it asks for a name and a password.

    Raises:
        TrackingError: the port is taken, or there is no password.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"Cannot listen on port {port} of {host} ({error.strerror}): choose another with "
                "--port."
            ) from error
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    artifacts = (runs / "mlartifacts").absolute().as_uri()
    command += ["--default-artifact-root", artifacts, "--workers", "1"]
    # Without its queues for jobs, which start eight processes more. The store's URI may hold a
    # password, which everybody on the machine could read in the command.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri
    if login:
        command += ["--app-name", "basic-auth"]
        environment |= _login(runs)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            signal.signal(signal.SIGTERM, previous)
            _end_group(server)


def _login(runs: Path) -> dict[str, str]:
    """Return the environment in which MLflow's server asks for a login; make its files.

    Raises:
        TrackingError: no password was set, or the package that MLflow needs for it is missing.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        raise TrackingError("`--login` needs Flask-WTF: pip install 'sftsearch[server]'.")
    if not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        raise TrackingError(
            "`--login` needs the password of its first user in MLFLOW_AUTH_ADMIN_PASSWORD; that "
            "user is called `admin`, or as MLFLOW_AUTH_ADMIN_USERNAME says."
        )
    users, settings = runs / "mlflow-login.db", runs / "mlflow-login.ini"
    users.touch(mode=0o600)
    users.chmod(0o600)
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 30\n"
        f"database_uri = {sqlite_uri(users.absolute())}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    return {
        "MLFLOW_AUTH_ADMIN_USERNAME": os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", "admin"),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings.absolute()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End a server with all the processes it started, politely first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
