"""Record a table (`sftsearch table`): train every configuration of a space as a normal study.

Every configuration first gets the replicates of the study file. The configurations nearest the
front then get more, because a search must distinguish small differences there. Both belong to one
study, which can be resumed after any interruption.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.folds import fold_of, open_fold
from sftsearch.orchestrator.benchmark.recording_worker import DECISIONS, RecordingWorker
from sftsearch.orchestrator.benchmark.table import write_table
from sftsearch.orchestrator.metrics import EXACT_COSTS, sign_of
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.events import Recorded, Replicated
from sftsearch.orchestrator.storage.journal import FILE_NAME, Journal, read_entries
from sftsearch.orchestrator.storage.trial_events import EpochEnded
from sftsearch.orchestrator.storage.trial_files import open_trial_folder
from sftsearch.orchestrator.studies import trial_folder
from sftsearch.orchestrator.study import run_study
from sftsearch.orchestrator.study_file import check_study
from sftsearch.orchestrator.surrogate.fold_effects import additive_means

if TYPE_CHECKING:
    from sftsearch.orchestrator.callback import StudyCallback
    from sftsearch.orchestrator.storage.event import JSON, Numbers, TrialKey
    from sftsearch.search_spaces.load import StudySource

SHOWN_VERSIONS = ("sftsearch", "torch", "numpy")


class RecordingError(UserError):
    """The study cannot be recorded as a table."""


def record_table(
    file: str | Path,
    out: Path,
    *,
    runs: str | Path,
    near: int = 60,
    near_replicates: int = 20,
    tracking_uri: str | None = None,
    callback: StudyCallback | None = None,
) -> bool:
    """Train every configuration of a study's space and write the table, or resume doing so.

    Args:
        file: a study file with the sampler `exhaustive` and a fixed number of replicates.
        out: the Parquet file; written after all training.
        runs: the folder of all studies.
        near: how many configurations nearest the front get more replicates.
        near_replicates: how many replicates those get in total.
        tracking_uri: of MLflow.
        callback: receives progress.

    Returns:
        False if it was interrupted; call it again to resume.

    Raises:
        UserError: the study file has errors or cannot be recorded.
    """
    source, _, admission = check_study(file)
    _check(source)
    folder = Path(runs).absolute() / source.study.study.name

    def train() -> bool:
        return run_study(
            file,
            runs=runs,
            resume=True,
            tracking_uri=tracking_uri,
            callback=callback,
            worker=RecordingWorker,
            formats=(),
        ).complete

    begun = (folder / FILE_NAME).is_file()
    if begun and not StudyState.of(read_entries(folder)).facts.recorded:
        raise RecordingError(
            f"The study '{folder.name}' in '{folder.parent}' exists and is not a recording: choose "
            "another `study.name`."
        )
    if not begun:
        with Journal(folder) as journal:
            journal.append(Recorded())
    if not train():
        return False
    with Journal(folder) as journal:
        granted = _grant(journal, source, near, near_replicates)
    if granted and not train():
        return False
    write_table(out, *_collect(folder, source, admission.spec.fingerprint))
    return True


def _check(source: StudySource) -> None:
    plan = source.study.search
    fixed = plan.replicates.min == plan.replicates.max and not plan.replicates.fresh
    if plan.sampler.kind != "exhaustive" or plan.early_stopping.kind != "none" or not fixed:
        raise RecordingError(
            f"{source.name}: recording a table requires `sampler: exhaustive`, a fixed number of "
            "replicates and no early stopping."
        )
    searched = {name for branch in source.study.space for name in branch.parameters}
    if "patience" in searched or source.study.training.get("patience") is not None:
        raise RecordingError(
            f"{source.name}: a table has the same number of epochs of every trial: remove "
            "`patience`, which ends trials early."
        )


def _grant(journal: Journal, source: StudySource, near: int, near_replicates: int) -> int:
    """Add replicates of the configurations nearest the front; return the number of trials."""
    state = StudyState.of(journal.entries())
    count = Counter(key.configuration_id for key in state.trials)
    if max(count.values(), default=0) > source.study.search.replicates.max:
        return 0  # already granted
    more = 0
    for identity in nearest_the_front(state, source, near):
        seeds = list(range(count[identity], near_replicates))
        if seeds:
            journal.append(Replicated(identity, seeds))
            more += len(seeds)
    return more


def nearest_the_front(state: StudyState, source: StudySource, number: int) -> list[str]:
    """Return the configurations whose mean is closest to the best one that is as cheap."""
    valued = [one for one in state.configurations.values() if one.values]
    objective, num = source.study.objectives[0], source.study.search.replicates.max
    sign = sign_of(objective.direction)
    table = np.full((len(valued), num), np.nan)
    for row, one in enumerate(valued):
        for replicate, values in one.values.items():
            if replicate < num:
                table[row, replicate] = sign * values[objective.metric]
    folds = np.arange(num) % (source.study.dataset.folds or 1)
    means = additive_means(table, folds).means
    costs = np.array([one.cost[EXACT_COSTS[0]] for one in valued])
    order = np.argsort(costs, kind="stable")
    best = np.empty(len(valued))
    best[order] = np.maximum.accumulate(means[order])
    return [valued[i].id for i in np.argsort(best - means, kind="stable")[:number]]


# ------------------------------------------------------------------ the table


def _collect(
    folder: Path, source: StudySource, fingerprint: str
) -> tuple[dict[str, pa.Array], JSON]:
    """Return the columns and the metadata of the table."""
    entries = list(read_entries(folder))
    state = StudyState.of(entries)
    epochs: dict[TrialKey, list[Numbers]] = {}
    for event in (entry.event for entry in entries):
        if isinstance(event, EpochEnded):
            epochs.setdefault(event.trial, []).append(event.metrics)
    metrics = [name for name in next(iter(epochs.values()))[0] if name not in ("epoch", "seconds")]
    columns: dict[str, list[object]] = {}
    for key in sorted(key for key, trial in state.trials.items() if trial.status == "finished"):
        configuration = state.configurations[key.configuration_id]
        with open_trial_folder(trial_folder(folder, key)).load(DECISIONS) as path:
            if path is None:
                raise UserError(f"Trial {key} has no '{DECISIONS}': record the table again.")
            with np.load(path, allow_pickle=False) as decisions:
                validation, test = decisions["validation"], decisions["test"]
                cpu_seconds = decisions["cpu_seconds"]
        for i, epoch in enumerate(epochs[key]):
            row: dict[str, object] = {
                "configuration_id": configuration.id,
                "model": configuration.model,
                "parameters": json.dumps(configuration.parameters, sort_keys=True),
                **{f"cost_{name}": configuration.cost[name] for name in EXACT_COSTS},
                "replicate": key.replicate,
                "fold": fold_of(key.replicate, source.study.dataset.folds),
                "epoch": i + 1,
                "seconds": float(cpu_seconds[i]),
                **{name: epoch[name] for name in metrics},
                "right_validation": validation[i].tobytes(),
                "right_test": test[i].tobytes(),
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    facts = {
        **_facts(source, fingerprint),
        "metrics": metrics,
        "costs": list(EXACT_COSTS),
        "subjects": _subjects(source),
    }
    return {name: _array(name, values) for name, values in columns.items()}, facts


def _array(name: str, values: list[object]) -> pa.Array:
    if name in ("configuration_id", "model", "parameters"):
        return pa.array(values).dictionary_encode()
    if name.startswith("right_"):
        return pa.array(values, pa.binary())
    if name in ("replicate", "fold", "epoch"):
        return pa.array(values, pa.int16())
    return pa.array(values, pa.float64() if name.startswith("cost_") else pa.float32())


def _facts(source: StudySource, fingerprint: str) -> JSON:
    study = source.study
    return {
        "study": study.study.name,
        "dataset": study.dataset.kind,
        "fingerprint": fingerprint,
        "folds": study.dataset.folds,
        "objectives": [objective.model_dump() for objective in study.objectives],
        "training": dict(study.training),
        "space": [branch.model_dump() for branch in study.space],
        "threads": max(1, int(study.resources.cpus)),
        "seconds": "CPU seconds of the training process",
        "versions": {name: importlib.metadata.version(name) for name in SHOWN_VERSIONS},
    }


def _subjects(source: StudySource) -> dict[str, list[list[str]]]:
    """Return the subject of each sample, `validation` by fold and `test`, in the bits' order."""
    chosen = source.study.dataset
    store, folds = open_dataset(chosen.kind, root=chosen.root), chosen.folds
    numbers: list[int | None] = [None] if folds is None else list(range(folds))

    def names(number: int | None, split: str) -> list[str]:
        fold = open_fold(store, number, folds)
        known = fold.spec.subjects[split]
        codes = fold.split(split, unseal_test=True).subjects
        return [known[code] if code >= 0 else "" for code in codes]

    return {
        "validation": [names(number, "validation") for number in numbers],
        "test": [names(numbers[0], "test")],
    }
