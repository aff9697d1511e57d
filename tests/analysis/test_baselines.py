"""Compare the best of a front with the best baseline.

Subjects have 100 samples. If every subject has the same difference, so has every resample, and the
interval is the difference itself.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.analysis.baselines import paired_interval
from sftsearch.orchestrator.bootstrap import BLOCK
from sftsearch.orchestrator.storage.study_record import Conclusion, Posterior

from baseline_records import COST, baseline, groups_of, trained
from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.baselines import BaselineContest
    from sftsearch.orchestrator.storage.study_record import TrialRecord


def contest_of(*trials: TrialRecord, **changes: Any) -> BaselineContest:
    found = summarize(small_study(*trials, **changes)).baselines
    assert found is not None
    assert found.contest is not None
    return found.contest


def test_difference_is_paired_by_subject() -> None:
    found = contest_of(
        trained("a", 0, groups_of(60, 70, 80)),
        baselines=(baseline("linear", groups_of(70, 80, 90)),),
    )
    assert (found.value, found.baseline_value) == pytest.approx((0.7, 0.8))
    assert found.interval == pytest.approx((-0.1, -0.1))
    assert (found.verdict, found.num_groups, found.basis) == ("behind", 3, "search")


@pytest.mark.parametrize(
    ("own", "verdict"), [((85, 90, 95), "ahead"), ((60, 90, 70), "tied"), ((45, 50, 55), "behind")]
)
def test_verdict_depends_on_the_interval(own: tuple[float, ...], verdict: str) -> None:
    """Against 70, 70, 70: a mean difference of 20, 3.3 or -20 points.

    With three subjects of equal counts the interval is the mean ± 4.303 s / sqrt(3).
    """
    found = contest_of(
        trained("a", 0, groups_of(*own)), baselines=(baseline("linear", groups_of(70, 70, 70)),)
    )
    assert found.verdict == verdict
    differences = [(right - 70) / 100 for right in own]
    half = 4.30265 * statistics.stdev(differences) / math.sqrt(3)
    mean = statistics.fmean(differences)
    assert found.interval == pytest.approx((mean - half, mean + half), abs=1e-6)


def test_best_baseline_and_best_of_the_front_are_compared() -> None:
    study = small_study(
        trained("cheap", 0, groups_of(50, 50), cost=1.0),
        trained("best", 0, groups_of(80, 80), cost=2.0),
        baselines=(
            baseline("linear", groups_of(60, 60)),
            baseline("majority", groups_of(20, 20)),
            baseline("mlp", groups_of(70, 70)),
        ),
    )
    found = summarize(study).baselines
    assert found is not None
    assert [c.model for c in found.summaries] == ["majority", "linear", "mlp"]
    assert found.contest is not None
    assert (found.contest.baseline, found.contest.configuration) == ("baseline-mlp", "best")
    differences = [c.difference.mean for c in found.summaries if c.difference]
    assert differences == pytest.approx([-0.6, -0.2, -0.1])
    assert {c.status for c in found.summaries} == {"baseline"}


def test_fresh_replicates_are_compared_on_folds_on_which_neither_was_chosen() -> None:
    """Replicate 0 was on fold 0; of the fresh ones 1, 2 and 3, two are on folds 1 and 2."""
    own = {0: groups_of(90, 90), 1: groups_of(60, 70, first=2), 2: groups_of(50, 60, first=4)}
    trials = [trained("a", seed, own[seed % 3]) for seed in range(4)]
    folds = [
        baseline("linear", groups_of(10, 10), 0),
        baseline("linear", groups_of(70, 80, first=2), 1),
        baseline("linear", groups_of(60, 70, first=4), 2),
    ]
    study = {"folds": 3, "fresh": {"a": (1, 2, 3)}, "baselines": tuple(folds)}
    found = contest_of(*trials, **study)
    assert (found.basis, found.num_groups) == ("unseen", 4)
    assert (found.value, found.baseline_value) == pytest.approx((0.6, 0.7))
    assert found.interval == pytest.approx((-0.1, -0.1))
    # Once the search has used all folds, all fresh replicates count.
    searched = [trained("a", seed, own[seed % 3]) for seed in (4, 5)]
    found = contest_of(*trials, *searched, **study)
    assert (found.basis, found.num_groups) == ("fresh", 6)
    assert found.value == pytest.approx((0.65 + 0.55 + 0.9) / 3)
    assert found.baseline_value == pytest.approx((0.1 + 0.75 + 0.65) / 3)


def test_posterior_mean_replaces_a_mean_that_was_chosen_by() -> None:
    found = contest_of(
        trained("a", 0, groups_of(80, 80, 80)),
        baselines=(baseline("linear", groups_of(75, 75, 75)),),
        conclusion=Conclusion(
            reported=("a",),
            within_delta=0.5,
            false_stops=None,
            posteriors={"a": Posterior(mean=0.72, sd=0.01, on_front=0.9)},
        ),
    )
    assert found.basis == "posterior"
    assert (found.value, found.baseline_value) == pytest.approx((0.72, 0.75))
    assert found.interval == pytest.approx((-0.03, -0.03))
    assert found.verdict == "behind"


@pytest.mark.parametrize(("mae", "verdict"), [(0.4, "ahead"), (0.6, "behind"), (0.5, "tied")])
def test_errors_are_minimized_and_have_no_interval(mae: float, verdict: str) -> None:
    study = small_study(
        trial("a", 0, {"mae": mae, "gflops": 1.0}),
        objectives=(("mae", "minimize"), ("gflops", "minimize")),
        baselines=(baseline("linear", groups_of(50), values={"mae": 0.5, **COST}),),
    )
    found = summarize(study, y="mae").baselines
    assert found is not None
    contest = found.contest
    assert contest is not None
    assert (contest.verdict, contest.interval, contest.num_groups) == (verdict, None, 0)


def test_interval_weighs_subjects_by_their_samples() -> None:
    """Differences 10 of 100, 0 of 50 and 5 of 100, by the formula of the ratio estimator."""
    own = {"s0": (70.0, 100.0), "s1": (30.0, 50.0), "s2": (65.0, 100.0)}
    theirs = {"s0": (60.0, 100.0), "s1": (30.0, 50.0), "s2": (60.0, 100.0)}
    residuals = [10 - 6, 0 - 3, 5 - 6]  # the ratio is 15 / 250
    half = 4.30265 * math.sqrt(1.5 * sum(r * r for r in residuals)) / 250
    expected = pytest.approx((0.06 - half, 0.06 + half), abs=1e-6)
    assert paired_interval([(own, theirs)], 0.06) == expected
    # Blocks of three people or more are added up, and replicates of the same people, too.
    blocks = {f"{name}{BLOCK}{n}": (right / 2, count / 2) for name, (right, count) in own.items()
              for n in range(2)}  # fmt: skip
    others = {f"{name}{BLOCK}{n}": (right / 2, count / 2) for name, (right, count) in theirs.items()
              for n in range(2)}  # fmt: skip
    assert paired_interval([(blocks, others)] * 2, 0.06) == expected


def test_interval_of_two_people_is_over_their_blocks() -> None:
    """Differences 4, 8 and 6 of 50 of one person and 1 and 3 of 50 of another: 3 degrees."""
    own = {f"a{BLOCK}{n}": (20.0 + d, 50.0) for n, d in enumerate((4, 8, 6))}
    own |= {f"b{BLOCK}{n}": (30.0 + d, 50.0) for n, d in enumerate((1, 3))}
    theirs = {name: (20.0 if name[0] == "a" else 30.0, 50.0) for name in own}
    square = 3 / 2 * (2**2 + 2**2) + 2 * (1 + 1)
    half = 3.18245 * math.sqrt(square) / 250
    found = paired_interval([(own, theirs)], 22 / 250)
    assert found == pytest.approx((22 / 250 - half, 22 / 250 + half), abs=1e-6)


def test_two_subjects_have_no_interval() -> None:
    found = contest_of(
        trained("a", 0, groups_of(60, 70)), baselines=(baseline("linear", groups_of(70, 70)),)
    )
    assert (found.interval, found.num_groups, found.verdict) == (None, 2, "behind")


def test_study_without_fitting_baselines_has_none() -> None:
    one = trained("a", 0, groups_of(60, 70))
    linear = baseline("linear", groups_of(70, 80))
    assert summarize(small_study(one)).baselines is None
    study = small_study(one, baselines=(linear,))
    assert summarize(study, y="gflops", x="top1").baselines is not None
    assert summarize(study, max_gflops=0.01).baselines is not None
    assert summarize(study, max_gflops=1e-4).baselines is None  # it costs more
    other = small_study(trial("a", 0, {"map": 0.5, "gflops": 1.0}), baselines=(linear,))
    assert summarize(replace(other, objectives=(("map", "maximize"), ("gflops", "minimize"))),
                     y="map").baselines is None  # fmt: skip


def test_baselines_without_a_front_are_shown() -> None:
    running = trial("a", 0, {"gflops": 1.0}, "running")
    found = summarize(small_study(running, baselines=(baseline("mlp", groups_of(70, 80)),)))
    assert found.baselines is not None
    assert found.baselines.contest is None
    assert found.baselines.best.values["top1"] == pytest.approx(0.75)
    assert [c.configuration_id for c in found.table] == ["a", "baseline-mlp"]


def test_test_values_are_means_over_folds_with_an_interval() -> None:
    folds = [
        baseline("mlp", groups_of(70, 80), 0, test_values={"top1": 0.6},
                 test_groups=groups_of(50, 70)),
        baseline("mlp", groups_of(70, 80, first=2), 1, test_values={"top1": 0.7},
                 test_groups=groups_of(60, 80)),
    ]  # fmt: skip
    study = small_study(trained("a", 0, groups_of(60, 70)), folds=2, baselines=tuple(folds))
    found = summarize(study).baselines
    assert found is not None
    assert found.best.test_values["top1"] == pytest.approx(0.65)
    low, high = found.best.test_interval or (0, 0)
    assert low < 0.65 < high
