"""Families compared at equal compute and at equal tuning, against enumeration and by hand."""

from __future__ import annotations

import io
import itertools
import json
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.analysis import families
from sftsearch.orchestrator.report import formats as report
from sftsearch.orchestrator.report import html
from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord
from sftsearch.search_spaces.load import find_study_file, read_study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.analysis.front import Front


def trial(model: str, number: int, top1: float, cost: float, **values: float) -> TrialRecord:
    name = f"{model}{number}"
    return TrialRecord(
        key=f"{name}-0",
        configuration_id=name,
        model=model,
        configuration={},
        seed=0,
        status="finished",
        values={"top1": top1, "gflops": cost, **values},
        groups={f"s{g}": (top1 * 100 + 5 * (g - 1), 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0,
    )


def study_of(*trials: TrialRecord) -> StudyRecord:
    return StudyRecord(
        name="small",
        description="",
        dataset="synthetic",
        num_seeds=1,
        objectives=(("top1", "maximize"), ("gflops", "minimize")),
        facts={},
        refused={},
        trials=trials,
    )


def compared(front: Front) -> families.Families:
    found = families.compare_families(front)
    assert found is not None
    return found


A = {1: 0.5, 2: 0.7, 4: 0.6}
B = {2: 0.6, 3: 0.75, 8: 0.9, 16: 0.86}


def two_models() -> StudyRecord:
    """Return `a` with three configurations and `b` with four, accuracies by cost."""
    curves: Mapping[str, Mapping[int, float]] = {"a": A, "b": B}
    return study_of(
        *(
            trial(model, cost, top1, float(cost))
            for model, curve in curves.items()
            for cost, top1 in curve.items()
        )
    )


@pytest.mark.parametrize("num_run", range(1, 8))
def test_the_expected_best_is_the_mean_over_all_draws(num_run: int) -> None:
    """Of every subset of k configurations, the best; the mean of them all, by enumeration."""
    values = np.sort(np.random.default_rng(num_run).random(num_run))
    for num_drawn in range(1, num_run + 1):
        subsets = itertools.combinations(values, num_drawn)
        expected = statistics.fmean(max(subset) for subset in subsets)
        weights = families.best_of(num_run, num_drawn)
        assert weights @ values == pytest.approx(expected)
        assert weights.sum() == pytest.approx(1)


def test_the_expected_best_of_hundreds_does_not_overflow() -> None:
    weights = families.best_of(2000, 700)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)


def test_equal_tuning_draws_as_many_as_the_least_tried_ran() -> None:
    found = compared(report.summarise(two_models()))
    assert found.num_drawn == 3
    by_name = {tuned.family: tuned for tuned in found.tuned}
    assert (by_name["a"].num_run, by_name["b"].num_run) == (3, 4)
    assert by_name["a"].value == pytest.approx(0.7)  # all three are drawn
    best = [max(drawn) for drawn in itertools.combinations(B.values(), 3)]
    assert by_name["b"].value == pytest.approx(statistics.fmean(best))
    for tuned in found.tuned:
        assert tuned.interval is not None
        # Groups are 5 points below, at and above the mean, alike in all: so is a best of them.
        assert tuned.interval == pytest.approx((tuned.value - 0.05, tuned.value + 0.05))
    assert by_name["b"].difference is None
    behind = by_name["a"].difference
    assert behind is not None
    assert (behind.other, behind.within_noise) == ("b", False)
    assert behind.mean == pytest.approx(0.7 - statistics.fmean(best))
    assert behind.interval == pytest.approx((behind.mean, behind.mean))


def test_equal_compute_takes_the_best_that_is_no_dearer() -> None:
    found = compared(report.summarise(two_models()))
    assert [level.cost for level in found.levels] == [1, 2, 3, 8, 16]  # the front, then the dearest
    for level in found.levels:
        told = {best.family: best.value for best in level.families}
        for name, curve in (("a", A), ("b", B)):
            affordable = [top1 for cost, top1 in curve.items() if cost <= level.cost]
            assert told.get(name) == max(affordable, default=None)
        assert level.families[0].difference is None
        for best in level.families[1:]:
            assert best.difference is not None
            assert best.difference.other == level.families[0].configuration_id
            mean = best.value - level.families[0].value
            assert best.difference.mean == pytest.approx(mean)
            # The groups differ alike in both: pairing leaves no spread.
            assert best.difference.interval == pytest.approx((mean, mean))


def test_levels_are_thinned_and_the_dearest_is_last() -> None:
    costs = [float(cost) for cost in range(1, 41)]
    trials = [trial("ab"[n % 2], n, 0.5 + n / 100, cost) for n, cost in enumerate(costs)]
    trials.append(trial("a", 99, 0.1, 100.0))  # dearer than the front
    levels = compared(report.summarise(study_of(*trials))).levels
    assert [level.cost for level in levels] == [1, 14, 27, 40, 100]


def test_a_quality_to_minimize_is_ranked_the_other_way() -> None:
    study = study_of(
        *(
            trial(model, n, 0.5, float(n), mae=mae)
            for model, errors in {"a": [0.9, 0.7, 0.8], "b": [0.6, 1.0]}.items()
            for n, mae in enumerate(errors, start=1)
        )
    )
    found = compared(report.summarise(study, y="mae"))
    best = {best.family: best.value for best in found.levels[-1].families}
    assert best == {"a": 0.7, "b": 0.6}
    assert found.levels[-1].families[0].family == "b"
    expected = {tuned.family: tuned.value for tuned in found.tuned}
    least = statistics.fmean(min(pair) for pair in itertools.combinations([0.9, 0.7, 0.8], 2))
    assert expected["a"] == pytest.approx(least)
    assert expected["b"] == pytest.approx(0.6)
    assert all(tuned.interval is None for tuned in found.tuned)


def test_parameters_set_families_apart() -> None:
    """Three settings of one model: two values of `pooling`, and none."""
    shapes: list[dict[str, object]] = [{"pooling": "max", "dim": 4}, {"pooling": "average"}, {}]
    study = study_of(
        *(
            replace(trial("a", n, 0.5 + n / 100, 1.0), configuration=shapes[n % 3] | {"lr": n})
            for n in range(6)
        )
    )
    assert families.compare_families(report.summarise(study)) is None
    found = compared(report.summarise(study, by=["pooling"]))
    assert found.names == ("a", "a pooling=average", "a pooling=max")
    assert [tuned.num_run for tuned in found.tuned] == [2, 2, 2]
    assert [tuned.value for tuned in found.tuned] == pytest.approx([0.55, 0.54, 0.53])
    with pytest.raises(UserError, match=r"No parameter of this study is called 'poling'\. Did you"):
        report.summarise(study, by=["poling"])


@pytest.mark.parametrize(
    ("name", "told_by"),
    [
        ("baselines", ("mixup",)),
        ("cost", ("sparse_attention",)),
        ("sparsification", ("tokens",)),
        ("pooling", ("pooling",)),
        ("mixup", ("mixup",)),
        ("tokens", ()),
        ("mbt_fusion", ("fusion_layer", "strategy")),
        ("mbt_bottlenecks", ("num_bottlenecks", "update")),
        ("mbt_mixup", ("mixup",)),
        ("stride", ()),
    ],
)
def test_branches_are_told_apart_by_as_few_literals_as_do(
    name: str, told_by: tuple[str, ...]
) -> None:
    space = read_study(find_study_file(name)).study.space
    assert families.names_of_families(space) == told_by


def test_one_model_is_not_compared(study: StudyRecord) -> None:
    alone = replace(study, trials=tuple(t for t in study.trials if t.model == "sft"))
    front = report.summarise(alone)
    assert families.compare_families(front) is None
    assert "Families compared" not in report.to_markdown(front) + html.to_html(front)
    assert json.loads(report.to_json(front))["families"] is None
    assert families.compare_families(report.summarise(study_of())) is None


def test_every_format_shows_each_model(study: StudyRecord) -> None:
    front = report.summarise(study)
    found = compared(front)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.rich_table(front))
    terminal = console.export_text()
    page, markdown = html.to_html(front), report.to_markdown(front)
    document = json.loads(report.to_json(front))["families"]
    assert [tuned["family"] for tuned in document["tuned"]] == list(found.names)
    for text in (terminal, page, markdown):
        assert f"expected best of {found.num_drawn}" in " ".join(text.split())
    for name, tuned in zip(found.names, found.tuned, strict=True):
        assert any(line.startswith(name) for line in terminal.splitlines())
        assert f"<td>{name}</td>" in page
        shown = f"{tuned.value:.3f}{families._mark(tuned)} ["
        assert shown in page
        assert shown.replace("[", "\\[").replace("*", "\\*") in markdown
    rows = families.rows(found, front, intervals=False)
    for column in range(1, len(rows[0])):
        assert sum(row[column].endswith("*") for row in rows) == 1


def test_what_a_model_cannot_offer_is_a_dash() -> None:
    front = report.summarise(two_models())
    table = families.rows(compared(front), front, intervals=False)
    assert table[0] == ["a", "0.500*", "0.700*", "0.700", "0.700", "0.700", "0.700"]
    assert table[1][1:3] == ["\N{EN DASH}", "0.600"]
    heads = families.headers(compared(front), front)
    assert heads[1] == "\N{LESS-THAN OR EQUAL TO} 1.00 GFLOPs"
    assert heads[-1] == "expected best of 3"
    assert table[1][-1] == "0.890*"  # of four draws of three, three hold 0.9, one at best 0.86


def test_a_study_says_itself_what_sets_its_families_apart(study: StudyRecord) -> None:
    told = replace(study, families=("stride", "never_searched"))
    assert report.summarise(told).by == ("stride",)
    assert report.summarise(told, by=[]).by == ()
    assert report.summarise(study).by == ()
