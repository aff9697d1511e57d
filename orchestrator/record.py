"""What is known of a study and its trials, as reports read it: plain values without a database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Groups = dict[str, tuple[float, float]]
"""Samples by subject, or by a fixed part of a split without subjects: name -> (correct, count)."""


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
    """Why configurations were refused before they trained -> how many were.

    In a space that is priced whole these are points of the space, else proposals.
    """
    trials: tuple[TrialRecord, ...]
    confirmed: bool = False
    families: tuple[str, ...] = ()
    """Parameters that set families of configurations apart, beside the model."""


def from_events(events: Iterable[Any]) -> StudyRecord:
    """Build the record of a study from its journal's events (`kind`, `time`, `body`), in order.

    Raises:
        ValueError: there is no `created` event.
    """
    events = list(events)
    created = [event.body for event in events if event.kind == "created"]
    tests = [event.body["trials"] for event in events if event.kind == "confirmed"]
    refused = Counter(event.body["reason"] for event in events if event.kind == "refused")
    trials: dict[str, TrialRecord] = {}
    for event in events:
        if event.kind == "admitted":
            trials.update((trial.key, trial) for trial in _admitted(event.body))
        elif event.kind in ("started", "finished", "failed"):
            key = event.body["trial"]
            trials[key] = _changed(trials[key], event)
    if not created:
        raise ValueError("The journal has no `created` event: the study never began.")
    for key, test in tests[0].items() if tests else ():
        groups = as_groups(test["groups"])
        trials[key] = replace(trials[key], test_values=dict(test["values"]), test_groups=groups)
    started = tuple(trial for trial in trials.values() if trial.started)
    return study_record(created[0], refused, started, confirmed=bool(tests))


def study_record(
    created: Mapping[str, Any],
    refused: Mapping[str, int],
    trials: Iterable[TrialRecord],
    *,
    confirmed: bool,
) -> StudyRecord:
    """Put a record together from the body of a `created` event and what came after it."""
    return StudyRecord(
        name=created["name"],
        description=created["description"],
        dataset=created["dataset"],
        num_seeds=created["num_seeds"],
        objectives=tuple((metric, goal) for metric, goal in created["objectives"]),
        facts=dict(created["facts"]),
        families=tuple(created.get("families", ())),
        refused=dict(Counter(created.get("refused", {})) + Counter(refused)),
        trials=tuple(sorted(trials, key=lambda trial: (trial.started, trial.key))),
        confirmed=confirmed,
    )


def milliseconds(seconds: float) -> int:
    """Return a time as MLflow keeps it, so that both records of a study agree."""
    return round(seconds * 1000)


def as_groups(groups: Mapping[str, Any]) -> Groups:
    """Turn JSON's lists back into pairs."""
    return {name: (float(correct), float(count)) for name, (correct, count) in groups.items()}


def _admitted(body: Mapping[str, Any]) -> list[TrialRecord]:
    return [
        TrialRecord(
            key=f"{body['configuration_id']}-{seed}",
            configuration_id=body["configuration_id"],
            model=body["model"],
            configuration=dict(body["parameters"]),
            seed=seed,
            status="running",
            values=dict(body["cost"]),
        )
        for seed in body["seeds"]
    ]


def _changed(trial: TrialRecord, event: Any) -> TrialRecord:
    body, time = event.body, milliseconds(event.time) / 1e3
    if event.kind == "started":
        return replace(trial, started=trial.started or time)
    if event.kind == "failed":
        return replace(trial, status="failed", reason=body["reason"], ended=time)
    groups = as_groups(body["groups"])
    return replace(trial, status="finished", values=dict(body["values"]), groups=groups, ended=time)
