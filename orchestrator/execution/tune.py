"""Search on Ray Tune: Searcher, TrialScheduler and Trainable as thin adapters.

Tune places trials on CPUs and GPUs and keeps warm actors; it decides nothing and records nothing
that counts. Its own experiment state is never restored: a study resumes from the journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by Ray when it is imported: no usage reports, no csv/json/tensorboard files for each trial,
# no copies of Tune's own state.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `Interruption` hears it instead
# `Room` says how many trials are handed out. With one at a time, as Tune would have it, processes
# start one after another, and on a node that comes none does while trials end elsewhere.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "10000")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.execution import head_watch, tune_patches
from sftsearch.orchestrator.execution.placement import (
    NO_NODE_SECONDS,
    ResourceError,
    Room,
    placement_of,
)
from sftsearch.orchestrator.execution.worker import (
    LOST,
    MEMORY,
    SPACE,
    Job,
    TrainingWorker,
    failure,
)
from sftsearch.orchestrator.execution.worker_group import Team
from sftsearch.orchestrator.storage.event import TrialKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from sftsearch.orchestrator.execution.worker import Worker
    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion
    from sftsearch.search_spaces.schema import Resources

REPORT = "sftsearch"
"""The one key of a Tune result that is ours: the worker's report as JSON text."""
RUNNING = "RUNNING"
"""Tune's name for it."""
DIED = "the worker process died (out of memory, killed, or lost with its node)"
NO_START = "error raised in its creation task"
"""How Ray says that an actor raised before it was there."""


class Interruption:
    """Ctrl-C while trials run: once, no new ones; twice, or SIGTERM, stop now.

    A signal is only counted: what follows from it is done between two steps of Tune. After the
    second, signals act as they did before. Python hears signals in its main thread alone; a study
    that runs in another one leaves them as they are.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.count = 2 if number == signal.SIGTERM else self.count + 1
        if self.count >= 2:
            self.__exit__()


class SearchAlgorithm(Searcher):
    """Tune asks for trials here; `Search` answers."""

    def __init__(
        self, search: Search, make_job: Callable[[TrialSuggestion], Job], room: Room
    ) -> None:
        super().__init__(metric=REPORT, mode="max")
        self._search = search
        self._make_job = make_job
        self._room = room
        self._jobs: dict[str, Job] = {}
        """What runs, by Tune's id of the trial."""
        self.closing = False
        """Whether no trial is to be added any more."""
        self.reasons: dict[str, str] = {}
        """Why a trial's process was ended, by Tune's id of the trial."""
        self.problem: UserError | None = None
        """Why the search itself cannot go on (a full disk under the journal, say)."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its parts to restore them, and nothing is ever restored from it."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial as Tune's configuration, None for none now, FINISHED at the end."""
        with self._noting_problems():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> Any:
        if self.closing or self.problem is not None:
            return Searcher.FINISHED
        if self._search.num_running >= self._room.limit():
            return None
        assignment = self._search.propose()
        if assignment is None:
            return Searcher.FINISHED if self._search.exhausted else None
        job = self._jobs[trial_id] = self._make_job(assignment)
        return {"job": json.dumps(dataclasses.asdict(job))}

    def check(self) -> None:
        """Raise where the search cannot go on, or nothing is left to run trials on.

        What is raised as Tune passes a result on, it takes for a fault of the trial, and goes on.
        """
        if self.problem is not None:
            raise self.problem
        with self._noting_problems():
            self._room.limit()

    def hear(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Pass a worker's report on; return whether the trial goes on."""
        with self._noting_problems():
            return self._hear(trial_id, result)

    def _hear(self, trial_id: str, result: dict[str, Any]) -> bool:
        job, report = self._jobs[trial_id], json.loads(result[REPORT])
        key = TrialKey.parse(job.key)
        if report["token"] != job.token:
            return False  # of an actor that this trial was taken from
        for metrics in report["epochs"]:
            if not self._search.report(key, metrics):
                return False
        if "failed" in report:
            self._hear_of_failure(job, report["failed"], report["cause"])
        elif "final" in report:
            self._search.finish(key, **report["final"])
        return True

    def _hear_of_failure(self, job: Job, reason: str, cause: str) -> None:
        if cause == SPACE:
            raise ResourceError(
                f"Trial {job.key} cannot write '{job.folder}': {reason}. The study stops here and "
                "loses nothing: mend the disk and resume."
            )
        hears = {LOST: self._search.on_worker_lost, MEMORY: self._search.on_out_of_memory}
        hears.get(cause, self._search.on_failure)(TrialKey.parse(job.key), reason)

    @contextlib.contextmanager
    def _noting_problems(self) -> Iterator[None]:
        """Keep a problem of our own: Tune would wrap it in a traceback of its own."""
        try:
            yield
        except UserError as error:
            self.problem = error
            raise

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler heard of it."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hear the last report; a trial whose process died has none."""
        if self.problem is not None:
            pass  # what ran goes on with --resume
        elif error and trial_id in self.reasons:
            with self._noting_problems():
                self._search.on_failure(self._key(trial_id), self.reasons.pop(trial_id))
        elif error:
            with self._noting_problems():
                self._search.on_worker_lost(self._key(trial_id), DIED)
        elif result is not None and result.get("done") and REPORT in result:
            self.hear(trial_id, result)
        self._jobs.pop(trial_id, None)

    def _key(self, trial_id: str) -> TrialKey:
        return TrialKey.parse(self._jobs[trial_id].key)

    def hear_of_no_start(self, reason: str) -> None:
        """Hear that a process raised before it took up a trial: so would all others."""
        self.problem = ResourceError(
            f"Ray cannot start the trials' processes: {reason}. Every node needs the same "
            "sftsearch (or --ship-code) and what the study uses. What ran is kept: mend it, and go "
            "on with --resume."
        )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the record."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the journal is the record."""


class Scheduler(FIFOScheduler):
    """Tune asks here whether a trial goes on; `Search` answers.

    Tune also asks here, several times a second, what to start next: then it is seen to what no
    report of a trial tells of, interrupts and trials that take too long.
    """

    def __init__(
        self,
        algorithm: SearchAlgorithm,
        interruption: Interruption,
        notice: Callable[[str], None],
        trial_hours: float | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._algorithm = algorithm
        self._interruption = interruption
        self._notice = notice
        self._trial_hours = trial_hours
        self._began: dict[str, float] = {}
        """When each trial was first seen running, by Tune's id of it."""
        self._count = 0
        """Interrupts that were acted on."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing; see `SearchAlgorithm`."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass an epoch's report on."""
        goes_on = self._algorithm.hear(trial.trial_id, result)
        decision: str = FIFOScheduler.CONTINUE if goes_on else FIFOScheduler.STOP
        return decision

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Act on interrupts and on trials that take too long; then start trials in order."""
        self._algorithm.check()
        live = list(tune_controller.get_live_trials())
        count = self._interruption.count
        if count > self._count:
            self._count = count
            self._interrupt(tune_controller, live, now=count >= 2)
        self._end_overdue([trial for trial in live if trial.status == RUNNING])
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Look whether the process could not even start; else the search algorithm hears of it."""
        text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
        if NO_START in text:
            self._algorithm.hear_of_no_start(text.strip().splitlines()[-1].strip())

    def _interrupt(self, tune_controller: Any, live: list[Any], *, now: bool) -> None:
        """Take back the trials that wait; `now`, end those that run as well."""
        self._algorithm.closing = True
        running = [trial for trial in live if trial.status == RUNNING]
        if now:
            self._notice("Stopping now.")
        else:
            self._notice(
                f"No new trials: the {len(running)} running are finished, then the report is "
                "written. Ctrl-C again stops now; --resume goes on either way."
            )
        actors = [trial.temporary_state.ray_actor for trial in running]
        for trial in live:
            if now or trial not in running:
                tune_controller.stop_trial(trial)
        for actor in actors if now else ():
            ray.kill(actor)  # Tune itself would wait for the epoch to end

    def _end_overdue(self, running: list[Any]) -> None:
        """End the process of a trial that takes too long: Tune then tells that it died."""
        if self._trial_hours is None:
            return
        moment = time.monotonic()
        for trial in running:
            began = self._began.setdefault(trial.trial_id, moment)
            overdue = moment - began > 3600 * self._trial_hours
            if overdue and trial.trial_id not in self._algorithm.reasons:
                self._algorithm.reasons[trial.trial_id] = (
                    f"it ran for longer than `resources.trial_hours` allows ({self._trial_hours:g})"
                )
                ray.kill(trial.temporary_state.ray_actor)


class Silence(TrialProgressCallback):
    """In place of the one Tune adds, which prints the trials that are taken back."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Nothing: the journal says what became of a trial."""


class Training(tune.Trainable):
    """A worker in a warm actor: one trial after another in the same process."""

    worker_type: type[Worker] = TrainingWorker

    def setup(self, config: dict[str, Any]) -> None:
        """Note the first trial; the worker is made with it."""
        self._single: Worker | None = None
        self._team: Team | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Note the next trial of the same process; the first step begins it.

        To Tune a trial runs from its first step on, and only then can its time be measured.
        """
        self._job, self._begun = Job(**json.loads(new_config["job"])), False
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; an error of the worker itself fails the trial and keeps the process."""
        try:
            worker = self._worker()
            if not self._begun:
                self._begun = True
                worker.start(self._job)
            report = worker.step()
        except Exception as error:
            report = failure(f"{type(error).__name__}: {error}")
        done = "final" in report or "failed" in report
        return {REPORT: json.dumps(report | {"token": self._job.token}), "done": done}

    def _worker(self) -> Worker:
        if self._job.workers > 1:
            self._team = self._team or Team(self.worker_type)
            return self._team
        self._single = self._single or self.worker_type()
        return self._single

    def cleanup(self) -> None:
        """End what this process started."""
        if self._team is not None:
            self._team.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the worker keeps its own checkpoint in the trial's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the worker keeps its own checkpoint in the trial's folder."""


@contextlib.contextmanager
def connected(address: str | None, *, ship_code: bool = False) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster, for the time of the block.

    A Ray that the caller already started is used as it is.

    Args:
        address: the cluster's; None: this machine.
        ship_code: send this sftsearch to the nodes, which then need only what it depends on.

    Raises:
        ResourceError: there is no cluster at `address`.
    """
    if ray.is_initialized():
        yield
        return
    if address is None and os.environ.get("RAY_AUTH_MODE") == "disabled":
        raise ResourceError(
            "RAY_AUTH_MODE is `disabled`: whoever reaches a port of this machine could run code "
            "in Ray. Unset it; or start Ray yourself and name it with --address."
        )
    if address not in (None, "auto"):
        _check_reachable(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
            _tighten_token()
        else:
            with tempfile.TemporaryDirectory(prefix="sftsearch-code-") as scratch:
                if ship_code:
                    quiet["runtime_env"] = {"py_modules": [_copy_code(Path(scratch))]}
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        where = "on this machine" if address is None else f"at '{address}'"
        raise ResourceError(f"Cannot start or reach Ray {where}: {first}") from error
    try:
        yield
    finally:
        disconnect()


def disconnect() -> None:
    """Leave Ray, or end the one that was started here.

    When a reference to one of its objects is dropped while Ray shuts down, it ends the whole
    process at once. Tune leaves such references in cycles, and any thread may be the one to collect
    them, that which writes to MLflow above all: so they are collected before, and none meanwhile.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _copy_code(scratch: Path) -> str:
    """Copy the packages of this sftsearch to one folder, wherever they are installed; return it."""
    folder = scratch / "sftsearch"
    for name in ("datasets", "orchestrator", "search_spaces", "trainables"):
        package = importlib.import_module(f"sftsearch.{name}")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(next(iter(package.__path__)), folder / name, ignore=ignored)
    return str(folder)


def _check_reachable(address: str) -> None:
    """Refuse an address nobody answers at; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://") or not host or not port.isdigit():
        raise ResourceError(
            f"`--address` must be `auto` or HOST:PORT of a Ray cluster, but got '{address}'. Run "
            "the driver on a machine of the cluster; `ray start` names the address."
        )
    try:
        head_watch.reach(address, timeout=5)
    except (OSError, OverflowError) as error:
        raise ResourceError(f"No Ray cluster answers at '{address}': {error}.") from error


def _tighten_token() -> None:
    """Ray writes its authentication token readable for everybody; only the owner needs it."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.is_file() and token.owner() == Path.home().owner():
        token.chmod(0o600)


def run(
    search: Search,
    resources: Resources,
    make_job: Callable[[TrialSuggestion], Job],
    *,
    slots: int,
    patience: float = NO_NODE_SECONDS,
    worker: type[Worker] = TrainingWorker,
    notice: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a search on the connected Ray, to its end or until it is interrupted.

    Args:
        search: what to train.
        resources: of a trial, and how long it may take.
        make_job: makes of a trial what its worker needs.
        slots: trials at a time.
        patience: seconds for which there may be no node for a trial.
        worker: what trains a trial.
        notice: hears what an interrupt does, and that Ray's head is gone.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are journalled and said
    algorithm = SearchAlgorithm(search, make_job, Room(resources, slots, patience))
    trainable = type("Training", (Training,), {"worker_type": worker})
    with (
        tempfile.TemporaryDirectory(prefix="sftsearch-tune-") as scratch,
        Interruption() as interruption,
        tune_patches.used_by_tune(),
        head_watch.watched(notice),
    ):
        scheduler = Scheduler(algorithm, interruption, notice, resources.trial_hours)
        tuner = tune.Tuner(
            tune.with_resources(
                trainable, lambda config: placement_of(Job(**json.loads(config["job"])))
            ),
            tune_config=tune.TuneConfig(
                search_alg=algorithm,
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
                callbacks=[Silence()],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_frequency=0, checkpoint_at_end=False
                ),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            raise algorithm.problem or error from error
        if algorithm.problem is not None:
            raise algorithm.problem
