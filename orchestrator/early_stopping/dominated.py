"""Stop trials that are unlikely to come near the best finished one of at most their cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sftsearch.orchestrator.early_stopping.base import EarlyStoppingRule, check_option
from sftsearch.orchestrator.early_stopping.online_regression import OnlineLinearRegression

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sftsearch.orchestrator.early_stopping.base import Report, RunningTrial


@dataclass(kw_only=True)
class DominatedRule(EarlyStoppingRule):
    """Stops a trial that is unlikely to come near the best finished one of at most its cost.

    It stops when P(final value > A(c) - delta) < `min_probability`. A(c) is the best posterior mean
    at the trial's cost or below, so a cheap trial is never stopped because a more expensive one is
    better, nor before a trial of its cost has finished. The final value is predicted from the value
    at the rung, by least squares over the finished trials of the same group and number of epochs.

    The fit lacks the trials that later rungs stopped, so its mean may be too high and its variance
    too low. The rate of wrong stops is therefore estimated from audits, which run to the end.
    """

    min_probability: float = 0.05
    """A trial whose probability of being worth its training is below this is stopped."""
    min_finished: int = 8
    """Finished trials of a group before its trials are judged."""
    _fits: dict[Hashable, OnlineLinearRegression] = field(
        init=False, repr=False, default_factory=dict
    )
    """Regression of the final value on the value at a rung, by group, epochs and rung."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_share = 0 < self.min_probability < 1
        check_option("min_probability", self.min_probability, "between 0 and 1", is_share)
        check_option("min_finished", self.min_finished, "at least 3", self.min_finished >= 3)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        threshold = self._threshold(report)
        fit = self._fits.get((report.group, report.epochs, report.epoch))
        if threshold is None or fit is None or fit.num < self.min_finished:
            return False, None
        prediction = fit.predict(report.value)
        if prediction is None:
            return False, None
        probability = prediction.above(threshold)
        return probability < self.min_probability, probability

    def _learn(self, trial: RunningTrial, final_value: float) -> None:
        if math.isfinite(final_value):
            for epoch, value in trial.values.items():
                fit = self._fits.setdefault(
                    (trial.group, trial.epochs, epoch), OnlineLinearRegression()
                )
                fit.add(value, final_value)
