"""The events of trials; see `events`."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftsearch.orchestrator.storage.event import JSON, Event, Groups, Numbers, TrialKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """A worker begins a trial, or goes on with it."""

    kind = "started"
    trial: TrialKey
    epoch: int
    """Epochs that the journal already has."""
    configuration_id: str
    model: str
    parameters: JSON
    seed: int
    cost: Numbers


@dataclass(frozen=True, slots=True)
class EpochEnded(Event):
    """An epoch of a trial ended."""

    kind = "epoch"
    trial: TrialKey
    epoch: int
    metrics: Numbers


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """A trial's process died, or it ran out of memory beside others: it is to begin again."""

    kind = "retried"
    trial: TrialKey
    reason: str
    alone: bool
    """Whether it is to have whole GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Event):
    """The stopping rule let a trial go on."""

    kind = "judged"
    trial: TrialKey
    epoch: int
    best: float | None
    """The best posterior mean at its cost or below."""
    stop: bool
    audit: bool
    probability: float | None
    threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """A trial ended before its last epoch, by the stopping rule or for another replicate of it."""

    kind = "stopped"
    trial: TrialKey
    epoch: int
    reason: str
    values: Numbers
    """Of that epoch, with the costs."""
    best: float | None = None
    withdrawn: tuple[TrialKey, ...] = ()
    """Replicates that will not be run."""
    stop: bool | None = None
    """True by the rule's own decision, whose parts follow; None: another replicate was stopped."""
    audit: bool | None = None
    probability: float | None = None
    threshold: float | None = None

    @property
    def reached(self) -> Numbers:
        """The values without the number of their epoch."""
        return {name: value for name, value in self.values.items() if name != "epoch"}

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Return the value of a field that the journal keeps as `value`."""
        if name == "withdrawn" and isinstance(value, list):
            return tuple(map(TrialKey.parse, value))
        return TrialKey.parse(value) if name == "trial" else value

    def to_json(self) -> JSON:
        """Return the event as the journal keeps it."""
        body = Event.to_json(self) | {"withdrawn": [str(key) for key in self.withdrawn]}
        decision = ("stop", "audit", "probability", "threshold")
        if self.stop is not None:
            return body
        return {name: value for name, value in body.items() if name not in decision}


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """A trial ended with values."""

    kind = "finished"
    trial: TrialKey
    values: Numbers
    groups: Groups
    """Validation samples by subject: (correct, count)."""
    facts: JSON = field(default_factory=dict)
    """Where it ran: torch, device, threads."""


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A trial ended without values."""

    kind = "failed"
    trial: TrialKey
    reason: str


TrialEnd = Finished | Stopped | Failed
