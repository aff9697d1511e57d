"""Genetic samplers: parents of generations, inherited values, resuming."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.samplers.genetic import GENERATION, PARENTS, UNUSED
from sftsearch.orchestrator.search.engine import Search
from sftsearch.search_spaces.load import parse_study

from journals import Journal
from sampled_study import (
    BRANCHES,
    SMOOTH,
    WEARABLES,
    Toy,
    admission_of,
    history_of,
    sampler_of,
    smooth,
    zdt1,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_genetic_sampler_beats_random_search_on_zdt1(kind: str) -> None:
    """With 300 proposals and a population of 20."""

    def volume(kind: str, **more: Any) -> float:
        values = Toy(SMOOTH, kind, zdt1, seed=1, **more).run(300).values
        return pareto.hypervolume(values, (-1.0, 1.0), ("maximize", "minimize"))

    assert 2 / 3 > volume(kind, population=20) > volume("random") + 0.1


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
@pytest.mark.parametrize("branches", [(None,), (0, 1)], ids=["joint", "in turns"])
def test_genetic_sampler_continues_its_generations_after_a_resume(
    kind: str, branches: tuple[int | None, ...]
) -> None:
    """Resumed after each of 40 proposals, within generations and between them."""
    undisturbed = Toy(BRANCHES, kind, smooth, population=8).run(40, branches)
    toy = Toy(BRANCHES, kind, smooth, population=8)
    for _ in range(40):
        toy = toy.run(1, branches).resumed()
    theirs, ours = undisturbed.optuna.study.trials, toy.optuna.study.trials
    assert [(t.params, t.user_attrs, t.state) for t in theirs] == [
        (t.params, t.user_attrs, t.state) for t in ours
    ]
    # Eight trials per generation; if two branches take turns, four of each.
    assert max(t.user_attrs[GENERATION] for t in theirs) == 4


def test_generation_has_full_size_and_the_parents_that_optuna_selects() -> None:
    """The parents are compared with Optuna's selection in a plain Optuna study."""
    study = Toy(BRANCHES, "nsga2", smooth, population=6).run(40).optuna.study
    trials = [t for t in study.trials if t.state == TrialState.COMPLETE]
    sizes = Counter(t.user_attrs[GENERATION] for t in trials)
    assert [sizes[generation] for generation in range(6)] == [6] * 6
    theirs = optuna.create_study(directions=["maximize", "minimize"])
    for trial in trials:
        theirs.add_trial(
            optuna.create_trial(
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"number": trial.number},
                system_attrs={"NSGAIISampler:generation": trial.user_attrs[GENERATION]},
            )
        )
    sampler = optuna.samplers.NSGAIISampler(population_size=6)
    for generation in range(1, 6):
        expected = sampler.get_parent_population(theirs, generation)
        first = next(t for t in study.trials if t.user_attrs[GENERATION] == generation)
        numbers = {t.user_attrs["number"] for t in expected}
        assert set(first.user_attrs[PARENTS]) == numbers
    assert sum(PARENTS in t.user_attrs for t in study.trials) == 6


def test_children_inherit_values_that_their_branch_does_not_use() -> None:
    """All values except mutations come from a parent, whichever branch uses them."""
    toy = Toy(BRANCHES, "nsga2", smooth, population=10, seed=3).run(120)
    trials = toy.optuna.study.trials
    genes = [t.params | t.user_attrs[UNUSED] for t in trials]
    assert all(g.keys() == toy.optuna.space_of(None).keys() for g in genes)
    carried = [t.user_attrs for t in trials]
    parents = {one[GENERATION]: one[PARENTS] for one in carried if PARENTS in one}
    new = inherited = 0
    for trial in trials:
        pool = [genes[number] for number in parents.get(trial.user_attrs[GENERATION], [])]
        for key, value in trial.user_attrs[UNUSED].items() if pool else []:
            known = value in {parent[key] for parent in pool}
            inherited, new = inherited + known, new + (not known)
    assert inherited > 3 * new


def test_genetic_sampler_ignores_refused_proposals() -> None:
    """Refusals change neither generations nor parents."""
    admission = admission_of(BRANCHES)
    clean, refusing = history_of(admission), history_of(admission)
    random_ = random.Random(0)
    sampler = sampler_of("nsga2", population=5)
    numbers_of_clean: dict[int, int] = {}
    for number in range(5):
        point, carried = admission.space.draw(random_), {GENERATION: 0, UNUSED: {}}
        values = [random_.random(), random_.random()]
        clean.study.tell(clean.study.enter(point, carried), values)
        for _ in range(2):
            refused = refusing.study.enter(admission.space.draw(random_), carried)
            refusing.study.refuse(refused, 0.1)
        entered = refusing.study.enter(point, carried)
        refusing.study.tell(entered, values)
        numbers_of_clean[entered] = number
    ends: list[Any] = []
    for history in (clean, refusing):
        proposal = sampler.propose(history, None)
        assert proposal is not None
        ends.append(proposal.carried)
    assert ends[0][GENERATION] == ends[1][GENERATION] == 1
    assert sorted(numbers_of_clean[number] for number in ends[1][PARENTS]) == sorted(
        ends[0][PARENTS]
    )
    assert sorted(ends[0][PARENTS]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_genetic_sampler_proposes_the_same_in_a_study_resumed_from_its_journal(
    tmp_path: Path, kind: str
) -> None:
    """The data of the proposals is restored from the journal."""
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\n"
        f"search: {{trials: 24, sampler: {{kind: {kind}, population: 4}}}}\n{BRANCHES}"
    )
    source = parse_study(text.encode())
    proposed = []
    for each in (24, 5):
        folder = tmp_path / str(each)
        for _ in range(0, 24, each):
            with Journal(folder) as journal:
                search = Search(source.study, journal, Admission(source, WEARABLES))
                for _ in range(each):
                    _train_next(search)
        with Journal(folder) as journal:
            proposed.append([e.body for e in journal.events() if e.kind == "proposed"])
    assert proposed[0] == proposed[1]
    assert proposed[0][-1]["carried"][GENERATION] >= 4


def _train_next(search: Search) -> None:
    assignment = search.propose()
    if assignment is not None:
        accuracy = 1 - math.exp(-2e3 * assignment.cost["gflops"])
        search.report(assignment.key, {"epoch": 1, "top1": accuracy})
        search.finish(assignment.key, {"top1": accuracy, **assignment.cost}, {})
