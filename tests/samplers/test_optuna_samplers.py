"""What TPE, the quasi-random sampler and Optuna's Gaussian process are good for."""

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
    from sftsearch.search_spaces.space import Point


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
def test_tpe_is_not_starved_where_few_proposals_are_admissible(
    max_table: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One point in 11 is admissible, yet 100 acceptances cost few refusals; of a list, none.

    Refusals that TPE is told as failures are forgotten, and it proposes the same again and again:
    thousands for ten acceptances. Told as infeasible and pruned, it learns where the limit is.
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
def test_tpe_finds_better_points_than_chance() -> None:
    """An accuracy with its peak at width 64, dropout 0.2: TPE's last proposals are nearer to it."""

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


def test_tpe_begins_with_uniform_draws_that_count_only_what_was_admitted() -> None:
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


def test_quasi_random_fills_a_dimension_more_evenly_than_random_ones() -> None:
    """Each 64 successive of a Sobol sequence have one value in every 64th of a range."""
    drawn = {}
    for kind in ("quasi_random", "random"):
        study = Toy(SMOOTH, kind, smooth, seed=2).run(64).optuna.study
        drawn[kind] = np.array([[t.params["0:sft.dropout"] / 0.5] for t in study.trials])
    assert stats.qmc.discrepancy(drawn["quasi_random"]) < stats.qmc.discrepancy(drawn["random"]) / 5
    assert sorted((drawn["quasi_random"][:, 0] * 64).astype(int)) == list(range(64))


def test_quasi_random_gives_branches_that_take_turns_sequences_of_their_own() -> None:
    """Every other point of one sequence would leave half of a range empty."""
    study = Toy(BRANCHES, "quasi_random", smooth).run(64, (0, 1)).optuna
    rates = [math.log10(t.params["1:unimodal.learning_rate"]) for t in study.trials(1)]
    assert sorted(int((rate + 4) * 16) for rate in rates) == list(range(32))


def test_quasi_random_draws_every_branch_as_often_as_any_other() -> None:
    study = Toy(BRANCHES, "quasi_random", smooth).run(64).optuna
    assert len(study.trials(0)) == pytest.approx(32, abs=4)


@pytest.mark.medium
@pytest.mark.parametrize("branch", [None, 0])
def test_gp_draws_where_more_is_to_be_gained(branch: int | None) -> None:
    """What it adds to 10 uniform draws dominates more than 5 uniform ones more."""

    def volume(startup: int) -> float:
        toy = Toy(SMOOTH, "gp", zdt1, seed=4, startup_configurations=startup).run(15, (branch,))
        return pareto.hypervolume(toy.values, (-1.0, 10.0), ("maximize", "minimize"))

    assert volume(10) > volume(15)
