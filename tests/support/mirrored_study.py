"""Journals of made-up trials, and their runs in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.tracking.bookkeeping import num_mirrored
from sftsearch.orchestrator.tracking.client import open_client

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.storage import study_record

    from journals import Journal

CREATED: dict[str, Any] = {
    "name": "mirrored",
    "description": "A test.",
    "dataset": "synthetic",
    "num_seeds": 1,
    "objectives": [["top1", "maximize"], ["gflops", "minimize"]],
    "facts": {"fingerprint": "f" * 64, "sftsearch": "0"},
    "definition": {},
    "definition_hash": "d" * 64,
}
COST = {"gflops": 0.5, "gmacs": 0.25, "parameters": 10}


def add_trials(journal: Journal, first: int, last: int, *, epochs: int = 3) -> None:
    """Append the events of trials `first` to `last` - 1; every fifth trial fails."""
    if journal.last_id == 0:
        journal.append("created", **CREATED)
    journal.append("opened", trials=last, slots=1)
    for i in range(first, last):
        base = {"configuration_id": f"c{i:011d}", "model": "sft", "parameters": {"dim": i}}
        trial = f"c{i:011d}-0"
        journal.append("proposed", number=i, branch=0, values={"dim": i})
        journal.append("admitted", number=i, seeds=[0], cost=COST, **base)
        journal.append("started", trial=trial, epoch=0, seed=0, cost=COST, **base)
        for epoch in range(1, epochs + 1):
            metrics = {"epoch": epoch, "loss": 1 / epoch, "top1": i / 100 + epoch / 1000}
            journal.append("epoch", trial=trial, epoch=epoch, metrics=metrics)
        if i % 5 == 4:
            journal.append("failed", trial=trial, reason="it broke")
            continue
        groups = {"s1": [i / 7, 10.0], "s2": [1.0, 5.0]}
        values = {"top1": i / 100, **COST}
        journal.append("finished", trial=trial, values=values, groups=groups, facts={"torch": "2"})
        journal.append("told", number=i, state="complete", values=[i / 100, 0.5])
    journal.append("proposed", number=last, branch=0, values={"dim": last})
    journal.append("refused", number=last, reason="over limit", detail="", excess=0.1)
    journal.append("ended", reason="all trials ran", complete=True)


def lag(journal: Journal) -> int:
    """Return how many events MLflow does not have yet."""
    return journal.last_id - (num_mirrored(journal.folder) or 0)


def expected(journal: Journal) -> study_record.StudyRecord:
    return record_of(StudyState.of(journal.entries()))


def snapshot(uri: str, runs: Path) -> list[Any]:
    """Return everything that MLflow has of the study, by run."""
    client = open_client(uri, runs)
    experiment = client.get_experiment_by_name("mirrored")
    found = []
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        histories = {
            name: [(m.step, m.value, m.timestamp) for m in history]
            for name in sorted(run.data.metrics)
            if (history := client.get_metric_history(run.info.run_id, name))
        }
        found.append((run.info.run_id, run.info.status, run.data.params, histories, run.data.tags))
    return sorted(found)
