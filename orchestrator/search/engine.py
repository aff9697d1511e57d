"""Search: make all decisions of a study, independent of Ray and of the clock.

A driver asks for the next trial (`propose`), reports epochs (`report`) and how trials end
(`finish`, `on_failure`, `on_worker_lost`, `on_out_of_memory`). Each decision is journalled before
anything acts on it, so a study can be killed at any moment: a resumed search applies the same
events. The only times used are those of the journal's entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.search.conclusion import conclude
from sftsearch.orchestrator.search.knowledge import Knowledge
from sftsearch.orchestrator.search.planner import Planner
from sftsearch.orchestrator.storage.events import Ended, Fitted
from sftsearch.orchestrator.storage.trial_events import (
    EpochEnded,
    Failed,
    Finished,
    Judged,
    Retried,
    Started,
    Stopped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.early_stopping.base import Decision
    from sftsearch.orchestrator.storage.baseline_events import BaselinesFitted
    from sftsearch.orchestrator.storage.event import JSON, Event, Numbers, TrialKey
    from sftsearch.orchestrator.storage.journal import Entry, Journal, MemoryJournal
    from sftsearch.orchestrator.storage.trial_state import TrialState
    from sftsearch.orchestrator.surrogate.fitted_model import Fit
    from sftsearch.search_spaces.schema import StudyFile

MAX_LOSSES = 6
"""How often in a row a trial's process may die without reporting an epoch before the trial fails.

A trial that needs too much memory dies every time; a trial on a preempted machine does not. The
number is the default of Kubernetes for retries of a job."""
UNREPEATABLE = frozenset({"seconds"})
"""Metrics of an epoch that differ between runs."""


@dataclass(frozen=True, slots=True)
class TrialSuggestion:
    """What a worker needs to train a trial."""

    key: TrialKey
    model: str
    parameters: JSON
    seed: int
    """The number of the replicate."""
    cost: Numbers
    num_journalled: int
    """Epochs that are already in the journal; a resumed trial reports the later ones."""
    token: int
    """Increases with each suggestion; the worker's fencing token."""
    alone: bool
    """Whether the trial gets whole GPUs."""


class Search:
    """Makes the decisions of one study."""

    def __init__(
        self,
        study: StudyFile,
        journal: Journal | MemoryJournal,
        admission: Admission,
        *,
        max_concurrent_trials: int = 1,
        entries: Iterable[Entry] | None = None,
    ) -> None:
        """Restore the state from the journal; nothing is journalled yet.

        Args:
            study: the checked study file.
            journal: open for writing.
            admission: computes costs and admits proposals.
            max_concurrent_trials: with `deterministic`, proposals depend on it.
            entries: of the journal, if already read.
        """
        self._plan, self._resources = study.search, study.resources
        self._journal = journal
        self._listeners: list[Callable[[Entry], None]] = []
        self._journals_fits = True
        self.known = Knowledge(study, admission, on_fit=self._on_fit)
        self.state = self.known.state
        for entry in journal.entries(through=journal.last_id) if entries is None else entries:
            self.known.apply(entry)
        self.state.take_over()
        given = self._plan, self.known, admission, self._commit, max_concurrent_trials
        self._planner = Planner(*given)

    def listen(self, listener: Callable[[Entry], None]) -> None:
        """Call `listener` with every event from now on, after it was applied to the state."""
        self._listeners.append(listener)

    def _commit(self, event: Event) -> Entry:
        """Journal an event, apply it, and call the listeners."""
        entry = self._journal.append(event)
        self.known.apply(entry)
        for listener in self._listeners:
            listener(entry)
        return entry

    def _on_fit(self, fit: Fit) -> None:
        """Journal the surrogate's hyperparameters, from which later fits start."""
        if self._journals_fits:
            self._commit(_fitted(fit))

    def record(self, event: BaselinesFitted) -> None:
        """Journal the study's baselines; later proposals have to surpass them."""
        self._commit(event)

    def expect_baselines(self, are_expected: bool) -> None:
        """Say whether `record` will be called; a deterministic study then waits for it."""
        self._planner.expects_baselines = are_expected

    def finish_what_was_begun(self) -> None:
        """Make the decisions that were due when the last driver died; add listeners before."""
        for trial in [t for t in self.state.waiting if t.epochs]:
            if (epoch := max(trial.epochs)) > trial.judged:
                self._judge(trial, epoch)
        self._planner.finish_what_was_begun()

    # ------------------------------------------------------------ proposing

    @property
    def num_running(self) -> int:
        """Trials that were started and have not ended."""
        return len(self.state.running)

    @property
    def exhausted(self) -> bool:
        """Whether every trial has ended and none will be added."""
        if self.state.waiting or self.state.running:
            return False
        return self._planner.at_end() and not self._planner.fresh_is_due()

    def why_ended(self) -> str:
        """Return why the study adds no further trials, as a phrase."""
        return self._planner.why_ended()

    def propose(self) -> TrialSuggestion | None:
        """Start and journal the next trial; None if there is none now (see `exhausted`)."""
        self._planner.fill()
        if not self.state.waiting:
            return None
        trial = self.state.waiting[0]
        configuration = trial.configuration
        started = self._commit(
            Started(
                trial=trial.key,
                epoch=len(trial.epochs),
                configuration_id=configuration.id,
                model=configuration.model,
                parameters=configuration.parameters,
                seed=trial.key.replicate,
                cost=configuration.cost,
            )
        )
        return TrialSuggestion(
            trial.key,
            configuration.model,
            configuration.parameters,
            trial.key.replicate,
            configuration.cost,
            len(trial.epochs),
            started.id,
            trial.alone,
        )

    def report(self, key: TrialKey, metrics: Mapping[str, float], is_last: bool = False) -> bool:
        """Journal an epoch of a trial; return whether the trial continues.

        `metrics` has `epoch`, from 1. If the journal already has the epoch (of a resumed trial),
        its values must be equal, else the trial fails as not reproducible. The early-stopping rule
        does not judge the last epoch of a trial.
        """
        trial = self.state.running.get(key)
        if trial is None:
            return False
        epoch = int(metrics["epoch"])
        known = trial.epochs.get(epoch)
        if known is not None:
            differs = {n for n in known if n not in UNREPEATABLE and known[n] != metrics.get(n)}
            if differs:
                names = ", ".join(sorted(differs))
                self.on_failure(key, f"epoch {epoch} gave other values when repeated ({names})")
            return not differs
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self.on_failure(key, f"`{bad[0]}` is not finite in epoch {epoch}")
            return False
        self._commit(EpochEnded(key, epoch, dict(metrics), is_last))
        return self._judge(trial, epoch)

    def _judge(self, trial: TrialState, epoch: int) -> bool:
        """Return whether a trial continues after an epoch; journal the decision."""
        configuration, known = trial.configuration, self.known
        if configuration.stopped:  # because of another replicate
            self._stop(trial, epoch, "another replicate was stopped")
            return False
        kind = self._plan.early_stopping.kind
        if kind == "none" or trial.key.replicate > 0 or trial.has_trained:
            return True
        if not known.rule.judges(configuration.epochs, configuration.warmup, epoch):
            return True
        best, decision = known.judge(trial, epoch)
        if decision.stop:
            reason = f"unlikely to reach the front at its cost ({kind})"
            self._stop(trial, epoch, reason, best, decision)
        else:
            self._commit(Judged(trial=trial.key, epoch=epoch, best=best, **decision._asdict()))
        return not decision.stop

    def _stop(
        self,
        trial: TrialState,
        epoch: int,
        reason: str,
        best: float | None = None,
        decision: Decision | None = None,
    ) -> None:
        configuration = trial.configuration
        withdrawn = [
            other.key
            for other in self.state.waiting
            if other.configuration is configuration and not other.begun
        ]
        self._commit(
            Stopped(
                trial=trial.key,
                epoch=epoch,
                reason=reason,
                values={**trial.epochs[epoch], **configuration.cost},
                withdrawn=tuple(withdrawn),
                best=best,
                **({} if decision is None else decision._asdict()),
            )
        )
        self._planner.tell_sampler(configuration.number)

    # ------------------------------------------------------------ how trials end

    def finish(
        self,
        key: TrialKey,
        values: Mapping[str, float],
        groups: Mapping[str, Sequence[float]],
        facts: JSON | None = None,
    ) -> None:
        """Journal the final values of a trial; tell the sampler once its configuration is done.

        Args:
            key: of the trial.
            values: final metrics and costs.
            groups: validation by subject: name -> (correct, count).
            facts: environment of the run: torch, device, threads.
        """
        if key not in self.state.running:
            return
        objectives = self.known.objectives
        missing = [n for n in objectives if not math.isfinite(values.get(n, math.nan))]
        if missing:
            self.on_failure(key, f"the objective `{missing[0]}` has no finite value")
            return
        self._commit(Finished(key, dict(values), dict(groups), dict(facts or {})))
        self._planner.tell_sampler(self.state.trials[key].configuration.number)

    def on_worker_lost(self, key: TrialKey, reason: str) -> None:
        """Retry a trial whose process died; fail it after `MAX_LOSSES` deaths in a row."""
        trial = self.state.running.get(key)
        if trial is None:
            return
        if trial.losses + 1 < MAX_LOSSES:
            self._commit(Retried(key, reason, alone=False))
        else:
            self.on_failure(key, reason)

    def on_out_of_memory(self, key: TrialKey, reason: str) -> None:
        """Retry a trial out of memory with whole GPUs, once, if it shared a GPU; else fail it."""
        trial = self.state.running.get(key)
        if trial is None:
            return
        given = self._resources.of(trial.configuration.cost)
        if not trial.alone and 0 < given.gpus < 1:
            self._commit(Retried(key, reason, alone=True))
        else:
            self.on_failure(key, reason)

    def on_failure(self, key: TrialKey, reason: str) -> None:
        """Journal that a trial failed; the study continues."""
        if key not in self.state.running:
            return
        self._commit(Failed(key, reason))
        self._planner.tell_sampler(self.state.trials[key].configuration.number)

    def conclude(self) -> None:
        """Journal the study's conclusions, if a configuration has a value; then nothing may run."""
        # A fit for conclusions must not change the decisions of a resumed study.
        self._journals_fits = self.exhausted or not self._plan.deterministic
        self.known.release()
        if self.known.past.has_values:
            self._commit(conclude(self.known))

    def close(self) -> None:
        """Journal that the driver stops, and why."""
        is_complete = self.exhausted
        reason = self.why_ended() if is_complete else "interrupted"
        self._commit(Ended(reason, is_complete))


def _fitted(fit: Fit) -> Fitted:
    found = fit.hyperparameters
    return Fitted(
        num=fit.num,
        lengthscales=found.lengthscales.tolist(),
        amplitude=found.amplitude,
        tau=found.tau,
        sigma=found.sigma,
        mean=found.mean,
    )
