"""Verdicts on modalities, on made-up studies with known differences."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.analysis.bound import BoundStudy
from sftsearch.orchestrator.analysis.modalities import FEWEST_OF_STUDY, advise, verdicts_of
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.trainables.catalog import MODELS

from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.modalities import ModalityVerdict
    from sftsearch.orchestrator.storage.study_record import StudyRecord

SENSORS = ("phone_acc", "phone_gyro", "watch_acc")
GAIN = {"phone_acc": 0.10, "phone_gyro": -0.06, "watch_acc": 0.0}
"""What each modality adds to the accuracy."""


def study_of(
    seed: int,
    number: int = 40,
    *,
    noise: float = 0.01,
    metric: str = "top1",
    dataset: str = "wearables",
    stop: bool = False,
) -> StudyRecord:
    """Return a study of `concat` with random modalities and widths.

    Accuracy rises by 2 points per doubling of the width. The last of four epochs is the value; if
    trials are stopped, the worse half ends after two epochs, at 0.8 of their final value.
    """
    random = np.random.default_rng(seed)
    trials = []
    for n in range(number):
        used = [name for name in SENSORS if random.random() < 0.6] or [SENSORS[n % 3]]
        row = {"modalities": used, "dim": int(random.choice([4, 8, 16])), "num_heads": 2}
        value = 0.55 + sum(GAIN[name] for name in used) + 0.02 * np.log2(row["dim"] / 4)
        value += random.normal(0, noise)
        value = 1.5 - value if metric == "mae" else value
        name, values = f"c{n:03d}", {metric: value, "gflops": 1.0 + n}
        curve = (0.8 * value, 0.8 * value, value, value, value)
        more: dict[str, Any] = {"configuration": row, "model": "concat", "curve": curve}
        if stop and value < 0.6 and n % 3:
            more |= {"curve": curve[:2], "epoch": 2, "status": "stopped"}
            values[metric] = curve[1]
        trials.append(trial(name, 0, values, **more))
    direction = "minimize" if metric == "mae" else "maximize"
    objectives = ((metric, direction), ("gflops", "minimize"))
    return small_study(*trials, dataset=dataset, objectives=objectives)


def verdicts(study: StudyRecord, **options: Any) -> dict[str, ModalityVerdict]:
    found = verdicts_of(summarize(study, **options), BoundStudy(study))
    return {one.modality: one for one in found}


# ---------------------------------------------------------------------- known differences


def test_verdicts_find_known_differences() -> None:
    found = verdicts(study_of(0))
    assert (found["phone_gyro"].advice, found["phone_acc"].advice) == ("leave out", "keep")
    assert list(found) == ["phone_gyro", "watch_acc", "phone_acc"]  # best to leave out first
    for name, one in found.items():
        assert one.interval[0] < -GAIN[name] < one.interval[1]
        assert one.interval[1] - one.interval[0] < 0.03


def test_verdicts_count_stopped_trials() -> None:
    """Early stopping ends the worse trials, so the finished ones alone would flatter a modality."""
    study = study_of(1, 60, stop=True)
    stopped = [t for t in study.trials if t.status == "stopped"]
    assert len(stopped) > 10
    found = verdicts(study)
    for name, one in found.items():
        assert one.interval[0] < -GAIN[name] < one.interval[1]
    having = [t for t in stopped if len({*t.configuration["modalities"], "phone_acc"}) > 1]  # type: ignore[misc]
    assert found["phone_acc"].num_predicted == len(having)
    alone = verdicts(replace(study, trials=tuple(t for t in study.trials if t not in stopped)))
    assert found["phone_acc"].num_without > alone["phone_acc"].num_without


def test_verdict_of_an_error_has_the_opposite_sign() -> None:
    found = verdicts(study_of(2, metric="mae"), y="mae")
    assert found["phone_acc"].advice == "keep"
    assert found["phone_acc"].mean == pytest.approx(0.10, abs=0.02)
    assert found["phone_gyro"].mean == pytest.approx(-0.06, abs=0.02)


@pytest.mark.medium
def test_intervals_cover_the_true_difference_at_their_rate() -> None:
    """95 % of 3 x 30 intervals; three binomial standard errors are seven points."""
    covered = []
    for seed in range(30):
        for name, one in verdicts(study_of(seed + 10, 30, noise=0.03, dataset="none")).items():
            covered.append(one.interval[0] <= -GAIN[name] <= one.interval[1])
    assert len(covered) == 90
    assert np.mean(covered) > 0.88


@pytest.mark.parametrize(
    ("mean", "sd", "advice"),
    [
        (0.06, 0.02, "leave out"),
        (-0.001, 0.002, "leave out"),  # with 90 % less than half a point is lost
        (-0.001, 0.02, "not decided"),
        (-0.06, 0.02, "keep"),
        (-0.02, 0.02, "not decided"),
    ],
)
def test_advice_needs_a_probability_of_90_percent(mean: float, sd: float, advice: str) -> None:
    assert advise(mean, sd, 0.005) == advice


# ---------------------------------------------------------------------- what is compared


def test_cost_ratio_is_the_closed_form_of_the_configurations() -> None:
    """Of every configuration with another modality, with and without this one."""
    study, spec = study_of(3, 20), describe("wearables")
    ratios = []
    for t in study.trials:
        others = {*t.configuration["modalities"]} - {"phone_acc"}  # type: ignore[misc]
        if others:
            costs = []
            for names in (others, others | {"phone_acc"}):
                own = {"modalities": sorted(names), "dim": t.configuration["dim"], "num_heads": 2}
                bound = bind("concat", own, {}, spec)
                costs.append(asdict(MODELS["concat"].cost(spec, bound.model_config))["gflops"])
            ratios.append(costs[0] / costs[1])
    found = verdicts(study)["phone_acc"]
    assert found.cost == "gflops"
    assert found.cost_ratio == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert verdicts(replace(study, dataset="none"))["phone_acc"].cost_ratio is None


def test_verdict_counts_configurations_and_pairs() -> None:
    """Both widths with {acc, gyro} and {gyro}: two pairs; the others have no counterpart."""
    both, alone, other = ["phone_acc", "phone_gyro"], ["phone_gyro"], ["phone_acc"]
    rows = [(both, 4), (both, 8), (alone, 4), (alone, 8), (alone, 32), (both, 64), (other, 4)] * 2
    trials = [
        trial(f"c{n:02d}", 0, {"top1": 0.5 + n / 100, "gflops": 1.0}, model="concat",
              configuration={"modalities": names, "dim": dim, "num_heads": 2})
        for n, (names, dim) in enumerate(rows)
    ]  # fmt: skip
    one = verdicts(small_study(*trials, dataset="wearables"))["phone_acc"]
    assert (one.num_with, one.num_without, one.num_pairs, one.num_predicted) == (6, 6, 2, 0)
    assert one.models == ("concat",)


def test_single_modalities_are_not_compared_with_each_other() -> None:
    """`unimodal` is with or without a sensor, but with another one in its place."""
    study = study_of(4)
    rows = [t.configuration | {"modalities": [SENSORS[n % 3]]} for n, t in enumerate(study.trials)]
    trials = [
        replace(t, model="unimodal", configuration=row)
        for t, row in zip(study.trials, rows, strict=True)
    ]
    assert verdicts(replace(study, trials=tuple(trials))) == {}


def test_verdicts_leave_out_what_a_model_does_not_allow() -> None:
    """MulT needs two modalities: a pair has no counterpart without one of them."""
    study = study_of(5, 60)
    trials = [
        replace(t, model="mult")
        for t in study.trials
        if len(t.configuration["modalities"]) > 1  # type: ignore[arg-type]
    ]
    found = verdicts(replace(study, trials=tuple(trials)))
    assert set(found) == set(SENSORS)
    assert found["phone_acc"].advice == "keep"


def test_verdicts_need_enough_configurations() -> None:
    study = study_of(6, FEWEST_OF_STUDY - 1)
    assert verdicts(study) == {}
    everywhere = study_of(7)
    trials = [
        replace(t, configuration=t.configuration | {"modalities": list(SENSORS)})
        for t in everywhere.trials
    ]
    assert verdicts(replace(everywhere, trials=tuple(trials))) == {}
