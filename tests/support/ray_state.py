"""Inspect the Ray of the fixture `four_cpus_and_a_gpu`."""

from __future__ import annotations

import time

import ray
from ray.util import placement_group_table


def num_actors() -> int:
    """Return the number of actors since Ray started."""
    return len(ray._private.state.actors())  # the public API needs a dashboard


def check_nothing_is_left() -> None:
    """Check that no placement group and no actor outlives its study."""
    deadline = time.monotonic() + 20
    while True:
        groups = {str(group["state"]) for group in placement_group_table().values()}
        free = ray.available_resources().get("CPU", 0)
        if groups <= {"REMOVED"} and free == 4:
            return
        assert time.monotonic() < deadline, (groups, free)
        time.sleep(0.1)
