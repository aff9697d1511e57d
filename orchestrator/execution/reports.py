"""What a worker says after each step: plain values that travel between processes as JSON."""

from __future__ import annotations

import enum
import json
from typing import NotRequired, TypedDict


class FailureCause(enum.StrEnum):
    """Whose fault it is that a trial cannot go on."""

    TRIAL = ""
    """Its own: it fails."""
    WORKER_LOST = "lost"
    """Its process died, or its folder belongs to another one."""
    OUT_OF_MEMORY = "memory"
    """Others may have had the memory."""
    NO_SPACE = "space"
    """The disk is full, or what is remote is not available."""


class FinalReport(TypedDict):
    """What a trial that reached its last epoch leaves."""

    values: dict[str, float]
    """Final metrics and costs."""
    groups: dict[str, list[float]]
    """Validation by subject: right decisions, samples."""
    facts: dict[str, object]
    """Where it ran: torch, device, threads."""


class WorkerReport(TypedDict):
    """What a step gave; after one with `final` or `failed` there are no more."""

    epochs: list[dict[str, float]]
    """Metrics of the epochs that the journal lacks, in order."""
    final: NotRequired[FinalReport]
    failed: NotRequired[str]
    """Why the trial cannot go on, in a line."""
    cause: NotRequired[str]
    """A `FailureCause`; there with `failed`."""


class SentReport(WorkerReport):
    """A worker's report as it travels to the driver."""

    fencing_token: int
    """Of the handing-out that it belongs to."""


def failure(reason: str, cause: FailureCause = FailureCause.TRIAL) -> WorkerReport:
    """Return the report of a trial that cannot go on."""
    return {"epochs": [], "failed": reason, "cause": cause}


def is_last(report: WorkerReport) -> bool:
    """Tell whether the trial has ended with it."""
    return "final" in report or "failed" in report


def to_json(report: WorkerReport, fencing_token: int) -> str:
    """Write a report as JSON."""
    return json.dumps({**report, "fencing_token": fencing_token})


def from_json(text: str) -> SentReport:
    """Read what `to_json` wrote."""
    report: SentReport = json.loads(text)
    return report
