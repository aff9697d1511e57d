"""Write and read the events of a remote study's journal as segments: text files without locks.

A driver writes only segments of its own generation. Each starts where the previous one ends and is
named after its first event, so only the last one is ever rewritten, with more events.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sftsearch.orchestrator.storage.journal import Row, read_rows
from sftsearch.orchestrator.storage.lease import damaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sftsearch.datasets.remote import RemoteFolder
    from sftsearch.orchestrator.storage.journal import Journal
    from sftsearch.orchestrator.storage.lease import Driver

SEGMENT_BYTES = 4 << 20
MAX_SEGMENT_BYTES = 64 << 20


class SegmentWriter:
    """Writes new events of a journal to the segments of one generation."""

    def __init__(self, journal: Journal, study: RemoteFolder, generation: int) -> None:
        self._journal, self._study, self._folder = journal, study, folder_of(generation)
        self._through = 0
        self._first = 1  # first event of the last segment, which is rewritten until it is full

    def start_over(self) -> None:
        """Write all events again at the next `write`: the backup was deleted."""
        self._through, self._first = 0, 1

    def write(self, through: int) -> None:
        """Write the events after the last written one, up to number `through`.

        Raises:
            UserError: they cannot be written; the next `write` tries again.
        """
        if through == self._through:
            return
        first = self._first
        segment = bytearray()
        for row in read_rows(self._journal.folder, after=first - 1, through=through):
            segment += _to_line(row)
            if row.id == through or len(segment) > SEGMENT_BYTES:
                self._study.write(f"{self._folder}/{first:012d}.jsonl", bytes(segment))
                if row.id != through:
                    first, segment = row.id + 1, bytearray()
        self._through, self._first = through, first

    def remove_earlier(self) -> None:
        """Remove the segments of earlier drivers."""
        for name in self._study.sizes("journal"):
            if name < self._folder:
                self._study.remove(name)


def read_segments(study: RemoteFolder, driver: Driver) -> Iterator[Row]:
    """Yield the events that a driver backed up.

    Raises:
        UserError: events are missing or damaged.
    """
    last = 0
    for name in sorted(study.sizes(folder_of(driver.generation))):
        for row in _rows_in(study.read(name, limit=MAX_SEGMENT_BYTES)):
            if row is None or row.id != last + 1:
                raise damaged(study, f"'{name}' has no event {last + 1}")
            if row.id > driver.through:
                return
            last = row.id
            yield row
    if last < driver.through:
        raise damaged(study, f"events after {last} are missing")


def as_backed_up(row: Row) -> Row | None:
    """Return an event as it would be read from a segment: with normalized JSON."""
    return _from_line(_to_line(row))


def folder_of(generation: int) -> str:
    """Return the folder of a driver's segments; those of later drivers sort after it."""
    return f"journal/{generation:020d}"


def _rows_in(segment: bytes) -> Iterable[Row | None]:
    return (_from_line(line) for line in segment.splitlines())


def _to_line(row: Row) -> bytes:
    return f"[{row.id}, {row.time!r}, {json.dumps(row.kind)}, {row.body}]\n".encode()


def _from_line(line: bytes) -> Row | None:
    """Parse the event of a line; return None if it is invalid."""
    try:
        number, moment, kind, body = json.loads(line)
        text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None
    types = ((number, int), (moment, float), (kind, str), (body, dict))
    is_valid = all(type(value) is of for value, of in types)
    return Row(number, moment, kind, text) if is_valid else None
