"""Common behavior of all rules: rungs, options, reproducible state."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time

import numpy as np
import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.early_stopping.base import rungs
from sftsearch.orchestrator.early_stopping.catalog import RULES, build_rule
from sftsearch.search_spaces.search_plan import DominatedStop, NoStop

from learning_curves import EPOCHS, CurveStudy, judge, report_of


@pytest.mark.parametrize(
    ("epochs", "warmup", "min_epochs", "factor", "expected"),
    [
        (16, 0, 2, 2.0, (2, 4, 8)),  # the last epoch is no rung
        (17, 0, 2, 2.0, (2, 4, 8, 16)),
        (12, 5, 2, 2.0, (8,)),  # not before epoch 7, two after the warm-up
        (12, 6, 2, 2.0, (8,)),
        (12, 7, 2, 2.0, ()),
        (100, 0, 1, 3.0, (1, 3, 9, 27, 81)),
        (8, 0, 1, 1.2, (1, 2, 3, 4, 5, 6, 7)),  # rounded, without repeats
        (2, 0, 2, 2.0, ()),
        (1, 0, 1, 2.0, ()),
    ],
)
def test_rungs_are_a_geometric_series_after_the_warm_up(
    epochs: int, warmup: int, min_epochs: int, factor: float, expected: tuple[int, ...]
) -> None:
    assert rungs(epochs, warmup, min_epochs, factor) == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dominated", {"delta": -0.1}),
        ("dominated", {"audit_share": 1.5}),
        ("dominated", {"min_probability": 0.0}),
        ("dominated", {"min_finished": 2}),
        ("median", {"min_values": 0}),
        ("mo_asha", {"reduction_factor": 1.0}),
        ("none", {"min_epochs": 0}),
        ("none", {"delta": math.nan}),
    ],
)
def test_rule_refuses_options_out_of_range(name: str, options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(options))}` of a stopping rule must be"):
        RULES[name](**options)


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_does_not_stop_the_first_trial(name: str) -> None:
    """Report every epoch of a single trial as NaN, then twice with a value."""
    rule = RULES[name]()
    for epoch, value in itertools.product(range(1, EPOCHS + 1), (math.nan, 0.1, 0.1)):
        decision = judge(rule, report_of("only", epoch, value))
        assert (decision.stop, decision.audit) == (False, False)
    rule.on_finished("only", 0.1)
    rule.on_finished("only", 0.1)
    assert rule.audits == ()


@pytest.mark.parametrize("name", sorted(RULES))
def test_decide_takes_under_a_millisecond_after_many_trials(name: str) -> None:
    rule = RULES[name](audit_share=0)
    generator = np.random.default_rng(0)
    cost = np.exp(generator.uniform(0, 4, 3000))
    value = 0.6 + 0.05 * np.log(cost) + generator.normal(0, 0.05, 3000)
    seconds = []
    for n in range(3000):
        report = report_of(f"t{n}", 4, value[n], cost[n], best_affordable=0.8)
        started = time.perf_counter()
        judge(rule, report)
        seconds.append(time.perf_counter() - started)
        rule.on_finished(f"t{n}", value[n] + 0.1)
    assert statistics.median(seconds[-300:]) < 1e-3


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_has_the_same_state_after_the_same_calls(name: str) -> None:
    """With all calls, as by one driver, and without `decide`, as by one that resumes."""
    study = CurveStudy(RULES[name](seed=3), seed=7)
    study.run(40)
    repeated, resumed = RULES[name](seed=3), RULES[name](seed=3)
    results = [getattr(repeated, call)(*arguments) for call, arguments in study.calls]
    assert [result for result in results if result is not None] == study.decisions
    for call, arguments in study.calls:
        if call != "decide":
            getattr(resumed, call)(*arguments)
    assert repeated == resumed == study.rule
    assert repeated.audits == resumed.audits == study.rule.audits
    assert bool(study.stops) == (name != "none")


@pytest.mark.parametrize("name", sorted(RULES))
def test_decide_does_not_change_the_rule(name: str) -> None:
    """Decisions do not depend on other queries and leave no state."""
    study = CurveStudy(RULES[name](seed=3, audit_share=0.5), seed=7)
    study.run(20)
    before = copy.deepcopy(study.rule)
    reports = [arguments[0] for call, arguments in study.calls if call == "decide"]
    fresh = [report_of(f"new{n}", r.epoch, r.value, r.cost_low) for n, r in enumerate(reports)]
    first = [study.rule.decide(report) for report in fresh]
    assert [study.rule.decide(report) for report in reversed(fresh)] == first[::-1]
    assert study.rule == before


def test_build_rule_uses_the_options_of_its_section() -> None:
    rule = build_rule(DominatedStop(kind="dominated", delta=0.25, min_probability=0.5, seed=9))
    assert rule == RULES["dominated"](delta=0.25, min_probability=0.5, seed=9)
    assert build_rule(NoStop(kind="none")) == RULES["none"]()
