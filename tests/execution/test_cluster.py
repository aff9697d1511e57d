"""Connecting to Ray and disconnecting from it."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sftsearch.orchestrator.execution import cluster
from sftsearch.orchestrator.execution.cluster import connected
from sftsearch.orchestrator.execution.placement import ResourceError

pytestmark = [pytest.mark.medium, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at '127.0.0.1:1'"),
        ("127.0.0.1:99999", "No Ray cluster answers"),
        ("nonsense", "must be `auto` or HOST:PORT"),
        ("ray://127.0.0.1:10001", "must be `auto` or HOST:PORT"),
    ],
)
def test_connected_reports_an_unreachable_cluster_in_one_line(address: str, message: str) -> None:
    with pytest.raises(ResourceError, match=message) as caught, connected(address):
        pass
    assert "\n" not in str(caught.value)


DISCONNECTING = """
import threading
import ray
from sftsearch.orchestrator.execution.cluster import connected

def work():
    while not disconnected.wait(1e-5):
        ring = [references.pop()]
        ring.append(ring)
        del ring
        [[] for _ in range(1000)]  # enough allocations to trigger the garbage collector

disconnected = threading.Event()
with connected(None):
    name = ray.put(0).binary()
    references = [ray.ObjectRef(name) for _ in range(100_000)]
    thread = threading.Thread(target=work)
    thread.start()
disconnected.set()
thread.join()
print("references left", len(references) > 0)
"""


def test_disconnect_survives_garbage_collection_in_another_thread() -> None:
    command = [sys.executable, "-c", DISCONNECTING]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "references left True\n"), result.stderr


def test_long_temporary_folder_is_replaced_by_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has at most 107 bytes, of which Ray's sessions take about 70."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, is_short in (("/tmp", True), ("/scratch/" + 60 * "j", False)):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        found = cluster._short_folder()
        assert (found is None) == is_short
        assert found is None or len(found) < 30
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + 60 * "j")  # chosen by the user
    assert cluster._short_folder() is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Exception("The current node timed out during startup."), "timed out during startup"),
        (PermissionError(13, "Permission denied", "/home/x/.ray"), "Make '/home/x/.ray' writable"),
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), "AF_UNIX path length"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_ray_that_does_not_start_is_one_line_with_the_cause(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", fail)
    before = Path.cwd()
    with pytest.raises(ResourceError, match="Cannot start or reach Ray") as caught, connected(None):
        pass
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Path.cwd() == before


def test_limit_on_virtual_memory_that_ray_exceeds_is_refused() -> None:
    code = "from sftsearch.orchestrator.execution.cluster import connected\nwith connected(None): 0"
    limit = f"ulimit -v 9000000; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", limit], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Virtual memory is limited to 9.22 GB" in done.stderr.splitlines()[-1]


def test_user_without_an_entry_in_passwd_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_123)  # no such user
    cluster._name_user()
    assert getpass.getuser() == "uid4000123"


def test_ray_has_the_cpus_of_this_process() -> None:
    code = (
        "from sftsearch.orchestrator.execution.cluster import connected\n"
        "import ray\n"
        "with connected(None): print(ray.cluster_resources()['CPU'])"
    )
    one = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", one, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "1.0\n", done.stderr
