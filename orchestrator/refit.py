"""Train a finished trial again on training and validation together, before the test split."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sftsearch.datasets.folds import open_pooled
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.storage.trial_events import Refitted
from sftsearch.orchestrator.storage.trial_files import REFIT_WEIGHTS, open_trial_folder
from sftsearch.orchestrator.studies import StudyError, trial_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.orchestrator.storage.trial_state import TrialState
    from sftsearch.trainables.fit import Fit


def refit_trial(folder: Path, trial: TrialState, created: Created, store: Store) -> Refitted:
    """Train a trial's model again and save its weights; return the event to journal.

    The training has the trial's seed and as many epochs as the trial ran, with the schedule
    stretched over them. Nothing is left to choose an epoch by, so the last one counts.

    Args:
        folder: the study's.
        trial: a finished one.
        created: the study's first event.
        store: of the study's dataset, without folds.

    Raises:
        StudyError: the training diverged.
    """
    from safetensors.torch import save_file

    from sftsearch.trainables.evaluation import TrainingDiverged
    from sftsearch.trainables.own_fit import OwnFit

    fit = _begin(trial, created, open_pooled(store))
    try:
        while not fit.done:
            fit.run_epoch()
        tensors = {name: t.contiguous() for name, t in fit.weights().items()}
    except TrainingDiverged as error:
        raise StudyError(
            f"Trial {trial.key} cannot be trained again: {error}. Confirm the study without a "
            "refit."
        ) from error
    finally:
        if isinstance(fit, OwnFit):
            fit.close()
    where = open_trial_folder(trial_folder(folder, trial.key))
    where.save(where.owner(), REFIT_WEIGHTS, lambda path: save_file(tensors, path))
    return Refitted(trial.key, fit.epoch)


def _begin(trial: TrialState, created: Created, pooled: Store) -> Fit:
    from sftsearch.trainables.catalog import build_model
    from sftsearch.trainables.own_fit import begin_fit

    one, seed = trial.configuration, trial.key.replicate
    bound = bind(one.model, one.parameters, created.training, pooled.spec)
    epochs = len(trial.curve) or bound.train_config.epochs
    config = dataclasses.replace(
        bound.train_config, epochs=epochs, patience=None, score_epoch="last", compile=False
    )
    model = build_model(one.model, pooled.spec, bound.model_config, seed)
    return begin_fit(model, pooled, config, seed=seed)
