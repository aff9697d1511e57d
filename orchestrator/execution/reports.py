"""Define the report that a worker returns after each step, sent between processes as JSON."""

from __future__ import annotations

import enum
import json
from typing import NotRequired, TypedDict


class FailureCause(enum.StrEnum):
    """Why a trial cannot continue."""

    TRIAL = ""
    """An error of the trial itself: it fails."""
    WORKER_LOST = "lost"
    """Its process died, or its folder belongs to another process."""
    OUT_OF_MEMORY = "memory"
    """Memory ran out; other trials may have used it."""
    NO_SPACE = "space"
    """The disk is full, or remote storage is not available."""


class FinalReport(TypedDict):
    """Results of a trial that reached its last epoch."""

    values: dict[str, float]
    """Final metrics and costs."""
    groups: dict[str, list[float]]
    """Validation by subject: (correct, count)."""
    facts: dict[str, object]
    """Environment of the run: torch, device, threads."""


class WorkerReport(TypedDict):
    """Result of one step; a report with `final` or `failed` is the last."""

    epochs: list[dict[str, float]]
    """Metrics of the epochs that the journal lacks, in order."""
    final: NotRequired[FinalReport]
    failed: NotRequired[str]
    """Why the trial cannot continue, in one line."""
    cause: NotRequired[str]
    """A `FailureCause`; present if `failed` is."""


class SentReport(WorkerReport):
    """A worker's report as the driver receives it."""

    fencing_token: int
    """Token of the assignment that the report belongs to."""


def failure(reason: str, cause: FailureCause = FailureCause.TRIAL) -> WorkerReport:
    """Return the report of a trial that cannot continue."""
    return {"epochs": [], "failed": reason, "cause": cause}


def is_last(report: WorkerReport) -> bool:
    """Return whether this is the trial's last report."""
    return "final" in report or "failed" in report


def to_json(report: WorkerReport, fencing_token: int) -> str:
    """Write a report as JSON."""
    return json.dumps({**report, "fencing_token": fencing_token})


def from_json(text: str) -> SentReport:
    """Read what `to_json` wrote."""
    report: SentReport = json.loads(text)
    return report
