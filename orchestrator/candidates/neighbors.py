"""The admissible configuration nearest to a point that a sampler drew.

In a space that is enumerated only admissible, new configurations are proposed: what a sampler
draws beyond that stands for its neighbourhood. Distance is the sum over a branch's parameters:
ordered ones (ranges, choices of numbers) by rank, scaled to [0, 1]; unordered choices 0 or 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sftsearch.search_spaces.schema import Choice
from sftsearch.search_spaces.space import values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from sftsearch.search_spaces.space import Axis, Point, Space


class Nearest:
    """The points of a finite space that are still free, and the nearest of them to any point."""

    def __init__(self, space: Space, points: Iterable[tuple[str, Point]]) -> None:
        """Place the free points, given by id."""
        self._ranks = [[_Ranks(axis) for axis in axes.values()] for axes in space.axes]
        self._names = [list(axes) for axes in space.axes]
        ids: list[list[str]] = [[] for _ in space.axes]
        places: list[list[list[float]]] = [[] for _ in space.axes]
        for identity, point in points:
            ids[point.branch].append(identity)
            places[point.branch].append(self._place(point))
        self._ids = ids
        self._places = [
            np.array(rows, dtype=np.float64).reshape(len(rows), len(axes))
            for rows, axes in zip(places, space.axes, strict=True)
        ]
        self._free = [np.ones(len(rows), dtype=bool) for rows in ids]
        self._where = {
            identity: (branch, row)
            for branch, rows in enumerate(ids)
            for row, identity in enumerate(rows)
        }

    def take(self, identity: str) -> None:
        """Make a point no longer free."""
        if identity in self._where:
            branch, row = self._where[identity]
            self._free[branch][row] = False

    def release(self) -> None:
        """Make every point free again."""
        for free in self._free:
            free[:] = True

    def find(self, point: Point) -> str | None:
        """Return the id of the free point of the same branch nearest to `point`, if there is one.

        Of several equally near, the first in the space's order.
        """
        free = np.flatnonzero(self._free[point.branch])
        if not len(free):
            return None
        ordered = np.array([rank.ordered for rank in self._ranks[point.branch]], dtype=bool)
        apart = np.abs(self._places[point.branch][free] - np.array(self._place(point)))
        distance: NDArray[np.float64] = np.where(ordered, apart, apart > 0).sum(axis=1)
        nearest: str = self._ids[point.branch][int(free[distance.argmin()])]
        return nearest

    def _place(self, point: Point) -> list[float]:
        names, ranks = self._names[point.branch], self._ranks[point.branch]
        return [rank.of(point.values[name]) for name, rank in zip(names, ranks, strict=True)]


class _Ranks:
    """The values of an axis as positions in [0, 1]."""

    def __init__(self, axis: Axis) -> None:
        known = values(axis)
        self.ordered = not isinstance(axis, Choice) or all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in known
        )
        known = sorted(known) if self.ordered else known
        self._position = {repr(v): i / max(len(known) - 1, 1) for i, v in enumerate(known)}

    def of(self, value: object) -> float:
        return self._position[repr(value)]
