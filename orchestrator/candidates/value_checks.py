"""Find values that are impossible in every configuration: errors of the study file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.search_spaces.schema import Choice

if TYPE_CHECKING:
    from collections.abc import Collection

    from sftsearch.search_spaces.load import StudySource
    from sftsearch.search_spaces.mistakes import Mistake, Place
    from sftsearch.search_spaces.point import Point
    from sftsearch.search_spaces.space import Space
    from sftsearch.trainables.config import ConfigError


class ValueChecker:
    """Collects which points can be built, and reports values that never can."""

    def __init__(self, source: StudySource, space: Space) -> None:
        self._source = source
        self._space = space
        self._possible: set[tuple[int, str, str]] = set()
        self._seen: dict[tuple[int, str, str], ConfigError] = {}

    def possible(self, point: Point, names: Collection[str]) -> None:
        """Note that a point can be built, with its values of the parameters `names`."""
        self._possible.update(_marks(point, names))

    def impossible(self, point: Point, names: Collection[str], error: ConfigError) -> None:
        """Note that a point cannot be built, perhaps because of its values of `names`."""
        for mark in _marks(point, names):
            known = self._seen.get(mark)
            is_named = mark[1] in error.parameters  # prefer an error that names the parameter
            if known is None or (is_named and mark[1] not in known.parameters):
                self._seen[mark] = error

    def raise_mistakes(self) -> None:
        """Raise StudyFileError with a line for each value (or branch) that never works."""
        found: dict[Place, Mistake] = {}
        possible = {branch for branch, name, _ in self._possible if name == ""}
        for mark, error in self._seen.items():
            branch, name, value = mark
            if mark in self._possible:
                continue
            if branch not in possible:  # report the parameter that the error names
                blamed = [name.partition(".")[0] for name in error.parameters]
                named = [name for name in blamed if name in self._known(branch)]
                place: Place = ("space", branch, *named[:1])
                found.setdefault(place, self._source.mistake(place, str(error)))
            elif name:
                place = self._place(branch, name, value)
                found.setdefault(place, self._source.mistake(place, str(error)))
        if found:
            raise StudyFileError(self._source.name, list(found.values()))

    def _known(self, branch: int) -> set[str]:
        names = self._space.axes[branch].keys() | self._space.literals[branch].keys()
        return {name.partition(".")[0] for name in names}

    def _place(self, branch: int, name: str, value: str) -> Place:
        axis = self._space.axes[branch][name]
        listed = [repr(one) for one in axis.values] if isinstance(axis, Choice) else []
        position = ("values", listed.index(value)) if value in listed else ()
        return ("space", branch, *name.split("."), *position)


def _marks(point: Point, names: Collection[str]) -> list[tuple[int, str, str]]:
    marks = [(point.branch, name, repr(point.values[name])) for name in names]
    return [(point.branch, "", ""), *marks]
