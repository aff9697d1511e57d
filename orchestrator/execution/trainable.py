"""What Tune runs: a warm actor that trains one trial after another, by a worker or a group."""

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
"""The one key of a Tune configuration: a `TrialSpec` as JSON text."""
REPORT = "sftsearch"
"""The one key of a Tune result that is ours: the worker's report as JSON text."""


class TrialActor(tune.Trainable):
    """A worker in a warm actor: one trial after another in the same process."""

    worker_type: type[Worker] = TrainingWorker

    def setup(self, config: dict[str, str]) -> None:
        """Note the first trial; the worker is made with it."""
        self._single: Worker | None = None
        self._group: WorkerGroup | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Note the next trial of the same process; the first step begins it.

        To Tune a trial runs from its first step on, and only then can its time be measured.
        """
        self._spec, self._begun = TrialSpec.from_json(new_config[SPEC]), False
        return True

    def step(self) -> dict[str, str | bool]:
        """Train one epoch; an error of the worker itself fails the trial and keeps the process."""
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
        """End what this process started."""
        if self._group is not None:
            self._group.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the worker keeps its own checkpoint in the trial's folder."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Do nothing: the worker keeps its own checkpoint in the trial's folder."""


def actor_of(worker: type[Worker]) -> type[TrialActor]:
    """Return the actor whose trials a type of worker trains."""
    return type("TrialActor", (TrialActor,), {"worker_type": worker})
