"""Reports and studies with known learning curves, to test early-stopping rules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.early_stopping.base import Report

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from sftsearch.orchestrator.early_stopping.base import Decision, EarlyStoppingRule

EPOCHS = 16


def report_of(key: str, epoch: int, value: float, cost: float = 1.0, **more: Any) -> Report:
    bounds = {"cost_low": cost, "cost_high": cost, "epochs": EPOCHS}
    return Report(key=key, epoch=epoch, value=value, **(bounds | more))


def judge(rule: EarlyStoppingRule, report: Report) -> Decision:
    """Ask a rule for a decision about a report and record it, as a study does."""
    decision = rule.decide(report)
    rule.record(report, decision)
    return decision


def teach(rule: EarlyStoppingRule, num: int, group: Hashable = "g", seed: int = 0) -> None:
    """Finish trials whose value at rung 4 is 0.1 below the final one, plus noise."""
    generator = np.random.default_rng(seed)
    for n in range(num):
        final = generator.uniform(0.6, 0.9)
        key = f"{group}{n}"
        value = final - 0.1 + generator.normal(0, 0.01)
        judge(rule, report_of(key, 4, value, group=group))
        rule.on_finished(key, final)


class CurveStudy:
    """Runs trials in waves with a rule, as a search does; A(c) is the best finished value.

    The gap of a trial's values to its final one shrinks as 1 - epoch / EPOCHS, plus noise. Final
    values rise with cost.
    """

    def __init__(self, rule: EarlyStoppingRule, seed: int, *, noise: float = 0.02) -> None:
        self.rule, self.noise = rule, noise
        self.generator = np.random.default_rng(seed)
        self.done: list[tuple[float, float]] = []
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.decisions: list[Decision] = []
        self.stops: list[tuple[Report, Decision, float]] = []
        """Decided stops, carried out or not, with the true final values."""

    def affordable(self, cost_low: float) -> float | None:
        return max((value for cost, value in self.done if cost <= cost_low), default=None)

    def run(self, num_waves: int, width: int = 4, *, shuffle: int | None = None) -> None:
        for wave in range(num_waves):
            trials = [self.draw(f"{wave}-{n}") for n in range(width)]
            order = np.random.default_rng(shuffle).permutation(width) if shuffle else range(width)
            alive = [trials[n] for n in order]
            for epoch in range(1, EPOCHS + 1):
                alive = [trial for trial in alive if self.continues(epoch, trial)]
            for key, group, cost, curve in sorted(alive, key=lambda trial: trial[0]):
                del group
                self.call("on_finished", key, curve[-1])
                self.done.append((1.1 * cost, curve[-1]))

    def draw(self, key: str) -> tuple[str, str, float, NDArray[np.float64]]:
        group = f"g{self.generator.integers(2)}"
        cost = float(np.exp(self.generator.uniform(0, 3)))
        final = 0.6 + 0.05 * math.log(cost) + self.generator.normal(0, 0.06)
        left = 1 - np.arange(1, EPOCHS + 1) / EPOCHS
        gap = 0.3 if group == "g0" else 0.1
        noise = self.noise * self.generator.normal(size=EPOCHS)
        return key, group, cost, final - gap * left + noise * (left > 0)

    def continues(self, epoch: int, trial: tuple[str, str, float, NDArray[np.float64]]) -> bool:
        key, group, cost, curve = trial
        report = Report(
            key=key,
            epoch=epoch,
            value=float(curve[epoch - 1]),
            cost_low=0.9 * cost,
            cost_high=1.1 * cost,
            group=group,
            epochs=EPOCHS,
            best_affordable=self.affordable(0.9 * cost),
        )
        decision = self.call("decide", report)
        self.call("record", report, decision)
        self.decisions.append(decision)
        if decision.stop or decision.audit:
            self.stops.append((report, decision, float(curve[-1])))
        if decision.stop:
            self.call("on_stopped", key)
        return not decision.stop

    def call(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, arguments))
        return getattr(self.rule, name)(*arguments)
