"""Configurations, trials and open proposals of a study, and what became of them so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.event import JSON, Groups, Numbers, TrialKey
    from sftsearch.search_spaces.space import Point


@dataclass(slots=True)
class ConfigurationState:
    """A configuration of the study and what became of its trials so far."""

    number: int
    """Of its proposal."""
    id: str
    point: Point
    model: str
    parameters: JSON
    cost: Numbers
    """What is known without training."""
    row: int
    """Its place in the order of admission."""
    epochs: int
    """Of each of its trials."""
    warmup: int
    """Epochs before mixup sets in; 0 without mixup."""
    group: str
    """Branch and mixup setting: what learns alike."""
    values: dict[int, Numbers] = field(default_factory=dict)
    """Final metrics and costs of each finished replicate."""
    pending: set[int] = field(default_factory=set)
    """Replicates that were admitted and have not ended."""
    fresh: set[int] = field(default_factory=set)
    """Replicates that were run after the configuration was chosen to be reported."""
    failed: bool = False
    stopped: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether it has a value and can be on the front."""
        return bool(self.values) and not (self.failed or self.stopped)

    @property
    def num_replicates(self) -> int:
        """Replicates that were admitted: the number of the next one."""
        return len(self.values) + len(self.pending) + self.failed + self.stopped


@dataclass(slots=True)
class TrialState:
    """A trial and what became of it so far."""

    key: TrialKey
    configuration: ConfigurationState
    position: int
    """Its place in the order of admission."""
    status: str = "waiting"
    """`waiting`, `running`, `finished`, `stopped` or `failed`."""
    epochs: dict[int, Numbers] = field(default_factory=dict)
    """Metrics of the journalled epochs; emptied when the trial ends."""
    judged: int = 0
    """The last epoch after which it was judged."""
    losses: int = 0
    """How often its process died since it last reported."""
    alone: bool = False
    """Whether it is to have whole GPUs, because it ran out of memory beside others."""
    values: Numbers = field(default_factory=dict)
    """Final metrics and costs; of a stopped trial those of the epoch it reached."""
    groups: Groups = field(default_factory=dict)
    reason: str = ""
    """Why it failed or was stopped."""
    stopped_after: int | None = None
    """The epoch after which it was stopped."""
    started: float | None = None
    """Unix seconds; None where it was never handed out."""
    ended: float = 0.0
    test_values: Numbers | None = None
    test_groups: Groups | None = None

    @property
    def begun(self) -> bool:
        """Whether it was handed out, by this driver or an earlier one."""
        return self.started is not None


@dataclass(slots=True)
class OpenProposal:
    """A proposal until the sampler knows what became of it."""

    point: Point
    configuration_id: str = ""
    """Empty until it is admitted."""
    num_first: int = 0
    """First replicates: what the sampler is told is their mean."""
    pending: int = 0
    """First replicates that have not ended."""
    outcomes: list[Numbers | None] = field(default_factory=list)
    """Final values of the first replicates that ended; None: it has none."""
    stopped: bool = False
