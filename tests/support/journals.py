"""Journals as they are on disk: events by kind, with bodies as JSON has them.

Tests write and check what is stored, whatever classes the product makes of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from sftsearch.orchestrator.storage import journal as product
from sftsearch.orchestrator.storage.event import Event
from sftsearch.orchestrator.storage.events import parse_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class RawEvent(NamedTuple):
    """A line of a journal."""

    id: int
    time: float
    kind: str
    body: dict[str, Any]


class Unchecked:
    """What may not be an event of this version."""

    def __init__(self, kind: str, body: dict[str, Any]) -> None:
        self.kind, self._body = kind, body

    def to_json(self) -> dict[str, Any]:
        return self._body


class _Listening:
    """Calls functions with each event that was written, before anybody else knows of it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._listeners: list[Callable[[RawEvent], None]] = []

    def listen(self, listener: Callable[[RawEvent], None]) -> None:
        self._listeners.append(listener)

    def _tell(self, entry: product.Entry) -> product.Entry:
        for listener in self._listeners:
            listener(raw(entry))
        return entry


class Journal(_Listening, product.Journal):
    """A journal that also takes a kind and a body, and yields raw events."""

    def append(self, event: Event | str, **body: Any) -> Any:
        if isinstance(event, Event):
            return self._tell(super().append(event))
        return raw(self._tell(super().append(Unchecked(event, body))))

    def events(self, *, after: int = 0, through: int | None = None) -> Iterator[RawEvent]:
        return read_events(self.folder, after=after, through=through)


class MemoryJournal(_Listening, product.MemoryJournal):
    """As `Journal`; what it is given is an event of this version."""

    def append(self, event: Event | str, **body: Any) -> Any:
        if not isinstance(event, Event):
            event = parse_event(event, json.loads(json.dumps(body, allow_nan=False)))
        return self._tell(super().append(event))

    def events(self, *, after: int = 0, through: int | None = None) -> Iterator[RawEvent]:
        return map(raw, self.entries(after=after, through=through))


def raw(entry: product.Entry) -> RawEvent:
    """Return an entry as it would be stored."""
    body = json.loads(json.dumps(entry.event.to_json(), allow_nan=False))
    return RawEvent(entry.id, entry.time, entry.event.kind, body)


def read_events(folder: Path, *, after: int = 0, through: int | None = None) -> Iterator[RawEvent]:
    """Yield the events of a study's journal as they are stored."""
    for row in product.read_rows(folder, after=after, through=through):
        yield RawEvent(row.id, row.time, row.kind, json.loads(row.body))
