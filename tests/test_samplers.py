"""Who proposes: TPE among refusals, seeds, what Optuna is told, uniform draws, cheapest first."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState
from scipy import stats

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator import admission as admissions
from sftsearch.orchestrator.admission import Admission, Candidate
from sftsearch.orchestrator.beliefs import Beliefs
from sftsearch.orchestrator.observations import Observations
from sftsearch.orchestrator.samplers import OptunaStudy, sampler_of
from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.schema import Branch
from sftsearch.search_spaces.space import Point, Space

if TYPE_CHECKING:
    from sftsearch.orchestrator.samplers import Proposal

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


@pytest.mark.parametrize(("max_table", "most"), [(50_000, 0), (0, 200)], ids=["listed", "large"])
def test_tpe_is_not_starved_where_few_proposals_are_admissible(
    max_table: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One point in 11 is admissible, yet 100 acceptances cost few refusals; of a list, none.

    Refusals that TPE is told as failures are forgotten, and it proposes the same again and again:
    thousands for ten acceptances. Told as infeasible and pruned, it learns where the limit is.
    """
    listed = admission_of(constraints=FEW)
    assert 10 < listed.num_points / len(listed.table or ()) < 20
    monkeypatch.setattr(admissions, "MAX_TABLE", max_table)
    admission = admission_of(constraints=FEW)
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


def test_tpe_finds_better_points_than_chance() -> None:
    """An accuracy with its peak at width 64, dropout 0.2: TPE's last proposals are nearer to it."""

    def distance(point: Point) -> float:
        return abs(point.values["dim"] - 64) / 120 + abs(point.values["dropout"] - 0.2)

    means = {}
    for kind in ("tpe", "random"):
        admission = admission_of()
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


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_another_seed_gives_other_proposals(kind: str) -> None:
    admission = admission_of()
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
    admission = admission_of(constraints="[{metric: gflops, max: 1e-4}]")
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
    admission = admission_of()
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
    admission = admission_of()
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
