"""Workers that train nothing, for tests of resources and of the end of trials."""

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
    """Return the only report of a trial, which is also the last."""
    return {"epochs": [], "final": {"values": values, "groups": {}, "facts": facts}}


class Idle:
    """Keeps the spec of its trial."""

    def start(self, spec: TrialSpec) -> None:
        self.spec = spec

    def step(self) -> WorkerReport:
        return finished({"top1": 0.5, **self.spec.cost})


class Brief(Idle):
    """Ends faster than a process starts; reports the id of its process."""

    def step(self) -> WorkerReport:
        time.sleep(0.1)
        return finished({"top1": 0.5, **self.spec.cost}, process=os.getpid())


class Noting(Idle):
    """Records when and with which GPU it ran."""

    def start(self, spec: TrialSpec) -> None:
        self.spec, self.began = spec, time.time()
        Path(spec.folder).mkdir(parents=True, exist_ok=True)

    def step(self) -> WorkerReport:
        if self.spec.device == "cuda":  # wait for the second process to start
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
