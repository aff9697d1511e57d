"""A trial as a worker gets it: plain values that travel between processes as JSON."""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """What to train, where to keep it, and on what."""

    key: str
    folder: str
    """The trial's folder, a path or a URI: log, checkpoint, final weights."""
    dataset: str
    num_folds: int | None
    """Grouped folds of the data set; the trial's is that of its seed. None: its own split."""
    model: str
    parameters: dict[str, object]
    training: dict[str, object]
    seed: int
    cost: dict[str, float]
    """Its price by closed form; the model that runs must count the same."""
    num_journalled: int
    """Epochs that the journal has: those after them are reported."""
    threads: int
    device: str
    root: str | None = None
    """Where the data set's store is; None: built in, or prepared on this machine."""
    fencing_token: int = 0
    """Grows with every handing-out of a trial of the study."""
    resources: dict[str, float] = dataclasses.field(default_factory=dict)
    """What Ray gives each of its workers: CPU, GPU, memory, custom."""
    rank: int = 0
    workers: int = 1
    """Processes that train it together; this one's number is `rank`."""

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> TrialSpec:
        """Read what `to_json` wrote."""
        return TrialSpec(**json.loads(text))
