"""Workers that train nothing, for tests of what Ray gives trials and of how they end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.execution.reports import WorkerReport
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec


def finished(values: dict[str, float], **facts: object) -> WorkerReport:
    """Return the only report of a trial, with its end."""
    return {"epochs": [], "final": {"values": values, "groups": {}, "facts": facts}}


class Idle:
    """Notes the trial that it takes up."""

    def start(self, spec: TrialSpec) -> None:
        self.spec = spec

    def step(self) -> WorkerReport:
        return finished({"top1": 0.5, **self.spec.cost})


class Brief(Idle):
    """Ends in less time than a process takes to start; tells in which one it ran."""

    def step(self) -> WorkerReport:
        time.sleep(0.1)
        return finished({"top1": 0.5, **self.spec.cost}, process=os.getpid())


class Noting(Idle):
    """Notes when and with which GPU it ran."""

    def start(self, spec: TrialSpec) -> None:
        self.spec, self.began = spec, time.time()
        Path(spec.folder).mkdir(parents=True, exist_ok=True)

    def step(self) -> WorkerReport:
        if self.spec.device == "cuda":  # the second process takes its time to start: wait for it
            deadline = time.monotonic() + 60
            while len(list(Path(self.spec.folder).parent.iterdir())) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        time.sleep(0.3)
        note = {
            "began": self.began,
            "ended": time.time(),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "device": self.spec.device,
            "threads": self.spec.threads,
        }
        (Path(self.spec.folder) / "note.json").write_text(json.dumps(note))
        return super().step()
