"""Trial specs for tests of workers: a small SFT on synthetic data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.execution.reports import is_last
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.trainables.catalog import MODELS

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.execution.worker import Worker

PARAMETERS = {"dim": 8, "num_heads": 2, "fused_layers": 1}
TRAINING = {"epochs": 4, "batch_size": 256}


def trial_spec(folder: Path, dataset: str = "synthetic", **changed: Any) -> TrialSpec:
    """Return the spec of a small model's trial, with changes."""
    spec = describe(dataset)
    bound = bind("sft", PARAMETERS, TRAINING, spec)
    cost = dataclasses.asdict(MODELS["sft"].cost(spec, bound.model_config))
    plain = TrialSpec(
        key="c-0",
        folder=str(folder),
        dataset=dataset,
        num_folds=None,
        model="sft",
        parameters=PARAMETERS,
        training=TRAINING,
        seed=0,
        cost=cost,
        num_journalled=0,
        threads=1,
        device="cpu",
    )
    return dataclasses.replace(plain, **changed)


def run(worker: Worker) -> list[Any]:
    """Train the worker's trial to its end; return all reports."""
    reports = [worker.step()]
    while not is_last(reports[-1]):
        reports.append(worker.step())
    return reports
