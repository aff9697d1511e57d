"""The sampler `front` as a sampler of Optuna, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.candidates.admission import Candidate
from sftsearch.orchestrator.samplers.ehvi import FrontSampler

from sampled_study import SMALL, Toy, Values, admission_of, section_of, smooth


def test_ehvi_is_a_sampler_of_optuna() -> None:
    """A plain study asks for parameters and gets those of an admissible configuration."""
    toy = Toy(SMALL, "front", smooth).run(8)
    study = toy.optuna.study
    study.sampler = FrontSampler(section_of("front"), toy.optuna, toy.surrogate)
    trial = study.ask(toy.optuna.space_of(None))
    point = toy.optuna.point_of(trial.params, None)
    assert isinstance(toy.admission.decide(point), Candidate)
    expected = FrontSampler(section_of("front"), toy.optuna, toy.surrogate).choose(
        trial.number, None
    )
    assert expected is not None
    assert point == expected.point


def test_ehvi_has_nothing_to_ask_for_in_a_space_that_is_used_up() -> None:
    two = "{kind: sft, patch: 8, num_heads: 4, dim: {kind: choice, values: [8, 16]}}"
    toy = Toy(f"space:\n  - {two}\n", "front", smooth).run(2)
    study = toy.optuna.study
    study.sampler = FrontSampler(section_of("front"), toy.optuna, toy.surrogate)
    with pytest.raises(LookupError, match="is in the study"):
        study.ask(toy.optuna.space_of(None))


@pytest.mark.medium
def test_ehvi_finds_a_front_with_fewer_trials_than_chance() -> None:
    """Trials, at most 60, until 95 % of the whole volume; accuracy is best at width 64."""

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
    numbers = {k: [needed(k, seed) for seed in range(2)] for k in ("front", "random")}
    assert sum(numbers["front"]) < 0.5 * sum(numbers["random"])


def _volume(values: list[Values]) -> float:
    """Return the volume over the logarithm of the cost."""
    points = [(accuracy, math.log(cost)) for accuracy, cost in values]
    return pareto.hypervolume(points, (0.0, 0.0), ("maximize", "minimize"))
