"""Start Ray with simulated resources: four CPUs and a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from sftsearch.orchestrator.execution.cluster import disconnect

if TYPE_CHECKING:
    from collections.abc import Iterator

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def four_cpus_and_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(SUPPORT))  # for the processes that Ray starts
        ray.init(
            address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False
        )
    yield
    disconnect()
