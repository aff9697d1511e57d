"""Compute the hypervolume of a front in a unit cube, after every finished trial."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator import pareto
from sftsearch.orchestrator.metrics import metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.objectives import Objectives
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class HypervolumeStep:
    """The hypervolume after a number of finished trials."""

    num_trials: int
    seconds: float
    """Since the study's first trial started."""
    hypervolume: float


@dataclass(frozen=True, slots=True)
class HypervolumeScale:
    """The unit cube in which hypervolumes are measured: 1 is best, 0 is the reference point.

    Costs are 1 at the lowest seen and 0 at the highest, on a log scale if all are positive, and 1
    if all are equal. Shares are unchanged, so the reference is an accuracy of 0. Other metrics are
    0 at the worst seen and 1 at the best.
    """

    names: tuple[str, ...]
    """The objectives."""
    ends: tuple[Interval, ...]
    """Worst and best value of each objective, after the logarithm."""
    is_log: tuple[bool, ...]

    @classmethod
    def over(
        cls, finished: Sequence[ConfigurationSummary], objectives: Objectives
    ) -> HypervolumeScale:
        """Return the cube spanned by the finished configurations."""
        ends, is_log = [], []
        pairs = zip(objectives.names, objectives.directions, strict=True)
        for number, (name, direction) in enumerate(pairs):
            values = [c.values[name] for c in finished]
            is_cost = number == 1 or metric(name).is_cost
            is_log.append(is_cost and number > 0 and all(value > 0 for value in values))
            values = [math.log(value) for value in values] if is_log[-1] else values
            is_whole = metric(name).is_share and number != 1
            ends.append(_ends([0.0, 1.0] if is_whole else values, direction))
        return cls(objectives.names, tuple(ends), tuple(is_log))

    def to_cube(self, c: ConfigurationSummary) -> tuple[float, ...]:
        """Return a configuration's objectives scaled to the unit cube."""
        values = [c.values[name] for name in self.names]
        values = [math.log(v) if log else v for v, log in zip(values, self.is_log, strict=True)]
        return tuple(_share(v, ends) for v, ends in zip(values, self.ends, strict=True))

    def hypervolume(self, configurations: Iterable[ConfigurationSummary]) -> float:
        """Return the share of the cube that the configurations dominate."""
        return self.dominated_share([self.to_cube(c) for c in configurations])

    def dominated_share(self, points: Sequence[tuple[float, ...]]) -> float:
        """Return the share of the cube that scaled points dominate."""
        reference = [0.0] * len(self.names)
        return pareto.hypervolume(points, reference, self.directions)

    @property
    def directions(self) -> tuple[str, ...]:
        """Return the directions: every axis is best at 1."""
        return ("maximize",) * len(self.names)


def hypervolume_steps(
    study: StudyRecord, finished: Sequence[ConfigurationSummary], scale: HypervolumeScale
) -> tuple[HypervolumeStep, ...]:
    """Return the hypervolume after each finished trial, in the order in which they ended.

    A configuration counts, with its final mean, once its required trials have finished, so the
    curve never falls.
    """
    trials = sorted((t for t in study.trials if t.status == "finished"), key=lambda t: t.ended)
    start = min((t.started for t in trials if t.started), default=0.0)
    waiting = sorted(finished, key=lambda c: c.ended, reverse=True)
    front: list[tuple[float, ...]] = []
    curve, volume = [], 0.0
    for number, trial in enumerate(trials, start=1):
        before = len(waiting)
        while waiting and waiting[-1].ended <= trial.ended:
            front.append(scale.to_cube(waiting.pop()))
        if len(waiting) < before:
            on_front = pareto.non_dominated(front, scale.directions)
            front = [point for point, on in zip(front, on_front, strict=True) if on]
            volume = scale.dominated_share(front)
        seconds = max(0.0, trial.ended - start)
        curve.append(HypervolumeStep(num_trials=number, seconds=seconds, hypervolume=volume))
    return tuple(curve)


def _ends(values: Sequence[float], direction: str) -> Interval:
    if not values:
        return 0.0, 0.0
    low, high = min(values), max(values)
    return (low, high) if direction == "maximize" else (high, low)


def _share(value: float, ends: Interval) -> float:
    worst, best = ends
    return 1.0 if worst == best else (value - worst) / (best - worst)
