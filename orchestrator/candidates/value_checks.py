"""Find the values of a study file that are possible nowhere: mistakes of the file, not refusals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.search_spaces.schema import Choice

if TYPE_CHECKING:
    from collections.abc import Collection

    from sftsearch.search_spaces.load import Source
    from sftsearch.search_spaces.mistakes import Mistake, Place
    from sftsearch.search_spaces.space import Point, Space


class ValueChecker:
    """Notes which points can be built, and blames the values of those that never can."""

    def __init__(self, source: Source, space: Space) -> None:
        self._source = source
        self._space = space
        self._possible: set[tuple[int, str, str]] = set()
        self._seen: dict[tuple[int, str, str], str] = {}

    def possible(self, point: Point, names: Collection[str]) -> None:
        """Note that a point can be built, with its values of the parameters `names`."""
        self._possible.update(_marks(point, names))

    def impossible(self, point: Point, names: Collection[str], message: str) -> None:
        """Note that a point cannot be built, perhaps because of its values of `names`."""
        for mark in _marks(point, names):
            name = f"`{mark[1]}`"  # a message that names the parameter is better than another
            known = self._seen.get(mark, "")
            if not known or (name in message and name not in known):
                self._seen[mark] = message

    def raise_mistakes(self) -> None:
        """Raise StudyFileError with one line for each value (or whole branch) that never works."""
        found: dict[Place, Mistake] = {}
        whole = {branch for branch, name, _ in self._possible if name == ""}
        for mark, message in self._seen.items():
            branch, name, value = mark
            if mark in self._possible:
                continue
            if branch not in whole:  # nothing works here: blame the parameter the message names
                named = [n for n in re.findall(r"`(\w+)", message) if n in self._known(branch)]
                place: Place = ("space", branch, *named[:1])
                found.setdefault(place, self._source.mistake(place, message))
            elif name:
                place = self._place(branch, name, value)
                found.setdefault(place, self._source.mistake(place, message))
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
