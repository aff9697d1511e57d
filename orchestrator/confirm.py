"""Confirmation: the one look at the test split.

The front of a finished study is frozen, each of its trials is evaluated on the test split with the
weights it ended with, and the look is journalled before anything of it is shown. A second call
returns what the first one recorded. Where the front has fresh replicates, which it got after it was
chosen, those alone are looked at; else all of its replicates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.folds import fold_of, open_fold
from sftsearch.orchestrator.analysis import front as fronts
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.storage import study_record
from sftsearch.orchestrator.storage.journal import Journal
from sftsearch.orchestrator.storage.trial_files import WEIGHTS, open_trial_folder
from sftsearch.orchestrator.study import StudyError, axes_of, read_record, trial_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.storage.study_record import StudyRecord, TrialRecord


def confirm_study(
    folder: Path, *, on_trial: Callable[[int, int, str], None] | None = None
) -> StudyRecord:
    """Evaluate a study's front on the test split, once, on the record.

    Args:
        folder: the study's folder.
        on_trial: hears of each trial: how many are done, how many there are, its key.

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
        return _confirm(folder, journal, seen, on_trial)


def _confirm(
    folder: Path,
    journal: Journal,
    seen: StudyRecord,
    on_trial: Callable[[int, int, str], None] | None,
) -> StudyRecord:
    last = [event for event in journal.events() if event.kind in ("opened", "ended")]
    if not last or last[-1].kind != "ended" or not last[-1].body["complete"]:
        raise StudyError(
            f"The study '{seen.name}' is not finished, and its front is not final: run it to its "
            "end with --resume, then confirm it."
        )
    x, y = axes_of(seen)
    front = fronts.summarise(seen, x=x, y=y).points
    chosen = {(point.configuration_id, seed) for point in front for seed in point.seeds}
    trials = [trial for trial in seen.trials if (trial.configuration_id, trial.seed) in chosen]
    created = next(event.body for event in journal.events() if event.kind == "created")
    store = open_dataset(seen.dataset, root=seen.root)
    if store.spec.fingerprint != created["definition"]["fingerprint"]:
        raise StudyError(
            f"The data set '{seen.dataset}' is not the one the study '{seen.name}' was run on "
            "(its fingerprint differs), so its test split says nothing about this front."
        )
    results = {}
    for done, trial in enumerate(trials):
        if on_trial:
            on_trial(done, len(trials), trial.key)
        results[trial.key] = _evaluate(folder, trial, created["definition"], store)
    journal.append("confirmed", trials=results)
    return study_record.from_events(journal.events())


def _evaluate(
    folder: Path, trial: TrialRecord, definition: dict[str, Any], store: Store
) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sftsearch.trainables.catalog import build_model
    from sftsearch.trainables.evaluation import evaluate

    folds = definition.get("folds")
    bound = bind(trial.model, trial.configuration, definition["training"], store.spec)
    store = open_fold(store, fold_of(trial.seed, folds), folds)  # for what it was scaled by
    model = build_model(trial.model, store.spec, bound.model_config, trial.seed)
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
            f"'{where}/{WEIGHTS}'. Beyond `resources.keep_gb` those far below the front go."
        ) from error
    split = store.split("test", unseal_test=True)
    evaluation = evaluate(model, store, split, bound.train_config)
    if not all(math.isfinite(value) for value in evaluation.metrics.values()):
        raise StudyError(f"Trial {trial.key} gives test values that are not finite.")
    return {"values": evaluation.metrics, "groups": evaluation.groups}
