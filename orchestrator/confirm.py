"""Confirmation: the one look at the test split.

The front of a finished study is frozen, each of its trials is evaluated on the test split with the
weights it ended with, and the look is journalled before anything of it is shown. A second call
returns what the first one recorded. Where the front has fresh replicates, which it got after it was
chosen, those alone are looked at; else all of its replicates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.folds import fold_of, open_fold
from sftsearch.orchestrator.analysis import front as fronts
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.events import Confirmed
from sftsearch.orchestrator.storage.journal import Journal
from sftsearch.orchestrator.storage.trial_files import WEIGHTS, open_trial_folder
from sftsearch.orchestrator.studies import StudyError, axes_of, read_record, trial_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.storage.event import Groups
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.orchestrator.storage.study_record import StudyRecord
    from sftsearch.orchestrator.storage.trial_state import TrialState
    from sftsearch.trainables.evaluation import Evaluation


def confirm_study(folder: Path) -> StudyRecord:
    """Evaluate a study's front on the test split, once, on the record.

    Args:
        folder: the study's folder.

    Raises:
        StudyError: the study is not finished or is a recorded table, or a trial's weights are gone.
    """
    seen = read_record(folder)
    if seen.recorded:
        raise StudyError(
            f"The study '{seen.name}' is a recorded table: its trials looked at the test split, so "
            "that nothing is left to confirm. Search the space in a study of another name."
        )
    if seen.confirmed:
        return seen
    with Journal(folder) as journal:
        state = StudyState.of(journal.entries())
        event = _confirm(folder, state)
        state.apply(journal.append(event))
        return record_of(state)


def _confirm(folder: Path, state: StudyState) -> Confirmed:
    seen, created = record_of(state), state.created
    assert created is not None
    if state.ended is None or not state.ended.complete:
        raise StudyError(
            f"The study '{seen.name}' is not finished, and its front is not final: run it to its "
            "end with --resume, then confirm it."
        )
    x, y = axes_of(seen)
    front = fronts.summarise(seen, x=x, y=y).points
    chosen = {TrialKey(point.configuration_id, seed) for point in front for seed in point.seeds}
    trials = [trial for key, trial in state.trials.items() if key in chosen]
    store = open_dataset(seen.dataset, root=seen.root)
    if store.spec.fingerprint != created.definition["fingerprint"]:
        raise StudyError(
            f"The data set '{seen.dataset}' is not the one the study '{seen.name}' was run on "
            "(its fingerprint differs), so its test split says nothing about this front."
        )
    evaluated = {trial.key: _evaluate(folder, trial, created, store) for trial in trials}
    values = {key: evaluation.metrics for key, evaluation in evaluated.items()}
    groups: dict[TrialKey, Groups] = {key: {**one.groups} for key, one in evaluated.items()}
    return Confirmed(values, groups)


def _evaluate(folder: Path, trial: TrialState, created: Created, store: Store) -> Evaluation:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sftsearch.trainables.catalog import build_model
    from sftsearch.trainables.evaluation import evaluate

    folds, seed, one = created.folds, trial.key.replicate, trial.configuration
    bound = bind(one.model, one.parameters, created.training, store.spec)
    store = open_fold(store, fold_of(seed, folds), folds)  # for what it was scaled by
    model = build_model(one.model, store.spec, bound.model_config, seed)
    where = trial_folder(folder, trial.key)
    try:
        with open_trial_folder(where).load(WEIGHTS) as path:
            if path is None:
                raise FileNotFoundError("there are none")
            model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise StudyError(
            f"The weights of trial {trial.key} cannot be read ({first}): restore "
            f"'{where}/{WEIGHTS}'. Beyond `resources.max_weights_gb` those far below the front go."
        ) from error
    split = store.split("test", unseal_test=True)
    evaluation = evaluate(model, store, split, bound.train_config)
    if not all(math.isfinite(value) for value in evaluation.metrics.values()):
        raise StudyError(f"Trial {trial.key} gives test values that are not finite.")
    return evaluation
