"""Compute fronts, against values computed by hand."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.analysis.parameters import varying_parameters
from sftsearch.orchestrator.report.cells import status_label, verdict
from sftsearch.orchestrator.report.text import headline

from report_studies import small_study, summarize, three_points, trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord


def test_front_of_three_points_has_its_knee_and_hypervolume() -> None:
    """On a log scale costs 1, 10, 100 are 1, 1/2 and 0: an area of 0.5 plus 0.3 / 2."""
    front = summarize(three_points())
    assert [c.configuration_id for c in front.points] == ["a", "b", "c"]
    assert [c.configuration_id for c in front.points if c.is_knee] == ["b"]
    assert front.hypervolume == pytest.approx(0.5 + 0.5 * 0.3)
    assert [step.hypervolume for step in front.progress] == pytest.approx([0.5, 0.65, 0.65, 0.65])
    assert [step.seconds for step in front.progress] == [1000, 1001, 1002, 1003]
    assert headline(front) == (
        "3 of 4 configurations are on the front; the best reaches 0.900 top-1 accuracy at 100 "
        "G multiply-adds (paper); 10 % of that cost loses 10.0 points."
    )


def test_front_has_means_deviations_and_intervals(study: StudyRecord) -> None:
    front = summarize(study)
    assert (len(front.points), len(front.finished), len(front.configurations)) == (9, 18, 20)
    for c in front.finished:
        found = [t.values["top1"] for t in study.trials if t.configuration_id == c.configuration_id]
        assert c.values["top1"] == pytest.approx(statistics.fmean(found))
        assert c.deviations["top1"] == pytest.approx(statistics.stdev(found))
        assert c.interval is not None
        assert c.interval[0] < c.values["top1"] < c.interval[1]
    values = [(c.values["top1"], c.values["gflops"]) for c in front.finished]
    mask = pareto.non_dominated(values, ("maximize", "minimize"))
    assert [c.on_front for c in front.finished] == mask.tolist()


def test_difference_is_to_the_next_cheaper_front_point(study: StudyRecord) -> None:
    front = summarize(study)
    assert front.points[0].difference is None
    for cheaper, c in zip(front.points, front.points[1:], strict=False):
        assert c.difference is not None
        assert c.difference.other == cheaper.configuration_id
        assert c.difference.mean == pytest.approx(c.values["top1"] - cheaper.values["top1"])
    last = front.points[-1]
    assert last.difference is not None
    assert last.difference.within_noise
    assert verdict(last, front).endswith("points over the next cheaper, within noise")


def test_difference_of_a_dominated_point_is_to_the_front_at_or_below_its_cost() -> None:
    front = summarize(three_points())
    d = next(c for c in front.configurations if c.configuration_id == "d")
    assert d.difference is not None
    assert d.difference.other == "c"  # at equal cost
    assert not d.indistinguishable
    assert verdict(d, front) == "dominated (-20.0 [-20.0, -20.0] points)"


def test_verdict_of_a_dominated_point_within_noise_is_near(study: StudyRecord) -> None:
    front = summarize(study)
    near = [c for c in front.finished if c.indistinguishable]
    assert near
    for c in near:
        assert c.difference is not None
        assert c.difference.interval is not None
        assert c.difference.interval[0] <= 0 <= c.difference.interval[1]
        assert verdict(c, front).startswith("not distinguishable from the front")
        assert status_label(c) == "near"


def test_difference_is_paired_by_subject() -> None:
    """One point more on every subject is certain, even if the subjects differ much."""
    hard = {"s1": (50.0, 100.0), "s2": (90.0, 100.0), "s3": (70.0, 100.0)}
    better = {name: (correct + 1, count) for name, (correct, count) in hard.items()}
    front = summarize(
        small_study(
            trial("a", 0, {"top1": 0.70, "gflops": 1.0}, groups=hard),
            trial("b", 0, {"top1": 0.71, "gflops": 2.0}, groups=better),
        )
    )
    difference = front.points[1].difference
    assert difference is not None
    assert difference.interval == pytest.approx((0.01, 0.01))
    # Accuracies of 0.51, 0.91 and 0.71; Student's t with two degrees of freedom.
    low = 0.71 - 4.3027 * 0.2 / 3**0.5
    assert front.points[1].interval == pytest.approx((low, 1.0), abs=0.01)
    assert [c.front_probability for c in front.points] == [1.0, 1.0]


def test_front_has_only_configurations_with_all_seeds() -> None:
    good, better = {"top1": 0.6, "gflops": 2.0}, {"top1": 0.99, "gflops": 1.0}
    front = summarize(
        small_study(
            trial("done", 0, good),
            trial("done", 1, good),
            trial("running", 0, better),
            trial("running", 1, {"gflops": 1.0}, "running"),
            trial("failed", 0, better),
            trial("failed", 1, {}, "failed", reason="the loss is nan"),
            num_seeds=2,
        )
    )
    assert [c.configuration_id for c in front.points] == ["done"]
    verdicts = {c.configuration_id: verdict(c, front) for c in front.configurations}
    assert verdicts["running"] == "incomplete: 1 of 2 seeds finished"
    assert verdicts["failed"] == "failed: seed 1: the loss is nan"


def test_front_leaves_out_missing_and_nonfinite_values() -> None:
    front = summarize(
        small_study(
            trial("ok", 0, {"top1": 0.5, "gflops": 1.0}),
            trial("nan", 0, {"top1": math.nan, "gflops": 1.0}),
            trial("none", 0, {"top1": 0.9}),
        )
    )
    reasons = {c.configuration_id: (c.status, c.reasons) for c in front.configurations}
    assert reasons["nan"] == ("failed", ("top1 is not finite",))
    assert reasons["none"] == ("incomplete", ("no gflops recorded",))


def test_front_of_other_metrics_uses_their_direction_without_intervals(study: StudyRecord) -> None:
    front = summarize(study, x="latency_ms", y="loss")
    assert front.objectives.directions == ("minimize", "minimize")
    assert all(c.interval is None for c in front.configurations)
    losses = [c.values["loss"] for c in front.points]
    assert losses == sorted(losses, reverse=True)
    assert min(c.values["loss"] for c in front.finished) == losses[-1]
    assert 0 < front.hypervolume <= 1


def test_test_interval_exists_only_for_counted_metrics(confirmed_study: StudyRecord) -> None:
    """Counts by subject give no interval of a mean over classes."""
    opened = summarize(confirmed_study, y="top1").points
    assert all(c.test_interval is not None for c in opened)
    opened = summarize(confirmed_study, y="balanced_accuracy").finished
    assert any(c.test_values for c in opened)
    assert all(c.test_interval is None for c in opened)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": "gflop"}, r"No metric of this study is called 'gflop'\. Did you mean 'gflops'\?"),
        ({"y": "top_1"}, r"Did you mean 'top1'\?"),
        ({"x": "top1"}, "two metrics"),
        ({"max_gflops": 0.0}, "must be positive, but got 0.0"),
        ({"max_gflops": math.nan}, "must be positive, but got nan"),
        ({"top": 0}, "at least 1, but got 0"),
    ],
)
def test_front_options_are_checked_with_one_line_errors(
    study: StudyRecord, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        summarize(study, **arguments)


def test_front_table_of_top_keeps_the_whole_front(study: StudyRecord) -> None:
    front = summarize(study, top=3)
    best = sorted((c.values["top1"] for c in front.finished), reverse=True)[:3]
    assert sorted((c.values["top1"] for c in front.table), reverse=True) == best
    assert len(front.points) == 9


def test_varying_parameters_include_one_that_some_configurations_lack() -> None:
    values = {"top1": 0.5, "gflops": 1.0}
    settings = {"a": {"tokens": 1, "patch": 8}, "b": {"patch": 8}, "c": {"layers": 4, "patch": 8}}
    study = small_study(
        *(
            trial(name, 0, values, configuration=own, model="concat" if name == "c" else "sft")
            for name, own in settings.items()
        )
    )
    assert varying_parameters(summarize(study).configurations) == ["tokens"]


def test_front_does_not_depend_on_the_order_of_trials(study: StudyRecord) -> None:
    reversed_ = replace(study, trials=study.trials[::-1])
    assert summarize(reversed_).configurations == summarize(study).configurations


@pytest.mark.medium
def test_front_of_500_configurations_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    trials = [
        trial(f"c{n:03d}", seed, {"top1": generator.random(), "gflops": generator.random()})
        for n in range(500)
        for seed in range(2)
    ]
    started = time.process_time()
    summarize(small_study(*trials, num_seeds=2))
    assert time.process_time() - started < 5
