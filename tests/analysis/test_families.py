"""Compare families at equal compute and at equal tuning, against enumeration and by hand."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis.families import (
    FamilyComparison,
    best_of,
    families_of,
    names_of_families,
)
from sftsearch.orchestrator.candidates.binding import parameter_names
from sftsearch.search_spaces.load import find_study_file, read_study

from report_studies import A, B, small_study, summarize, trial_of, two_models

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import StudyRecord


def compared(front: Front) -> FamilyComparison:
    found = families_of(front)
    assert found is not None
    return found


@pytest.mark.parametrize("num_run", range(1, 8))
def test_best_of_is_the_mean_over_all_draws(num_run: int) -> None:
    """Compare with the mean of the best over all subsets of k configurations."""
    values = np.sort(np.random.default_rng(num_run).random(num_run))
    for num_drawn in range(1, num_run + 1):
        subsets = itertools.combinations(values, num_drawn)
        expected = statistics.fmean(max(subset) for subset in subsets)
        weights = best_of(num_run, num_drawn)
        assert weights @ values == pytest.approx(expected)
        assert weights.sum() == pytest.approx(1)


def test_best_of_hundreds_does_not_overflow() -> None:
    weights = best_of(2000, 700)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)


def test_families_at_equal_tuning_draw_the_number_of_the_smallest() -> None:
    found = compared(summarize(two_models()))
    assert found.num_drawn == 3
    by_name = {tuned.family: tuned for tuned in found.tuned}
    assert (by_name["a"].num_run, by_name["b"].num_run) == (3, 4)
    assert by_name["a"].value == pytest.approx(0.7)  # all three are drawn
    best = [max(drawn) for drawn in itertools.combinations(B.values(), 3)]
    assert by_name["b"].value == pytest.approx(statistics.fmean(best))
    for tuned in found.tuned:
        assert tuned.interval is not None
        # Group offsets are -5, 0 and 5 points in all configurations, so also in the best one.
        half = 4.3027 * 0.05 / 3**0.5  # Student's t with two degrees of freedom
        expected = (tuned.value - half, min(tuned.value + half, 1.0))
        assert tuned.interval == pytest.approx(expected, abs=0.006)
    assert by_name["b"].difference is None
    behind = by_name["a"].difference
    assert behind is not None
    assert (behind.other, behind.within_noise) == ("b", False)
    assert behind.mean == pytest.approx(0.7 - statistics.fmean(best))
    assert behind.interval == pytest.approx((behind.mean, behind.mean))


def test_families_at_equal_compute_have_the_best_that_costs_no_more() -> None:
    found = compared(summarize(two_models()))
    # The costs of the front, then the highest cost.
    assert [level.cost for level in found.levels] == [1, 2, 3, 8, 16]
    for level in found.levels:
        values = {best.family: best.value for best in level.families}
        for name, curve in (("a", A), ("b", B)):
            affordable = [top1 for cost, top1 in curve.items() if cost <= level.cost]
            assert values.get(name) == max(affordable, default=None)
        assert level.families[0].difference is None
        for best in level.families[1:]:
            assert best.difference is not None
            assert best.difference.other == level.families[0].configuration_id
            mean = best.value - level.families[0].value
            assert best.difference.mean == pytest.approx(mean)
            # The group offsets are equal in both: pairing leaves no spread.
            assert best.difference.interval == pytest.approx((mean, mean))


def test_families_levels_are_thinned_and_the_most_expensive_is_last() -> None:
    costs = [float(cost) for cost in range(1, 41)]
    trials = [trial_of("ab"[n % 2], n, 0.5 + n / 100, cost) for n, cost in enumerate(costs)]
    trials.append(trial_of("a", 99, 0.1, 100.0))  # more expensive than the front
    levels = compared(summarize(small_study(*trials))).levels
    assert [level.cost for level in levels] == [1, 14, 27, 40, 100]


def test_families_rank_a_minimized_metric() -> None:
    study = small_study(
        *(
            trial_of(model, n, 0.5, float(n), mae=mae)
            for model, errors in {"a": [0.9, 0.7, 0.8], "b": [0.6, 1.0]}.items()
            for n, mae in enumerate(errors, start=1)
        )
    )
    found = compared(summarize(study, y="mae"))
    best = {best.family: best.value for best in found.levels[-1].families}
    assert best == {"a": 0.7, "b": 0.6}
    assert found.levels[-1].families[0].family == "b"
    expected = {tuned.family: tuned.value for tuned in found.tuned}
    least = statistics.fmean(min(pair) for pair in itertools.combinations([0.9, 0.7, 0.8], 2))
    assert expected["a"] == pytest.approx(least)
    assert expected["b"] == pytest.approx(0.6)
    assert all(tuned.interval is None for tuned in found.tuned)


def test_families_are_defined_by_parameters() -> None:
    """Three settings of one model: two values of `pooling`, and none."""
    shapes: list[dict[str, object]] = [{"pooling": "max", "dim": 4}, {"pooling": "average"}, {}]
    study = small_study(
        *(
            replace(trial_of("a", n, 0.5 + n / 100, 1.0), configuration=shapes[n % 3] | {"lr": n})
            for n in range(6)
        )
    )
    assert families_of(summarize(study)) is None
    found = compared(summarize(study, by=["pooling"]))
    assert found.names == ("a", "a pooling=average", "a pooling=max")
    assert [tuned.num_run for tuned in found.tuned] == [2, 2, 2]
    assert [tuned.value for tuned in found.tuned] == pytest.approx([0.55, 0.54, 0.53])
    with pytest.raises(UserError, match=r"No parameter of this study is called 'poling'\. Did you"):
        summarize(study, by=["poling"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baselines", ("mixup",)),
        ("cost", ("sparse_attention",)),
        ("sparsification", ("tokens",)),
        ("pooling", ("pooling",)),
        ("mixup", ("mixup",)),
        ("tokens", ()),
        ("mbt_fusion", ("fusion_layer", "strategy")),
        ("mbt_bottlenecks", ("num_bottlenecks", "update", "modality_order")),
        ("mbt_mixup", ("mixup",)),
        ("stride", ()),
    ],
)
def test_names_of_families_are_few_distinguishing_literals(
    name: str, expected: tuple[str, ...]
) -> None:
    space = read_study(find_study_file(name), parameter_names).study.space
    assert names_of_families(space) == expected


def test_families_default_to_those_of_the_study(study: StudyRecord) -> None:
    changed = replace(study, families=("stride", "never_searched"))
    assert summarize(changed).by == ("stride",)
    assert summarize(changed, by=[]).by == ()
    assert summarize(study).by == ()
