"""The kinds of events of a study, a frozen dataclass each, and their JSON in the journal.

Nothing else reads or writes that JSON. A field that journals of earlier versions lack has a
default. To add an event, write its class and add it to `EVENTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self, cast

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
    Retried,
    Started,
    Stopped,
)
from sftsearch.search_spaces.space import Point

RETIRED = frozenset({"mirrored"})
"""Kinds of events that earlier versions wrote and nothing reads any more."""

# ------------------------------------------------------------------ the study


@dataclass(frozen=True, slots=True, kw_only=True)
class Created(Event):
    """The study began."""

    kind = "created"
    name: str
    description: str
    dataset: str
    root: str | None = None
    """Where the dataset's store is, if it is not of the machine."""
    num_seeds: int
    """Replicates of every configuration."""
    objectives: list[list[str]]
    """(metric, `maximize` or `minimize`), accuracy first."""
    facts: dict[str, str]
    """Fingerprints, versions, license: shown at the foot of a report."""
    families: list[str] = field(default_factory=list)
    """Parameters that set families of configurations apart, beside the model."""
    refused: dict[str, int] = field(default_factory=dict)
    """Points that were refused when the whole space was priced, by reason."""
    definition: JSON = field(default_factory=dict)
    """What must not change from one driver to the next; see `binding.definition_of`."""
    definition_hash: str = ""

    @property
    def folds(self) -> int | None:
        """Grouped folds that the replicates take in turn; None: the dataset's own split."""
        folds = self.definition.get("folds")
        return folds if isinstance(folds, int) else None

    @property
    def max_replicates(self) -> int | None:
        """Replicates that a configuration may earn; None: every one has `num_seeds`."""
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
        """The branches of the space, as the study file has them."""
        space = self.definition.get("space")
        return space if isinstance(space, list) else []


@dataclass(frozen=True, slots=True)
class ImportedConfiguration:
    """A configuration of this space that another study trained just as this one would."""

    id: str
    point: Point
    objectives: dict[int, list[float]]
    """Final values by replicate, in the order of this study's objectives."""
    seconds: dict[int, float]
    """Of training, by replicate."""


@dataclass(frozen=True, slots=True)
class Imported(Event):
    """The study began with what another one has found (a warm start)."""

    kind = "imported"
    study: str
    alike: bool
    """Whether the other study's values are those that this one would measure."""
    differs: list[str]
    """Why not."""
    configurations: list[ImportedConfiguration]
    starts: list[Point]
    """Points to propose first."""

    def to_json(self) -> JSON:
        """Return the event as the journal keeps it."""
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
        """Return the value of a field that the journal keeps as `value`."""
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
    """A driver took the study."""

    kind = "opened"
    trials: int
    """The budget."""
    slots: int
    """Trials at a time."""


@dataclass(frozen=True, slots=True)
class Recorded(Event):
    """The study is recorded as a table: its trials look at the test split."""

    kind = "recorded"


@dataclass(frozen=True, slots=True)
class Concluded(Event):
    """What the study concluded at its end, by the surrogate that its search used."""

    kind = "concluded"
    reported: list[str]
    """Ids of the configurations it takes for the front."""
    beliefs: dict[str, Numbers]
    """`mean`, `sd` and `on_front` by configuration."""
    within_delta: float
    audits: Numbers | None
    """How often early stopping was wrong; None where no stop was audited."""
    num_stopped: int = 0


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The driver stopped."""

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

    def to_json(self) -> JSON:
        """Return the event as the journal keeps it."""
        trials = {
            str(key): {"values": values, "groups": self.groups[key]}
            for key, values in self.values.items()
        }
        return {"trials": trials}

    @classmethod
    def from_json(cls, body: JSON) -> Self:
        """Return the event that `to_json` made this of."""
        raw = cast("dict[str, dict[str, Numbers]]", body["trials"])
        trials = {TrialKey.parse(text): test for text, test in raw.items()}
        groups = {key: cast("Groups", test["groups"]) for key, test in trials.items()}
        return cls({key: test["values"] for key, test in trials.items()}, groups)


# ------------------------------------------------------------------ configurations


@dataclass(frozen=True, slots=True)
class Proposed(Event):
    """The sampler named a point."""

    kind = "proposed"
    number: int
    point: Point
    carried: JSON = field(default_factory=dict)
    """What the sampler keeps with it; see `samplers.genetic`."""

    def to_json(self) -> JSON:
        """Return the event as the journal keeps it."""
        body = {"number": self.number, **_point_to_json(self.point)}
        return {**body, "carried": self.carried} if self.carried else body

    @classmethod
    def from_json(cls, body: JSON) -> Self:
        """Return the event that `to_json` made this of."""
        number, carried = cast("int", body["number"]), cast("JSON", body.get("carried", {}))
        return cls(number, _point_from_json(body), carried)


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """Admission refused a proposal."""

    kind = "refused"
    number: int
    reason: str
    detail: str
    excess: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted(Event):
    """Admission took a proposal: its first trials are to run."""

    kind = "admitted"
    number: int
    configuration_id: str
    model: str
    parameters: JSON
    cost: Numbers
    """What is known without training."""
    seeds: list[int]
    """The first replicates."""
    epochs: int = 1
    """Of each trial."""
    warmup: int = 0
    """Epochs before mixup sets in; 0 without mixup."""
    group: str = ""
    """Branch and mixup setting: what learns alike."""

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Return the value of a field that the journal keeps as `value`."""
        if name == "configuration_id":
            TrialKey.parse(f"{value}-0")  # it names the folders of its trials
        return value


@dataclass(frozen=True, slots=True)
class Replicated(Event):
    """A configuration earned more trials."""

    kind = "replicated"
    configuration_id: str
    seeds: list[int]


@dataclass(frozen=True, slots=True)
class Frozen(Event):
    """What is reported was chosen, and gets fresh trials."""

    kind = "frozen"
    seeds: dict[str, list[int]]
    """Replicates by configuration."""


@dataclass(frozen=True, slots=True)
class Fitted(Event):
    """The surrogate was fitted: later fits begin with these hyperparameters."""

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
    """What going on may gain was computed, before a proposal."""

    kind = "expected"
    number: int
    gain: float


@dataclass(frozen=True, slots=True)
class Told(Event):
    """The sampler was told what became of a configuration."""

    kind = "told"
    number: int
    state: str
    """`complete`, `stopped` or `failed`."""
    values: list[float] | None


EVENTS: dict[str, type[Event]] = {
    one.kind: one
    for one in (
        *(Created, Imported, Opened, Recorded, Concluded, Ended, Confirmed),
        *(Proposed, Refused, Admitted, Replicated, Frozen, Fitted, Expected, Told),
        *(Started, EpochEnded, Retried, Judged, Stopped, Finished, Failed),
    )
}


def parse_event(kind: str, body: JSON) -> Event:
    """Return the event of a kind that the journal keeps as this JSON.

    Raises:
        EventError: there is no such kind, or the JSON is not one of it.
    """
    if kind not in EVENTS:
        raise EventError(f"`{kind}` is not an event of this version")
    try:
        return EVENTS[kind].from_json(body)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, EventError):
            raise
        raise EventError(f"`{kind}` is not as it should be ({error})") from error


def _point_to_json(point: Point) -> JSON:
    return {"branch": point.branch, "values": dict(point.values)}


def _point_from_json(body: JSON) -> Point:
    return Point(cast("int", body["branch"]), cast("JSON", body["values"]))
