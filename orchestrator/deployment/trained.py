"""Load the trained model of a configuration from the weights of its trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.folds import fold_of, open_fold, open_pooled
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.plugins import check_plugins
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.event import TrialKey
from sftsearch.orchestrator.storage.journal import read_entries
from sftsearch.orchestrator.storage.trial_files import REFIT_WEIGHTS, WEIGHTS, open_trial_folder
from sftsearch.orchestrator.studies import StudyError, trial_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState
    from sftsearch.trainables.deployed_model import DeployedModel
    from sftsearch.trainables.models.fusion import FusionModel


def load_trained(
    folder: Path, configuration_id: str, *, replicate: int | None = None, ensemble: bool = False
) -> DeployedModel:
    """Load a trained configuration of a study.

    Args:
        folder: the study's, as returned by `find_study`.
        configuration_id: of a finished configuration.
        replicate: which one; None: see `choose_replicates`.
        ensemble: average all replicates with weights instead.

    Raises:
        StudyError: there is no such configuration or replicate, its weights are missing or
            damaged, or the dataset has changed.
    """
    state = StudyState.of(read_entries(folder))
    seeds = choose_replicates(folder, state, configuration_id, replicate, ensemble=ensemble)
    return load_replicates(folder, state, configuration_id, seeds)


def choose_replicates(
    folder: Path,
    state: StudyState,
    configuration_id: str,
    replicate: int | None = None,
    *,
    ensemble: bool = False,
) -> tuple[int, ...]:
    """Return the replicates of a configuration to load.

    By default it is the first one with weights; if the configuration has fresh replicates, the
    first of these. The best on validation is not chosen: its accuracy would be biased by selection.
    An ensemble has all replicates with weights, or all fresh ones.

    Raises:
        StudyError: no replicate has weights, or not the given one.
    """
    configuration = _configuration(state, configuration_id)
    finished = sorted(configuration.values)
    if replicate is not None and replicate not in finished:
        known = ", ".join(map(str, finished)) or "none"
        raise StudyError(
            f"The configuration {configuration_id} has no finished replicate {replicate}. "
            f"Finished: {known}."
        )
    name = REFIT_WEIGHTS if state.facts.refit else WEIGHTS
    kept = [seed for seed in finished if _has_weights(folder, configuration_id, seed, name)]
    wanted = kept if replicate is None else [seed for seed in kept if seed == replicate]
    if not wanted:
        which = "any replicate" if replicate is None else f"replicate {replicate}"
        raise StudyError(
            f"There are no weights of {which} of the configuration {configuration_id}. Weights far "
            "below the front are deleted when they exceed `resources.max_weights_gb`: raise it to "
            "keep them, or choose a configuration of the front."
        )
    fresh = [seed for seed in wanted if seed in state.facts.fresh.get(configuration_id, ())]
    chosen = fresh or wanted
    return tuple(chosen) if ensemble else (chosen[0],)


def load_replicates(
    folder: Path, state: StudyState, configuration_id: str, seeds: Sequence[int]
) -> DeployedModel:
    """Load some replicates of a configuration as one model.

    Raises:
        StudyError: weights are missing or damaged, or the dataset has changed.
        PluginFileError: it needs a plug-in that is not loaded.
    """
    from sftsearch.trainables.deployed_model import DeployedModel, TrainedNetwork

    created, configuration = state.created, _configuration(state, configuration_id)
    assert created is not None, "it has a configuration"
    check_plugins(created.name, created.definition, created.facts)
    store = open_store_of(created)
    refit = state.facts.refit
    networks = []
    for seed in seeds:
        own = data_of(store, created, seed, refit=refit)
        network = load_network(folder, created, configuration, own, seed, refit=refit)
        networks.append(TrainedNetwork(store.spec, network, own.statistics))
    return DeployedModel(store.spec, networks)


def open_store_of(created: Created) -> Store:
    """Open the dataset of a study.

    Raises:
        StudyError: the dataset has changed since the study began.
    """
    store = open_dataset(created.dataset, root=created.root)
    if store.spec.fingerprint != created.definition["fingerprint"]:
        raise StudyError(
            f"The dataset '{created.dataset}' has changed since the study '{created.name}' (its "
            "fingerprint differs). Restore the original dataset to load its models."
        )
    return store


def _configuration(state: StudyState, configuration_id: str) -> ConfigurationState:
    found = state.configurations.get(configuration_id)
    if found is None:
        raise StudyError(f"The study has no configuration '{configuration_id}'.")
    return found


def _has_weights(folder: Path, configuration_id: str, seed: int, name: str) -> bool:
    where = trial_folder(folder, TrialKey(configuration_id, seed))
    return open_trial_folder(where).size(name) > 0


def data_of(store: Store, created: Created, seed: int, *, refit: bool) -> Store:
    """Return the store that a replicate was trained on: its fold, or all but the test split."""
    if refit:
        return open_pooled(store)
    return open_fold(store, fold_of(seed, created.folds), created.folds)


def load_network(
    folder: Path,
    created: Created,
    configuration: ConfigurationState,
    store: Store,
    seed: int,
    *,
    refit: bool,
) -> FusionModel:
    """Build the network of a replicate and load its weights.

    Args:
        folder: the study's.
        created: the study's first event.
        configuration: its configuration.
        store: see `data_of`.
        seed: the replicate.
        refit: load the weights of the training on training and validation.

    Raises:
        StudyError: the weights are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sftsearch.trainables.catalog import build_model

    model, name = configuration.model, REFIT_WEIGHTS if refit else WEIGHTS
    bound = bind(model, configuration.parameters, created.training, store.spec)
    network = build_model(model, store.spec, bound.model_config, seed)
    where = trial_folder(folder, TrialKey(configuration.id, seed))
    try:
        with open_trial_folder(where).load(name) as path:
            if path is None:
                raise FileNotFoundError("no such file")
            network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise StudyError(
            f"The weights of trial {configuration.id}-{seed} cannot be read ({first}): restore "
            f"'{where}/{name}'. Weights far below the front are deleted when they exceed "
            "`resources.max_weights_gb`."
        ) from error
    return network
