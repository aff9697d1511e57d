"""The contract of every sampler, on a finite and a continuous space, with real admission."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.admission import Admission, Candidate
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.samplers.base import History
from sftsearch.orchestrator.samplers.catalog import SAMPLERS, build_sampler
from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
from sftsearch.orchestrator.surrogate.model import SurrogateModel
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.schema import StudyFile

from observed import Observations

if TYPE_CHECKING:
    from sftsearch.orchestrator.samplers.base import Sampler
    from sftsearch.search_spaces.point import Point

WEARABLES = describe("wearables")
FINITE = """\
  - kind: sft
    patch: 8
    fused_layers: 1
    dim: {kind: choice, values: [8, 16]}
    num_heads: {kind: choice, values: [4, 8, 16]}
    stride: {phone_acc: 2, watch_acc: {kind: choice, values: [1, 4, 16]}}
    modalities: [phone_acc, watch_acc]
    dropout: {kind: float, low: 0.0, high: 0.3, step: 0.3}
  - {kind: unimodal, patch: 8, num_heads: 4, dim: 8, modalities: [watch_acc], fused_layers: 2}
"""
CONTINUOUS = (
    FINITE
    + """\
  - kind: concat
    dim: 20
    learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}
"""
)
# One branch with equivalent values: stride 1 pools nothing, so the kind of pooling does not matter,
# and the 2 x 3 x 2 configurations are 10 distinct ones.
EQUIVALENT = """\
  - kind: sft
    patch: 8
    fused_layers: 1
    num_heads: 4
    dim: 8
    modalities: [phone_acc, watch_acc]
    stride: {kind: choice, values: [1, {watch_acc: 4, phone_acc: 2}, {watch_acc: 2, phone_acc: 4}]}
    dropout: {kind: choice, values: [0, 0.0, 0.1]}
    pooling: {kind: choice, values: [max, average]}
"""
# 2 x 3 x 3 x 2 + 1 points; 16 heads do not divide dim 8, so 6 points are impossible.
NUM_ADMISSIBLE = 31
OPTIONS: dict[str, dict[str, int]] = {
    "nsga2": {"population": 4},  # several generations within a few steps
    "nsga3": {"population": 4},
    "gp": {"startup_configurations": 24},  # a proposal of the model takes a second
}
Record = dict[str, Any]


def admission_of(space: str, sampler: str) -> tuple[Admission, Sampler]:
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\n"
        f"search: {{trials: 1, sampler: { {'kind': sampler} | OPTIONS.get(sampler, {}) }}}\n"
        f"space:\n{space}"
    )
    source = parse_study(text.encode())
    check_names(source)
    return Admission(source, WEARABLES), build_sampler(source.study.search.sampler)


class Run:
    """A search without training: asks, admits, and tells values computed from the point."""

    def __init__(self, space: str, sampler: str) -> None:
        self.admission, self.sampler = admission_of(space, sampler)
        self.optuna = OptunaStudy(self.admission.space, ["maximize", "minimize"])
        self.past = Observations(("gflops",), floor=0.1)
        self.surrogate = SurrogateModel(self.admission, self.past)
        self.history = History(self.optuna, self.admission, self.surrogate)
        self.records: list[Record] = []

    def step(self, branch: int | None = None) -> Candidate | bool | None:
        """Return the admitted candidate, False if refused, None if the space is exhausted."""
        proposal = self.sampler.propose(self.history, branch)
        if proposal is None:
            return None
        number = self.optuna.enter(proposal.point, proposal.carried)
        assert number == len(self.records)
        record: Record = {"point": proposal.point, "carried": dict(proposal.carried)}
        self.records.append(record)
        decided = self.admission.decide(proposal.point)
        if not isinstance(decided, Candidate):
            self.optuna.refuse(number, decided.excess)
            record |= {"state": "refused", "excess": decided.excess}
            return False
        self.admission.take(decided.id)
        values = [1 / (1 + decided.cost.parameters / 1e4), decided.cost.gflops]
        self.observe(number, decided, None if number % 7 == 3 else values)
        if number % 7 == 3:
            self.optuna.fail(number)
            record |= {"state": "failed"}
        else:
            self.optuna.tell(number, values)
            record |= {"state": "complete", "values": values}
        return decided

    def observe(self, number: int, decided: Candidate, values: list[float] | None) -> None:
        body = {
            "model": decided.configuration.model,
            "parameters": decided.configuration.parameters,
            "cost": {"gflops": decided.cost.gflops},
            "epochs": 1,
            "warmup": 0,
            "group": "",
        }
        observed = self.past.enter(number, decided.id, decided.point, **body)
        self.surrogate.take(decided.id, decided.point)
        self.past.await_(observed, 0)
        if values is None:
            self.past.drop(observed, 0, stopped=False)
        else:
            self.past.finish(observed, 0, values, 1.0)

    def resumed(self, space: str, sampler: str) -> Run:
        """Return this run as restored from a journal: through JSON, into a new study."""
        again = Run(space, sampler)
        again.surrogate.last_fit = self.surrogate.last_fit
        for number, record in enumerate(self.records):
            again.optuna.enter(record["point"], json.loads(json.dumps(record["carried"])))
            if record["state"] == "refused":
                again.optuna.refuse(number, record["excess"])
                continue
            candidate = again.admission.price(record["point"])
            again.admission.take(candidate.id)
            again.observe(number, candidate, record.get("values"))
            if record["state"] == "failed":
                again.optuna.fail(number)
            else:
                again.optuna.tell(number, json.loads(json.dumps(record["values"])))
        again.records = list(self.records)
        return again


def text_of(point: Point) -> str:
    return json.dumps([point.branch, point.values], sort_keys=True)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("branch", [0, 1])
def test_sampler_proposes_points_of_the_requested_branch_until_it_is_exhausted(
    sampler: str, branch: int
) -> None:
    """Independently of how many outcomes the other branch has."""
    run = Run(FINITE, sampler)
    assert isinstance(run.step(1 - branch), Candidate)
    admitted = []
    while isinstance(decided := run.step(branch), Candidate):
        assert decided.point.branch == run.records[-1]["point"].branch == branch
        admitted.append(decided.id)
    assert decided is None
    assert len(set(admitted)) == len(admitted) == (NUM_ADMISSIBLE - 1, 1)[branch]


@pytest.mark.medium
@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"exhaustive"}))
def test_sampler_proposes_points_of_a_branch_of_a_continuous_space(sampler: str) -> None:
    run = Run(CONTINUOUS, sampler)
    for i in range(30):
        assert run.step((0, 2)[i % 2]) is not None
    assert [record["point"].branch for record in run.records] == [0, 2] * 15


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize(
    ("space", "num_admissible"),
    [(FINITE, NUM_ADMISSIBLE), (EQUIVALENT, 10)],
    ids=["finite", "equivalent"],
)
def test_sampler_proposes_points_of_the_space_and_covers_it_once(
    sampler: str, space: str, num_admissible: int
) -> None:
    run = Run(space, sampler)
    inside = {text_of(point) for point in run.admission.space.points()}
    admitted = []
    for _ in range(2000):
        decided = run.step()
        if decided is None:
            break
        assert text_of(run.records[-1]["point"]) in inside
        if isinstance(decided, Candidate):
            admitted.append(decided.id)
    assert run.step() is None
    assert len(set(admitted)) == len(admitted) == num_admissible
    assert run.admission.left() == 0


@pytest.mark.medium
@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"exhaustive"}))
def test_sampler_proposes_points_of_a_continuous_space(sampler: str) -> None:
    run = Run(CONTINUOUS, sampler)
    for _ in range(30):
        assert run.step() is not None
    drawn = [record["point"].values for record in run.records if record["point"].branch == 2]
    rates = [values["learning_rate"] for values in drawn]
    assert len(set(rates)) == len(rates) > 0
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)


@pytest.mark.parametrize(
    ("sampler", "space"),
    [
        (sampler, space)
        for sampler, space in itertools.product(sorted(SAMPLERS), (FINITE, CONTINUOUS))
        if (sampler, space) != ("exhaustive", CONTINUOUS)
    ],
)
def test_sampler_proposes_the_same_for_the_same_history(sampler: str, space: str) -> None:
    """In two runs, and in a run that is resumed every 5 proposals."""
    first, second, resumed = (Run(space, sampler) for _ in range(3))
    for i in range(25):
        if i % 5 == 0:
            resumed = resumed.resumed(space, sampler)
        for run in (first, second, resumed):
            run.step()
        assert first.records == second.records == resumed.records
    assert len(first.records) == 25


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("branch", [None, 0])
def test_proposing_does_not_change_the_sampler_or_study(sampler: str, branch: int | None) -> None:
    """Proposing twice gives the same point, even with a uniform draw in between."""
    run = Run(FINITE, sampler)
    for _ in range(8):
        history = run.history
        before = [(t.state, t.params, t.user_attrs) for t in run.optuna.trials(None)]
        first = run.sampler.propose(history, branch)
        uniform = run.sampler.draw_uniform(history, branch)
        assert uniform is not None
        assert run.sampler.given(history, uniform.point, branch) == uniform
        assert run.sampler.propose(history, branch) == first
        assert [(t.state, t.params, t.user_attrs) for t in run.optuna.trials(None)] == before
        run.step(branch)
    assert run.optuna.num_proposals == 8


def test_samplers_match_the_study_file_schema() -> None:
    """Both as a section with settings and as a single name."""
    schema = StudyFile.model_json_schema()["$defs"]["SearchPlan"]["properties"]["sampler"]
    section, word = schema["anyOf"]
    assert section["discriminator"]["mapping"].keys() == set(word["enum"]) == SAMPLERS.keys()
