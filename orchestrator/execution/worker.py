"""Train a trial: checkpoint, count its cost, measure, log. Independent of Ray.

A worker runs one trial after another in the same process. It never raises for an error of a
trial: it reports the trial as failed and writes the traceback to the trial's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import traceback
from typing import TYPE_CHECKING, Protocol

from sftsearch.datasets.remote import RemoteUnavailableError
from sftsearch.orchestrator.execution.measurements import (
    latency_ms,
    measuring_alone,
    train_step_ms,
)
from sftsearch.orchestrator.execution.reports import FailureCause, failure
from sftsearch.orchestrator.storage.trial_files import (
    CHECKPOINT,
    WEIGHTS,
    StaleTokenError,
    open_trial_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sftsearch.datasets.store import Store
    from sftsearch.orchestrator.candidates.binding import Configuration
    from sftsearch.orchestrator.execution.reports import FinalReport, WorkerReport
    from sftsearch.orchestrator.execution.trial_spec import TrialSpec
    from sftsearch.orchestrator.storage.trial_files import TrialFolder
    from sftsearch.trainables.fit import Fit

SIGNS = {
    FailureCause.OUT_OF_MEMORY: ("out of memory", "can't allocate memory"),
    FailureCause.NO_SPACE: (
        "No space left on device",
        "Disk quota exceeded",
        "File too large",
    ),
}
"""Parts of the error messages of torch and Linux, by cause."""


class Worker(Protocol):
    """Trains trials one after another."""

    def start(self, spec: TrialSpec) -> None:
        """Prepare a trial, from its checkpoint if it has one."""

    def step(self) -> WorkerReport:
        """Train one epoch.

        Returns:
            the epochs that are not in the journal yet; the last report also has the final results,
            or comes from `failure`.
        """


class TrainingWorker:
    """Trains fusion models on a memory-mapped store."""

    def __init__(self) -> None:
        self._stores: dict[tuple[str, str | None, int | None, int | None], Store] = {}
        self._held = contextlib.ExitStack()
        """What ends with the current trial: a training function that waits for its next epoch."""
        self._spec: TrialSpec | None = None
        self._folder: TrialFolder | None = None
        self._fit: Fit | None = None
        self._bound: Configuration | None = None
        self._failure: WorkerReport | None = None
        self._parallel: dict[str, object] = {}
        self._reported = 0
        self._started = 0.0

    @property
    def spec(self) -> TrialSpec:
        """The current trial."""
        assert self._spec is not None, "call start() first"
        return self._spec

    @property
    def fit(self) -> Fit:
        """The training of the current trial."""
        assert self._fit is not None, "call start() first; it must have succeeded"
        return self._fit

    def start(self, spec: TrialSpec) -> None:
        """Build the model and check its cost; the first `step` reports an error."""
        self._held.close()
        self._spec, self._fit, self._failure, self._parallel = spec, None, None, {}
        self._started = time.perf_counter()
        try:
            self._folder = open_trial_folder(spec.folder, spec.rank)
            self._folder.take_over(spec.fencing_token)
            self._fit = self.prepare(spec)
        except Exception as error:
            self._failure = self._explain(error)

    def step(self) -> WorkerReport:
        """Train one epoch; see `Worker.step`."""
        if self._failure:
            return self._failure
        try:
            return self._step()
        except Exception as error:
            return self._explain(error)

    def prepare(self, spec: TrialSpec) -> Fit:
        """Build the training of a trial and load its checkpoint.

        Raises:
            RuntimeError: the model's counted cost differs from the spec's.
        """
        import torch

        from sftsearch.orchestrator.candidates.binding import bind
        from sftsearch.orchestrator.plugins import load_shipped
        from sftsearch.trainables.catalog import build_model
        from sftsearch.trainables.cost import count_gmacs
        from sftsearch.trainables.distributed import Workers, normalizes_batches
        from sftsearch.trainables.own_fit import OwnFit, begin_fit

        torch.set_num_threads(spec.threads)
        load_shipped(spec.plugins)
        store = self.open_store(spec)
        bound = self._bound = bind(spec.model, spec.parameters, spec.training, store.spec)
        model = build_model(spec.model, store.spec, bound.model_config, spec.seed)
        counted = {
            "gmacs": count_gmacs(model, store.spec, bound.model_config),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        _check_cost(spec, counted)
        workers = Workers(spec.rank, spec.workers)
        config, device = bound.train_config, spec.device
        fit = begin_fit(model, store, config, seed=spec.seed, device=device, workers=workers)
        if isinstance(fit, OwnFit):
            self._held.callback(fit.close)
        if spec.rank == 0:
            self._resume(fit)
        fit.follow_first()
        if spec.workers > 1:
            self._parallel = {"workers": spec.workers}
            if normalizes_batches(model):
                self._parallel["batch normalization"] = "of each worker's part of a batch"
                self._log("batch normalization uses each worker's part of a batch")
        # Epochs that are trained again without a checkpoint are reported again and compared.
        self._reported = min(spec.num_journalled, fit.epoch)
        return fit

    def open_store(self, spec: TrialSpec) -> Store:
        """Return the store of the trial's dataset or fold; each is opened once."""
        from sftsearch.datasets.catalog import open_dataset
        from sftsearch.datasets.folds import fold_of, open_fold

        number = fold_of(spec.seed, spec.num_folds)
        key = (spec.dataset, spec.root, number, spec.num_folds)
        if key not in self._stores:
            store = open_dataset(spec.dataset, root=spec.root)
            self._stores[key] = open_fold(store, number, spec.num_folds)
        return self._stores[key]

    def _resume(self, fit: Fit) -> None:
        from sftsearch.trainables.checkpoint import CheckpointError

        spec, folder = self.spec, self._trial_folder
        with folder.load(CHECKPOINT) as checkpoint:
            if checkpoint is None:
                drawn = json.dumps(spec.parameters)
                self._log(f"{spec.key}: {spec.model} {drawn}, seed {spec.seed}")
                return
            try:
                fit.load(checkpoint)
                self._log(f"resuming after epoch {fit.epoch}")
            except CheckpointError as error:
                self._log(f"starting from scratch: {error}")

    def _step(self) -> WorkerReport:
        fit = self.fit
        if not fit.done:
            self.run_epoch()
        report: WorkerReport = {"epochs": fit.history[self._reported :]}
        self._reported = fit.epoch
        if fit.done and fit.epoch < fit.config.epochs:
            self._log(f"`patience` ended the trial after epoch {fit.epoch}")
        if fit.done and self.spec.rank == 0:
            report["final"] = self.final_report()
        elif fit.done:
            report["final"] = {"values": {}, "groups": {}, "facts": {}}  # only rank 0's is used
        return report

    def run_epoch(self) -> None:
        """Train one epoch and write a checkpoint."""
        metrics = self.fit.run_epoch()
        if self.spec.rank:
            return
        # The checkpoint is written before the report, so that training can resume from a reported
        # epoch. Without it, the epochs after the last checkpoint are trained again.
        with contextlib.suppress(RemoteUnavailableError):
            self.save(CHECKPOINT, self.fit.save)
        self._log(" ".join(f"{name}={value:.5g}" for name, value in metrics.items()))

    def final_report(self) -> FinalReport:
        """Save the weights of a finished trial and return its results."""
        from safetensors.torch import save_file

        spec, fit = self.spec, self.fit
        tensors = {name: t.contiguous() for name, t in fit.weights().items()}
        self.save(WEIGHTS, lambda path: save_file(tensors, path))
        # Without gates, every sample costs the same.
        values = {"gflops_expected": spec.cost["gflops"]} | fit.result()
        values |= self._memory() | spec.cost
        values["seconds"] = math.fsum(epoch["seconds"] for epoch in fit.history)
        groups, facts = fit.groups(), self.facts()
        with measuring_alone() as is_alone:
            values["latency_ms"] = latency_ms(fit)
            values["train_step_ms"] = train_step_ms(self._measured_fit())  # changes the weights
        if not is_alone:
            facts["times"] = "disturbed: another trial was measured at the same time"
        self._log(f"finished after {time.perf_counter() - self._started:.1f} s")
        return {"values": values, "groups": groups, "facts": facts}

    def _memory(self) -> dict[str, float]:
        """Return the memory metrics; they are in the spec's cost if the study needs them before."""
        from sftsearch.orchestrator.metrics import MEMORY_COSTS
        from sftsearch.trainables.memory import count_memory

        spec, bound = self.spec, self._bound
        assert bound is not None, "call start() first; it must have succeeded"
        if all(name in spec.cost for name in MEMORY_COSTS):
            return {}
        dataset, workers = self.open_store(spec).spec, spec.workers
        counted = count_memory(
            spec.model, dataset, bound.model_config, bound.train_config, workers=workers
        )
        return counted.as_dict()

    def _measured_fit(self) -> Fit:
        """Return a fit whose training step is one worker's: its part of a batch, no exchange."""
        from sftsearch.trainables.catalog import build_model
        from sftsearch.trainables.fit import Fit

        spec, bound = self.spec, self._bound
        if spec.workers == 1:
            return self.fit
        assert bound is not None, "call start() first; it must have succeeded"
        store, config = self.open_store(spec), bound.train_config
        model = build_model(spec.model, store.spec, bound.model_config, spec.seed)
        model.begin_epoch(config.epochs - 1, config.epochs)
        size = math.ceil(config.batch_size / spec.workers)
        part = dataclasses.replace(config, batch_size=size)
        return Fit(model, store, part, seed=spec.seed, device=spec.device)

    def facts(self) -> dict[str, object]:
        """Return the trial's environment: torch, device, threads."""
        import torch

        spec = self.spec
        name = torch.cuda.get_device_name() if spec.device == "cuda" else "cpu"
        return {
            "torch": torch.__version__,
            "device": name,
            "threads": spec.threads,
            **self._parallel,
        }

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Save a file in the trial's folder; `write` is called with the path to write to.

        Raises:
            StaleTokenError: another worker owns the trial.
        """
        self._trial_folder.save(self.spec.fencing_token, name, write)

    def _explain(self, error: Exception) -> WorkerReport:
        """Write the traceback to the trial's log and return a one-line failure report."""
        # A log that cannot be written must not hide the reason.
        with contextlib.suppress(OSError, StaleTokenError):
            self._log(traceback.format_exc().rstrip())
        cause = _cause_of(error)
        name = "out of memory" if cause is FailureCause.OUT_OF_MEMORY else type(error).__name__
        lines = str(error).strip().splitlines()
        return failure(f"{name}: {lines[0][:400]}" if lines else name, cause)

    def _log(self, line: str) -> None:
        spec, stamp = self.spec, time.strftime("%Y-%m-%d %H:%M:%S")
        prefix = f"worker {spec.rank}: " if spec.workers > 1 else ""
        with contextlib.suppress(RemoteUnavailableError):
            self._trial_folder.log(spec.fencing_token, f"{stamp} {prefix}{line}")

    @property
    def _trial_folder(self) -> TrialFolder:
        assert self._folder is not None, "call start() first"
        return self._folder


def _check_cost(spec: TrialSpec, counted: dict[str, float]) -> None:
    for name, count in counted.items():
        if not math.isclose(count, spec.cost[name], rel_tol=1e-12):
            raise RuntimeError(
                f"The closed form of '{spec.model}' is wrong: it gives {name}="
                f"{spec.cost[name]!r}, but counting on the built model gives {count!r}."
            )


def _cause_of(error: Exception) -> FailureCause:
    if isinstance(error, StaleTokenError):
        return FailureCause.WORKER_LOST
    if isinstance(error, MemoryError):
        return FailureCause.OUT_OF_MEMORY
    if isinstance(error, RemoteUnavailableError):
        return FailureCause.NO_SPACE
    causes = (cause for cause, signs in SIGNS.items() if any(sign in str(error) for sign in signs))
    return next(causes, FailureCause.TRIAL)
