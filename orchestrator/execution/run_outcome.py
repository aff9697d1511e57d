"""State of a run, shared by the searcher, the scheduler and `tune.run`."""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


class RunState(enum.Enum):
    """Transitions: `RUNNING` to `CLOSING`, and both to `FAILED`; never back."""

    RUNNING = "trials are added"
    CLOSING = "no further trials are added"
    FAILED = "the search itself cannot continue (the journal's disk is full, for example)"


class RunOutcome:
    """State of a run: its error, and the processes that we ended."""

    def __init__(self) -> None:
        self.state = RunState.RUNNING
        self.error: UserError | None = None
        """Why the search cannot continue; set in `FAILED`."""
        self._reasons: dict[str, str] = {}

    @property
    def adds_trials(self) -> bool:
        """Whether trials may still be added."""
        return self.state is RunState.RUNNING

    @property
    def has_failed(self) -> bool:
        """Whether the search cannot continue; a resumed run takes over its running trials."""
        return self.state is RunState.FAILED

    def close(self) -> None:
        """Stop adding trials."""
        if self.state is RunState.RUNNING:
            self.state = RunState.CLOSING

    def fail(self, error: UserError) -> None:
        """Record why the search cannot continue; only the first error is kept."""
        if self.state is not RunState.FAILED:
            self.state, self.error = RunState.FAILED, error

    @contextlib.contextmanager
    def failing_on_errors(self) -> Iterator[None]:
        """Record a `UserError` that the block raises as the reason why the search cannot continue.

        Tune wraps such an error in a traceback, or treats it as an error of a trial if it is raised
        while a result is processed.
        """
        try:
            yield
        except UserError as error:
            self.fail(error)
            raise

    def raise_error(self) -> None:
        """Raise the recorded error, if there is one.

        Raises:
            UserError: the search cannot continue.
        """
        if self.error is not None:
            raise self.error

    def note_process_ended(self, trial_id: str, reason: str) -> None:
        """Record why we end a trial's process; Tune reports only that it died.

        Args:
            trial_id: Tune's id of the trial.
            reason: a phrase for the user.
        """
        self._reasons[trial_id] = reason

    def was_process_ended(self, trial_id: str) -> bool:
        """Return whether we ended the trial's process."""
        return trial_id in self._reasons

    def take_reason(self, trial_id: str) -> str | None:
        """Return and forget why we ended a trial's process; None if it died by itself."""
        return self._reasons.pop(trial_id, None)
