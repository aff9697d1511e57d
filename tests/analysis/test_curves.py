"""Which trials were still rising, how many epochs they need, and where stopped ones would end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.analysis.curves import (
    FEWEST_FINISHED,
    NUM_AVERAGED,
    epochs_needed,
    predict_stopped,
    rising_of,
    rising_trials,
)
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.trainables.training_record import LAST_EPOCHS

from journals import MemoryJournal
from mirrored_study import add_trials
from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.storage.study_record import StudyRecord


def study_of(curves: Sequence[Any], metric: str = "top1", **more: Any) -> StudyRecord:
    """Return a study of finished trials; the value of each is the mean of its last epochs."""
    trials = [
        trial(f"c{n:03d}", 0, {metric: float(np.mean(curve[-3:])), "gflops": 1.0 + n},
              curve=tuple(map(float, curve)), **more)
        for n, curve in enumerate(curves)
    ]  # fmt: skip
    direction = "minimize" if metric == "mae" else "maximize"
    return small_study(*trials, objectives=((metric, direction), ("gflops", "minimize")))


def saturating(t: Any, *, scale: float = 0.2) -> Any:
    return 0.9 - scale / np.asarray(t, dtype=float)


def test_record_of_a_journal_has_the_curves_of_trials_that_ended() -> None:
    """`add_trials` reports i / 100 + epoch / 1000; the fifth trial fails."""
    journal = MemoryJournal(clock=lambda: 1000.0)
    add_trials(journal, 0, 5)  # type: ignore[arg-type]
    curves = [t.curve for t in record_of(StudyState.of(journal.entries())).trials]
    assert curves == [tuple(i / 100 + epoch / 1000 for epoch in (1, 2, 3)) for i in range(5)]


def test_value_of_a_trial_has_as_many_epochs_as_in_training() -> None:
    assert NUM_AVERAGED == LAST_EPOCHS


# ---------------------------------------------------------------------- still rising


def test_trial_is_rising_if_its_last_quarter_gains_more_than_half_a_point() -> None:
    """A line of slope s gains 2 s from one quarter of 8 epochs to the next."""
    t = np.arange(8)
    found = rising_trials(study_of([0.5 + s * t for s in (0.01, 0.0026, 0.0024, 0.0, -0.01)]))
    assert list(found.values()) == [True, True, False, False, False]


def test_trial_of_an_error_is_rising_if_the_error_falls() -> None:
    t = np.arange(8)
    found = rising_trials(study_of([1 - 0.01 * t, 0.5 + 0.01 * t], "mae"))
    assert list(found.values()) == [True, False]


def test_noise_alone_is_rarely_rising() -> None:
    """A one-sided test at 5 %; three binomial standard errors of 600 trials are 2.7 points."""
    curves = np.random.default_rng(0).normal(0.7, 0.03, (600, 20))
    assert np.mean(list(rising_trials(study_of(curves)).values())) < 0.077


def test_rising_is_found_despite_noise() -> None:
    """Quarters of 10 epochs differ by 6 points, their means by noise with an sd of 0.9."""
    t, random = np.arange(40), np.random.default_rng(1)
    curves = [0.5 + 0.006 * t + random.normal(0, 0.02, 40) for _ in range(50)]
    assert np.mean(list(rising_trials(study_of(curves)).values())) > 0.99


def test_short_and_unfinished_trials_are_not_judged() -> None:
    study = study_of([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4]])
    assert rising_trials(study) == {"c001-0": True}
    assert rising_of(study_of([[0.1, 0.2, 0.3]])) is None
    stopped = trial("s", 0, {"top1": 0.4, "gflops": 1.0}, "stopped", curve=(0.1, 0.2, 0.3, 0.4))
    assert rising_trials(small_study(stopped)) == {}


def test_configuration_is_flagged_if_most_of_its_replicates_are_rising() -> None:
    up, flat = (0.1, 0.2, 0.3, 0.4), (0.4, 0.4, 0.4, 0.4)
    rows = {"a": (up, up, flat), "b": (up, flat, flat), "c": ((), (), ())}
    study = small_study(
        *(
            trial(name, seed, {"top1": 0.4, "gflops": 1.0}, curve=curve)
            for name, curves in rows.items()
            for seed, curve in enumerate(curves)
        )
    )
    found = {c.configuration_id: c.still_rising for c in summarize(study).configurations}
    assert found == {"a": True, "b": False, "c": None}


# ---------------------------------------------------------------------- epochs needed


@pytest.mark.parametrize("num_epochs", [8, 10, 40])
def test_epochs_needed_solve_the_power_law(num_epochs: int) -> None:
    """With 0.2 / t, doubling t gains 0.1 / t, which is half a point at t = 20."""
    curve_E = saturating(np.arange(num_epochs) + 1)
    assert epochs_needed(curve_E, 0.005) == pytest.approx(20, rel=0.05)


def test_epochs_needed_of_a_flat_or_falling_curve_are_none() -> None:
    assert epochs_needed(np.full(8, 0.7), 0.005) < 1
    assert epochs_needed(0.7 - 0.01 * np.arange(8.0), 0.005) == 0


def test_suggestion_rests_on_the_rising_trials() -> None:
    """Six follow 0.9 - 0.2 / t over ten epochs and are still rising; four are flat."""
    curves = [saturating(np.arange(10) + 1, scale=0.2)] * 6 + [np.full(10, 0.5)] * 4
    found = rising_of(study_of(curves))
    assert found is not None
    assert (found.num_rising, found.num_trials, found.epochs) == (6, 10, 10)
    assert found.suggested == 20
    assert not found.is_limit
    # From the end of epoch 5 to that of epoch 10.
    assert found.last_gain == pytest.approx(0.2 / 5 - 0.2 / 10)


def test_suggestion_needs_a_quarter_of_the_trials_and_has_a_limit() -> None:
    few = [saturating(np.arange(10) + 1)] + [np.full(10, 0.5)] * 4
    found = rising_of(study_of(few))
    assert found is not None
    assert (found.num_rising, found.suggested) == (1, None)
    straight = rising_of(study_of([0.1 + 0.02 * np.arange(10)] * 2))
    assert straight is not None
    assert (straight.suggested, straight.is_limit) == (40, True)
    none = rising_of(study_of([np.full(10, 0.5)]))
    assert none is not None
    assert (none.num_rising, none.suggested, none.last_gain) == (0, None, None)


# ---------------------------------------------------------------------- stopped trials


def _stopped(level: float, epochs: int = 2, model: str = "sft") -> Any:
    values = {"mae": level, "gflops": 1.0}
    curve = (level,) * epochs
    return trial("s", 0, values, "stopped", curve=curve, epoch=epochs, model=model)


def test_stopped_trial_gets_the_value_of_a_regression_on_its_epoch() -> None:
    """Final errors are regressed on the mean of the first two epochs, as numpy does it."""
    random = np.random.default_rng(2)
    early = random.uniform(0.5, 1.5, 12)
    late = 0.1 + 0.6 * early + random.normal(0, 0.05, 12)
    study = study_of([[e - 0.1, e + 0.1, f, f, f] for e, f in zip(early, late, strict=True)], "mae")
    study = small_study(*study.trials, _stopped(1.2), objectives=study.objectives)
    found = predict_stopped(study)["s-0"]
    slope, intercept = np.polyfit(early, late, 1)
    assert found.value == pytest.approx(intercept + slope * 1.2)
    residual = late - intercept - slope * early
    square = residual @ residual / 10
    leverage = 1 + 1 / 12 + (1.2 - early.mean()) ** 2 / np.sum((early - early.mean()) ** 2)
    assert found.variance == pytest.approx(square * leverage * 10 / 8)


def test_stopped_trial_of_a_share_is_predicted_in_log_odds() -> None:
    """Every trial gains log odds of 1 after the second epoch."""
    odds = np.linspace(-1, 1, 8)
    early, late = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-odds - 1))
    study = study_of([[e, e, f, f, f] for e, f in zip(early, late, strict=True)])
    stopped = trial("s", 0, {"top1": 0.5, "gflops": 1.0}, "stopped", curve=(0.5, 0.5), epoch=2)
    found = predict_stopped(small_study(*study.trials, stopped))["s-0"]
    assert found.value == pytest.approx(1 / (1 + np.exp(-1)))


def test_stopped_trial_is_predicted_by_its_model_if_it_has_enough() -> None:
    """Errors of `sft` halve after the second epoch, those of `mbt` stay."""
    levels = np.linspace(0.5, 1.5, 9)
    own = study_of([[e, e, e / 2, e / 2, e / 2] for e in levels], "mae")
    others = study_of([[e] * 5 for e in levels], "mae", model="mbt").trials
    trials = (*own.trials, *others[:3])
    study = small_study(*trials, _stopped(1.2), objectives=own.objectives)
    assert predict_stopped(study)["s-0"].value == pytest.approx(0.6)
    mixed = small_study(*own.trials[:7], *others, _stopped(1.2), objectives=own.objectives)
    assert 0.7 < predict_stopped(mixed)["s-0"].value < 1.1


def test_stopped_trial_without_enough_finished_ones_is_not_predicted() -> None:
    curves = [[e, e, e / 2, e / 2] for e in np.linspace(0.5, 1.5, FEWEST_FINISHED)]
    study = study_of(curves, "mae")
    few = small_study(*study.trials[1:], _stopped(1.2), objectives=study.objectives)
    assert predict_stopped(few) == {}
    enough = small_study(*study.trials, _stopped(1.2), objectives=study.objectives)
    assert set(predict_stopped(enough)) == {"s-0"}
    unknown = small_study(
        *study.trials, trial("s", 0, {"mae": 1.0, "gflops": 1.0}, "stopped", epoch=2),
        objectives=study.objectives,
    )  # fmt: skip
    assert predict_stopped(unknown) == {}
