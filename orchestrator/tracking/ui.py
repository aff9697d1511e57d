"""Serve MLflow's UI for a runs folder, on this machine only or with a login for others."""

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
    """Return the UI page with the runs of each study, the latest study first.

    MLflow's own link to an experiment opens pages about traces of language models.

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
        uri: of the store; not of a server.
        runs: the folder of all studies.
        port: to listen on.
        host: address of this machine to listen on.
        login: whether to require a user name and a password.

    Raises:
        TrackingError: the port is in use, or no password is set.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"Cannot listen on port {port} of {host} ({error.strerror}). Choose another one "
                "with --port."
            ) from error
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    artifacts = (runs / "mlartifacts").absolute().as_uri()
    command += ["--default-artifact-root", artifacts, "--workers", "1"]
    # Job execution would start eight more processes. The store's URI may contain a password, which
    # every user of the machine could read in the command line.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri
    # The server and its processes would import a `json.py` from the current folder; Uvicorn would
    # put that folder first by itself. Nobody else may write into the root.
    environment |= {"PYTHONSAFEPATH": "1", "UVICORN_APP_DIR": "/"}
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
    """Write the login files of MLflow's server and return the environment that enables them.

    Raises:
        TrackingError: no password is set, or Flask-WTF is not installed.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        raise TrackingError("`--login` needs Flask-WTF: pip install 'sftsearch[server]'.")
    if not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        raise TrackingError(
            "`--login` needs the password of the first user in MLFLOW_AUTH_ADMIN_PASSWORD. The "
            "user's name is `admin`; set MLFLOW_AUTH_ADMIN_USERNAME to change it."
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
    """End a server and all its child processes: SIGTERM first, SIGKILL after 5 seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
