"""Define the events of a study, one frozen dataclass per kind, and their JSON in the journal.

Only these classes read and write that JSON. Fields that earlier versions did not write have a
default. To add an event, write its class and add it to `EVENTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self, cast

from sftsearch.orchestrator.storage.baseline_events import BaselinesFitted
from sftsearch.orchestrator.storage.event import (
    JSON,
    Event,
    EventError,
    Groups,
    Numbers,
    TrialKey,
)
from sftsearch.orchestrator.storage.trial_events import (
    EpochEnded,
    Failed,
    Finished,
    Judged,
    Refitted,
    Retried,
    Started,
    Stopped,
)
from sftsearch.search_spaces.point import Point

RETIRED = frozenset({"mirrored"})
"""Kinds of events that earlier versions wrote and that are no longer read."""

# ------------------------------------------------------------------ the study


@dataclass(frozen=True, slots=True, kw_only=True)
class Created(Event):
    """The study was created."""

    kind = "created"
    name: str
    description: str
    dataset: str
    root: str | None = None
    """Folder of the dataset's store; None: the machine's default."""
    num_seeds: int
    """Replicates of every configuration."""
    objectives: list[list[str]]
    """(metric, `maximize` or `minimize`), accuracy first."""
    facts: dict[str, str]
    """Fingerprints, versions, license: shown in the footer of a report."""
    families: list[str] = field(default_factory=list)
    """Parameters that, with the model, define families of configurations."""
    refused: dict[str, int] = field(default_factory=dict)
    """Number of points refused when the space was enumerated, by reason."""
    definition: JSON = field(default_factory=dict)
    """What must not change between drivers; see `binding.definition_of`."""
    definition_hash: str = ""

    @property
    def folds(self) -> int | None:
        """Number of grouped folds, used by the replicates in turn; None: the dataset's split."""
        folds = self.definition.get("folds")
        return folds if isinstance(folds, int) else None

    @property
    def max_replicates(self) -> int | None:
        """Most replicates that a configuration may get; None: each has `num_seeds`."""
        replicates = self.definition.get("replicates")
        most = replicates.get("max") if isinstance(replicates, dict) else None
        return most if isinstance(most, int) else None

    @property
    def training(self) -> JSON:
        """The training section of the study file."""
        training = self.definition.get("training")
        return training if isinstance(training, dict) else {}

    @property
    def space(self) -> list[object]:
        """The branches of the space, as in the study file."""
        space = self.definition.get("space")
        return space if isinstance(space, list) else []


@dataclass(frozen=True, slots=True)
class ImportedConfiguration:
    """A configuration of this space that another study trained under the same conditions."""

    id: str
    point: Point
    objectives: dict[int, list[float]]
    """Final values by replicate, in the order of this study's objectives."""
    seconds: dict[int, float]
    """Training time by replicate."""


@dataclass(frozen=True, slots=True)
class Imported(Event):
    """The study started from the results of another one (a warm start)."""

    kind = "imported"
    study: str
    alike: bool
    """Whether this study would measure the same values as the other one."""
    differs: list[str]
    """The conditions that differ, if not."""
    configurations: list[ImportedConfiguration]
    starts: list[Point]
    """Points to propose first."""

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        configurations = [
            {
                "configuration_id": one.id,
                **_point_to_json(one.point),
                "replicates": {
                    str(number): {"objectives": values, "seconds": one.seconds[number]}
                    for number, values in one.objectives.items()
                },
            }
            for one in self.configurations
        ]
        starts = [_point_to_json(point) for point in self.starts]
        known = {"study": self.study, "alike": self.alike, "differs": self.differs}
        return {**known, "configurations": configurations, "starts": starts}

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Parse the value of one field from its JSON."""
        if name == "starts":
            return [_point_from_json(start) for start in cast("list[JSON]", value)]
        if name == "configurations":
            return [_imported_from_json(one) for one in cast("list[JSON]", value)]
        return value


def _imported_from_json(body: JSON) -> ImportedConfiguration:
    replicates = cast("dict[str, JSON]", body["replicates"])
    known = {int(number): one for number, one in replicates.items()}
    return ImportedConfiguration(
        str(body["configuration_id"]),
        _point_from_json(body),
        {number: cast("list[float]", one["objectives"]) for number, one in known.items()},
        {number: cast("float", one["seconds"]) for number, one in known.items()},
    )


@dataclass(frozen=True, slots=True)
class Opened(Event):
    """A driver opened the study."""

    kind = "opened"
    trials: int
    """The budget of trials."""
    slots: int
    """Concurrent trials."""


@dataclass(frozen=True, slots=True)
class Recorded(Event):
    """The study is recorded as a table: its trials are also evaluated on the test split."""

    kind = "recorded"


@dataclass(frozen=True, slots=True)
class Concluded(Event):
    """The study's conclusions at its end, from the surrogate of its search."""

    kind = "concluded"
    reported: list[str]
    """Ids of the configurations that the study reports as the front."""
    beliefs: dict[str, Numbers]
    """The posteriors: `mean`, `sd` and `on_front` by configuration."""
    within_delta: float
    audits: Numbers | None
    """How often early stopping was wrong; None if no stop was audited."""
    num_stopped: int = 0


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """A driver ended its run of the study."""

    kind = "ended"
    reason: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Confirmed(Event):
    """The front was evaluated on the test split, once."""

    kind = "confirmed"
    values: dict[TrialKey, Numbers]
    """Test metrics by trial."""
    groups: dict[TrialKey, Groups]
    """Test samples by subject: (correct, count)."""
    baselines: dict[str, JSON] = field(default_factory=dict)
    """Test `values` and `groups` of the baselines, by `BaselineResult.key`."""
    refit: bool = False
    """Whether all were trained again on training and validation before."""
    ensembles: dict[str, JSON] = field(default_factory=dict)
    """By configuration: `members`, and test `values` and `groups` of their mean probabilities."""

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        trials = {
            str(key): {"values": values, "groups": self.groups[key]}
            for key, values in self.values.items()
        }
        body: JSON = {"trials": trials}
        body |= {"baselines": self.baselines} if self.baselines else {}
        body |= {"ensembles": self.ensembles} if self.ensembles else {}
        return body | ({"refit": True} if self.refit else {})

    @classmethod
    def from_json(cls, body: JSON) -> Self:
        """Parse an event from its JSON."""
        raw = cast("dict[str, dict[str, Numbers]]", body["trials"])
        trials = {TrialKey.parse(text): test for text, test in raw.items()}
        groups = {key: cast("Groups", test["groups"]) for key, test in trials.items()}
        baselines = cast("dict[str, JSON]", body.get("baselines", {}))
        values = {key: test["values"] for key, test in trials.items()}
        ensembles = cast("dict[str, JSON]", body.get("ensembles", {}))
        return cls(values, groups, baselines, body.get("refit") is True, ensembles)


# ------------------------------------------------------------------ configurations


@dataclass(frozen=True, slots=True)
class Proposed(Event):
    """The sampler proposed a point."""

    kind = "proposed"
    number: int
    point: Point
    carried: JSON = field(default_factory=dict)
    """Data that the sampler stores with the proposal; see `samplers.genetic`."""

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        body = {"number": self.number, **_point_to_json(self.point)}
        return {**body, "carried": self.carried} if self.carried else body

    @classmethod
    def from_json(cls, body: JSON) -> Self:
        """Parse an event from its JSON."""
        number, carried = cast("int", body["number"]), cast("JSON", body.get("carried", {}))
        return cls(number, _point_from_json(body), carried)


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """A proposal was refused."""

    kind = "refused"
    number: int
    reason: str
    detail: str
    excess: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted(Event):
    """A proposal was admitted: its first trials will run."""

    kind = "admitted"
    number: int
    configuration_id: str
    model: str
    parameters: JSON
    cost: Numbers
    """Costs known before training."""
    seeds: list[int]
    """The first replicates."""
    epochs: int = 1
    """Epochs of each trial."""
    warmup: int = 0
    """Epochs before mixup starts; 0 without mixup."""
    group: str = ""
    """Branch and mixup setting: their learning curves are comparable."""
    best: float | None = None
    """In a deterministic study, the best posterior mean at its cost or below at that time, by which
    early stopping judges it; None if there is none."""

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        body = Event.to_json(self)
        return {name: v for name, v in body.items() if name != "best" or v is not None}

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Parse the value of one field from its JSON."""
        if name == "configuration_id":
            TrialKey.parse(f"{value}-0")  # it is part of folder names
        return value


@dataclass(frozen=True, slots=True)
class Replicated(Event):
    """A configuration gets more replicates."""

    kind = "replicated"
    configuration_id: str
    seeds: list[int]


@dataclass(frozen=True, slots=True)
class Frozen(Event):
    """The configurations to report were chosen, and get fresh replicates."""

    kind = "frozen"
    seeds: dict[str, list[int]]
    """The fresh replicates by configuration."""


@dataclass(frozen=True, slots=True)
class Fitted(Event):
    """The surrogate was fitted: later fits start from these hyperparameters."""

    kind = "fitted"
    num: int
    """Configurations with a value."""
    lengthscales: list[float]
    amplitude: float
    tau: float
    sigma: float
    mean: float


@dataclass(frozen=True, slots=True)
class Expected(Event):
    """The expected gain of continuing was computed, before a proposal."""

    kind = "expected"
    number: int
    gain: float


@dataclass(frozen=True, slots=True)
class Told(Event):
    """The result of a configuration was passed to the sampler."""

    kind = "told"
    number: int
    state: str
    """`complete`, `stopped` or `failed`."""
    values: list[float] | None


EVENTS: dict[str, type[Event]] = {
    one.kind: one
    for one in (
        *(Created, Imported, Opened, Recorded, Concluded, Ended, Confirmed),
        BaselinesFitted,
        *(Proposed, Refused, Admitted, Replicated, Frozen, Fitted, Expected, Told),
        *(Started, EpochEnded, Retried, Judged, Stopped, Finished, Failed, Refitted),
    )
}


def parse_event(kind: str, body: JSON) -> Event:
    """Parse an event of a kind from its JSON.

    Raises:
        EventError: the kind is unknown, or the JSON does not match it.
    """
    if kind not in EVENTS:
        raise EventError(f"`{kind}` is not an event of this version")
    try:
        return EVENTS[kind].from_json(body)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, EventError):
            raise
        raise EventError(f"`{kind}` has an invalid body ({error})") from error


def _point_to_json(point: Point) -> JSON:
    return {"branch": point.branch, "values": dict(point.values)}


def _point_from_json(body: JSON) -> Point:
    return Point(cast("int", body["branch"]), cast("JSON", body["values"]))
