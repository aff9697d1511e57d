"""Stop trials that will hardly come near the best finished one of at most their cost."""

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
    """Stops a trial that will hardly come near the best finished one of at most its cost.

    It stops when P(final value > A(c) - delta) < `min_probability`. A(c) is the best posterior mean
    at cost up to the trial's, so a cheap trial is never stopped because a more expensive one is
    better, nor any while nothing is finished at its cost. The final value is predicted from that
    at the rung, by least squares over the finished trials of the same group and number of epochs.

    Those are the trials that no rung stopped: of equals at this rung, the ones that a later rung
    stopped are missing from the fit. Its mean may be too high and its variance too low; how often
    stops are wrong is therefore measured by the audits, which run to the end.
    """

    min_probability: float = 0.05
    """Of being worth its training; a trial below it is stopped."""
    min_finished: int = 8
    """Finished trials of its group before a trial is judged."""
    _lines: dict[Hashable, OnlineLinearRegression] = field(
        init=False, repr=False, default_factory=dict
    )
    """By group, number of epochs and rung: final value against the value at the rung."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_share = 0 < self.min_probability < 1
        check_option("min_probability", self.min_probability, "between 0 and 1", is_share)
        check_option("min_finished", self.min_finished, "at least 3", self.min_finished >= 3)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        threshold = self._threshold(report)
        line = self._lines.get((report.group, report.epochs, report.epoch))
        if threshold is None or line is None or line.num < self.min_finished:
            return False, None
        prediction = line.predict(report.value)
        if prediction is None:
            return False, None
        probability = prediction.above(threshold)
        return probability < self.min_probability, probability

    def _learn(self, trial: RunningTrial, final_value: float) -> None:
        if math.isfinite(final_value):
            for epoch, value in trial.values.items():
                line = self._lines.setdefault(
                    (trial.group, trial.epochs, epoch), OnlineLinearRegression()
                )
                line.add(value, final_value)
