"""Evaluate the front of a finished study on the test split, once.

Each trial of the front is evaluated with its final weights. The results are journaled before they
are shown, and a second call returns the recorded results. If the front has fresh replicates, only
those are evaluated. The baselines are fitted again, which gives the same weights, and evaluated
beside it.

With a refit, all of them are trained again before, on training and validation together, for as many
epochs as in the study. Nothing is chosen any more, so the validation samples are free, and these
are the weights that an export contains.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Literal

from sftsearch.datasets.folds import open_fold
from sftsearch.orchestrator.analysis.front import FrontOptions, mark_front
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.deployment.trained import data_of, load_network, open_store_of
from sftsearch.orchestrator.plugins import check_plugins
from sftsearch.orchestrator.refit import refit_trial
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.events import Confirmed
from sftsearch.orchestrator.storage.journal import Journal, read_entries
from sftsearch.orchestrator.storage.trial_events import Refitted
from sftsearch.orchestrator.studies import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
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


def confirm_study(
    folder: Path,
    *,
    refit: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> StudyRecord:
    """Evaluate a study's front on the test split, once, and journal the results.

    Args:
        folder: the study's folder.
        refit: train the front and the baselines on training and validation before. Trainings are
            journaled; a call after an interruption does not repeat them.
        progress: called with the number of trials trained again and of all.

    Raises:
        StudyError: the study is not finished or is a recorded table, weights are missing, a
            training diverges, or the study was confirmed without the refit.
    """
    record = check_confirmable(folder)
    if record.confirmed:
        if refit and not record.refit:
            raise StudyError(
                f"The study '{record.name}' was confirmed without a refit, and the test split is "
                "evaluated once. Show the recorded values without --refit."
            )
        return record
    with Journal(folder) as journal:
        entries = list(journal.entries())
        done = {one.event.trial for one in entries if isinstance(one.event, Refitted)}
        state = StudyState.of(entries)
        created = state.created
        assert created is not None, "it has a front"
        trials, store = _front_trials(state), open_store_of(created)
        for number, trial in enumerate(trials if refit else ()):
            progress(number, len(trials))
            if trial.key not in done:
                state.apply(journal.append(refit_trial(folder, trial, created, store)))
        state.apply(journal.append(_evaluate_all(folder, state, trials, store, refit=refit)))
        return record_of(state)


def _front_trials(state: StudyState) -> list[TrialState]:
    """Return the trials whose values the front reports."""
    front = mark_front(record_of(state), FrontOptions()).points
    chosen = {TrialKey(point.configuration_id, seed) for point in front for seed in point.seeds}
    return [trial for key, trial in state.trials.items() if key in chosen]


def _evaluate_all(
    folder: Path, state: StudyState, trials: Sequence[TrialState], store: Store, *, refit: bool
) -> Confirmed:
    created = state.created
    assert created is not None, "it has trials"
    evaluated = {one.key: _evaluate(folder, one, created, store, refit=refit) for one in trials}
    values = {key: evaluation.metrics for key, evaluation in evaluated.items()}
    groups: dict[TrialKey, Groups] = {key: {**one.groups} for key, one in evaluated.items()}
    baselines = {
        key: _evaluate_baseline(one, created, store, refit=refit)
        for key, one in (state.baselines or {}).items()
    }
    return Confirmed(values, groups, baselines, refit, _average(evaluated, trials, created, store))


def _average(
    evaluated: Mapping[TrialKey, Evaluation],
    trials: Sequence[TrialState],
    created: Created,
    store: Store,
) -> dict[str, JSON]:
    """Score the mean probabilities of the replicates of each configuration with several."""
    from sftsearch.trainables.evaluation import average_outputs, score_outputs

    found: dict[str, JSON] = {}
    split, of_configuration = store.split("test", unseal_test=True), defaultdict(list)
    for trial in trials:
        of_configuration[trial.configuration.id].append(trial)
    for identity, members in of_configuration.items():
        if len(members) > 1:
            one = members[0].configuration
            bound = bind(one.model, one.parameters, created.training, store.spec)
            outputs = [evaluated[trial.key].outputs for trial in members]
            mean = average_outputs(store.spec.task, outputs)
            scored = score_outputs(mean, store, split, bound.train_config)
            tested = {"values": scored.metrics, "groups": scored.groups}
            found[identity] = {"members": len(members), **tested}
    return found


def _evaluate_baseline(
    record: BaselineRecord, created: Created, store: Store, *, refit: bool
) -> JSON:
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
    config = TrainConfig(regression_loss=loss)
    own = store if refit else open_fold(store, record.fold, created.folds)
    evaluation = confirm_baseline(own, baseline, config=config, with_validation=refit)
    return {"values": dict(evaluation.metrics), "groups": dict(evaluation.groups)}


def _evaluate(
    folder: Path, trial: TrialState, created: Created, store: Store, *, refit: bool
) -> Evaluation:
    from sftsearch.trainables.evaluation import evaluate

    seed, one = trial.key.replicate, trial.configuration
    own = data_of(store, created, seed, refit=refit)  # scaled as for the training
    model = load_network(folder, created, one, own, seed, refit=refit)
    bound = bind(one.model, one.parameters, created.training, own.spec)
    split = own.split("test", unseal_test=True)
    evaluation = evaluate(model, own, split, bound.train_config)
    if not all(math.isfinite(value) for value in evaluation.metrics.values()):
        raise StudyError(f"The test values of trial {trial.key} are not finite.")
    return evaluation
