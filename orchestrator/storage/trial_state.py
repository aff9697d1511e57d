"""Define the state of a study's configurations, trials and open proposals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.event import JSON, Groups, Numbers, TrialKey
    from sftsearch.search_spaces.point import Point


@dataclass(slots=True)
class ConfigurationState:
    """A configuration of the study and the results of its trials so far."""

    number: int
    """The number of its proposal."""
    id: str
    point: Point
    model: str
    parameters: JSON
    cost: Numbers
    """Costs known before training."""
    row: int
    """Its index in the order of admission."""
    epochs: int
    """Epochs of each trial."""
    warmup: int
    """Epochs before mixup starts; 0 without mixup."""
    group: str
    """Branch and mixup setting: their learning curves are comparable."""
    values: dict[int, Numbers] = field(default_factory=dict)
    """Final metrics and costs of each finished replicate."""
    pending: set[int] = field(default_factory=set)
    """Replicates that were admitted and have not ended."""
    fresh: set[int] = field(default_factory=set)
    """Replicates that run after the configuration was chosen to be reported."""
    failed: bool = False
    stopped: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether it has values and can be on the front."""
        return bool(self.values) and not (self.failed or self.stopped)

    @property
    def num_replicates(self) -> int:
        """Replicates admitted so far, which is also the number of the next one."""
        return len(self.values) + len(self.pending) + self.failed + self.stopped


@dataclass(slots=True)
class TrialState:
    """A trial and its results so far."""

    key: TrialKey
    configuration: ConfigurationState
    position: int
    """Its index in the order of admission."""
    status: str = "waiting"
    """`waiting`, `running`, `finished`, `stopped` or `failed`."""
    epochs: dict[int, Numbers] = field(default_factory=dict)
    """Metrics of the journalled epochs; emptied when the trial ends."""
    has_trained: bool = False
    """Whether its last epoch is journalled, but maybe not its result."""
    judged: int = 0
    """The last epoch after which the early-stopping rule judged it."""
    losses: int = 0
    """How often its process died since its last report."""
    alone: bool = False
    """Whether it gets whole GPUs, because it ran out of memory beside other trials."""
    values: Numbers = field(default_factory=dict)
    """Final metrics and costs; a stopped trial has those of its last epoch."""
    groups: Groups = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    """The first objective after each epoch, once the trial has ended."""
    reason: str = ""
    """Why it failed or was stopped."""
    stopped_after: int | None = None
    """The epoch after which it was stopped."""
    started: float | None = None
    """Unix seconds; None if it never started."""
    ended: float = 0.0
    test_values: Numbers | None = None
    test_groups: Groups | None = None

    @property
    def begun(self) -> bool:
        """Whether it was started, by this driver or an earlier one."""
        return self.started is not None


@dataclass(slots=True)
class OpenProposal:
    """A proposal whose result has not been passed to the sampler."""

    point: Point
    configuration_id: str = ""
    """Empty until it is admitted."""
    num_first: int = 0
    """Number of first replicates; the sampler gets the mean over them."""
    pending: int = 0
    """First replicates that have not ended."""
    outcomes: list[Numbers | None] = field(default_factory=list)
    """Final values of the first replicates that ended; None for one without values."""
    stopped: bool = False
