"""How a run of a search stands, in one place for all who act on it."""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


class RunState(enum.Enum):
    """From `RUNNING` it goes to `CLOSING`, from both to `FAILED`, and never back."""

    RUNNING = "trials are added"
    CLOSING = "no trial is added any more"
    FAILED = "the search itself cannot go on (a full disk under the journal, say)"


class RunOutcome:
    """What searcher, scheduler and `run` share: the state, its error, the processes we ended."""

    def __init__(self) -> None:
        self.state = RunState.RUNNING
        self.error: UserError | None = None
        """Why the search cannot go on; there from `FAILED` on."""
        self._reasons: dict[str, str] = {}

    @property
    def adds_trials(self) -> bool:
        """Whether trials are added."""
        return self.state is RunState.RUNNING

    @property
    def has_failed(self) -> bool:
        """Whether the search itself cannot go on: what its trials did is left to a resumed run."""
        return self.state is RunState.FAILED

    def close(self) -> None:
        """Let no trial be added any more."""
        if self.state is RunState.RUNNING:
            self.state = RunState.CLOSING

    def fail(self, error: UserError) -> None:
        """Note why the search cannot go on; the first reason counts."""
        if self.state is not RunState.FAILED:
            self.state, self.error = RunState.FAILED, error

    @contextlib.contextmanager
    def failing_on_errors(self) -> Iterator[None]:
        """Fail with an error of our own that the block raises: Tune wraps it in a traceback.

        What is raised as Tune passes a result on, it even takes for a fault of the trial.
        """
        try:
            yield
        except UserError as error:
            self.fail(error)
            raise

    def raise_error(self) -> None:
        """Raise why the search cannot go on, if it cannot.

        Raises:
            UserError: it cannot.
        """
        if self.error is not None:
            raise self.error

    def note_process_ended(self, trial_id: str, reason: str) -> None:
        """Note why we end a trial's process; Tune then says only that it died.

        Args:
            trial_id: Tune's id of the trial.
            reason: in a phrase.
        """
        self._reasons[trial_id] = reason

    def was_process_ended(self, trial_id: str) -> bool:
        """Tell whether it was us who ended the process of a trial."""
        return trial_id in self._reasons

    def take_reason(self, trial_id: str) -> str | None:
        """Return, once, why we ended a trial's process; None where it died by itself."""
        return self._reasons.pop(trial_id, None)
