"""Run a search on Ray Tune.

Tune places trials on CPUs and GPUs and keeps actors warm. `Search` makes all decisions. Tune's
experiment state is never restored: a study resumes from the journal.
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
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Run a search on the connected Ray, to its end or until it is interrupted.

    Args:
        search: decides which trials run.
        resources: of a trial, and its time limit.
        make_spec: converts a suggestion into the spec for a worker.
        max_concurrent_trials: how many trials fit on the current nodes.
        patience: seconds to wait while no node fits a trial.
        worker: trains a trial.
        notice: called with a message when an interrupt is handled or the head node is down.
        poll: called several times a second, from the first report of a trial on.

    Raises:
        UserError: the search cannot continue; `--resume` continues once the cause is fixed.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the journal
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
            poll=poll,
            max_trial_hours=resources.max_trial_hours,
        )
        searcher.on_idle = scheduler.on_idle
        tuner = _tuner(searcher, scheduler, worker, scratch)
        try:
            tuner.fit()
        except Exception as error:
            raise outcome.error or error from error
        outcome.raise_error()


def _tuner(
    searcher: StudySearcher, scheduler: StudyScheduler, worker: type[Worker], scratch: str
) -> tune.Tuner:
    """Return a Tuner that uses our searcher and scheduler, without retries, files or output."""
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
    """Replaces Tune's default progress callback, which prints canceled trials."""

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Do nothing: the journal records how a trial ended."""
