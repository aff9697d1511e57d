"""The objectives of a study or front: an accuracy, a cost, and optionally others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import (
    BOUNDED_COSTS,
    EXACT_COSTS,
    MEMORY_COSTS,
    metric,
    sign_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sftsearch.search_spaces.schema import StudyFile


@dataclass(frozen=True, slots=True)
class Objectives:
    """The metrics and their directions: the accuracy y, the cost x, then any others."""

    names: tuple[str, ...]
    directions: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Objectives:
        """Return the objectives of a study, whose cost comes second.

        The cost is the first exact one, else the first bounded one, else the first memory, so the
        study is searched and reported on the same cost. Old records may have only a measured one.
        The others keep their order.

        Args:
            pairs: metric and direction of each objective, the accuracy first.

        Raises:
            LookupError: there is no cost.
        """
        directions = dict(pairs)
        accuracy, *others = directions
        cost = cost_among(others)
        names = (accuracy, cost, *(name for name in others if name != cost))
        return cls(names, tuple(directions[name] for name in names))

    @classmethod
    def of_study(cls, study: StudyFile) -> Objectives:
        """Return the objectives of a study file."""
        return cls.of((objective.metric, objective.direction) for objective in study.objectives)

    def with_axes(self, x: str, y: str) -> Objectives:
        """Return the objectives of a front of `y` against `x`.

        The others stay objectives if both axes are objectives of the study.
        """
        known = dict(zip(self.names, self.directions, strict=True))
        others = [name for name in self.names if name not in (x, y)]
        names = (y, x, *others) if {x, y} <= set(known) else (y, x)
        return Objectives(names, tuple(known.get(n) or metric(n).direction for n in names))

    @property
    def y(self) -> str:
        """The metric that is the accuracy."""
        return self.names[0]

    @property
    def x(self) -> str:
        """The metric that is the cost."""
        return self.names[1]

    @property
    def searched_cost(self) -> str:
        """The exact cost that the surrogate uses: x, its upper bound, else GFLOPs.

        It must be known for every point of the space, as memory is not.
        """
        return self.x if self.x in EXACT_COSTS else BOUNDED_COSTS.get(self.x, EXACT_COSTS[0])

    @property
    def judged_cost(self) -> str:
        """The cost by which the study compares admitted configurations: memory, else as above."""
        return self.x if self.x in MEMORY_COSTS else self.searched_cost

    @property
    def is_cost_minimized(self) -> bool:
        """Whether x is minimized."""
        return self.directions[1] == "minimize"

    @property
    def sign(self) -> float:
        """The factor (1 or -1) of values and differences of y that makes more better."""
        return sign_of(self.directions[0])

    @property
    def cost_sign(self) -> float:
        """The factor (1 or -1) of values of x that makes less better."""
        return -sign_of(self.directions[1])

    def quality(self, values: Mapping[str, float]) -> float:
        """Return y, sign-adjusted so that more is better."""
        return self.sign * values[self.y]

    def costs(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Return x and the others, sign-adjusted so that less is better."""
        pairs = zip(self.names[1:], self.directions[1:], strict=True)
        return tuple(-sign_of(direction) * values[name] for name, direction in pairs)


def cost_among(names: Iterable[str]) -> str:
    """Return the first exact cost, else a bounded one, else a memory, else a measured one.

    Raises:
        LookupError: no name is a cost.
    """
    costs = [name for name in names if metric(name).is_cost]
    for known_before_training in (EXACT_COSTS, BOUNDED_COSTS, MEMORY_COSTS):
        for name in costs:
            if name in known_before_training:
                return name
    if not costs:
        raise LookupError("The objectives have no cost.")
    return costs[0]
