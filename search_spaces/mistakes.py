"""What is wrong with a study file: where it stands, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftsearch.datasets.errors import UserError, shorten

MAX_SHOWN = 50
"""Mistakes that are shown of a file; the rest are counted."""
Place = tuple[str | int, ...]
"""Where a value stands in the file: keys and list positions from the top."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to mend in a study file."""

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
    """Where the values of a study file are written."""

    lines: dict[Place, int]
    """Line of each value, by its place in the file."""
    moved: dict[Place, Place] = field(default_factory=dict)
    """Places of values that are written in another part of the file, and where."""

    def move(self, place: Place, written: Place) -> None:
        """Note that the value at `place` is written at `written`."""
        self.moved[place] = written

    def mistake(self, place: Place, message: str) -> Mistake:
        """Return a mistake with the line of `place`, or of the nearest value around it."""
        written = self._written(place)
        around = written
        while around and around not in self.lines:
            around = around[:-1]
        return Mistake(self.lines.get(around, 1), dotted(written), message)

    def _written(self, place: Place) -> Place:
        """Return where a value is written: the longest part of its place that was moved counts."""
        for end in range(len(place), 0, -1):
            if place[:end] in self.moved:
                return (*self.moved[place[:end]], *place[end:])
        return place


class StudyFileError(UserError):
    """A study file with mistakes; its text is one line for each."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = sorted(set(mistakes), key=lambda mistake: (mistake.line, mistake.key))
        shown = [f"{source}, {mistake}" for mistake in self.mistakes[:MAX_SHOWN]]
        if len(self.mistakes) > MAX_SHOWN:
            shown.append(f"{source}: and {len(self.mistakes) - MAX_SHOWN} mistakes more.")
        super().__init__("\n".join(shown))


def dotted(place: Place) -> str:
    """Write a place as in `space[0].stride.low`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{shorten(part)}"
    return text


def short(value: object) -> str:
    """Return a value as it may stand in a message: cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
