"""Train trials of a recorded table and save every validation and test decision of each epoch.

A table benchmarks search methods. Its trials use the test split, so that the choices of a search
can be evaluated on it. The journal marks such a study as `recorded`.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.execution.worker import TrainingWorker

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.orchestrator.execution.reports import FinalReport
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.trainables.fit import Fit

DECISIONS = "decisions.npz"
"""`validation` and `test`: (E, N / 8) packed bits, correct or not, by epoch and sample;
`cpu_seconds`: (E,) of the process, which do not depend on other load of the machine."""


class RecordingWorker(TrainingWorker):
    """Train without checkpoints: an interrupted trial restarts and must reproduce its epochs.

    Neither weights nor latency are saved.
    """

    def prepare(self, spec: TrialSpec) -> Fit:
        """Open the test split in addition; see `TrainingWorker.prepare`."""
        from sftsearch.trainables.evaluation import Batches

        fit = super().prepare(spec)
        store = self.open_store(spec)
        self._test = store.split("test", unseal_test=True)
        self._test_batches = Batches(store, self._test, fit.model.modalities, spec.device)
        self._bits: dict[str, list[Any]] = {"validation": [], "test": []}
        self._cpu_seconds: list[float] = []
        return fit

    def run_epoch(self) -> None:
        """Train an epoch and store every decision, without a checkpoint."""
        from sftsearch.trainables.evaluation import EVALUATION_BATCH, is_right, predict

        start = time.process_time()
        self.fit.run_epoch()
        self._cpu_seconds.append(time.process_time() - start)
        outputs = predict(self.fit.network, self._test_batches, EVALUATION_BATCH)
        right = is_right(self.fit.task, outputs, self._test)
        self._bits["validation"].append(np.packbits(self.fit.right))
        self._bits["test"].append(np.packbits(right))

    def final_report(self) -> FinalReport:
        """Save the decisions and return the final report."""
        fit = self.fit
        self.save(DECISIONS, self._write_decisions)
        values = fit.result() | self.spec.cost
        values["seconds"] = math.fsum(epoch["seconds"] for epoch in fit.history)
        return {"values": values, "groups": fit.groups(), "facts": self.facts()}

    def _write_decisions(self, path: Path) -> None:
        unfinished = path.with_suffix(".part.npz")
        np.savez(
            unfinished,
            cpu_seconds=self._cpu_seconds,
            validation=self._bits["validation"],
            test=self._bits["test"],
        )
        unfinished.replace(path)
