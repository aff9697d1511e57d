"""Seeds of proposals, and uniform draws."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy import stats

from sftsearch.orchestrator.candidates.admission import Refusal
from sftsearch.orchestrator.samplers.genetic import GENERATION
from sftsearch.orchestrator.seeds import derive_seed

from sampled_study import (
    BRANCHES,
    SMALL,
    Toy,
    admission_of,
    history_of,
    propose,
    sampler_of,
    smooth,
)


def test_derive_seed_is_reproducible() -> None:
    """It is the first four bytes of SHA-256 of `seed:number`, little-endian."""
    assert derive_seed(0, 0) == 0x8A3672AC
    assert len({derive_seed(seed, number) for seed in range(30) for number in range(30)}) == 900


@pytest.mark.parametrize("kind", ["tpe", "random", "quasi_random", "nsga2"])
def test_sampler_proposals_depend_on_the_seed(kind: str) -> None:
    admission = admission_of(SMALL)
    drawn = [
        [str(propose(sampler_of(kind, seed=seed), history_of(admission))) for _ in range(3)]
        for seed in (0, 1)
    ]
    assert len({*drawn[0]}) == len({*drawn[1]}) == 1
    assert drawn[0] != drawn[1]


@pytest.mark.medium
def test_draw_uniform_is_uniform_over_configurations() -> None:
    """Over many seeds, every configuration is equally likely to be the first proposal."""
    space = """\
space:
  - {kind: sft, patch: 8, fused_layers: {kind: int, low: 1, high: 9}}
  - {kind: unimodal, patch: 8, modalities: [watch_acc]}
"""
    admission = admission_of(space)
    history = history_of(admission)
    counts: Counter[str] = Counter()
    for seed in range(2000):
        proposal = sampler_of("random", seed=seed).draw_uniform(history, None)
        assert proposal is not None
        counts[admission.price(proposal.point).id] += 1
        assert proposal == sampler_of("tpe", seed=seed).draw_uniform(history, None)
    assert len(counts) == 10
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    assert history.study.num_proposals == 0


@pytest.mark.parametrize("kind", ["nsga2", "nsga3", "gp", "quasi_random"])
def test_sampler_proposes_while_trials_run(kind: str) -> None:
    """Trials that end late still belong to the generation for which they were drawn."""
    options = {"population": 4} if "nsga" in kind else {"startup_configurations": 10}
    options = {} if kind == "quasi_random" else options
    toy, pending, seen = Toy(BRANCHES, kind, smooth, **options), [], set()
    for _ in range(12):
        number, point = propose(toy.sampler, toy.history)
        decided = toy.admission.decide(point)
        if isinstance(decided, Refusal):
            toy.optuna.refuse(number, decided.excess)
            continue
        toy.admission.take(decided.id)
        seen.add(decided.id)
        pending.append((number, smooth(decided)))
        if len(pending) > 3:
            toy.optuna.tell(*pending.pop(0))
    assert len(seen) == toy.admission.num_taken > 6
    generations = [t.user_attrs.get(GENERATION, 0) for t in toy.optuna.study.trials]
    assert generations == sorted(generations)
    assert (max(generations) > 0) == ("nsga" in kind)
