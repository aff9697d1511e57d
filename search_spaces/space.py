"""A search space as a set of points: size, enumeration and random draws."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sftsearch.search_spaces.point import Point
from sftsearch.search_spaces.schema import Choice, FloatRange, IntRange

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from sftsearch.search_spaces.schema import Branch

Axis = Choice | IntRange | FloatRange


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
        """Return the number of points: exact below 2**53, infinite with a continuous range."""
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
        """Draw a point of a branch (by default a random one), parameters by their distributions."""
        i = random_.randrange(len(self.axes)) if branch is None else branch
        drawn = {name: draw(axis, random_) for name, axis in self.axes[i].items()}
        return Point(i, {**self.literals[i], **drawn})


def count(axis: Axis) -> float:
    """Return the number of values of an axis."""
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
    """Return the i-th value of a stepped range, in decimal arithmetic to avoid rounding errors."""
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
