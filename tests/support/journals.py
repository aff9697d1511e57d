"""Journals with raw events: kind and JSON body as stored on disk.

Tests write and check the stored form, independent of the product's event classes.
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
    """One row of a journal."""

    id: int
    time: float
    kind: str
    body: dict[str, Any]


class Unchecked:
    """An event that this version may not know."""

    def __init__(self, kind: str, body: dict[str, Any]) -> None:
        self.kind, self._body = kind, body

    def to_json(self) -> dict[str, Any]:
        return self._body


class _Listening:
    """Calls listeners with each written event, before `append` returns."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._listeners: list[Callable[[RawEvent], None]] = []

    def listen(self, listener: Callable[[RawEvent], None]) -> None:
        self._listeners.append(listener)

    def _notify(self, entry: product.Entry) -> product.Entry:
        for listener in self._listeners:
            listener(raw(entry))
        return entry


class Journal(_Listening, product.Journal):
    """A journal that also accepts a kind and a body, and yields raw events."""

    def append(self, event: Event | str, **body: Any) -> Any:
        if isinstance(event, Event):
            return self._notify(super().append(event))
        return raw(self._notify(super().append(Unchecked(event, body))))

    def events(self, *, after: int = 0, through: int | None = None) -> Iterator[RawEvent]:
        return read_events(self.folder, after=after, through=through)


class MemoryJournal(_Listening, product.MemoryJournal):
    """As `Journal`, in memory; kind and body must form an event of this version."""

    def append(self, event: Event | str, **body: Any) -> Any:
        if not isinstance(event, Event):
            event = parse_event(event, json.loads(json.dumps(body, allow_nan=False)))
        return self._notify(super().append(event))

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
