"""Progress callbacks of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.search_spaces.load import StudySource


class StudyCallback:
    """Progress callbacks of a study; the base class does nothing."""

    def on_stage(self, text: str) -> None:
        """Called when a stage begins that may take seconds."""

    def on_open(
        self, source: StudySource, admission: Admission, search: Search, max_concurrent_trials: int
    ) -> None:
        """Called before the first trial of this run starts."""

    def on_event(self, entry: Entry) -> None:
        """Called with each new event, after it was applied to the study's state."""

    def on_tracking(self, problem: str) -> None:
        """Called when MLflow stops answering, with the reason, or answers again (empty).

        From another thread than the other methods.
        """

    def on_notice(self, text: str) -> None:
        """Called with a message that the user should see immediately."""
