"""A search on Ray Tune, from its first trial to its last.

Tune places trials on CPUs and GPUs and keeps warm actors; it decides nothing and records nothing
that counts. Its own experiment state is never restored: a study resumes from the journal.
"""

from __future__ import annotations

import logging
import tempfile
from typing import TYPE_CHECKING

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from sftsearch.orchestrator.execution.head_watch import watch_head_node
from sftsearch.orchestrator.execution.interrupts import Interruption
from sftsearch.orchestrator.execution.placement import (
    NO_NODE_SECONDS,
    ClusterCapacity,
    placement_of,
)
from sftsearch.orchestrator.execution.run_outcome import RunOutcome
from sftsearch.orchestrator.execution.scheduler import StudyScheduler
from sftsearch.orchestrator.execution.searcher import StudySearcher
from sftsearch.orchestrator.execution.trainable import SPEC, actor_of
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.tune_patches import patched_tune_controller
from sftsearch.orchestrator.execution.worker import TrainingWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.tune.experiment import Trial

    from sftsearch.orchestrator.execution.worker import Worker
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion
    from sftsearch.search_spaces.schema import Resources


def run(
    search: Search,
    resources: Resources,
    make_spec: Callable[[TrialSuggestion], TrialSpec],
    *,
    max_concurrent_trials: int,
    patience: float = NO_NODE_SECONDS,
    worker: type[Worker] = TrainingWorker,
    notice: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a search on the connected Ray, to its end or until it is interrupted.

    Args:
        search: what to train.
        resources: of a trial, and how long it may take.
        make_spec: makes of a trial what its worker needs.
        max_concurrent_trials: what fits on the nodes that are there now.
        patience: seconds for which there may be no node for a trial.
        worker: what trains a trial.
        notice: called with what an interrupt does, and when Ray's head is gone.

    Raises:
        UserError: the search cannot go on; with `--resume` it does, once that is fixed.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are journalled and said
    outcome = RunOutcome()
    capacity = ClusterCapacity(resources, max_concurrent_trials, patience)
    searcher = StudySearcher(search, make_spec, capacity, outcome)
    with (
        tempfile.TemporaryDirectory(prefix="sftsearch-tune-") as scratch,
        Interruption() as interruption,
        patched_tune_controller(),
        watch_head_node(notice),
    ):
        scheduler = StudyScheduler(
            searcher,
            capacity,
            outcome,
            interruption,
            notice=notice,
            max_trial_hours=resources.max_trial_hours,
        )
        tuner = _tuner(searcher, scheduler, worker, scratch)
        try:
            tuner.fit()
        except Exception as error:
            raise outcome.error or error from error
        outcome.raise_error()


def _tuner(
    searcher: StudySearcher, scheduler: StudyScheduler, worker: type[Worker], scratch: str
) -> tune.Tuner:
    """Return a Tuner that asks and tells us, retries nothing, keeps nothing and prints nothing."""
    return tune.Tuner(
        tune.with_resources(
            actor_of(worker), lambda config: placement_of(TrialSpec.from_json(config[SPEC]))
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            callbacks=[_NoProgress()],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
        ),
    )


class _NoProgress(TrialProgressCallback):
    """Stands in for the callback that Tune adds, which prints the trials that are taken back."""

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Do nothing: the journal says what became of a trial."""
