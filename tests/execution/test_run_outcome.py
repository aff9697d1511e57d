"""States of a run, and the processes that it ended."""

from __future__ import annotations

import pytest

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.execution.run_outcome import RunOutcome, RunState


def test_run_outcome_goes_from_running_to_closing_to_failed_and_never_back() -> None:
    outcome = RunOutcome()
    assert outcome.adds_trials
    outcome.close()
    assert outcome.state is RunState.CLOSING
    assert not outcome.adds_trials
    assert not outcome.has_failed
    outcome.raise_error()
    outcome.fail(UserError("the disk is full"))
    outcome.close()
    assert outcome.state is RunState.FAILED
    assert not outcome.adds_trials
    with pytest.raises(UserError, match="the disk is full"):
        outcome.raise_error()


def test_run_outcome_keeps_only_the_first_error() -> None:
    outcome = RunOutcome()
    for text in ("first", "second"):
        with pytest.raises(UserError, match=text), outcome.failing_on_errors():
            raise UserError(text)
    assert str(outcome.error) == "first"


def test_run_outcome_ignores_errors_other_than_user_errors() -> None:
    outcome = RunOutcome()
    with pytest.raises(KeyError), outcome.failing_on_errors():
        raise KeyError("a bug in sftsearch")
    assert outcome.state is RunState.RUNNING


def test_run_outcome_returns_each_reason_once() -> None:
    outcome = RunOutcome()
    assert outcome.take_reason("a") is None
    outcome.note_process_ended("a", "it took too long")
    assert outcome.was_process_ended("a")
    assert not outcome.was_process_ended("b")
    assert outcome.take_reason("a") == "it took too long"
    assert outcome.take_reason("a") is None
