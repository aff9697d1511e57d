"""Connecting to Ray and disconnecting from it."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
