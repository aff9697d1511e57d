"""The Optuna study keeps points unchanged and records every result."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
from sftsearch.search_spaces.schema import Branch
from sftsearch.search_spaces.space import Space

from sampled_study import SMALL, admission_of, optuna_study_of

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
def test_optuna_study_returns_values_of_every_kind_of_axis_unchanged() -> None:
    """1, 1.0, True and "1" stay distinct; 0.3 is exact; lists and mappings keep their order."""
    mapping = {"left": AXES["alike"], "right": 2}
    first = Branch(kind="one", literal=[1], mapping=mapping, **AXES)
    space = Space([first, Branch(kind="one", tenths=0.7)])
    study = OptunaStudy(space, ["maximize"])
    sampler = optuna.samplers.RandomSampler(seed=0)
    seen = Counter()
    for _ in range(150):
        point = study.draw(sampler, None)
        study.tell(study.enter(point), [0.0])
        again = study.point_of(study.study.trials[-1].params, None)
        assert (again.branch, repr(dict(again.values))) == (point.branch, repr(dict(point.values)))
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


def test_optuna_study_records_each_result() -> None:
    admission = admission_of(SMALL)
    study = optuna_study_of(admission)
    points = [admission.space.draw(random.Random(i)) for i in range(5)]
    assert [study.enter(point, {"of": i}) for i, point in enumerate(points)] == list(range(5))
    study.tell(0, [0.9, 0.1])
    study.refuse(1, 0.5)
    study.fail(2)
    study.prune(3)
    trials = study.trials(None)
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.PRUNED,
        TrialState.RUNNING,
    ]
    assert [trial.number for trial in study.study.best_trials] == [0]
    assert [trial.constraints for trial in trials] == [{}, {"admission": 0.5}, {}, {}, {}]
    assert [trial.user_attrs for trial in trials] == [{"of": i} for i in range(5)]
