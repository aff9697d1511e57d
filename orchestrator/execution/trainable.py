"""Tune trainable: a warm actor that trains trials one after another, alone or with a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray import tune

from sftsearch.orchestrator.execution import reports
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.execution.worker_group import WorkerGroup

if TYPE_CHECKING:
    from sftsearch.orchestrator.execution.worker import Worker

SPEC = "spec"
"""The only key of a Tune configuration: a `TrialSpec` as JSON text."""
REPORT = "sftsearch"
"""Our key in a Tune result: the worker's report as JSON text."""


class TrialActor(tune.Trainable):
    """Runs one trial after another in the same process."""

    worker_type: type[Worker] = TrainingWorker

    def setup(self, config: dict[str, str]) -> None:
        """Store the first trial; the first step creates the worker."""
        self._single: Worker | None = None
        self._group: WorkerGroup | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Store the next trial of this process; its first step starts it.

        Tune counts a trial as running from its first step, so its time limit starts there too.
        """
        self._spec, self._begun = TrialSpec.from_json(new_config[SPEC]), False
        return True

    def step(self) -> dict[str, str | bool]:
        """Train one epoch; an error of the worker fails the trial but keeps the process."""
        try:
            worker = self._worker()
            if not self._begun:
                self._begun = True
                worker.start(self._spec)
            report = worker.step()
        except Exception as error:
            report = reports.failure(f"{type(error).__name__}: {error}")
        text = reports.to_json(report, self._spec.fencing_token)
        return {REPORT: text, "done": reports.is_last(report)}

    def _worker(self) -> Worker:
        if self._spec.workers > 1:
            self._group = self._group or WorkerGroup(self.worker_type)
            return self._group
        self._single = self._single or self.worker_type()
        return self._single

    def cleanup(self) -> None:
        """End the worker group, if there is one."""
        if self._group is not None:
            self._group.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the worker keeps its own checkpoint in the trial's folder."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Do nothing: the worker keeps its own checkpoint in the trial's folder."""


def actor_of(worker: type[Worker]) -> type[TrialActor]:
    """Return an actor class whose trials are trained by the given worker type."""
    return type("TrialActor", (TrialActor,), {"worker_type": worker})
