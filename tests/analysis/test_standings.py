"""Models at equal compute and equal tuning: expected best by subsets, budgets, differences."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.analysis.standings import (
    FEWEST_WITHIN,
    NUM_BUDGETS,
    Standings,
    round_up,
    standings_of,
)

from report_studies import small_study, summarize, trial_of

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord

CURVES = {
    "cheap": {1.0: 0.50, 2.0: 0.55, 3.0: 0.52, 50.0: 0.60},
    "good": {2.0: 0.40, 4.0: 0.70, 6.0: 0.65, 8.0: 0.72, 90.0: 0.90},
    "rare": {5.0: 0.95, 99.0: 0.96},
}


def study_of(curves: dict[str, dict[float, float]]) -> StudyRecord:
    return small_study(
        *(
            trial_of(model, int(cost), top1, cost)
            for model, curve in curves.items()
            for cost, top1 in curve.items()
        )
    )


def found_in(curves: dict[str, dict[float, float]]) -> Standings:
    found = standings_of(summarize(study_of(curves)))
    assert found is not None
    return found


def expected(curve: dict[float, float], limit: float, number: int) -> float:
    within = [top1 for cost, top1 in curve.items() if cost <= limit]
    return statistics.fmean(max(drawn) for drawn in itertools.combinations(within, number))


def test_budgets_have_equal_ratios_from_the_first_comparison_to_the_highest_cost() -> None:
    """`good` has three configurations from cost 6 on, `cheap` from 3 on; 6 to 99 in two steps."""
    limits = [budget.limit for budget in found_in(CURVES).budgets]
    assert limits == [6.0, 25.0, 99.0]  # sqrt(6 * 99) is 24.4
    assert len(limits) == NUM_BUDGETS


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.0012, 0.0012), (0.00121, 0.0013), (1.51e-5, 1.6e-5), (24.4, 25.0), (1234.0, 1300.0),
     (9.91, 10.0), (100.0, 100.0)],
)  # fmt: skip
def test_round_up_keeps_two_significant_digits(value: float, rounded: float) -> None:
    assert round_up(value) == rounded


def test_standings_are_the_expected_best_of_equally_many_within_the_budget() -> None:
    for budget in found_in(CURVES).budgets:
        numbers = {
            name: sum(cost <= budget.limit for cost in curve) for name, curve in CURVES.items()
        }
        compared = {name for name, number in numbers.items() if number >= FEWEST_WITHIN}
        assert budget.num_drawn == min(numbers[name] for name in compared)
        assert [one.family for one in budget.standings] == sorted(CURVES)
        for one in budget.standings:
            assert one.num_within == numbers[one.family]
            if one.family not in compared:
                assert (one.value, one.interval, one.difference) == (None, None, None)
                continue
            value = expected(CURVES[one.family], budget.limit, budget.num_drawn)
            assert one.value == pytest.approx(value)
            assert one.difference is not None
            (other,) = compared - {one.family}
            rival = expected(CURVES[other], budget.limit, budget.num_drawn)
            assert one.difference.other == other
            assert one.difference.mean == pytest.approx(value - rival)
            # All configurations have the same offsets by group: pairing leaves no spread.
            assert one.difference.interval == pytest.approx((value - rival, value - rival))


def test_every_family_is_compared_with_the_best_other_one() -> None:
    curves = {
        name: {cost + n: top1 for cost in (1.0, 2.0, 3.0)}
        for n, (name, top1) in enumerate({"a": 0.5, "b": 0.9, "c": 0.7}.items())
    }
    budget = found_in(curves).budgets[-1]
    assert {one.family: one.difference.other for one in budget.standings if one.difference} == {
        "a": "b", "b": "c", "c": "b",
    }  # fmt: skip


def test_standings_count_stopped_configurations() -> None:
    study = study_of(CURVES)
    stopped = [
        replace(t, configuration_id=f"s{n}", key=f"s{n}", status="stopped", epoch=2)
        for n, t in enumerate(study.trials[:3])
    ]
    found = standings_of(summarize(replace(study, trials=(*study.trials, *stopped))))
    assert found is not None
    assert found.num_stopped == {"cheap": 3}


def test_standings_need_two_families_and_a_cost() -> None:
    assert standings_of(summarize(study_of({"cheap": CURVES["cheap"]}))) is None
    few = {"cheap": CURVES["cheap"], "rare": CURVES["rare"]}
    assert standings_of(summarize(study_of(few))) is None
    free = {name: {cost - 1.0: top1 for cost, top1 in CURVES[name].items()} for name in CURVES}
    assert standings_of(summarize(study_of(free))) is None  # no ratios from a cost of 0
    study = replace(study_of(CURVES), objectives=(("top1", "maximize"), ("gflops", "maximize")))
    assert standings_of(summarize(study)) is None
