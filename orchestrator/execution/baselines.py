"""Fit a study's baselines in a Ray task beside its trials.

The task reserves no CPU and has a low priority, so that trials come first. It starts after the
first report of a trial, so it does not delay that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import ray
from ray.exceptions import RayError

from sftsearch.orchestrator.metrics import metric, sign_of
from sftsearch.orchestrator.storage.baseline_events import BaselineResult, BaselinesFitted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ray import ObjectRef

    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.orchestrator.storage.event import JSON
    from sftsearch.search_spaces.schema import StudyFile
    from sftsearch.trainables.baseline_results import Baseline, Baselines

    Fitted = Mapping[int | None, Baselines]

NICENESS = 10
"""A process of this niceness gets about a tenth of a CPU that a trial keeps busy."""
MAX_SECONDS = 20.0
"""Estimated CPU time for fitting the baselines of a study; none begins after it."""
FIRST_SHARE = 0.4
"""Part of the time for the first of several folds, where everything is tried."""
MAX_WAIT = 600.0
"""Seconds to wait for the baselines after the last trial, on a busy machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineSpec:
    """What to fit baselines on, and how to choose among them."""

    dataset: str
    root: str | None
    """Folder of the dataset's store; None: built in, or prepared on this machine."""
    num_folds: int | None
    """Number of grouped folds; None: the dataset's own split."""
    regression_loss: Literal["l1", "l2"] = "l1"
    """The loss of a regression, as in `TrainConfig`."""
    metric: str
    """The study's first objective."""
    direction: str
    max_seconds: float = MAX_SECONDS
    """Estimated CPU time, shared by the folds; no fit begins after it."""


# ------------------------------------------------------------------ in the task


def fit_on_every_fold(spec: BaselineSpec) -> BaselinesFitted:
    """Fit the baselines on each fold and choose the best of each name.

    Everything is tried on the first fold, and its best are fitted on the others.

    Raises:
        UserError: the dataset cannot be read.
    """
    import torch

    from sftsearch.datasets.catalog import open_dataset
    from sftsearch.datasets.folds import open_fold
    from sftsearch.trainables.baselines import fit_baselines
    from sftsearch.trainables.config import TrainConfig

    torch.set_num_threads(1)
    started = time.perf_counter()
    store = open_dataset(spec.dataset, root=spec.root)
    fit = functools.partial(fit_baselines, config=TrainConfig(regression_loss=spec.regression_loss))
    first, *others = [None] if spec.num_folds is None else range(spec.num_folds)
    seconds = spec.max_seconds * (FIRST_SHARE if others else 1.0)
    fitted = {first: fit(open_fold(store, first, spec.num_folds), max_seconds=seconds)}
    candidates = fitted[first].shortlist()
    for fold in others:
        fitted[fold] = fit(
            open_fold(store, fold, spec.num_folds),
            max_seconds=(spec.max_seconds - seconds) / len(others),
            candidates=candidates,
        )
    return BaselinesFitted(
        results=choose(fitted, spec),
        num_fitted=sum(len(one.results) for one in fitted.values()),
        skipped=[
            what if fold is None else f"{what} on fold {fold}"
            for fold, own in fitted.items()
            for what in own.skipped
        ],
        seconds=time.perf_counter() - started,
    )


def choose(fitted: Fitted, spec: BaselineSpec) -> list[BaselineResult]:
    """Return the best baseline of each name on each fold.

    With several folds it is the one with the best mean on the other folds, so that no fold's value
    is biased by the choice; only which candidates there are was decided on the first fold, which
    favors them there. On the only split it is the best on that split.
    """
    return [
        _result(_best(name, fold, fitted, spec), fold)
        for name in dict.fromkeys(one.name for own in fitted.values() for one in own.results)
        for fold, own in fitted.items()
        if any(one.name == name for one in own.results)
    ]


def _best(name: str, fold: int | None, fitted: Fitted, spec: BaselineSpec) -> Baseline:
    """Return the best baseline of a name for a fold; of equal ones the first."""
    others = {key: own for key, own in fitted.items() if key != fold} or fitted
    scores: dict[str, list[float]] = {}
    for own in others.values():
        for one in own.results:
            scores.setdefault(_identity(one), []).append(_quality(one, own.metric, spec))

    def rank(one: Baseline) -> tuple[int, float]:
        # Greedy selection and the time limit may leave out a baseline on some folds.
        found = scores.get(_identity(one), [])
        return len(found), statistics.fmean(found) if found else -math.inf

    return max((one for one in fitted[fold].results if one.name == name), key=rank)


def _identity(one: Baseline) -> str:
    """Return what a baseline is, without its penalty, which each fold chooses for itself."""
    parameters = {name: value for name, value in one.parameters.items() if name != "l2"}
    return json.dumps([one.name, list(one.modalities), parameters], sort_keys=True)


def _quality(one: Baseline, own: str, spec: BaselineSpec) -> float:
    """Return the study's metric, or else the task's first one, so that more is better."""
    if spec.metric in one.metrics:
        return sign_of(spec.direction) * one.metrics[spec.metric]
    return sign_of(metric(own).direction) * one.metrics[own]


def _result(one: Baseline, fold: int | None) -> BaselineResult:
    return BaselineResult(
        name=one.name,
        description=one.description,
        modalities=tuple(one.modalities),
        parameters=dict(one.parameters),
        seed=one.seed,
        fold=fold,
        values={**one.metrics, **one.cost},
        groups=dict(one.groups),
    )


def fit_as_text(spec: JSON) -> str:
    """Fit the baselines in a process of their own; return the event as JSON text."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    event = fit_on_every_fold(BaselineSpec(**spec))  # type: ignore[arg-type]
    return json.dumps(event.to_json())


# ------------------------------------------------------------------ in the driver


class Progress(Protocol):
    """Receives messages for the user, as a `StudyCallback` does."""

    def on_stage(self, text: str) -> None:
        """Called when a stage begins that may take seconds."""

    def on_notice(self, text: str) -> None:
        """Called with a message that the user should see immediately."""


@contextlib.contextmanager
def fitted(
    search: Search, study: StudyFile, progress: Progress, *, wanted: bool = True
) -> Iterator[Callable[[], None]]:
    """Fit a study's baselines while the block runs trials, unless the journal has them.

    An interrupted run does not wait for them; the next one fits them.

    Args:
        search: journals them.
        study: the study file.
        progress: receives a message if they cannot be fitted.
        wanted: False fits none.

    Yields:
        A function that the block calls several times a second from the first report of a trial on.
    """
    if not wanted or search.state.baselines is not None:
        yield lambda: None
        return
    spec = BaselineSpec(
        dataset=study.dataset.kind,
        root=study.dataset.root,
        num_folds=study.dataset.folds,
        regression_loss="l2" if study.training.get("regression_loss") == "l2" else "l1",
        metric=study.objectives[0].metric,
        direction=study.objectives[0].direction,
        max_seconds=MAX_SECONDS,
    )
    task = BaselineTask(spec, search.record, progress.on_notice)
    search.expect_baselines(True)

    def poll() -> None:
        task.poll()
        if task.is_over or task.is_late:
            search.expect_baselines(False)

    try:
        yield poll
        if search.exhausted:
            task.poll()
            if not task.is_over:
                progress.on_stage("fitting the baselines")
                task.finish()
    finally:
        task.close()


class BaselineTask:
    """Fits the baselines of a study on the connected Ray, once."""

    def __init__(
        self,
        spec: BaselineSpec,
        record: Callable[[BaselinesFitted], None],
        notice: Callable[[str], None],
    ) -> None:
        """Prepare the task; the first `poll` starts it.

        Args:
            spec: what to fit.
            record: called with the result, in the thread that polls.
            notice: called with a message if the baselines cannot be fitted.
        """
        self._spec, self._record, self._notice = spec, record, notice
        self._reference: ObjectRef[str] | None = None
        self.is_over = False
        """Whether there is nothing left to wait for."""
        self._started = 0.0

    @property
    def is_late(self) -> bool:
        """Whether it takes so long that no proposal should wait for it any longer."""
        return bool(self._started) and time.monotonic() - self._started > MAX_WAIT

    def poll(self) -> None:
        """Start the task, or record its result if it has ended."""
        if self.is_over:
            return
        if self._reference is None:
            # Its niceness cannot be lowered again, so the process must not train trials afterwards.
            remote = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(fit_as_text)
            self._reference = remote.remote(dataclasses.asdict(self._spec))
            self._started = time.monotonic()
        elif _has_ended(self._reference, timeout=0):
            self._take(self._reference)

    def finish(self, patience: float = MAX_WAIT) -> None:
        """Wait for the result and record it; Ctrl-C gives up, and a resumed run tries again."""
        self.poll()
        if self._reference is None:
            return
        try:
            if _has_ended(self._reference, timeout=patience):
                self._take(self._reference)
            else:
                self._notice(f"No baselines: they took longer than {patience:.0f} s.")
        except KeyboardInterrupt:
            self._notice("No baselines: interrupted. --resume fits them.")
        self.close()

    def close(self) -> None:
        """Cancel the task if it still runs."""
        # Ray would end this process if a reference were dropped during Ray's shutdown.
        reference, self._reference, self.is_over = self._reference, None, True
        if reference is not None:
            with contextlib.suppress(RayError):
                ray.cancel(reference, force=True)

    def _take(self, reference: ObjectRef[str]) -> None:
        self._reference, self.is_over = None, True
        try:
            event = BaselinesFitted.from_json(json.loads(ray.get(reference)))
        except (RayError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._notice(f"No baselines: {lines[-1].strip()[:400]}")
            return
        self._record(event)


def _has_ended(reference: ObjectRef[str], *, timeout: float) -> bool:
    ended, _ = ray.wait([reference], timeout=timeout)
    return bool(ended)
