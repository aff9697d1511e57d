"""Proposals have to surpass the baselines; a deterministic study waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.storage.baseline_events import BaselineResult, BaselinesFitted

from toy_study import Memory, Training, source_of, width

if TYPE_CHECKING:
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion

DIMS = range(8, 328, 8)
STARTUP = 6


def truth(assignment: TrialSuggestion) -> float:
    """Return an accuracy that grows evenly with the width, from 0.305 at 8 to 0.5 at 320."""
    return 0.3 + 0.2 * float(str(assignment.parameters["dim"])) / 320


def memory(plan: str) -> Memory:
    return Memory(source_of(f"sampler: ehvi, {plan}", space=width(*DIMS)))


def costs() -> dict[int, float]:
    """Return the cost of each width."""
    everything = memory(f"trials: {len(DIMS)}")
    _, search = everything.open()
    drive(everything, search)
    return {one.parameters["dim"]: one.cost["gflops"] for one in search.known.past.all}


def drive(of: Memory, search: Search) -> None:
    of.drive(search, Training(truth=truth, sigma=0.001))


def fitted(top1: float, gflops: float) -> BaselinesFitted:
    def one(name: str, top1: float, gflops: float) -> BaselineResult:
        return BaselineResult(
            name=name, description="", modalities=(), parameters={}, seed=0, fold=None,
            values={"top1": top1, "gflops": gflops}, groups={},
        )  # fmt: skip

    return BaselinesFitted(
        results=[one("linear", top1, gflops), one("majority", 0.2, 0.0)], num_fitted=2
    )


def proposed(search: Search) -> list[int]:
    """Return the widths proposed after the startup."""
    return [one.parameters["dim"] for one in search.known.past.all][STARTUP:]


@pytest.mark.medium
def test_what_a_baseline_dominates_is_not_proposed() -> None:
    """A baseline as cheap as width 80 and as accurate as width 240 dominates what is between."""
    event = fitted(0.3 + 0.2 * 240 / 320, costs()[80])
    plan = "trials: 16"
    free = memory(plan)
    _, without = free.open()
    drive(free, without)
    bound = memory(plan)
    journal, search = bound.open()
    search.record(event)
    drive(bound, search)
    between = range(88, 240)
    assert sum(dim in between for dim in proposed(without)) >= 3
    assert not [dim for dim in proposed(search) if dim in between]
    _, resumed = bound.open(list(journal.events()))
    assert resumed.known.past.alternatives == search.known.past.alternatives
    assert len(search.known.past.alternatives) == 1  # the majority class costs nothing


@pytest.mark.medium
def test_a_deterministic_study_waits_for_its_baselines() -> None:
    event = fitted(0.3 + 0.2 * 240 / 320, costs()[80])

    def started(search: Search, most: int = 100) -> list[int]:
        """Run trials, one at a time, until none can be added; return their widths."""
        found: list[int] = []
        while len(found) < most and (assignment := search.propose()) is not None:
            values = {"top1": truth(assignment), "seconds": 1.0, **assignment.cost}
            search.finish(assignment.key, values, {"s01": [1.0, 2.0]})
            found.append(int(str(assignment.parameters["dim"])))
        return found

    runs = []
    for early in (True, False):
        _, search = memory("trials: 16, deterministic: true").open()
        search.expect_baselines(True)
        if early:
            search.record(event)
        first = started(search)
        assert len(first) == (16 if early else STARTUP)
        if not early:
            assert not search.exhausted
            search.record(event)
        runs.append(first + started(search))
        assert search.exhausted
    assert runs[0] == runs[1]


@pytest.mark.medium
def test_a_study_whose_baselines_fail_goes_on() -> None:
    _, search = memory("trials: 16, deterministic: true").open()
    search.expect_baselines(True)
    for number in range(16):
        assignment = search.propose()
        if number == STARTUP and assignment is None:
            search.expect_baselines(False)
            assignment = search.propose()
        assert assignment is not None
        values = {"top1": truth(assignment), "seconds": 1.0, **assignment.cost}
        search.finish(assignment.key, values, {"s01": [1.0, 2.0]})
    assert search.exhausted


@pytest.mark.medium
def test_every_second_proposal_seeks_to_beat_a_baseline_that_nothing_beats() -> None:
    """A baseline that only the widest quarter beats: half of the proposals go there first."""
    event = fitted(0.3 + 0.2 * 250 / 320, costs()[8])
    plan = "trials: 12"
    numbers = []
    for known in (False, True):
        study = memory(plan)
        _, search = study.open()
        if known:
            search.record(event)
        drive(study, search)
        numbers.append([dim for dim in proposed(search) if dim > 250])
    assert len(numbers[1]) > len(numbers[0])
    assert len(numbers[1]) >= 3


@pytest.mark.medium
def test_with_folds_a_baseline_counts_by_its_first_fold() -> None:
    """First replicates are on the first fold, so a mean over folds would be of other people."""
    _, search = memory("trials: 8").open()
    results = [
        BaselineResult(
            name="linear", description="", modalities=(), parameters={}, seed=0, fold=fold,
            values={"top1": top1, "gflops": 1e-3}, groups={},
        )
        for fold, top1 in enumerate((0.9, 0.6, 0.5))
    ]  # fmt: skip
    search.record(BaselinesFitted(results=results, num_fitted=3))
    (one,) = search.known.past.alternatives
    assert one.value == 0.9
