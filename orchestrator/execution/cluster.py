"""Start Ray on this machine or connect to a cluster, and ship our code to its nodes."""

from __future__ import annotations

import contextlib
import gc
import getpass
import importlib
import logging
import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from sftsearch.orchestrator.execution import head_watch
from sftsearch.orchestrator.execution.placement import ResourceError
from sftsearch.orchestrator.machine import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SOCKET, LONGEST_SOCKET = 107, 70
"""Bytes of a socket's path, and of its part below the temporary folder in Ray's sessions."""
LEAST_ADDRESS_SPACE = 12e9
"""Bytes of virtual memory that Ray's processes reserve, each."""

PACKAGES = ("datasets", "orchestrator", "search_spaces", "trainables")


@contextlib.contextmanager
def connected(address: str | None, *, ship_code: bool = False) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster, for the duration of the block.

    If Ray is already initialized, use it as it is and leave it running.

    Args:
        address: of the cluster; None starts Ray on this machine.
        ship_code: send this sftsearch to the nodes, which then need only its dependencies.

    Raises:
        ResourceError: Ray cannot be started, or there is no cluster at `address`.
    """
    if ray.is_initialized():
        yield
        return
    if address is None and os.environ.get("RAY_AUTH_MODE") == "disabled":
        raise ResourceError(
            "RAY_AUTH_MODE is `disabled`: anyone who can reach a port of this machine could run "
            "code in Ray. Unset it, or start Ray yourself and pass its address with --address."
        )
    if address not in (None, "auto"):
        _check_reachable(address)
    try:
        if address is None:
            _start_local()
        else:
            _join(address, ship_code=ship_code)
    except ResourceError:
        raise
    except Exception as error:  # Ray raises many kinds, also plain `Exception`
        raise _not_started(address, error) from error
    try:
        yield
    finally:
        disconnect()


def disconnect() -> None:
    """Disconnect from Ray, and shut it down if it was started by this process.

    Ray kills the whole process if a reference to one of its objects is dropped during shutdown.
    Tune leaves such references in cycles, which any thread may collect. They are therefore
    collected before the shutdown, and the collector is off during it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def _not_started(address: str | None, error: Exception) -> ResourceError:
    """Return the error for a Ray that does not start, with its cause and a remedy if known."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    where = "on this machine" if address is None else f"at '{address}'"
    remedy = ""
    if isinstance(error, OSError) and error.filename:
        remedy = f" Make '{error.filename}' writable, or set HOME and TMPDIR to writable folders."
    return ResourceError(f"Cannot start or reach Ray {where}: {first}.{remedy}")


def _start_local() -> None:
    _check_address_space()
    _name_user()
    try:
        with _away_from_current_folder():
            ray.init(
                address="local",
                num_cpus=usable_cpus(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=_short_folder(),
            )
    finally:
        _tighten_token()


def _name_user() -> None:
    """Give a user without an entry in /etc/passwd a name, which Ray and MLflow look up."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


@contextlib.contextmanager
def _away_from_current_folder() -> Iterator[None]:
    """Leave the current folder for the duration of the block.

    Ray puts the current folder first on the workers' import path. A `statistics.py` beside the
    study file would replace the standard library's, and a downloaded folder could run code.
    """
    before = Path.cwd()
    os.chdir("/")  # nobody else may write there
    try:
        yield
    finally:
        os.chdir(before)


def _short_folder() -> str | None:
    """Return a short folder for Ray's sockets if that of TMPDIR is too long; None: Ray's own."""
    longest = len(os.fsencode(tempfile.gettempdir()))
    if "RAY_TMPDIR" in os.environ or longest + LONGEST_SOCKET <= MAX_SOCKET:
        return None
    return f"/tmp/ray-{os.getuid()}"  # Ray creates it; sessions are its folders


def _check_address_space() -> None:
    """Refuse a limit on virtual memory that Ray's processes exceed: they would hang.

    Raises:
        ResourceError: the limit is too low.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise ResourceError(
            f"Virtual memory is limited to {limit / 1e9:.3g} GB (ulimit -v), but Ray's processes "
            f"reserve more than {LEAST_ADDRESS_SPACE / 1e9:.0f} GB of it, most of it unused. Raise "
            "the limit (`ulimit -v unlimited`; on a cluster request more h_vmem)."
        )


def _join(address: str, *, ship_code: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="sftsearch-code-") as scratch:
        environment = {"py_modules": [_copy_code(Path(scratch))]} if ship_code else None
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=environment,
        )


def _copy_code(scratch: Path) -> str:
    """Copy the packages of this sftsearch into one folder and return it."""
    folder = scratch / "sftsearch"
    for name in PACKAGES:
        package = importlib.import_module(f"sftsearch.{name}")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(next(iter(package.__path__)), folder / name, ignore=ignored)
    return str(folder)


def _check_reachable(address: str) -> None:
    """Raise if nothing answers at an address; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not host or not port.isdigit():
        raise ResourceError(
            f"`--address` must be `auto` or HOST:PORT of a Ray cluster, but got '{address}'. Run "
            "sftsearch on a machine of the cluster; `ray start` prints the address."
        )
    try:
        head_watch.reach(address, timeout=5)
    except (OSError, OverflowError) as error:
        raise ResourceError(f"No Ray cluster answers at '{address}': {error}.") from error


def _tighten_token() -> None:
    """Make Ray's authentication token readable by its owner only; Ray writes it for all users."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)
