"""Compare studies and families, against enumeration and values computed by hand."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis import compare
from sftsearch.orchestrator.report.comparison import describe_comparison
from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

SPREAD = (-0.05, 0.0, 0.05)
"""Offsets of the three subjects, equal for all configurations."""


def trial(name: str, seed: int, top1: float, cost: float, **changes: Any) -> TrialRecord:
    record = TrialRecord(
        key=f"{name}-{seed}",
        configuration_id=name,
        model="sft",
        configuration={},
        seed=seed,
        status="finished",
        values={"top1": top1, "gflops": cost, "seconds": 10.0},
        groups={f"s{g}": (100 * (top1 + more), 100.0) for g, more in enumerate(SPREAD)},
        started=1000.0,
        ended=1020.0,
    )
    return replace(record, **changes)


def study_of(name: str, *trials: TrialRecord, **changes: Any) -> StudyRecord:
    record = StudyRecord(
        name=name,
        description="",
        dataset="synthetic",
        num_seeds=1,
        objectives=(("top1", "maximize"), ("gflops", "minimize")),
        facts={"fingerprint": "f" * 64},
        refused={},
        trials=trials,
    )
    return replace(record, **changes)


A = {1: 0.50, 2: 0.70, 4: 0.60}
B = {2: 0.60, 3: 0.75, 8: 0.90, 16: 0.86}


def curve(name: str, points: Mapping[int, float], **changes: Any) -> StudyRecord:
    trials = [trial(f"{name}{cost}", 0, top1, float(cost)) for cost, top1 in points.items()]
    return study_of(name, *trials, **changes)


def test_compare_at_equal_cost_takes_the_best_that_costs_no_more() -> None:
    found = compare.compare_studies(curve("a", A), curve("b", B))
    assert [contest.limit for contest in found.at_cost] == [1, 2, 3, 8, 16]
    for contest in found.at_cost:
        best = [
            max((v for cost, v in points.items() if cost <= contest.limit), default=None)
            for points in (A, B)
        ]
        assert contest.first is not None
        assert contest.first.value == best[0]
        if best[1] is None:
            assert (contest.second, contest.difference, contest.probability) == (None, None, None)
            continue
        assert contest.second is not None
        assert contest.second.value == best[1]
        assert contest.second.configuration_id in {f"b{cost}" for cost in B}
        difference = contest.first.value - best[1]
        assert contest.difference == pytest.approx(difference)
        # Subject offsets are equal: paired, the difference is the same in every resample.
        assert contest.interval == pytest.approx((difference, difference))
        assert contest.probability == (1.0 if difference > 0 else 0.0)


def test_compare_at_equal_tuning_draws_the_smaller_number() -> None:
    found = compare.compare_studies(curve("a", A), curve("b", B))
    assert found.num_configurations == (3, 4)
    assert found.at_number.limit == 3
    best = [max(drawn) for drawn in itertools.combinations(B.values(), 3)]
    assert found.at_number.first is not None
    assert found.at_number.second is not None
    assert found.at_number.first.value == pytest.approx(0.7)  # all three are drawn
    assert found.at_number.second.value == pytest.approx(statistics.fmean(best))
    assert found.at_number.probability == 0.0


def test_compare_at_equal_training_time_draws_fewer_of_the_slower() -> None:
    """`b` takes 80 s for 4 configurations with 2 replicates: one in the 30 s of `a`."""
    both_seeds = [trial(f"b{c}", s, v, float(c)) for c, v in B.items() for s in (0, 1)]
    b = study_of("b", *both_seeds, num_seeds=2)
    found = compare.compare_studies(curve("a", A), b)
    assert found.seconds == (30.0, 80.0)
    assert found.at_seconds.limit == 30.0
    assert found.at_seconds.second is not None
    assert found.at_seconds.second.num_drawn == 1
    assert found.at_seconds.second.value == pytest.approx(statistics.fmean(B.values()))
    assert found.at_number.second is not None
    assert found.at_number.second.num_drawn == 3


def test_compare_includes_stopped_trials_only_in_time() -> None:
    stopped = trial("x", 0, 0.99, 0.5, status="stopped", reason="unlikely", epoch=2)
    a = curve("a", A)
    found = compare.compare_studies(replace(a, trials=(*a.trials, stopped)), curve("b", B))
    assert found.seconds == (50.0, 40.0)  # it ran for 20 s
    assert found.num_configurations == (3, 4)
    assert max(c.first.value for c in found.at_cost if c.first) == 0.7


def test_compare_of_equal_studies_is_a_tie() -> None:
    found = compare.compare_studies(curve("a", A), curve("a", A))
    for contest in (*found.at_cost, found.at_number, found.at_seconds):
        assert (contest.difference, contest.probability) == (0.0, 0.5)


def test_compare_on_two_subjects_takes_samples_as_independent() -> None:
    """Each of the two accuracies has the variance 49 / 200^2; neither study is better."""
    first = {"s1": (60.0, 100.0), "s2": (50.0, 100.0)}
    second = {"s1": (50.0, 100.0), "s2": (60.0, 100.0)}
    found = compare.compare_studies(
        study_of("a", trial("a", 0, 0.55, 1.0, groups=first)),
        study_of("b", trial("b", 0, 0.55, 1.0, groups=second)),
    )
    (contest,) = found.at_cost
    half = 1.96 * (2 * 49) ** 0.5 / 200
    assert contest.probability == pytest.approx(0.5, abs=0.02)
    assert contest.interval == pytest.approx((-half, half), abs=0.004)


def test_compare_subtracts_fold_effects() -> None:
    """`a` ran only on the easy fold, `b` on both; `c` and `d` determine the fold effects."""
    effect = {0: 0.0, 1: -0.2}

    def cell(name: str, seed: int, truth: float) -> TrialRecord:
        top1 = truth + effect[seed]
        return trial(name, seed, top1, 1.0, groups={f"s{seed}": (100 * top1, 100.0)})

    a = study_of("a", cell("a", 0, 0.60), folds=2)
    both = [cell(n, s, v) for n, v in {"b": 0.65, "c": 0.6, "d": 0.5}.items() for s in (0, 1)]
    found = compare.compare_studies(a, study_of("b", *both, folds=2))
    (contest,) = found.at_cost
    assert contest.difference == pytest.approx(-0.05)


def test_compare_uses_only_reported_configurations_if_both_have_some() -> None:
    lucky = trial("lucky", 0, 0.99, 1.0)
    chosen = [
        study_of(
            name, trial(name, 0, 0.9, 1.0), trial(name, 1, value, 1.0), lucky, fresh={name: (1,)}
        )
        for name, value in {"a": 0.7, "b": 0.6}.items()
    ]
    found = compare.compare_studies(*chosen)
    assert found.only_chosen
    (contest,) = found.at_cost
    assert contest.difference == pytest.approx(0.1)
    assert "fresh replicates" in describe_comparison(found).notes[0]
    found = compare.compare_studies(chosen[0], curve("b", B))
    assert not found.only_chosen
    assert found.at_cost[0].first is not None
    assert found.at_cost[0].first.configuration_id == "lucky"


def test_compare_families_equals_compare_studies() -> None:
    both = [
        replace(t, model=study.name)
        for study in (curve("a", A), curve("b", B), curve("c", {1: 0.99}))
        for t in study.trials
    ]
    found = compare.compare_families(study_of("all", *both), ("a", "b"))
    alone = compare.compare_studies(curve("a", A), curve("b", B))
    assert found == alone
    with pytest.raises(UserError, match="No family of this study is called 'd'"):
        compare.compare_families(study_of("all", *both), ("a", "d"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits"}, "the datasets differ (synthetic; digits)"),
        ({"facts": {"fingerprint": "e" * 64}}, "the fingerprints of the data differ (ffffffffffff"),
        ({"folds": 3}, "the numbers of folds differ (None; 3)"),
        ({"objectives": (("mae", "minimize"), ("gflops", "minimize"))},
         "the metrics differ (top1 against gflops; mae against gflops)"),
        ({"objectives": (("top1", "maximize"), ("latency_ms", "minimize"))},
         "(top1 against gflops; top1 against latency_ms)"),
    ],
)  # fmt: skip
def test_compare_refuses_different_data_or_metrics(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(compare.ComparisonError) as caught:
        compare.compare_studies(curve("a", A), curve("b", B, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compare_refuses_a_study_with_nothing_finished() -> None:
    with pytest.raises(compare.ComparisonError, match="No configuration of 'b' has finished"):
        compare.compare_studies(curve("a", A), study_of("b"))


def test_compare_has_no_probability_for_a_metric_without_counts() -> None:
    objectives = (("mae", "minimize"), ("gflops", "minimize"))
    errors = {"a": 0.5, "b": 0.7}
    studies = [
        study_of(n, trial(n, 0, 0.5, 1.0, values={"mae": e, "gflops": 1.0}), objectives=objectives)
        for n, e in errors.items()
    ]
    (contest,) = compare.compare_studies(*studies).at_cost
    assert contest.difference == pytest.approx(-0.2)
    assert (contest.interval, contest.probability) == (None, None)


def test_compare_pairs_the_bootstrap_of_both() -> None:
    """A difference of 2 points on every subject is certain, although subjects differ by 40."""
    generator = np.random.default_rng(0)
    base = {f"s{g}": float(v) for g, v in enumerate(generator.uniform(40, 80, 6))}
    studies = []
    for name, more in (("a", 2.0), ("b", 0.0)):
        groups = {g: (v + more, 100.0) for g, v in base.items()}
        top1 = statistics.fmean(v for v, _ in groups.values()) / 100
        studies.append(study_of(name, trial(name, 0, top1, 1.0, groups=groups)))
    (contest,) = compare.compare_studies(*studies).at_cost
    assert contest.probability == 1.0
    assert contest.interval == pytest.approx((0.02, 0.02))
