"""Studies without training, to test samplers: values are a closed form of the point."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.admission import Admission, Candidate
from sftsearch.orchestrator.samplers.base import History
from sftsearch.orchestrator.samplers.catalog import build_sampler
from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
from sftsearch.orchestrator.surrogate.model import SurrogateModel
from sftsearch.search_spaces.load import parse_study

from observed import Observations

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.samplers.base import Sampler
    from sftsearch.search_spaces.point import Point

WEARABLES = describe("wearables")
SMALL = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: int, low: 8, high: 128, step: 8}
    fused_layers: {kind: int, low: 1, high: 4}
    stride: {kind: choice, values: [1, 2, 4, 8, 16]}
"""
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


def admission_of(space: str, constraints: str = "[]") -> Admission:
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\nsearch: {trials: 1}\n"
        f"constraints: {constraints}\n{space}"
    )
    return Admission(parse_study(text.encode()), WEARABLES)


def section_of(kind: str, **options: Any) -> Any:
    """Return the sampler section of a study file."""
    text = (
        "study: {name: small}\ndataset: {kind: wearables}\n"
        f"search: {{trials: 1, sampler: { ({'kind': kind} | options)!r}}}\nspace: [{{kind: sft}}]\n"
    )
    return parse_study(text.encode()).study.search.sampler


def sampler_of(kind: str, **options: Any) -> Sampler:
    return build_sampler(section_of(kind, **options))


def optuna_study_of(admission: Admission) -> OptunaStudy:
    return OptunaStudy(admission.space, ["maximize", "minimize"])


def history_of(admission: Admission) -> History:
    """Return the history of a study without proposals or measurements."""
    surrogate = SurrogateModel(admission, Observations(("gflops",)))
    return History(optuna_study_of(admission), admission, surrogate)


def propose(sampler: Sampler, history: History, branch: int | None = None) -> tuple[int, Point]:
    """Enter a sampler's next proposal into the study; return its number and point."""
    proposal = sampler.propose(history, branch)
    assert proposal is not None
    return history.study.enter(proposal.point, proposal.carried), proposal.point


class Toy:
    """A study whose trials end immediately, with values of a closed form."""

    def __init__(
        self, space: str, kind: str, value: Callable[[Candidate], Values], **options: Any
    ) -> None:
        self.admission = admission_of(space)
        self.past = Observations(("gflops",), floor=0.0)
        self.surrogate = SurrogateModel(self.admission, self.past)
        self.history = History(optuna_study_of(self.admission), self.admission, self.surrogate)
        self.sampler = sampler_of(kind, **options)
        self.value = value
        self.values: list[Values] = []

    @property
    def optuna(self) -> OptunaStudy:
        return self.history.study

    def run(self, count: int, branches: tuple[int | None, ...] = (None,)) -> Toy:
        """Try `count` more configurations, not counting refused ones; branches take turns."""
        target = len(self.values) + count
        while len(self.values) < target:
            branch = branches[len(self.values) % len(branches)]
            number, point = propose(self.sampler, self.history, branch)
            decided = self.admission.decide(point)
            if isinstance(decided, Candidate):
                self.admission.take(decided.id)
                self.values.append(self.value(decided))
                self.optuna.tell(number, self.values[-1])
                self._observe(number, decided)
            else:
                self.optuna.refuse(number, decided.excess)
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
        observed = self.past.enter(number, decided.id, decided.point, **body)
        self.surrogate.take(decided.id, decided.point)
        self.past.await_(observed, 0)
        self.past.finish(observed, 0, list(self.values[-1]), 1.0)

    def resumed(self) -> Toy:
        """Rebuild the Optuna study from JSON, as after a resume."""
        old = self.optuna
        self.history = History(optuna_study_of(self.admission), self.admission, self.surrogate)
        for trial in old.study.trials:
            carried = json.loads(json.dumps(trial.user_attrs))
            number = self.optuna.enter(old.point_of(trial.params, None), carried)
            if trial.state == TrialState.COMPLETE:
                self.optuna.tell(number, trial.values)
            else:
                self.optuna.refuse(number, trial.constraints["admission"])
        return self


def smooth(candidate: Candidate) -> Values:
    """Return smooth values: accuracy rises with cost and is best at dropout 0.2."""
    accuracy = 1 - math.exp(-2e3 * candidate.cost.gflops)
    return accuracy - abs(candidate.point.values.get("dropout", 0.2) - 0.2), candidate.cost.gflops


def zdt1(candidate: Candidate) -> Values:
    """Return the two objectives of ZDT1, the first one negated to be maximized.

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
