"""Name what a front is of: the axes that were asked for, and the study's other objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import EXACT_COSTS, metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.storage.study_record import StudyRecord


@dataclass(frozen=True, slots=True)
class Objectives:
    """Hold metrics and their directions: the quality y, the cost x, then any others."""

    names: tuple[str, ...]
    directions: tuple[str, ...]
    are_searched_for: bool
    """Whether what the study concluded, and what it chose, is about this front."""

    @classmethod
    def of(cls, study: StudyRecord, x: str, y: str) -> Objectives:
        """Return y, x and the study's other objectives, if x and y are two of more than two."""
        directions = dict(study.objectives)
        others = [name for name in directions if name not in (x, y)]
        names = (y, x, *others) if {x, y} <= set(directions) else (y, x)
        cost = next((name for name in directions if name in EXACT_COSTS), EXACT_COSTS[0])
        return cls(
            names,
            tuple(directions.get(name) or metric(name).direction for name in names),
            are_searched_for=names == (next(iter(directions)), cost),
        )

    @property
    def y(self) -> str:
        """Return the metric that is the quality."""
        return self.names[0]

    @property
    def x(self) -> str:
        """Return the metric that is the cost."""
        return self.names[1]

    @property
    def is_cost_minimized(self) -> bool:
        """Tell whether less of x is better."""
        return self.directions[1] == "minimize"

    def quality(self, values: Mapping[str, float]) -> float:
        """Return y, turned so that more is better."""
        return values[self.y] if self.directions[0] == "maximize" else -values[self.y]

    def costs(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Return x and the others, turned so that less is better."""
        signs = [1 if direction == "minimize" else -1 for direction in self.directions[1:]]
        return tuple(sign * values[name] for sign, name in zip(signs, self.names[1:], strict=True))
