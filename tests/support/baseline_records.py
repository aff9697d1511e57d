"""Records of baselines and trials with given counts of correct samples, 100 samples a subject."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.storage.study_record import BaselineRecord

from report_studies import trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import Groups, TrialRecord

COST = {"gflops": 0.001, "gmacs": 0.0005, "parameters": 50.0}


def groups_of(*correct: float, first: int = 0) -> Groups:
    return {f"s{first + n}": (right, 100.0) for n, right in enumerate(correct)}


def accuracy(groups: Groups) -> float:
    return sum(right for right, _ in groups.values()) / sum(count for _, count in groups.values())


def baseline(name: str, groups: Groups, fold: int | None = None, **changes: Any) -> BaselineRecord:
    record = BaselineRecord(
        name=name,
        description=f"what {name} is",
        modalities=("a", "b"),
        parameters={},
        seed=0,
        fold=fold,
        values={"top1": accuracy(groups), **COST},
        groups=groups,
    )
    return replace(record, **changes)


def trained(
    name: str, seed: int, groups: Groups, cost: float = 1.0, test: Groups | None = None
) -> TrialRecord:
    """Return a finished trial, with test counts if given."""
    values = {"top1": accuracy(groups), "gflops": cost}
    tested = None if test is None else {"top1": accuracy(test)}
    return trial(name, seed, values, groups=groups, test_values=tested, test_groups=test)


def baseline_tested(name: str, groups: Groups, test: Groups, **changes: Any) -> BaselineRecord:
    """Return a baseline with its counts on the test split."""
    values = {"top1": accuracy(test)}
    return baseline(name, groups, test_values=values, test_groups=test, **changes)
