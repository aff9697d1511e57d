"""A search space as points: its size, all of them in order, one at random.

A point is a branch (by position) and a value for each of the branch's parameters. Nothing here
knows what a parameter means.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sftsearch.search_spaces.schema import Choice, FloatRange, IntRange

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping

    from sftsearch.search_spaces.schema import Branch

Axis = Choice | IntRange | FloatRange


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a space."""

    branch: int
    values: Mapping[str, Any]
    """Parameter -> value; the literals of the branch included, mappings with distributions by key
    (`tokens.watch_acc`)."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The values as a study file writes them, mappings put together."""
        whole: dict[str, Any] = {}
        for name, value in self.values.items():
            parameter, _, key = name.partition(".")
            if key:
                whole.setdefault(parameter, {})[key] = value
            else:
                whole[name] = value
        return whole


class Space:
    """The branches of a study file as a set of points."""

    def __init__(self, branches: list[Branch]) -> None:
        self.models = [branch.kind for branch in branches]
        self.axes: list[dict[str, Axis]] = []
        self.literals: list[dict[str, Any]] = []
        for branch in branches:
            parameters = branch.parameters
            self.axes.append({k: v for k, v in parameters.items() if isinstance(v, Axis)})
            self.literals.append({k: v for k, v in parameters.items() if not isinstance(v, Axis)})

    def size(self) -> float:
        """Return the number of points; infinite where a range is continuous.

        Whole below 2**53; beyond, a float near it.
        """
        size = sum(
            math.prod((float(count(axis)) for axis in axes.values()), start=1.0)
            for axes in self.axes
        )
        return int(size) if size < 2**53 else size

    def points(self) -> Iterator[Point]:
        """Yield every point of a finite space, branch by branch."""
        for i, axes in enumerate(self.axes):
            for chosen in itertools.product(*(values(axis) for axis in axes.values())):
                yield Point(i, {**self.literals[i], **dict(zip(axes, chosen, strict=True))})

    def draw(self, random_: random.Random, branch: int | None = None) -> Point:
        """Return a point: of any branch with equal chances, each parameter by its distribution."""
        i = random_.randrange(len(self.axes)) if branch is None else branch
        drawn = {name: draw(axis, random_) for name, axis in self.axes[i].items()}
        return Point(i, {**self.literals[i], **drawn})


def count(axis: Axis) -> float:
    """Return how many values an axis has."""
    if isinstance(axis, Choice):
        return len(axis.values)
    if isinstance(axis, IntRange):
        return (axis.high - axis.low) // axis.step + 1
    if axis.low == axis.high:
        return 1
    if axis.step is None:
        return math.inf
    return int((Decimal(str(axis.high)) - Decimal(str(axis.low))) // Decimal(str(axis.step))) + 1


def values(axis: Axis) -> list[Any]:
    """Return the values of a finite axis, in order."""
    if isinstance(axis, Choice):
        return axis.values
    if isinstance(axis, IntRange):
        return list(range(axis.low, axis.high + 1, axis.step))
    if axis.low == axis.high:
        return [axis.low]
    if axis.step is None:
        raise ValueError("A continuous range has no list of values.")
    return [on_grid(axis, i) for i in range(int(count(axis)))]


def on_grid(axis: FloatRange, i: int) -> float:
    """Return the i-th value of a stepped range in decimal arithmetic: 0.3, not 0.1 + 0.1 + 0.1."""
    return float(Decimal(str(axis.low)) + i * Decimal(str(axis.step or 0)))


def draw(axis: Axis, random_: random.Random) -> Any:
    """Draw one value of an axis."""
    if isinstance(axis, FloatRange) and (axis.step is None or axis.low == axis.high):
        if not axis.log:
            return random_.uniform(axis.low, axis.high)
        drawn = math.exp(random_.uniform(math.log(axis.low), math.log(axis.high)))
        return min(max(drawn, axis.low), axis.high)
    if isinstance(axis, IntRange) and axis.log:
        drawn = math.exp(random_.uniform(math.log(axis.low - 0.5), math.log(axis.high + 0.5)))
        return min(max(round(drawn), axis.low), axis.high)
    i = random_.randrange(int(count(axis)))
    if isinstance(axis, IntRange):
        return axis.low + axis.step * i
    if isinstance(axis, FloatRange):
        return on_grid(axis, i)
    return axis.values[i]
