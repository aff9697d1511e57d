"""Read learning curves: which trials were still rising, and where stopped ones would have ended.

A curve has the study's first objective on validation after each epoch.

Shapes: E epochs.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.early_stopping.online_regression import OnlineLinearRegression
from sftsearch.orchestrator.metrics import metric, sign_of
from sftsearch.orchestrator.surrogate.transforms import OutcomeTransform

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord

    Floats = NDArray[np.float64]

NUM_AVERAGED = 3
"""Epochs whose mean is the value of a trial; as `training_record.LAST_EPOCHS`, without torch."""
FEWEST_EPOCHS = 4
"""Epochs that a curve needs to be judged."""
MARGIN = 0.005
"""A gain of a share that matters: half a point."""
SHARE_OF_CHANGE = 0.02
"""The same for other metrics, as a share of the change since the first epoch."""
NORMAL_95 = 1.644854
"""Standard normal quantile of a one-sided test at 5 %."""
PRIOR_DIFFERENCES = 4.0
"""Weight of all curves in the noise of one, in second differences."""
FEWEST_RISING = 0.25
"""Share of trials that must be rising before more epochs are suggested."""
MOST_TIMES = 4
"""A fit to E epochs is not trusted beyond this many times E."""
FEWEST_FINISHED = 6
"""Finished trials that the prediction of a stopped one needs."""
FEWEST_OF_MODEL = 8
"""Finished trials of its model; with fewer, all models predict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rising:
    """How many trials were still improving when they ended, and how many epochs would do."""

    num_rising: int
    num_trials: int
    """Finished trials with a curve of at least `FEWEST_EPOCHS` epochs."""
    epochs: int
    """Epochs of most of the rising trials, else of most trials."""
    last_gain: float | None
    """Gain in the second half of these epochs, mean over the rising trials; more is better."""
    suggested: int | None
    """Epochs after which a doubling would gain less than half a point, by a fit to the mean of the
    rising curves; None if fewer than a quarter of the trials are rising."""
    is_limit: bool = False
    """Whether `suggested` is the largest number that the fit is trusted for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """The final value that a stopped trial would probably have had."""

    value: float
    """In units of the metric."""
    variance: float
    """On the scale of the surrogate, on which it is predicted."""


def rising_trials(study: StudyRecord) -> dict[str, bool]:
    """Return whether each finished trial was still rising at its last epoch, by key.

    It was if the mean of the last quarter of its epochs exceeds that of the quarter before by more
    than half a point (if the metric is a share) and by more than noise, in a one-sided test at 5 %.
    The noise of an epoch is estimated by second differences, which a straight line does not change.
    """
    curves = _finished_curves(study)
    differences = {key: np.diff(_later_half(curve), n=2) for key, curve in curves.items()}
    every = np.concatenate([*differences.values(), np.zeros(0)])
    pooled = float(np.mean(every**2)) if len(every) else 0.0
    margin = MARGIN if metric(study.objectives[0][0]).is_share else 0.0
    found = {}
    for key, curve in curves.items():
        own = differences[key]
        squares = float(np.sum(own**2)) + PRIOR_DIFFERENCES * pooled
        # Independent noise of variance s^2 gives second differences of variance (1 + 4 + 1) s^2.
        noise = math.sqrt(squares / (len(own) + PRIOR_DIFFERENCES) / 6)
        quarter = max(1, round(len(curve) / 4))
        gain = float(curve[-quarter:].mean() - curve[-2 * quarter : -quarter].mean())
        found[key] = gain > max(margin, NORMAL_95 * noise * math.sqrt(2 / quarter))
    return found


def rising_of(study: StudyRecord) -> Rising | None:
    """Return how many trials were still rising and the epochs to set; None without curves."""
    curves, is_rising = _finished_curves(study), rising_trials(study)
    if not curves:
        return None
    rising = [curve for key, curve in curves.items() if is_rising[key]]
    lengths = Counter(len(curve) for curve in rising or curves.values())
    epochs = max(lengths, key=lambda n: (lengths[n], n))
    found = Rising(
        num_rising=len(rising),
        num_trials=len(curves),
        epochs=epochs,
        last_gain=None,
        suggested=None,
    )
    if not rising:
        return found
    mean_E = np.mean([curve for curve in rising if len(curve) == epochs], axis=0)
    found = replace(found, last_gain=float(mean_E[-1] - mean_E[(epochs - 1) // 2]))
    if len(rising) < FEWEST_RISING * len(curves):
        return found
    is_share = metric(study.objectives[0][0]).is_share
    margin = MARGIN if is_share else SHARE_OF_CHANGE * abs(float(mean_E[-1] - mean_E[0]))
    needed = epochs_needed(mean_E, margin)
    return replace(
        found,
        suggested=_round_epochs(min(needed, MOST_TIMES * epochs), epochs),
        is_limit=needed >= MOST_TIMES * epochs,
    )


def epochs_needed(curve_E: Floats, margin: float) -> float:
    """Return the epochs after which twice as many would gain less than `margin`.

    The curve a - b t^-c is fitted by least squares, with c on a grid, to all but the first fifth
    of the epochs. Doubling t then gains b t^-c (1 - 2^-c). Infinite if the fit does not saturate.

    Args:
        curve_E: values after each epoch, more is better, (E,).
        margin: in units of the values.

    Source: Domhan et al. 2015, "Speeding up automatic hyperparameter optimization of deep neural
    networks by extrapolation of learning curves", table 1 (`pow3`).
    """
    first = max(1, len(curve_E) // 5)
    t_E = np.arange(first, len(curve_E)) + 1.0
    y_E = curve_E[first:]
    fits = []
    for power in np.geomspace(0.05, 3, 60):
        columns = np.stack([np.ones_like(t_E), -(t_E**-power)], axis=1)
        solution = np.linalg.lstsq(columns, y_E, rcond=None)[0]
        error = float(np.sum((y_E - columns @ solution) ** 2))
        fits.append((error, float(power), float(solution[1])))
    _, power, scale = min(fits)
    gained = scale * (1 - 2**-power)
    if gained <= 0 or margin <= 0:
        return 0.0 if gained <= 0 else math.inf
    return float((gained / margin) ** (1 / power))


def predict_stopped(study: StudyRecord) -> dict[str, Predicted]:
    """Predict the final values of stopped trials, by key; without those that cannot be predicted.

    The final values of finished trials are regressed on their values at the epoch at which the
    trial was stopped, in log odds for shares: those of its model if there are enough, else all.
    """
    name, direction = study.objectives[0]
    transform = OutcomeTransform(metric(name).is_share, sign_of(direction))
    sign = sign_of(direction)
    finished = [
        t for t in study.trials
        if t.status == "finished" and t.curve and math.isfinite(t.values.get(name, math.nan))
    ]  # fmt: skip
    found = {}
    for trial in study.trials:
        if trial.status != "stopped" or not trial.curve or trial.epoch != len(trial.curve):
            continue
        longer = [t for t in finished if len(t.curve) > len(trial.curve)]
        own = [t for t in longer if t.model == trial.model]
        used = own if len(own) >= FEWEST_OF_MODEL else longer
        if len(used) < FEWEST_FINISHED:
            continue
        regression = OnlineLinearRegression()
        for one in used:
            at = _value_at(one, len(trial.curve), transform, sign)
            regression.add(at, float(transform.to_latent(sign * one.values[name])))
        predicted = regression.predict(_value_at(trial, len(trial.curve), transform, sign))
        if predicted is not None:
            value = sign * float(transform.to_values(predicted.mean))
            # The variance of Student's t distribution; it has more than two degrees of freedom.
            spread = predicted.degrees / (predicted.degrees - 2)
            found[trial.key] = Predicted(value=value, variance=spread * predicted.scale**2)
    return found


def _value_at(trial: TrialRecord, epoch: int, transform: OutcomeTransform, sign: float) -> float:
    """Return a trial's value after an epoch as if it had ended there, on the surrogate's scale."""
    recent = trial.curve[max(0, epoch - NUM_AVERAGED) : epoch]
    return float(transform.to_latent(sign * float(np.mean(recent))))


def _finished_curves(study: StudyRecord) -> dict[str, Floats]:
    """Return the curves of finished trials that can be judged, more is better, each (E,)."""
    sign = sign_of(study.objectives[0][1])
    return {
        trial.key: sign * np.array(trial.curve)
        for trial in _judged(study.trials)
        if np.isfinite(trial.curve).all()
    }


def _judged(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [t for t in trials if t.status == "finished" and len(t.curve) >= FEWEST_EPOCHS]


def _later_half(curve: Sequence[float] | Floats) -> Floats:
    return np.asarray(curve[-max(FEWEST_EPOCHS, len(curve) // 2) :], dtype=float)


def _round_epochs(needed: float, epochs: int) -> int:
    """Round to 5 from 20 epochs on; always above the epochs trained."""
    step = 5 if needed >= 20 else 1
    return max(step * round(needed / step), epochs + 1)
