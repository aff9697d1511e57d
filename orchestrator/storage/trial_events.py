"""Define the events of trials; see `events`."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftsearch.orchestrator.storage.event import JSON, Event, Groups, Numbers, TrialKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """A trial was assigned to a worker, to start or to resume."""

    kind = "started"
    trial: TrialKey
    epoch: int
    """Epochs that are already in the journal."""
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
    last: bool = False
    """Whether it is the last epoch of the trial, which with `patience` may come early."""

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        body = Event.to_json(self)
        return body if self.last else {name: v for name, v in body.items() if name != "last"}


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """A trial is retried: its process died, or it ran out of memory beside other trials."""

    kind = "retried"
    trial: TrialKey
    reason: str
    alone: bool
    """Whether the retry gets whole GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Event):
    """The early-stopping rule let a trial continue."""

    kind = "judged"
    trial: TrialKey
    epoch: int
    best: float | None
    """The best posterior mean at the trial's cost or below."""
    stop: bool
    audit: bool
    probability: float | None
    threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """A trial ended before its last epoch: stopped by the rule, or because a replicate was."""

    kind = "stopped"
    trial: TrialKey
    epoch: int
    reason: str
    values: Numbers
    """Metrics of that epoch, and the costs."""
    best: float | None = None
    withdrawn: tuple[TrialKey, ...] = ()
    """Replicates that will not run."""
    stop: bool | None = None
    """True if the rule decided it, with the fields below; None: another replicate was stopped."""
    audit: bool | None = None
    probability: float | None = None
    threshold: float | None = None

    @property
    def reached(self) -> Numbers:
        """The values without the epoch number."""
        return {name: value for name, value in self.values.items() if name != "epoch"}

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Parse the value of one field from its JSON."""
        if name == "withdrawn" and isinstance(value, list):
            return tuple(map(TrialKey.parse, value))
        return TrialKey.parse(value) if name == "trial" else value

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        body = Event.to_json(self) | {"withdrawn": [str(key) for key in self.withdrawn]}
        decision = ("stop", "audit", "probability", "threshold")
        if self.stop is not None:
            return body
        return {name: value for name, value in body.items() if name not in decision}


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """A trial reached its last epoch, or was ended by its `patience`."""

    kind = "finished"
    trial: TrialKey
    values: Numbers
    groups: Groups
    """Validation samples by subject: (correct, count)."""
    facts: JSON = field(default_factory=dict)
    """Environment of the run: torch, device, threads."""


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A trial ended without values because of an error."""

    kind = "failed"
    trial: TrialKey
    reason: str


@dataclass(frozen=True, slots=True)
class Refitted(Event):
    """A finished trial was trained again on training and validation."""

    kind = "refitted"
    trial: TrialKey
    epochs: int


TrialEnd = Finished | Stopped | Failed
