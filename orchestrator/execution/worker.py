"""What happens to a trial where it runs: train, checkpoint, count, measure, log. Knows no Ray.

A worker is warm: it takes one trial after another in the same process. It never raises for what a
trial does; a trial that goes wrong is reported as failed, with its traceback in the trial's log.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sftsearch.datasets.remote import RemoteUnavailableError
from sftsearch.orchestrator.storage.trial_files import (
    CHECKPOINT,
    WEIGHTS,
    StaleTokenError,
    open_trial_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.storage.trial_files import TrialFolder

LOST, MEMORY, SPACE = "lost", "memory", "space"
"""Causes of failures that are no fault of the trial's: its process or folder is gone, others took
the memory, the disk is full or away."""
SIGNS = {
    MEMORY: ("out of memory", "can't allocate memory"),
    SPACE: ("No space left on device", "Disk quota exceeded", "File too large"),
}
"""How torch and Linux say it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A trial as a worker gets it: plain values that travel between processes."""

    key: str
    folder: str
    """The trial's folder, a path or a URI: log, checkpoint, final weights."""
    dataset: str
    num_folds: int | None
    """Grouped folds of the data set; the trial's is that of its seed. None: its own split."""
    model: str
    parameters: dict[str, Any]
    training: dict[str, Any]
    seed: int
    cost: dict[str, float]
    """Its price by closed form; the model that runs must count the same."""
    num_journalled: int
    threads: int
    device: str
    root: str | None = None
    """Where the data set's store is; None: built in, or prepared on this machine."""
    token: int = 0
    """Grows with every handing-out of a trial of the study."""
    resources: dict[str, float] = field(default_factory=dict)
    """What Ray gives each of its workers: CPU, GPU, memory, custom."""
    rank: int = 0
    workers: int = 1
    """Processes that train it together; this one's number is `rank`."""


class Worker(Protocol):
    """Trains trials one after another."""

    def start(self, job: Job) -> None:
        """Take up a trial, from its checkpoint if it has one."""

    def step(self) -> dict[str, Any]:
        """Train one epoch.

        Returns:
            `epochs`, a list of metrics by epoch that the journal lacks; at the end also `final`
            (`values`, `groups`, `facts`), or what `failure` gives.
        """


def failure(reason: str, cause: str = "") -> dict[str, Any]:
    """Return the report of a trial that cannot go on, with one of the known causes or none."""
    return {"epochs": [], "failed": reason, "cause": cause}


class TrainingWorker:
    """Trains fusion models on a memory-mapped store."""

    def __init__(self) -> None:
        self._stores: dict[tuple[str, str | None, int | None, int | None], Any] = {}
        self._job: Job | None = None
        self._folder: TrialFolder | None = None
        self._fit: Any = None
        self._problem: dict[str, Any] | None = None
        self._parallel: dict[str, Any] = {}
        self._reported = 0
        self._started = 0.0

    def start(self, job: Job) -> None:
        """Build the model and check its price; a problem is reported by the first `step`."""
        self._job, self._fit, self._problem, self._parallel = job, None, None, {}
        self._started = time.perf_counter()
        try:
            self._folder = open_trial_folder(job.folder, job.rank)
            self._folder.take_over(job.token)
            self._fit = self._prepare(job)
        except Exception as error:
            self._problem = self._explain(error)

    def step(self) -> dict[str, Any]:
        """Train one epoch; see `Worker.step`."""
        if self._problem:
            return self._problem
        try:
            return self._step()
        except Exception as error:
            return self._explain(error)

    def _prepare(self, job: Job) -> Any:
        import torch

        from sftsearch.orchestrator.candidates.binding import bind
        from sftsearch.trainables.catalog import build_model
        from sftsearch.trainables.cost import count_gmacs
        from sftsearch.trainables.distributed import Workers, normalizes_batches
        from sftsearch.trainables.fit import Fit

        torch.set_num_threads(job.threads)
        _reset_peak_memory(job.device)
        store = self._open(job)
        bound = bind(job.model, job.parameters, job.training, store.spec)
        model = build_model(job.model, store.spec, bound.model_config, job.seed)
        counted = {
            "gmacs": count_gmacs(model, store.spec, bound.model_config),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        for name, count in counted.items():
            if not math.isclose(count, job.cost[name], rel_tol=1e-12):
                raise RuntimeError(
                    f"The price says {name}={job.cost[name]!r}, but the model that runs counts "
                    f"{count!r}: the closed form of '{job.model}' is wrong."
                )
        workers = Workers(job.rank, job.workers)
        config, device = bound.train_config, job.device
        fit = Fit(model, store, config, seed=job.seed, device=device, workers=workers)
        if job.rank == 0:
            self._resume(fit)
        fit.follow_first()
        if job.workers > 1:
            self._parallel = {"workers": job.workers}
            if normalizes_batches(model):
                self._parallel["batch normalization"] = "of each worker's part of a batch"
                self._log("batch normalization is of each worker's part of a batch")
        # Epochs trained again, because no checkpoint was left, are reported again and compared.
        self._reported = min(job.num_journalled, fit.epoch)
        return fit

    def _open(self, job: Job) -> Any:
        """Return the store of the trial's data set, or of its fold; opened once."""
        from sftsearch.datasets.catalog import open_dataset
        from sftsearch.datasets.folds import fold_of, open_fold

        number = fold_of(job.seed, job.num_folds)
        key = (job.dataset, job.root, number, job.num_folds)
        if key not in self._stores:
            store = open_dataset(job.dataset, root=job.root)
            self._stores[key] = open_fold(store, number, job.num_folds)
        return self._stores[key]

    def _resume(self, fit: Any) -> None:
        from sftsearch.trainables.checkpoint import CheckpointError

        job, folder = self._assigned(), self._folder
        assert folder is not None, "start() comes first"
        with folder.load(CHECKPOINT) as checkpoint:
            if checkpoint is None:
                self._log(f"{job.key}: {job.model} {json.dumps(job.parameters)}, seed {job.seed}")
                return
            try:
                fit.load(checkpoint)
                self._log(f"going on after epoch {fit.epoch}")
            except CheckpointError as error:
                self._log(f"starting anew: {error}")

    def _step(self) -> dict[str, Any]:
        fit = self._fit
        if not fit.done:
            self._run_epoch()
        report: dict[str, Any] = {"epochs": fit.history[self._reported :]}
        self._reported = fit.epoch
        if fit.done:
            report["final"] = self._final() if self._assigned().rank == 0 else {}
        return report

    def _run_epoch(self) -> None:
        metrics = self._fit.run_epoch()
        if self._assigned().rank:
            return
        # The checkpoint comes first: an epoch that was reported can be gone on from. Where it is
        # missing, the epochs after the last one are trained again.
        with contextlib.suppress(RemoteUnavailableError):
            self._save(CHECKPOINT, self._fit.save)
        self._log(" ".join(f"{name}={value:.5g}" for name, value in metrics.items()))

    def _final(self) -> dict[str, Any]:
        from safetensors.torch import save_file

        job, fit = self._assigned(), self._fit
        tensors = {name: t.contiguous() for name, t in fit.weights().items()}
        self._save(WEIGHTS, lambda path: save_file(tensors, path))
        # Where no gate chooses, every sample costs the same.
        values = {"gflops_expected": job.cost["gflops"]} | fit.result() | job.cost
        values["latency_ms"] = _latency_ms(fit)
        values["peak_memory_mb"] = _peak_memory_mb(job.device)
        values["seconds"] = math.fsum(epoch["seconds"] for epoch in fit.history)
        self._log(f"finished after {time.perf_counter() - self._started:.1f} s")
        return {"values": values, "groups": fit.groups(), "facts": self._facts()}

    def _facts(self) -> dict[str, Any]:
        import torch

        job = self._assigned()
        name = torch.cuda.get_device_name() if job.device == "cuda" else "cpu"
        facts = {"torch": torch.__version__, "device": name, "threads": job.threads}
        return facts | self._parallel

    def _explain(self, error: Exception) -> dict[str, Any]:
        """Write the traceback to the trial's log and return a report with the reason in a line."""
        # A log that cannot be written must not hide the reason.
        with contextlib.suppress(OSError, StaleTokenError):
            self._log(traceback.format_exc().rstrip())
        cause = _cause_of(error)
        name = "out of memory" if cause == MEMORY else type(error).__name__
        lines = str(error).strip().splitlines()
        return failure(f"{name}: {lines[0][:400]}" if lines else name, cause)

    def _log(self, line: str) -> None:
        job, stamp = self._assigned(), time.strftime("%Y-%m-%d %H:%M:%S")
        who = f"worker {job.rank}: " if job.workers > 1 else ""
        assert self._folder is not None, "start() comes first"
        with contextlib.suppress(RemoteUnavailableError):
            self._folder.log(job.token, f"{stamp} {who}{line}")

    def _save(self, name: str, write: Callable[[Path], None]) -> None:
        assert self._folder is not None, "start() comes first"
        self._folder.save(self._assigned().token, name, write)

    def _assigned(self) -> Job:
        assert self._job is not None, "start() comes first"
        return self._job


def _cause_of(error: Exception) -> str:
    if isinstance(error, StaleTokenError):
        return LOST
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, RemoteUnavailableError):
        return SPACE
    causes = (cause for cause, signs in SIGNS.items() if any(sign in str(error) for sign in signs))
    return next(causes, "")


def _latency_ms(fit: Any, *, repeats: int = 30) -> float:
    """Return the median time of the forward pass of one validation sample, after five warm-ups.

    In the trial's precision, never compiled.
    """
    import statistics

    import torch

    inputs, lengths, _ = next(fit.validation_batches.in_order(1))
    fit.model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(5 + repeats):
            start = time.perf_counter()
            fit.network(inputs, lengths)
            if fit.device == "cuda":
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def _reset_peak_memory(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the process so far
        return


def _peak_memory_mb(device: str) -> float:
    """Return the trial's peak: allocated CUDA memory, or resident memory of the process (MiB)."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10
