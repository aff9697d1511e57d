"""TPE, the quasi-random sampler and Optuna's GP sampler against random search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.candidates.admission import Candidate

from sampled_study import (
    BRANCHES,
    SMALL,
    SMOOTH,
    Toy,
    admission_of,
    history_of,
    propose,
    sampler_of,
    smooth,
    zdt1,
)

if TYPE_CHECKING:
    from sftsearch.search_spaces.point import Point


WIDE = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: int, low: 8, high: 128, step: 8}
    fused_layers: {kind: int, low: 1, high: 12}
    stride: {kind: choice, values: [1, 2, 4, 8, 16]}
    dropout: {kind: float, low: 0.0, high: 0.5, step: 0.1}
"""


FEW = "[{metric: gflops, max: 5e-4}]"


@pytest.mark.medium
@pytest.mark.parametrize(("max_table", "most"), [(50_000, 0), (0, 200)], ids=["listed", "large"])
def test_tpe_needs_few_proposals_if_few_points_are_admissible(
    max_table: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One point in 11 is admissible, yet 100 acceptances need few refusals; none if enumerated.

    TPE ignores refusals recorded as failures and repeats its proposals: it needs thousands for ten
    acceptances. With refusals recorded as infeasible and pruned, it learns the limit.
    """
    monkeypatch.setattr(admissions, "MAX_TABLE", max_table)
    admission = admission_of(WIDE, constraints=FEW)
    if admission.table is not None:
        assert 10 < admission.num_points / len(admission.table) < 20
    sampler, history = sampler_of("tpe"), history_of(admission)
    num_refused = 0
    while admission.num_taken < 100:
        number, point = propose(sampler, history)
        decided = admission.decide(point)
        if isinstance(decided, Candidate):
            admission.take(decided.id)
            history.study.tell(number, [decided.cost.parameters**0.3, decided.cost.gflops])
        else:
            num_refused += 1
            history.study.refuse(number, decided.excess)
    assert num_refused <= most


@pytest.mark.medium
def test_tpe_finds_better_points_than_random_search() -> None:
    """Accuracy peaks at width 64 and dropout 0.2; TPE's last proposals are nearer to the peak."""

    def distance(point: Point) -> float:
        return abs(point.values["dim"] - 64) / 120 + abs(point.values["dropout"] - 0.2)

    means = {}
    for kind in ("tpe", "random"):
        admission = admission_of(WIDE.replace("{kind: choice, values: [1, 2, 4, 8, 16]}", "4"))
        sampler, history = sampler_of(kind, seed=1), history_of(admission)
        seen = []
        for _ in range(80):
            number, point = propose(sampler, history)
            candidate = admission.price(point)
            admission.take(candidate.id)
            history.study.tell(number, [-distance(point), candidate.cost.gflops])
            seen.append(distance(point))
        means[kind] = sum(seen[40:]) / 40
    assert means["tpe"] < 0.7 * means["random"]


def test_tpe_starts_with_uniform_draws_and_counts_admitted_ones() -> None:
    admission = admission_of(SMALL)
    uniform, tpe = sampler_of("random"), sampler_of("tpe", startup_configurations=5)
    ours, theirs = history_of(admission), history_of(admission)
    for number in range(5):
        one, other = propose(uniform, ours), propose(tpe, theirs)
        assert one == other
        admission.take(admission.price(one[1]).id)
        for history in (ours, theirs):
            history.study.tell(number, [float(number), 1.0])
    assert propose(uniform, ours) != propose(tpe, theirs)


def test_quasi_random_covers_a_dimension_more_evenly_than_random_draws() -> None:
    """64 successive Sobol points have one value in every 64th of a range."""
    drawn = {}
    for kind in ("quasi_random", "random"):
        study = Toy(SMOOTH, kind, smooth, seed=2).run(64).optuna.study
        drawn[kind] = np.array([[t.params["0:sft.dropout"] / 0.5] for t in study.trials])
    assert stats.qmc.discrepancy(drawn["quasi_random"]) < stats.qmc.discrepancy(drawn["random"]) / 5
    assert sorted((drawn["quasi_random"][:, 0] * 64).astype(int)) == list(range(64))


def test_quasi_random_uses_one_sequence_per_branch_if_branches_take_turns() -> None:
    """Every second point of a single sequence would leave half of a range empty."""
    study = Toy(BRANCHES, "quasi_random", smooth).run(64, (0, 1)).optuna
    rates = [math.log10(t.params["1:unimodal.learning_rate"]) for t in study.trials(1)]
    assert sorted(int((rate + 4) * 16) for rate in rates) == list(range(32))


def test_quasi_random_draws_branches_equally_often() -> None:
    study = Toy(BRANCHES, "quasi_random", smooth).run(64).optuna
    assert len(study.trials(0)) == pytest.approx(32, abs=4)


@pytest.mark.medium
@pytest.mark.parametrize("branch", [None, 0])
def test_gp_improves_the_front_more_than_uniform_draws(branch: int | None) -> None:
    """Ten uniform draws and five of the GP dominate a larger volume than 15 uniform draws."""

    def volume(startup: int) -> float:
        toy = Toy(SMOOTH, "gp", zdt1, seed=4, startup_configurations=startup).run(15, (branch,))
        return pareto.hypervolume(toy.values, (-1.0, 10.0), ("maximize", "minimize"))

    assert volume(10) > volume(15)
