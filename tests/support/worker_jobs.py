"""Trials for tests of workers: a small SFT on synthetic data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.execution.worker import Job, TrainingWorker
from sftsearch.trainables.catalog import MODELS

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = {"dim": 8, "num_heads": 2, "fused_layers": 1}
TRAINING = {"epochs": 4, "batch_size": 256}


def job(folder: Path, dataset: str = "synthetic", **changed: Any) -> Job:
    spec = describe(dataset)
    bound = bind("sft", PARAMETERS, TRAINING, spec)
    cost = dataclasses.asdict(MODELS["sft"].cost(spec, bound.model_config))
    plain = Job(
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


def run(worker: TrainingWorker) -> list[dict[str, Any]]:
    reports = [worker.step()]
    while "final" not in reports[-1] and "failed" not in reports[-1]:
        reports.append(worker.step())
    return reports
