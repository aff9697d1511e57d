"""Compute the state of a study by applying its events in order.

A running study and a replayed journal use the same `apply`.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Self

from sftsearch.orchestrator.storage.baseline_events import BaselinesFitted
from sftsearch.orchestrator.storage.event import Event, TrialKey
from sftsearch.orchestrator.storage.events import (
    Admitted,
    Concluded,
    Confirmed,
    Created,
    Ended,
    Expected,
    Frozen,
    Imported,
    Opened,
    Proposed,
    Refused,
    Replicated,
    Told,
)
from sftsearch.orchestrator.storage.journal import JournalError
from sftsearch.orchestrator.storage.study_record import (
    BaselineRecord,
    StudyFacts,
    StudyRecord,
    TrialRecord,
    as_groups,
    baseline_record,
    build_record,
    milliseconds,
    with_test,
)
from sftsearch.orchestrator.storage.trial_events import (
    EpochEnded,
    Failed,
    Finished,
    Judged,
    Retried,
    Started,
    Stopped,
)
from sftsearch.orchestrator.storage.trial_state import ConfigurationState, OpenProposal, TrialState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.orchestrator.storage.event import Numbers
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.search_spaces.point import Point


class StudyState:
    """The state of a study after some of its events."""

    def __init__(self) -> None:
        self.created: Created | None = None
        self.imported: Imported | None = None
        self.opened: Opened | None = None
        """The last driver's start."""
        self.ended: Ended | None = None
        """The last driver's end; None while it runs."""
        self.facts = StudyFacts()
        self.posteriors: dict[str, Numbers] = {}
        """Posteriors of the last conclusion, by configuration."""
        self.baselines: dict[str, BaselineRecord] | None = None
        """The baselines by `BaselineResult.key`; None until they are fitted."""
        self.configurations: dict[str, ConfigurationState] = {}
        self.trials: dict[TrialKey, TrialState] = {}
        """All trials except withdrawn ones."""
        self.waiting: list[TrialState] = []
        self.running: dict[TrialKey, TrialState] = {}
        self.proposals: dict[int, OpenProposal] = {}
        """Proposals by number whose results the sampler does not know yet."""
        self.untold: list[int] = []
        """Numbers of the admitted ones among them, in order."""
        self.num_proposals = 0
        self.starts: list[Point] = []
        """Points of a warm start that are still to be proposed."""
        self.refusals: Counter[int | None] = Counter()
        """Refusals in a row by branch, and in any branch (None)."""
        self.admitted: Counter[int] = Counter()
        """Number of admitted configurations by branch."""
        self.frozen: list[str] = []
        """Reported configurations, if they get fresh replicates."""
        self.last_expected = -1
        """Number of the proposal before which the expected gain was computed last."""
        self.num_trials = 0
        """Trials that were admitted and not withdrawn, without fresh replicates."""
        self.num_admitted = 0
        """As `num_trials`, with the withdrawn ones."""
        self.num_ended: Counter[str] = Counter()
        """Number of ended trials by status."""
        self._next_position = 0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """Return the state after the entries of a journal.

        Raises:
            JournalError: an event contradicts those before it.
        """
        state = cls()
        for entry in entries:
            try:
                state.apply(entry)
            except (LookupError, ValueError, TypeError, AttributeError) as error:
                raise JournalError(
                    f"The journal is damaged: its event {entry.id} (`{entry.event.kind}`) "
                    f"contradicts those before it ({error!r})."
                ) from error
        return state

    def apply(self, entry: Entry) -> None:
        """Update the state with an event."""
        self.facts.apply(entry.event)
        self._apply(entry.event, entry.time)

    @functools.singledispatchmethod
    def _apply(self, event: Event, time: float) -> None:
        """Do nothing: events of this kind do not change the state."""

    @_apply.register
    def _created(self, event: Created, time: float) -> None:
        self.created = event

    @_apply.register
    def _imported(self, event: Imported, time: float) -> None:
        self.imported = event
        self.starts = list(event.starts)

    @_apply.register
    def _opened(self, event: Opened, time: float) -> None:
        self.opened, self.ended = event, None
        self.take_over()

    def take_over(self) -> None:
        """Return the previous driver's running trials to the waiting ones, in admission order."""
        self.waiting = sorted([*self.waiting, *self.running.values()], key=lambda t: t.position)
        self.running = {}
        for trial in self.waiting:
            trial.status = "waiting"

    @_apply.register
    def _concluded(self, event: Concluded, time: float) -> None:
        self.posteriors = event.beliefs

    @_apply.register
    def _ended(self, event: Ended, time: float) -> None:
        self.ended = event

    @_apply.register
    def _confirmed(self, event: Confirmed, time: float) -> None:
        for key, values in event.values.items():
            trial = self.trials[key]
            trial.test_values, trial.test_groups = values, event.groups[key]
        known = self.baselines or {}
        known.update({name: with_test(known[name], test) for name, test in event.baselines.items()})

    @_apply.register
    def _baselines(self, event: BaselinesFitted, time: float) -> None:
        self.baselines = {one.key: baseline_record(one) for one in event.results}

    @_apply.register
    def _proposed(self, event: Proposed, time: float) -> None:
        self.num_proposals = event.number + 1
        self.proposals[event.number] = OpenProposal(event.point)
        if event.point in self.starts:
            self.starts.remove(event.point)

    @_apply.register
    def _refused(self, event: Refused, time: float) -> None:
        self.refusals.update((self.proposals.pop(event.number).point.branch, None))

    @_apply.register
    def _admitted(self, event: Admitted, time: float) -> None:
        proposal = self.proposals[event.number]
        proposal.configuration_id = event.configuration_id
        proposal.num_first = proposal.pending = len(event.seeds)
        configuration = _configuration(event, proposal.point, row=len(self.configurations))
        self.configurations[configuration.id] = configuration
        self.admitted[proposal.point.branch] += 1
        self.refusals[proposal.point.branch] = self.refusals[None] = 0
        self.untold.append(event.number)
        self._await(configuration, event.seeds)

    @_apply.register
    def _replicated(self, event: Replicated, time: float) -> None:
        self._await(self.configurations[event.configuration_id], event.seeds)

    @_apply.register
    def _frozen(self, event: Frozen, time: float) -> None:
        for identity, replicates in event.seeds.items():
            configuration = self.configurations[identity]
            configuration.fresh.clear()
            self._await(configuration, replicates, fresh=True)
        self.frozen = list(event.seeds)

    def _await(
        self, configuration: ConfigurationState, replicates: list[int], *, fresh: bool = False
    ) -> None:
        for replicate in replicates:
            configuration.pending.add(replicate)
            configuration.fresh.update([replicate] if fresh else [])
            key = TrialKey(configuration.id, replicate)
            self.trials[key] = TrialState(key, configuration, position=self._next_position)
            self._next_position += 1
            self.waiting.append(self.trials[key])
        if not fresh:
            self.num_trials += len(replicates)
            self.num_admitted += len(replicates)
            self.frozen = []

    @_apply.register
    def _expected(self, event: Expected, time: float) -> None:
        self.last_expected = event.number

    @_apply.register
    def _told(self, event: Told, time: float) -> None:
        del self.proposals[event.number]
        self.untold.remove(event.number)

    @_apply.register
    def _started(self, event: Started, time: float) -> None:
        trial = self.trials[event.trial]
        trial.started = time if trial.started is None else trial.started
        trial.status = "running"
        if trial.key not in self.running:
            self.waiting.remove(trial)
            self.running[trial.key] = trial

    @_apply.register
    def _epoch_ended(self, event: EpochEnded, time: float) -> None:
        trial = self.trials[event.trial]
        trial.epochs[event.epoch] = event.metrics
        trial.losses, trial.has_trained = 0, event.last

    @_apply.register
    def _retried(self, event: Retried, time: float) -> None:
        """Put the trial in front of all waiting ones."""
        trial = self.running.pop(event.trial)
        trial.status = "waiting"
        self.waiting.insert(0, trial)
        trial.alone |= event.alone
        trial.losses += not event.alone

    @_apply.register
    def _judged(self, event: Judged, time: float) -> None:
        self.trials[event.trial].judged = event.epoch

    @_apply.register
    def _finished(self, event: Finished, time: float) -> None:
        trial = self._end(event.trial, "finished", time)
        trial.values, trial.groups = event.values, event.groups
        trial.configuration.values[trial.key.replicate] = event.values
        self._count_for_proposal(trial, event.values)

    @_apply.register
    def _failed(self, event: Failed, time: float) -> None:
        trial = self._end(event.trial, "failed", time)
        trial.reason, trial.configuration.failed = event.reason, True
        self._count_for_proposal(trial, None)

    @_apply.register
    def _stopped(self, event: Stopped, time: float) -> None:
        trial = self._end(event.trial, "stopped", time)
        trial.reason, trial.stopped_after = event.reason, event.epoch
        trial.values = event.reached
        trial.configuration.stopped = True
        for key in event.withdrawn:
            self._withdraw(self.trials.pop(key))
        self._count_for_proposal(trial, None)

    def _end(self, key: TrialKey, status: str, time: float) -> TrialState:
        trial = self.trials[key]
        trial.curve = _curve(trial, self.created)
        trial.status, trial.ended, trial.epochs = status, time, {}
        if self.running.pop(key, None) is None:
            self.waiting.remove(trial)  # an earlier driver started it
        trial.configuration.pending.discard(key.replicate)
        self.num_ended[status] += 1
        return trial

    def _withdraw(self, trial: TrialState) -> None:
        """Withdraw a replicate that has not started."""
        self.waiting.remove(trial)
        trial.configuration.pending.discard(trial.key.replicate)
        trial.configuration.fresh.discard(trial.key.replicate)
        self.num_trials -= 1
        proposal = self.proposals.get(trial.configuration.number)
        if proposal is not None and trial.key.replicate < proposal.num_first:
            proposal.pending -= 1

    def _count_for_proposal(self, trial: TrialState, values: Numbers | None) -> None:
        """Record the result of a first replicate in its proposal."""
        proposal = self.proposals.get(trial.configuration.number)
        if proposal is not None and trial.key.replicate < proposal.num_first:
            proposal.pending -= 1
            proposal.outcomes.append(values)
            proposal.stopped |= trial.status == "stopped"


def _configuration(event: Admitted, point: Point, *, row: int) -> ConfigurationState:
    return ConfigurationState(
        number=event.number,
        id=event.configuration_id,
        point=point,
        model=event.model,
        parameters=event.parameters,
        cost=event.cost,
        row=row,
        epochs=event.epochs,
        warmup=event.warmup,
        group=event.group,
    )


def _curve(trial: TrialState, created: Created | None) -> tuple[float, ...]:
    """Return the study's first objective after each epoch; empty if it has none by epoch."""
    name = created.objectives[0][0] if created is not None else ""
    epochs = [trial.epochs[epoch] for epoch in sorted(trial.epochs)]
    return tuple(epoch[name] for epoch in epochs if name in epoch)


def record_of(state: StudyState) -> StudyRecord:
    """Return the record of a study, which reports read.

    Raises:
        ValueError: the study was never started.
    """
    if state.created is None:
        raise ValueError("The journal has no `created` event: the study was never started.")
    started = [_trial_record(trial) for trial in state.trials.values() if trial.begun]
    baselines = (state.baselines or {}).values()
    return build_record(state.created, state.facts, started, state.posteriors, baselines)


def _trial_record(trial: TrialState) -> TrialRecord:
    configuration, is_running = trial.configuration, trial.status in ("waiting", "running")
    return TrialRecord(
        key=str(trial.key),
        configuration_id=configuration.id,
        model=configuration.model,
        configuration=dict(configuration.parameters),
        seed=trial.key.replicate,
        status="running" if is_running else trial.status,
        values=dict(trial.values or configuration.cost),
        groups=as_groups(trial.groups),
        curve=trial.curve,
        reason=trial.reason,
        epoch=trial.stopped_after,
        started=milliseconds(trial.started or 0.0) / 1e3,
        ended=milliseconds(trial.ended) / 1e3,
        test_values=None if trial.test_values is None else dict(trial.test_values),
        test_groups=None if trial.test_groups is None else as_groups(trial.test_groups),
    )
