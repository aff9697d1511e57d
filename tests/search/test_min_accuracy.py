"""The lowest accuracy of interest: what is below it is neither reported nor refined nor sought."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.storage.baseline_events import BaselineResult, BaselinesFitted
from sftsearch.search_spaces.mistakes import StudyFileError

from toy_study import Memory, Training, source_of, width

if TYPE_CHECKING:
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion

DIMS = range(8, 168, 8)


def truth(assignment: TrialSuggestion) -> float:
    """Return an accuracy that grows evenly with the width, from 0.31 at 8 to 0.5 at 160."""
    return 0.3 + 0.2 * float(str(assignment.parameters["dim"])) / 160


def searched(plan: str, *, sigma: float = 0.001) -> Search:
    memory = Memory(source_of(f"sampler: ehvi, {plan}", space=width(*DIMS)))
    _, search = memory.open()
    memory.drive(search, Training(truth=truth, sigma=sigma))
    return search


def baseline(name: str, top1: float) -> BaselineResult:
    return BaselineResult(
        name=name, description="", modalities=(), parameters={}, seed=0, fold=None,
        values={"top1": top1}, groups={},
    )  # fmt: skip


def widths(search: Search, ids: list[str]) -> list[int]:
    return [search.state.configurations[identity].parameters["dim"] for identity in ids]


@pytest.mark.medium
def test_only_configurations_of_interest_are_reported() -> None:
    """All widths are on the front; the accuracy is above 0.4 from a width of 88."""
    everything = searched("trials: 20")
    assert widths(everything, everything.known.surrogate.front()) == [*DIMS]
    some = searched("trials: 20, min_accuracy: 0.402")
    assert widths(some, some.known.surrogate.front()) == [d for d in DIMS if d >= 88]


@pytest.mark.medium
def test_the_best_is_reported_if_nothing_is_of_interest() -> None:
    search = searched("trials: 20, min_accuracy: 0.9")
    assert widths(search, search.known.surrogate.front()) == [160]


@pytest.mark.medium
def test_worse_configurations_get_no_more_replicates() -> None:
    plan = "trials: 60, replicates: {min: 1, max: 5}"
    numbers = {"": 0, ", min_accuracy: 0.402": 0}
    for limit in numbers:
        search = searched(plan + limit, sigma=0.01)
        repeated = [o.parameters["dim"] for o in search.known.past.all if o.num_replicates > 1]
        numbers[limit] = sum(dim < 72 for dim in repeated)
        assert repeated
    assert [number > 0 for number in numbers.values()] == [True, False]


@pytest.mark.medium
def test_sampler_does_not_look_for_worse_configurations() -> None:
    """After the startup, with half of the widths below the limit."""
    proposed = [o.parameters["dim"] for o in searched("trials: 12").known.past.all][6:]
    limited = searched("trials: 12, min_accuracy: 0.402").known.past.all
    assert min(proposed) < 88
    assert all(o.parameters["dim"] >= 80 for o in limited[6:])


@pytest.mark.medium
@pytest.mark.parametrize("known", [True, False])
def test_best_baseline_can_be_the_limit(known: bool) -> None:
    memory = Memory(
        source_of("sampler: ehvi, trials: 20, min_accuracy: baseline", space=width(*DIMS))
    )
    journal, search = memory.open()
    results = [baseline("linear", 0.402), baseline("mlp", 0.35), baseline("majority", 0.2)]
    if known:
        search.record(BaselinesFitted(results=results, num_fitted=3))
    memory.drive(search, Training(truth=truth, sigma=0.001))
    expected = [dim for dim in DIMS if dim >= 88 or not known]
    assert widths(search, search.known.surrogate.front()) == expected
    _, resumed = memory.open(list(journal.events()))
    assert widths(resumed, resumed.known.surrogate.front()) == expected


def test_deterministic_study_needs_a_number() -> None:
    with pytest.raises(StudyFileError, match=r"`deterministic` needs a number for `min_accuracy`"):
        _ = source_of("trials: 5, deterministic: true, min_accuracy: baseline").study
