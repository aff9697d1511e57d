"""What is wrong with a study file: where it stands, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

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


def line_of(lines: dict[Place, int], place: Place) -> int:
    """Return the line of a value, or of the nearest thing around it that has one."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def short(value: object) -> str:
    """Return a value as it may stand in a message: cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
