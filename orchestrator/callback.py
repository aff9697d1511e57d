"""What a study tells those who watch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.search_spaces.load import Source


class StudyCallback:
    """Progress callbacks of a study; the base class does nothing."""

    def on_stage(self, text: str) -> None:
        """Hear that something begins that may take seconds."""

    def on_open(
        self, source: Source, admission: Admission, search: Search, max_concurrent_trials: int
    ) -> None:
        """Hear that trials begin."""

    def on_event(self, entry: Entry) -> None:
        """Hear of an event, after the study's state has changed."""

    def on_notice(self, text: str) -> None:
        """Hear what a person should read at once."""
