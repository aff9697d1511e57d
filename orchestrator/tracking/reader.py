"""Read studies from MLflow, without their journals."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from sftsearch.orchestrator.storage.events import Created
from sftsearch.orchestrator.storage.study_record import (
    BaselineRecord,
    StudyFacts,
    StudyRecord,
    TrialRecord,
    as_groups,
    build_record,
)
from sftsearch.orchestrator.tracking.client import (
    BASELINE,
    POSTERIOR,
    PREFIX,
    TEST,
    TrackingError,
    find_runs,
    masked,
    no_answer,
    open_client,
)
from sftsearch.orchestrator.tracking.long_values import full_tags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities import Run

NUM_READERS = 8
"""Runs whose learning curves are read concurrently from a server."""
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
    try:
        tags = full_tags(client, parent.info.run_id, parent.data.tags)
        tags_of = {
            run.info.run_id: full_tags(client, run.info.run_id, run.data.tags)
            for run in ours.values()
        }
    except MlflowException as error:
        raise no_answer(uri, error) from None
    of_baselines = [ours.pop(key) for key in [*ours] if key.startswith(BASELINE)]
    baselines = [_baseline_record(run, tags_of[run.info.run_id]) for run in of_baselines]
    facts = {
        name: json.loads(tags[f"{PREFIX}{name}"])
        for name in StudyFacts().to_json()
        if f"{PREFIX}{name}" in tags
    }
    created = Created.from_json(json.loads(tags[f"{PREFIX}created"]))
    try:
        curves = _curves(client, list(ours.values()), created.objectives[0][0], uri)
    except MlflowException as error:
        raise no_answer(uri, error) from None
    trials = [
        _trial_record(run, tags_of[run.info.run_id], curves.get(run.info.run_id, ()))
        for run in ours.values()
    ]
    posteriors = _posteriors(ours.values())
    return build_record(created, StudyFacts.from_json(facts), trials, posteriors, baselines)


def _curves(
    client: MlflowClient, runs: list[Run], objective: str, uri: str
) -> dict[str, tuple[float, ...]]:
    """Return the objective after each epoch of the trials that have ended, by run id."""
    name = f"epoch/{objective}"
    ended = [r.info.run_id for r in runs if r.info.status in _STATUS and name in r.data.metrics]

    def read(run_id: str) -> tuple[float, ...]:
        by_epoch = {one.step: one.value for one in client.get_metric_history(run_id, name)}
        return tuple(by_epoch[epoch] for epoch in sorted(by_epoch))

    with ThreadPoolExecutor(NUM_READERS if uri.startswith(("http:", "https:")) else 1) as pool:
        return dict(zip(ended, pool.map(read, ended), strict=True))


def _posteriors(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return the posterior of every configuration; see `Writes.add_posteriors`."""
    return {
        run.data.tags[f"{PREFIX}configuration_id"]: {
            part: run.data.metrics[name] for part, name in POSTERIOR.items()
        }
        for run in runs
        if set(POSTERIOR.values()) <= set(run.data.metrics)
    }


def _baseline_record(run: Run, full: Mapping[str, str]) -> BaselineRecord:
    tags = {k.removeprefix(PREFIX): v for k, v in full.items()}
    test = {n.removeprefix(TEST): v for n, v in run.data.metrics.items() if n.startswith(TEST)}
    groups = as_groups(json.loads(tags["test_groups"])) if "test_groups" in tags else None
    return BaselineRecord(
        name=tags["model"],
        description=tags["mlflow.note.content"],
        modalities=tuple(json.loads(tags["modalities"])),
        parameters=json.loads(tags["parameters"]),
        seed=int(tags["seed"]),
        fold=int(tags["fold"]) if tags["fold"] else None,
        values={n: v for n, v in run.data.metrics.items() if not n.startswith(TEST)},
        groups=as_groups(json.loads(tags["groups"])),
        test_values=test or None,
        test_groups=groups,
    )


def _trial_record(run: Run, full: Mapping[str, str], curve: tuple[float, ...]) -> TrialRecord:
    tags = {k.removeprefix(PREFIX): v for k, v in full.items() if k.startswith(PREFIX)}
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
        curve=curve,
        reason=tags.get("reason", ""),
        epoch=int(tags["epoch"]) if "epoch" in tags else None,
        started=run.info.start_time / 1e3,
        ended=(run.info.end_time or 0) / 1e3,
        test_values=test or None,
        test_groups=groups,
    )
