"""Read studies from MLflow, without their journals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from sftsearch.orchestrator.storage.events import Created
from sftsearch.orchestrator.storage.study_record import (
    StudyFacts,
    StudyRecord,
    TrialRecord,
    as_groups,
    build_record,
)
from sftsearch.orchestrator.tracking.client import (
    POSTERIOR,
    PREFIX,
    TEST,
    TrackingError,
    find_runs,
    masked,
    no_answer,
    open_client,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mlflow.entities import Run

_STATUS = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}


def read_study(uri: str, name: str, runs: Path) -> StudyRecord:
    """Read a study from MLflow, without its journal.

    Raises:
        TrackingError: MLflow does not answer, or has no such study.
    """
    client = open_client(uri, runs)
    try:
        experiment = client.get_experiment_by_name(name)
        ours = find_runs(client, experiment.experiment_id) if experiment else {}
    except MlflowException as error:
        raise no_answer(uri, error) from None
    parent = ours.pop("", None)
    if parent is None:
        raise TrackingError(
            f"MLflow at '{masked(uri)}' has no study '{name}'. `sftsearch list` shows the known "
            "studies; for others set --runs or --tracking-uri."
        )
    tags = parent.data.tags
    facts = {
        name: json.loads(tags[f"{PREFIX}{name}"])
        for name in StudyFacts().to_json()
        if f"{PREFIX}{name}" in tags
    }
    created = Created.from_json(json.loads(tags[f"{PREFIX}created"]))
    trials = [_trial_record(run) for run in ours.values()]
    return build_record(created, StudyFacts.from_json(facts), trials, _posteriors(ours.values()))


def _posteriors(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return the posterior of every configuration; see `Writes.add_posteriors`."""
    return {
        run.data.tags[f"{PREFIX}configuration_id"]: {
            part: run.data.metrics[name] for part, name in POSTERIOR.items()
        }
        for run in runs
        if set(POSTERIOR.values()) <= set(run.data.metrics)
    }


def _trial_record(run: Run) -> TrialRecord:
    tags = {k.removeprefix(PREFIX): v for k, v in run.data.tags.items() if k.startswith(PREFIX)}
    metrics = {n: v for n, v in run.data.metrics.items() if n not in POSTERIOR.values()}
    final = {n: v for n, v in metrics.items() if not n.startswith(("epoch/", TEST))}
    test = {n.removeprefix(TEST): v for n, v in metrics.items() if n.startswith(TEST)}
    groups = as_groups(json.loads(tags["test_groups"])) if "test_groups" in tags else None
    return TrialRecord(
        key=tags["trial"],
        configuration_id=tags["configuration_id"],
        model=tags["model"],
        configuration=json.loads(tags["configuration"]),
        seed=int(tags["seed"]),
        status=_STATUS.get(run.info.status, "running"),
        values=final or json.loads(tags.get("reached", tags["cost"])),
        groups=as_groups(json.loads(tags.get("groups", "{}"))),
        reason=tags.get("reason", ""),
        epoch=int(tags["epoch"]) if "epoch" in tags else None,
        started=run.info.start_time / 1e3,
        ended=(run.info.end_time or 0) / 1e3,
        test_values=test or None,
        test_groups=groups,
    )
