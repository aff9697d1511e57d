"""Fits of the surrogate are journalled once each and restored from the journal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sftsearch.orchestrator.surrogate.fitted_model import REFIT

from toy_study import Memory, Training, source_of, uneven

PLAN = (
    "sampler: ehvi, trials: 40, replicates: {min: 1, max: 3, fresh: 1}, early_stopping: dominated"
)


@pytest.fixture(scope="module")
def study() -> tuple[Memory, Training]:
    return Memory(source_of(PLAN, epochs=4), slots=2), Training(epochs=4, truth=uneven, sigma=0.02)


@pytest.mark.medium
def test_search_journals_each_fit_once(study: tuple[Memory, Training]) -> None:
    memory, training = study
    journal, search = memory.open()
    memory.drive(search, training)
    fits = [event.body["num"] for event in journal.events() if event.kind == "fitted"]
    assert len(fits) > 3
    assert all(later >= REFIT * earlier for earlier, later in itertools.pairwise(fits))
    assert search.known.surrogate.last_fit is not None
    assert search.known.surrogate.last_fit.num == fits[-1]


@pytest.mark.medium
def test_surrogate_queries_do_not_change_the_journal(
    study: tuple[Memory, Training],
) -> None:
    memory, training = study
    journal, search = memory.open()
    memory.drive(search, training)
    before = journal.last_id
    number = search.known.optuna.num_proposals
    for _ in range(2):
        search.known.surrogate.posterior()
        search.known.surrogate.draws(10)
        search.known.surrogate.best_replicate(3)
        search.known.surrogate.best_new(number, 1)
        search.known.surrogate.gain_ahead(number, 3)
        search.known.surrogate.compare(number, 1)
        assert search.exhausted
    assert journal.last_id == before


@pytest.mark.medium
def test_search_restores_its_last_fit_from_the_journal(study: tuple[Memory, Training]) -> None:
    """With the measurements of that time, after a kill at each fit."""
    memory, training = study
    journal, search = memory.open()
    memory.drive(search, training)
    events = list(journal.events())
    cuts = [i + 1 for i, event in enumerate(events) if event.kind == "fitted"]
    for cut in cuts:
        _, resumed = memory.open(events[:cut])
        fitted = resumed.known.surrogate.last_fit
        assert fitted is not None
        assert fitted.num == events[cut - 1].body["num"] == fitted.fitted_on.num_known
        assert fitted.hyperparameters.lengthscales.tolist() == events[cut - 1].body["lengthscales"]
    _, whole = memory.open(events[: len(events) - 1])
    one, other = search.known.surrogate.posterior(), whole.known.surrogate.posterior()
    assert np.array_equal(one.means, other.means)
    assert np.array_equal(one.deviations, other.deviations)
