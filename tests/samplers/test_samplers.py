"""Who proposes: seeds, what Optuna is told, refusals, and what each sampler is good for."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy import stats

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.candidates.admission import Admission, Candidate, Refusal
from sftsearch.orchestrator.samplers.base import (
    GENERATION,
    PARENTS,
    UNUSED,
    FrontSampler,
    sampler_of,
)
from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.orchestrator.storage.journal import Journal
from sftsearch.orchestrator.surrogate.model import Beliefs
from sftsearch.orchestrator.surrogate.observations import Observations
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.schema import Branch
from sftsearch.search_spaces.space import Point, Space

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sftsearch.orchestrator.samplers.base import Proposal

WEARABLES = describe("wearables")
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
SMALL = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: int, low: 8, high: 128, step: 8}
    fused_layers: {kind: int, low: 1, high: 4}
    stride: {kind: choice, values: [1, 2, 4, 8, 16]}
"""
FEW = "[{metric: gflops, max: 5e-4}]"


def admission_of(space: str = WIDE, constraints: str = "[]") -> Admission:
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\nsearch: {trials: 1}\n"
        f"constraints: {constraints}\n{space}"
    )
    return Admission(parse_study(text.encode()), WEARABLES)


def plan(kind: str, **more: Any) -> Any:
    text = (
        f"study: {{name: small}}\ndataset: {{kind: wearables}}\n"
        f"search: {{trials: 1, sampler: { ({'kind': kind} | more)!r}}}\nspace: [{{kind: sft}}]\n"
    )
    return parse_study(text.encode()).study.search.sampler


def study_of(admission: Admission) -> OptunaStudy:
    return OptunaStudy(admission.space, ["maximize", "minimize"])


def beliefs_of(admission: Admission) -> Beliefs:
    """Return what a study that has measured nothing believes."""
    return Beliefs(admission, Observations(("gflops",)))


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
    admission = admission_of(constraints=FEW)
    if admission.table is not None:
        assert 10 < admission.num_points / len(admission.table) < 20
    sample, study = sampler_of(plan("tpe")), study_of(admission)
    num_refused = 0
    while admission.num_taken < 100:
        number, point = _some(sample(study, admission, beliefs_of(admission), None))
        decided = admission.decide(point)
        if isinstance(decided, Candidate):
            admission.take(decided.id)
            study.tell(number, [decided.cost.parameters**0.3, decided.cost.gflops])
        else:
            num_refused += 1
            study.refuse(number, decided.excess)
    assert num_refused <= most


def _some(proposal: Proposal | None) -> Proposal:
    assert proposal is not None
    return proposal


@pytest.mark.medium
def test_tpe_finds_better_points_than_chance() -> None:
    """An accuracy with its peak at width 64, dropout 0.2: TPE's last proposals are nearer to it."""

    def distance(point: Point) -> float:
        return abs(point.values["dim"] - 64) / 120 + abs(point.values["dropout"] - 0.2)

    means = {}
    for kind in ("tpe", "random"):
        admission = admission_of(WIDE.replace("{kind: choice, values: [1, 2, 4, 8, 16]}", "4"))
        sample, study = sampler_of(plan(kind, seed=1)), study_of(admission)
        seen = []
        for _ in range(80):
            number, point = _some(sample(study, admission, beliefs_of(admission), None))
            candidate = admission.price(point)
            admission.take(candidate.id)
            study.tell(number, [-distance(point), candidate.cost.gflops])
            seen.append(distance(point))
        means[kind] = sum(seen[40:]) / 40
    assert means["tpe"] < 0.7 * means["random"]


@pytest.mark.parametrize("kind", ["tpe", "random", "quasi_random", "nsga2"])
def test_another_seed_gives_other_proposals(kind: str) -> None:
    admission = admission_of(SMALL)
    drawn = [
        [
            str(
                sampler_of(plan(kind, seed=seed))(
                    study_of(admission), admission, beliefs_of(admission), None
                )
            )
            for _ in range(3)
        ]
        for seed in (0, 1)
    ]
    assert len({*drawn[0]}) == len({*drawn[1]}) == 1
    assert drawn[0] != drawn[1]


def test_seeds_of_proposals_are_the_same_everywhere() -> None:
    """The first four bytes of SHA-256 of `seed:number`, little-endian."""
    assert derive_seed(0, 0) == 0x8A3672AC
    assert len({derive_seed(seed, number) for seed in range(30) for number in range(30)}) == 900


def test_random_proposals_are_uniform_over_configurations() -> None:
    """Over all seeds, the first proposal is as likely to be any configuration as any other."""
    space = """\
space:
  - {kind: sft, patch: 8, fused_layers: {kind: int, low: 1, high: 9}}
  - {kind: unimodal, patch: 8, modalities: [watch_acc]}
"""
    admission = admission_of(space)
    study = study_of(admission)
    counts: Counter[str] = Counter()
    for seed in range(2000):
        drawn = admission.draw(random.Random(derive_seed(seed, 0)))
        assert drawn is not None
        counts[drawn.id] += 1
    assert len(counts) == 10
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    assert study.num_proposals == 0


def test_exhaustive_goes_from_the_cheapest_to_the_dearest_and_ends() -> None:
    admission = admission_of(SMALL, constraints="[{metric: gflops, max: 1e-3}]")
    sample, study = sampler_of(plan("exhaustive")), study_of(admission)
    costs = []
    while (proposal := sample(study, admission, beliefs_of(admission), None)) is not None:
        candidate = admission.price(proposal[1])
        admission.take(candidate.id)
        study.tell(proposal[0], [0.5, candidate.cost.gflops])
        costs.append(candidate.cost.gflops)
    assert costs == sorted(costs)
    assert admission.table is not None
    assert len(costs) == len(admission.table) > 10


def test_tpe_begins_with_uniform_draws_that_count_only_what_was_admitted() -> None:
    admission = admission_of(SMALL)
    uniform, tpe = sampler_of(plan("random")), sampler_of(plan("tpe", startup_configurations=5))
    ours, theirs = study_of(admission), study_of(admission)
    for number in range(5):
        (_, one), (_, other) = (
            _some(uniform(ours, admission, beliefs_of(admission), None)),
            _some(tpe(theirs, admission, beliefs_of(admission), None)),
        )
        assert one == other
        admission.take(admission.price(one).id)
        for study in (ours, theirs):
            study.tell(number, [float(number), 1.0])
    assert uniform(ours, admission, beliefs_of(admission), None) != tpe(
        theirs, admission, beliefs_of(admission), None
    )


AXES: dict[str, Any] = {
    "lists": {"kind": "choice", "values": [["a", "b"], ["b", "a"], []]},
    "alike": {"kind": "choice", "values": [1, True, "1", 1.0, None]},
    "mappings": {"kind": "choice", "values": [{"b": 1, "a": 2}, 3]},
    "tenths": {"kind": "float", "low": 0.1, "high": 0.95, "step": 0.1},
    "odd": {"kind": "int", "low": 1, "high": 10, "step": 4},
    "powers": {"kind": "int", "low": 1, "high": 64, "log": True},
    "rate": {"kind": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "wide": {"kind": "float", "low": -1.0, "high": 1.0},
    "single": {"kind": "float", "low": 0.3, "high": 0.3},
}


@pytest.mark.medium
def test_every_kind_of_axis_goes_through_optuna_and_back_unchanged() -> None:
    """1, 1.0, True and "1" stay apart; 0.3 is 0.3; lists and mappings come back as they were."""
    mapping = {"left": AXES["alike"], "right": 2}
    first = Branch(kind="one", literal=[1], mapping=mapping, **AXES)
    space = Space([first, Branch(kind="one", tenths=0.7)])
    study = OptunaStudy(space, ["maximize"])
    sampler = optuna.samplers.RandomSampler(seed=0)
    seen = Counter()
    for _ in range(150):
        point = study.draw(sampler, None)
        number = study.enter(point)
        study.tell(number, [0.0])
        again = OptunaStudy(space, ["maximize"])
        again.replay(point, values=[0.0], state="complete")
        theirs, ours = again.study.trials[0], study.study.trials[number]
        assert theirs.params == ours.params
        assert theirs.distributions == ours.distributions
        if point.branch == 1:
            assert point.values == {"tenths": 0.7}
            continue
        assert point.values["literal"] == [1]
        left = point.values["mapping.left"]
        assert point.parameters["mapping"] == {"left": left, "right": 2}
        seen.update(f"{name}={point.values[name]!r}" for name in AXES)
    tenths = {f"tenths={value!r}" for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
    assert {key for key in seen if key.startswith("tenths")} == tenths
    assert {key for key in seen if key.startswith("odd")} == {"odd=1", "odd=5", "odd=9"}
    alike = {key for key in seen if key.startswith("alike")}
    assert alike == {"alike=1", "alike=True", "alike='1'", "alike=1.0", "alike=None"}


def test_what_optuna_holds_of_each_outcome() -> None:
    admission = admission_of(SMALL)
    study = study_of(admission)
    points = [admission.space.draw(random.Random(i)) for i in range(4)]
    for point in points:
        study.enter(point)
    study.tell(0, [0.9, 0.1])
    study.refuse(1, 0.5)
    study.fail(2)
    again = study_of(admission)
    again.replay(points[0], values=[0.9, 0.1], state="complete")
    again.replay(points[1], values=None, state="refused", excess=0.5)
    again.replay(points[2], values=None, state="failed")
    again.replay(points[3], values=None, state="running")
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    for one in (study.study, again.study):
        assert [trial.state for trial in one.trials] == states
        assert [trial.number for trial in one.best_trials] == [0]
        assert one.trials[1].constraints == {"admission": 0.5}


# ------------------------------------------------------------------ a toy search

SMOOTH = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: int, low: 8, high: 64, step: 4}
    fused_layers: {kind: int, low: 1, high: 4}
    dropout: {kind: float, low: 0.0, high: 0.5}
    learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}
"""
BRANCHES = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: int, low: 8, high: 64, step: 8}
    fused_layers: {kind: int, low: 1, high: 6}
  - kind: unimodal
    patch: 8
    modalities: [watch_acc]
    num_heads: 4
    dim: {kind: int, low: 8, high: 64, step: 8}
    learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}
"""
Values = tuple[float, float]


class Toy:
    """A study whose trials end at once, with values that are a closed form of the configuration."""

    def __init__(
        self, space: str, kind: str, value: Callable[[Candidate], Values], **options: Any
    ) -> None:
        self.admission = admission_of(space)
        self.optuna = study_of(self.admission)
        self.past = Observations(("gflops",), floor=0.0)
        self.beliefs = Beliefs(self.admission, self.past)
        self.sample = sampler_of(plan(kind, **options))
        self.value = value
        self.values: list[Values] = []

    def run(self, count: int, branches: tuple[int | None, ...] = (None,)) -> Toy:
        """Try `count` more configurations, of which refused ones are none; branches take turns."""
        wanted = len(self.values) + count
        while len(self.values) < wanted:
            branch = branches[len(self.values) % len(branches)]
            proposal = _some(self.sample(self.optuna, self.admission, self.beliefs, branch))
            decided = self.admission.decide(proposal[1])
            if isinstance(decided, Candidate):
                self.admission.take(decided.id)
                self.values.append(self.value(decided))
                self.optuna.tell(proposal[0], self.values[-1])
                self._observe(proposal[0], decided)
            else:
                self.optuna.refuse(proposal[0], decided.excess)
        return self

    def _observe(self, number: int, decided: Candidate) -> None:
        body = {
            "model": decided.configuration.model,
            "parameters": decided.configuration.parameters,
            "cost": {"gflops": decided.cost.gflops},
            "epochs": 1,
            "warmup": 0,
            "group": "",
        }
        observed = self.past.admit(number, decided.id, decided.point, body)
        self.past.begin(observed, 0)
        self.past.finish(observed, 0, list(self.values[-1]), 1.0)

    def resumed(self) -> Toy:
        """Return a toy whose Optuna study came back through JSON."""
        old, self.optuna = self.optuna, study_of(self.admission)
        states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "refused"}
        for trial in old.study.trials:
            self.optuna.replay(
                old.point_of(trial.params, None),
                values=trial.values,
                state=states[trial.state],
                excess=trial.constraints.get("admission", 0.0),
                carried=json.loads(json.dumps(old.carried(trial.number))),
            )
        return self


def smooth(candidate: Candidate) -> Values:
    """Return values of which nothing is expected: they rise with cost, best at dropout 0.2."""
    accuracy = 1 - math.exp(-2e3 * candidate.cost.gflops)
    return accuracy - abs(candidate.point.values.get("dropout", 0.2) - 0.2), candidate.cost.gflops


# ------------------------------------------------------------------ genetic algorithms


def zdt1(candidate: Candidate) -> Values:
    """Return the two objectives of ZDT1, the first one turned over to be maximised.

    The front is f2 = 1 - sqrt(f1); the volume between it and (1, 1) is 2/3.

    Source: Zitzler, Deb and Thiele 2000, Comparison of Multiobjective Evolutionary Algorithms.
    """
    values = candidate.point.values
    x = [
        values["dropout"] / 0.5,
        (values["dim"] - 8) / 56,
        (values["fused_layers"] - 1) / 3,
        math.log(values["learning_rate"] / 1e-4) / math.log(100),
    ]
    g = 1 + 9 * sum(x[1:]) / 3
    return -x[0], g * (1 - math.sqrt(x[0] / g))


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_a_genetic_algorithm_comes_nearer_to_a_known_front_than_chance(kind: str) -> None:
    """After 300 proposals of which a population is 20."""

    def volume(kind: str, **more: Any) -> float:
        values = Toy(SMOOTH, kind, zdt1, seed=1, **more).run(300).values
        return pareto.hypervolume(values, (-1.0, 1.0), ("maximize", "minimize"))

    assert 2 / 3 > volume(kind, population=20) > volume("random") + 0.1


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
@pytest.mark.parametrize("branches", [(None,), (0, 1)], ids=["together", "by turns"])
def test_generations_go_on_after_a_resume(kind: str, branches: tuple[int | None, ...]) -> None:
    """At any of 40 proposals: in a generation, and where one begins."""
    undisturbed = Toy(BRANCHES, kind, smooth, population=8).run(40, branches)
    toy = Toy(BRANCHES, kind, smooth, population=8)
    for _ in range(40):
        toy = toy.run(1, branches).resumed()
    theirs, ours = undisturbed.optuna.study.trials, toy.optuna.study.trials
    assert [(t.params, t.user_attrs, t.state) for t in theirs] == [
        (t.params, t.user_attrs, t.state) for t in ours
    ]
    # Eight trials a generation; where two branches take turns, four of each.
    assert max(t.user_attrs[GENERATION] for t in theirs) == 4


@pytest.mark.parametrize("kind", ["nsga2", "nsga3", "gp", "quasi_random"])
def test_proposals_may_be_asked_for_while_others_run(kind: str) -> None:
    """Generations wait for nobody: those that end later join the generation they were drawn for."""
    options = {"population": 4} if "nsga" in kind else {"startup_configurations": 10}
    options = {} if kind == "quasi_random" else options
    toy, pending, seen = Toy(BRANCHES, kind, smooth, **options), [], set()
    for _ in range(12):
        number, point = _some(toy.sample(toy.optuna, toy.admission, toy.beliefs, None))
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


def test_every_generation_is_full_and_its_parents_are_those_of_optuna() -> None:
    """What survives is compared with Optuna's own choice in a study of its own kind."""
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


@pytest.mark.medium
def test_children_inherit_what_their_branch_leaves_unused() -> None:
    """All genes but the mutated are of a parent, whichever branch uses them."""
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


def test_a_refused_proposal_leaves_nothing_behind_in_a_genetic_algorithm() -> None:
    """Refusals in between change neither generations nor parents."""
    admission = admission_of(BRANCHES)
    clean, refusing = study_of(admission), study_of(admission)
    random_ = random.Random(0)
    sample = sampler_of(plan("nsga2", population=5))
    numbers_of_clean: dict[int, int] = {}
    for number in range(5):
        point, carried = admission.space.draw(random_), {GENERATION: 0, UNUSED: {}}
        values = [random_.random(), random_.random()]
        clean.replay(point, values=values, state="complete", carried=carried)
        for study in (refusing, refusing):
            other = admission.space.draw(random_)
            study.replay(other, values=None, state="refused", excess=0.1, carried=carried)
        refusing.replay(point, values=values, state="complete", carried=carried)
        numbers_of_clean[refusing.num_proposals - 1] = number
    ends = []
    for study in (clean, refusing):
        number, _ = _some(sample(study, admission, beliefs_of(admission), None))
        ends.append(study.carried(number))
    assert ends[0][GENERATION] == ends[1][GENERATION] == 1
    assert sorted(numbers_of_clean[number] for number in ends[1][PARENTS]) == sorted(
        ends[0][PARENTS]
    )
    assert sorted(ends[0][PARENTS]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_a_study_resumed_from_its_journal_proposes_what_the_undisturbed_one_does(
    tmp_path: Path, kind: str
) -> None:
    """What proposals carry travels through the journal."""
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


# ------------------------------------------------------------------ quasi-random, GP


def test_quasi_random_proposals_fill_a_dimension_more_evenly_than_random_ones() -> None:
    """Each 64 successive of a Sobol sequence have one value in every 64th of a range."""
    drawn = {}
    for kind in ("quasi_random", "random"):
        study = Toy(SMOOTH, kind, smooth, seed=2).run(64).optuna.study
        drawn[kind] = np.array([[t.params["0:sft.dropout"] / 0.5] for t in study.trials])
    assert stats.qmc.discrepancy(drawn["quasi_random"]) < stats.qmc.discrepancy(drawn["random"]) / 5
    assert sorted((drawn["quasi_random"][:, 0] * 64).astype(int)) == list(range(64))


def test_quasi_random_branches_that_take_turns_have_sequences_of_their_own() -> None:
    """Every other point of one sequence would leave half of a range empty."""
    study = Toy(BRANCHES, "quasi_random", smooth).run(64, (0, 1)).optuna
    rates = [math.log10(t.params["1:unimodal.learning_rate"]) for t in study.trials(1)]
    assert sorted(int((rate + 4) * 16) for rate in rates) == list(range(32))


def test_quasi_random_draws_every_branch_as_often_as_any_other() -> None:
    study = Toy(BRANCHES, "quasi_random", smooth).run(64).optuna
    assert len(study.trials(0)) == pytest.approx(32, abs=4)


@pytest.mark.medium
@pytest.mark.parametrize("branch", [None, 0])
def test_the_gaussian_process_draws_where_more_is_to_be_gained(branch: int | None) -> None:
    """What it adds to 10 uniform draws dominates more than 5 uniform ones more."""

    def volume(startup: int) -> float:
        toy = Toy(SMOOTH, "gp", zdt1, seed=4, startup_configurations=startup).run(15, (branch,))
        return pareto.hypervolume(toy.values, (-1.0, 10.0), ("maximize", "minimize"))

    assert volume(10) > volume(15)


# ------------------------------------------------------------------ front


@pytest.mark.medium
def test_front_is_a_sampler_of_optuna() -> None:
    """A plain study asks for parameters and gets those of an admissible configuration."""
    toy = Toy(SMALL, "front", smooth).run(8)
    study = toy.optuna.study
    study.sampler = FrontSampler(plan("front"), toy.optuna, toy.beliefs)
    trial = study.ask(toy.optuna.space_of(None))
    point = toy.optuna.point_of(trial.params, None)
    assert isinstance(toy.admission.decide(point), Candidate)
    expected = FrontSampler(plan("front"), toy.optuna, toy.beliefs).choose(trial.number, None)
    assert expected is not None
    assert point == expected.point


def test_front_has_nothing_to_ask_for_in_a_space_that_is_used_up() -> None:
    two = "{kind: sft, patch: 8, num_heads: 4, dim: {kind: choice, values: [8, 16]}}"
    toy = Toy(f"space:\n  - {two}\n", "front", smooth).run(2)
    study = toy.optuna.study
    study.sampler = FrontSampler(plan("front"), toy.optuna, toy.beliefs)
    with pytest.raises(LookupError, match="is in the study"):
        study.ask(toy.optuna.space_of(None))


@pytest.mark.medium
def test_front_finds_a_front_with_fewer_trials_than_chance() -> None:
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
