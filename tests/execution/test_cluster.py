"""Reaching a Ray, and leaving it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sftsearch.orchestrator.execution.cluster import connected
from sftsearch.orchestrator.execution.placement import ResourceError

pytestmark = [pytest.mark.medium, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at '127.0.0.1:1'"),
        ("127.0.0.1:99999", "No Ray cluster answers"),
        ("nonsense", "must be `auto` or HOST:PORT"),
        ("ray://127.0.0.1:10001", "must be `auto` or HOST:PORT"),
    ],
)
def test_connected_says_in_one_line_that_no_cluster_is_there(address: str, said: str) -> None:
    with pytest.raises(ResourceError, match=said) as caught, connected(address):
        pass
    assert "\n" not in str(caught.value)


LEAVING = """
import threading
import ray
from sftsearch.orchestrator.execution.cluster import connected

def work():
    while not left.wait(1e-5):
        ring = [references.pop()]
        ring.append(ring)
        del ring
        [[] for _ in range(1000)]  # so many that Python collects the ring

left = threading.Event()
with connected(None):
    name = ray.put(0).binary()
    references = [ray.ObjectRef(name) for _ in range(100_000)]
    thread = threading.Thread(target=work)
    thread.start()
left.set()
thread.join()
print("left", len(references) > 0)
"""


def test_disconnect_outlives_another_thread_that_collects_as_ray_shuts_down() -> None:
    command = [sys.executable, "-c", LEAVING]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "left True\n"), result.stderr
