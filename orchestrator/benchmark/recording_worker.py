"""What a trial of a recorded table leaves: every decision on validation and test, each epoch.

A table is a benchmark of search methods, not a search: its trials look at the test split, so that
what a search would have chosen can be judged on it. The journal marks such a study (`recorded`).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.execution.worker import TrainingWorker

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.execution.worker import Job

DECISIONS = "decisions.npz"
"""`validation` and `test`: (E, N / 8) bits, right or not, by epoch and sample; `cpu_seconds`: (E,)
of the process, which other work on the machine does not lengthen."""


class RecordingWorker(TrainingWorker):
    """Trains without checkpoints: a trial that was interrupted begins anew and must repeat itself.

    Neither weights nor latency are kept.
    """

    def _prepare(self, job: Job) -> Any:
        from sftsearch.trainables.evaluation import Batches

        fit = super()._prepare(job)
        store = self._open(job)
        self._test = store.split("test", unseal_test=True)
        self._test_batches = Batches(store, self._test, fit.model.modalities, job.device)
        self._bits: dict[str, list[Any]] = {"validation": [], "test": []}
        self._cpu_seconds: list[float] = []
        return fit

    def _run_epoch(self) -> None:
        from sftsearch.trainables.evaluation import EVALUATION_BATCH, is_right, predict

        start = time.process_time()
        self._fit.run_epoch()
        self._cpu_seconds.append(time.process_time() - start)
        outputs = predict(self._fit.network, self._test_batches, EVALUATION_BATCH)
        right = is_right(self._fit.task, outputs, self._test)
        self._bits["validation"].append(np.packbits(self._fit.right))
        self._bits["test"].append(np.packbits(right))

    def _final(self) -> dict[str, Any]:
        job, fit = self._assigned(), self._fit
        self._save(DECISIONS, self._write_decisions)
        values = fit.result() | job.cost
        values["seconds"] = math.fsum(epoch["seconds"] for epoch in fit.history)
        return {"values": values, "groups": fit.groups(), "facts": self._facts()}

    def _write_decisions(self, path: Path) -> None:
        unfinished = path.with_suffix(".part.npz")
        np.savez(
            unfinished,
            cpu_seconds=self._cpu_seconds,
            validation=self._bits["validation"],
            test=self._bits["test"],
        )
        unfinished.replace(path)
