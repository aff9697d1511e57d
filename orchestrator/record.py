"""What is known of a study and its trials, as reports read it: plain values, no database behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Groups = dict[str, tuple[float, float]]
"""Samples by subject (or by a fixed hundredth of a split without subjects): name -> (correct, count)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One configuration trained once, with one seed."""

    key: str
    """`<configuration id>-<seed>`, unique within the study."""
    configuration_id: str
    model: str
    configuration: dict[str, Any]
    """The study file's parameter names and the values this trial had."""
    seed: int
    status: str
    """`finished`, `failed` or `running`."""
    values: dict[str, float] = field(default_factory=dict)
    """Final validation metrics and costs by name, as in `Search`'s journal."""
    groups: Groups = field(default_factory=dict)
    reason: str = ""
    """Why the trial failed; empty otherwise."""
    started: float = 0.0
    """Unix seconds; 0 where the trial never started."""
    ended: float = 0.0
    test_values: dict[str, float] | None = None
    """Test metrics: None until the study's front was confirmed."""
    test_groups: Groups | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """A study and all its trials."""

    name: str
    description: str
    dataset: str
    num_seeds: int
    objectives: tuple[tuple[str, str], ...]
    """(metric, `maximize` or `minimize`), accuracy first, cost second."""
    facts: dict[str, str]
    """Fingerprints, versions, device, licence: shown at the foot of a report."""
    refused: dict[str, int]
    """Why proposals were refused -> how many were."""
    trials: tuple[TrialRecord, ...]
    confirmed: bool = False
