"""Errors of study files, with the line and the key of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftsearch.datasets.errors import UserError, shorten

MAX_SHOWN = 50
"""Number of errors that are shown; the rest are counted."""
Place = tuple[str | int, ...]
"""The path of a value in the file: keys and list positions."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One error in a study file."""

    line: int
    key: str
    """The dotted path of the value, such as `space[0].stride`; empty for the whole file."""
    message: str

    def __str__(self) -> str:
        """Return one line of printable characters."""
        text = f"line {self.line}: {self.key + ': ' if self.key else ''}{self.message}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class Layout:
    """The lines of the values of a study file."""

    lines: dict[Place, int]
    """Line of each value, by its place."""
    moved: dict[Place, Place] = field(default_factory=dict)
    """Places in the expanded form of values that the file has at another place."""

    def move(self, place: Place, written: Place) -> None:
        """Record that the file has the value of `place` at `written`."""
        self.moved[place] = written

    def mistake(self, place: Place, message: str) -> Mistake:
        """Return an error with the line of `place`, or of the nearest enclosing value."""
        written = self._written(place)
        enclosing = written
        while enclosing and enclosing not in self.lines:
            enclosing = enclosing[:-1]
        return Mistake(self.lines.get(enclosing, 1), dotted(written), message)

    def _written(self, place: Place) -> Place:
        """Return the place in the file, using the longest prefix of `place` that was moved."""
        for end in range(len(place), 0, -1):
            if place[:end] in self.moved:
                return (*self.moved[place[:end]], *place[end:])
        return place


class StudyFileError(UserError):
    """A study file with errors; the message has one line for each."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = sorted(set(mistakes), key=lambda mistake: (mistake.line, mistake.key))
        shown = [f"{source}, {mistake}" for mistake in self.mistakes[:MAX_SHOWN]]
        if len(self.mistakes) > MAX_SHOWN:
            shown.append(f"{source}: and {len(self.mistakes) - MAX_SHOWN} more errors.")
        super().__init__("\n".join(shown))


def dotted(place: Place) -> str:
    """Format a place, such as `space[0].stride.low`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{shorten(part)}"
    return text


def short(value: object) -> str:
    """Format a value for a message, shortened to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
