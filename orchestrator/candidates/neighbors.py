"""Find the admissible configuration nearest to a point that a sampler drew.

In an enumerated space only admissible new configurations are proposed; any other draw is replaced
by the nearest of them. The distance is a sum over the branch's parameters: ranges and numeric
choices by rank, scaled to [0, 1]; other choices 0 or 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sftsearch.search_spaces.schema import Choice
from sftsearch.search_spaces.space import values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from sftsearch.search_spaces.point import Point
from sftsearch.search_spaces.space import Axis, Space


class Nearest:
    """Nearest-neighbor search among the free points of a finite space."""

    def __init__(self, space: Space, points: Iterable[tuple[str, Point]]) -> None:
        """Index the free points, given as (id, point)."""
        self._ranks = [[_Ranks(axis) for axis in axes.values()] for axes in space.axes]
        self._names = [list(axes) for axes in space.axes]
        ids: list[list[str]] = [[] for _ in space.axes]
        positions: list[list[list[float]]] = [[] for _ in space.axes]
        for identity, point in points:
            ids[point.branch].append(identity)
            positions[point.branch].append(self._position(point))
        self._ids = ids
        self._positions = [
            np.array(rows, dtype=np.float64).reshape(len(rows), len(axes))
            for rows, axes in zip(positions, space.axes, strict=True)
        ]
        self._free = [np.ones(len(rows), dtype=bool) for rows in ids]
        self._where = {
            identity: (branch, row)
            for branch, rows in enumerate(ids)
            for row, identity in enumerate(rows)
        }

    def take(self, identity: str) -> None:
        """Mark a point as taken."""
        if identity in self._where:
            branch, row = self._where[identity]
            self._free[branch][row] = False

    def release(self) -> None:
        """Mark every point as free."""
        for free in self._free:
            free[:] = True

    def find(self, point: Point) -> str | None:
        """Return the id of the nearest free point of the same branch, if any.

        Ties go to the first in the order of the space.
        """
        free = np.flatnonzero(self._free[point.branch])
        if not len(free):
            return None
        is_ordinal = np.array([rank.is_ordinal for rank in self._ranks[point.branch]], dtype=bool)
        apart = np.abs(self._positions[point.branch][free] - np.array(self._position(point)))
        distance: NDArray[np.float64] = np.where(is_ordinal, apart, apart > 0).sum(axis=1)
        nearest: str = self._ids[point.branch][int(free[distance.argmin()])]
        return nearest

    def _position(self, point: Point) -> list[float]:
        names, ranks = self._names[point.branch], self._ranks[point.branch]
        return [rank.of(point.values[name]) for name, rank in zip(names, ranks, strict=True)]


class _Ranks:
    """The values of an axis as positions in [0, 1]."""

    def __init__(self, axis: Axis) -> None:
        known = values(axis)
        self.is_ordinal = not isinstance(axis, Choice) or all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in known
        )
        known = sorted(known) if self.is_ordinal else known
        self._position = {repr(v): i / max(len(known) - 1, 1) for i, v in enumerate(known)}

    def of(self, value: object) -> float:
        return self._position[repr(value)]
