"""Evaluate the front of a finished study on the test split, once.

Each trial of the front is evaluated with its final weights. The results are journaled before they
are shown, and a second call returns the recorded results. If the front has fresh replicates, only
those are evaluated. The baselines are fitted again, which gives the same weights, and evaluated
beside it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.folds import fold_of, open_fold
from sftsearch.orchestrator.analysis.front import FrontOptions, mark_front
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.plugins import check_plugins
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.events import Confirmed
from sftsearch.orchestrator.storage.journal import Journal, read_entries
from sftsearch.orchestrator.storage.trial_files import WEIGHTS, open_trial_folder
from sftsearch.orchestrator.studies import StudyError, trial_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.storage.event import JSON, Groups
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.orchestrator.storage.study_record import BaselineRecord, StudyRecord
    from sftsearch.orchestrator.storage.trial_state import TrialState
    from sftsearch.trainables.evaluation import Evaluation


def check_confirmable(folder: Path) -> StudyRecord:
    """Check that a study can be confirmed, or was, without evaluating anything.

    Returns:
        The study's record.

    Raises:
        StudyError: the study is not finished or is a recorded table.
        PluginFileError: it needs a plug-in that is not loaded.
    """
    state = StudyState.of(read_entries(folder))
    record = record_of(state)
    if record.recorded:
        raise StudyError(
            f"The study '{record.name}' is a recorded table: its trials evaluated the test split, "
            "so it cannot be confirmed. Search the space in a study with another `study.name`."
        )
    if not record.confirmed and (state.ended is None or not state.ended.complete):
        raise StudyError(
            f"The study '{record.name}' is not finished, so its front is not final. Finish it with "
            "`sftsearch run --resume`, then confirm it."
        )
    if state.created is not None and not record.confirmed:
        check_plugins(record.name, state.created.definition, state.created.facts)
    return record


def confirm_study(folder: Path) -> StudyRecord:
    """Evaluate a study's front on the test split, once, and journal the results.

    Args:
        folder: the study's folder.

    Raises:
        StudyError: the study is not finished or is a recorded table, or weights are missing.
    """
    record = check_confirmable(folder)
    if record.confirmed:
        return record
    with Journal(folder) as journal:
        state = StudyState.of(journal.entries())
        event = _confirm(folder, state)
        state.apply(journal.append(event))
        return record_of(state)


def _confirm(folder: Path, state: StudyState) -> Confirmed:
    record, created = record_of(state), state.created
    assert created is not None
    front = mark_front(record, FrontOptions()).points
    chosen = {TrialKey(point.configuration_id, seed) for point in front for seed in point.seeds}
    trials = [trial for key, trial in state.trials.items() if key in chosen]
    store = open_dataset(record.dataset, root=record.root)
    if store.spec.fingerprint != created.definition["fingerprint"]:
        raise StudyError(
            f"The dataset '{record.dataset}' has changed since the study '{record.name}' (its "
            "fingerprint differs). Restore the original dataset to confirm the study."
        )
    evaluated = {trial.key: _evaluate(folder, trial, created, store) for trial in trials}
    values = {key: evaluation.metrics for key, evaluation in evaluated.items()}
    groups: dict[TrialKey, Groups] = {key: {**one.groups} for key, one in evaluated.items()}
    baselines = {
        key: _evaluate_baseline(one, created, store) for key, one in (state.baselines or {}).items()
    }
    return Confirmed(values, groups, baselines)


def _evaluate_baseline(record: BaselineRecord, created: Created, store: Store) -> JSON:
    """Return a baseline's `values` and `groups` on the test split."""
    from sftsearch.trainables.baseline_results import Baseline
    from sftsearch.trainables.baselines import confirm_baseline
    from sftsearch.trainables.config import TrainConfig

    baseline = Baseline(
        name=record.name,  # type: ignore[arg-type]  # one of the names it was fitted with
        description=record.description,
        modalities=record.modalities,
        parameters=record.parameters,
        seed=record.seed,
        metrics=record.values,
        groups={},
        cost={},
        seconds=0.0,
    )
    loss: Literal["l1", "l2"] = "l2" if created.training.get("regression_loss") == "l2" else "l1"
    store = open_fold(store, record.fold, created.folds)
    evaluation = confirm_baseline(store, baseline, config=TrainConfig(regression_loss=loss))
    return {"values": dict(evaluation.metrics), "groups": dict(evaluation.groups)}


def _evaluate(folder: Path, trial: TrialState, created: Created, store: Store) -> Evaluation:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sftsearch.trainables.catalog import build_model
    from sftsearch.trainables.evaluation import evaluate

    folds, seed, one = created.folds, trial.key.replicate, trial.configuration
    bound = bind(one.model, one.parameters, created.training, store.spec)
    store = open_fold(store, fold_of(seed, folds), folds)  # scaled as for the training of this fold
    model = build_model(one.model, store.spec, bound.model_config, seed)
    where = trial_folder(folder, trial.key)
    try:
        with open_trial_folder(where).load(WEIGHTS) as path:
            if path is None:
                raise FileNotFoundError("no such file")
            model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise StudyError(
            f"The weights of trial {trial.key} cannot be read ({first}): restore "
            f"'{where}/{WEIGHTS}'. Weights far below the front are deleted when they exceed "
            "`resources.max_weights_gb`."
        ) from error
    split = store.split("test", unseal_test=True)
    evaluation = evaluate(model, store, split, bound.train_config)
    if not all(math.isfinite(value) for value in evaluation.metrics.values()):
        raise StudyError(f"The test values of trial {trial.key} are not finite.")
    return evaluation
