"""The sampler `ehvi` against random search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.orchestrator import pareto

from sampled_study import SMALL, Toy, Values, admission_of

if TYPE_CHECKING:
    from sftsearch.orchestrator.candidates.admission import Candidate


@pytest.mark.medium
def test_ehvi_finds_a_front_with_fewer_trials_than_random_search() -> None:
    """Count the trials, at most 60, until 95 % of the volume; accuracy is best at width 64."""

    def accuracy(candidate: Candidate) -> Values:
        value = 1 - math.exp(-2e3 * candidate.cost.gflops)
        return value - (candidate.point.values["dim"] / 128 - 0.5) ** 2, candidate.cost.gflops

    def needed(kind: str, seed: int) -> int:
        values = Toy(SMALL, kind, accuracy, seed=seed).run(60).values
        volumes = [_volume(values[: n + 1]) for n in range(len(values))]
        return int(np.searchsorted(volumes, 0.95 * whole))

    table = admission_of(SMALL).table
    assert table is not None
    whole = _volume([accuracy(candidate) for candidate in table.values()])
    numbers = {k: [needed(k, seed) for seed in range(2)] for k in ("ehvi", "random")}
    assert sum(numbers["ehvi"]) < 0.5 * sum(numbers["random"])


def _volume(values: list[Values]) -> float:
    """Return the hypervolume of accuracy and the logarithm of the cost."""
    points = [(accuracy, math.log(cost)) for accuracy, cost in values]
    return pareto.hypervolume(points, (0.0, 0.0), ("maximize", "minimize"))
