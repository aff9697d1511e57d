"""Conclude from the test split of a confirmed study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.report.confirmation import confirmation_rows, describe_confirmation

from baseline_records import baseline_tested, groups_of, trained
from report_studies import small_study, summarize

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.confirmation import Confirmation
    from sftsearch.orchestrator.storage.study_record import TrialRecord


def analysis_of(*trials: TrialRecord, **changes: Any) -> Analysis:
    return Analysis.of(summarize(small_study(*trials, confirmed=True, **changes)))


def confirm(*trials: TrialRecord, **changes: Any) -> Confirmation:
    found = analysis_of(*trials, **changes).confirmation
    assert found is not None
    return found


def member(name: str, cost: float, before: float, *test: float) -> TrialRecord:
    """Return a trial with equal counts of all subjects on validation, so without an interval."""
    return trained(name, 0, groups_of(before, before, before), cost, groups_of(*test, first=9))


def test_study_that_is_not_confirmed_has_no_conclusions() -> None:
    front = summarize(small_study(trained("a", 0, groups_of(60, 70))))
    analysis = Analysis.of(front)
    assert analysis.confirmation is None
    assert describe_confirmation(analysis) == []


def test_members_stand_fall_or_rise_by_their_intervals() -> None:
    """All subjects are alike, so each interval is the value itself."""
    found = confirm(
        member("falls", 1.0, 70, 60, 60, 60),
        member("stands", 2.0, 80, 80, 80, 80),
        member("rises", 3.0, 85, 90, 90, 90),
    )
    assert found.verdicts == {"falls": "fell", "stands": "stands", "rises": "rose"}
    assert found.turned == ()
    assert found.take == "rises"


def test_order_turns_where_a_cheaper_configuration_is_better() -> None:
    found = confirm(
        member("a", 1.0, 70, 85, 86, 87),
        member("b", 2.0, 80, 84, 85, 86),
        member("c", 3.0, 90, 90, 80, 91),
    )
    ((cheaper, change),) = found.turned
    assert (cheaper, change.other) == ("a", "b")
    assert change.mean == pytest.approx(0.01)
    assert change.interval == pytest.approx((0.01, 0.01))
    # c has the highest mean, 87; a is 1 below it, within noise because of the second subject.
    assert found.take == "c"
    assert found.alternative is not None
    assert (found.alternative.other, found.alternative.mean) == ("a", pytest.approx(-0.01))


def test_cheapest_configuration_that_is_as_good_as_the_best_on_validation_is_taken() -> None:
    found = confirm(
        member("a", 1.0, 70, 70, 70, 70),
        member("b", 2.0, 80, 88, 88, 88),
        member("c", 3.0, 90, 85, 85, 85),
    )
    assert (found.take, found.alternative) == ("b", None)


@pytest.mark.parametrize(
    ("test", "verdict", "text"),
    [
        ((95, 96, 97), "behind", "The best baseline by validation beats it: `mlp` (what mlp is)"),
        ((80, 89, 95), "tied", "It does not clearly beat the best baseline by validation"),
        ((70, 71, 72), "ahead", "It beats the best baseline by validation"),
    ],
)
def test_best_baseline_by_validation_is_compared(
    test: tuple[float, ...], verdict: str, text: str
) -> None:
    """The configuration has 88, 89, 90 on test; `linear` is worse on validation, so is not used."""
    baselines = (
        baseline_tested("linear", groups_of(60, 60, 60), groups_of(99, 99, 99, first=9)),
        baseline_tested("mlp", groups_of(75, 75, 75), groups_of(*test, first=9)),
    )
    analysis = analysis_of(member("a", 1.0, 80, 88, 89, 90), baselines=baselines)
    found = analysis.confirmation
    assert found is not None
    assert found.baseline_verdict == verdict
    assert found.baseline is not None
    assert found.baseline.mean == pytest.approx(0.89 - sum(test) / 300)
    said = describe_confirmation(analysis)[-1]
    assert said.startswith(text)
    assert said.endswith("Take the baseline.") == (verdict != "ahead")


def test_sentences_name_what_stands_and_what_to_take() -> None:
    analysis = analysis_of(member("a", 1.0, 70, 60, 60, 60), member("b", 2.0, 80, 80, 80, 80))
    assert describe_confirmation(analysis) == [
        "1 of 2 configurations of the front stands on test: the intervals of test and validation "
        "overlap.",
        "Worse on test than their interval on validation: a (0.600, 0.700 on validation).",
        "The order of the front is the same on test.",
        "Of the front, take b: 0.800 top-1 accuracy on test at 2 G multiply-adds (paper).",
    ]
    assert [row[0] for row in confirmation_rows(analysis.front)] == ["a", "b"]
