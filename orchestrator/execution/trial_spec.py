"""Define the specification of a trial that a worker receives, sent between processes as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """What to train, on which resources, and where to store it."""

    key: str
    folder: str
    """The trial's folder, a path or a URI: log, checkpoint, final weights."""
    dataset: str
    num_folds: int | None
    """Number of grouped folds; the seed selects the trial's fold. None: the dataset's own split."""
    model: str
    parameters: dict[str, object]
    training: dict[str, object]
    seed: int
    cost: dict[str, float]
    """Cost by closed form; the count on the built model must be equal."""
    num_journalled: int
    """Epochs that are already in the journal; only later ones are reported."""
    threads: int
    device: str
    root: str | None = None
    """Folder of the dataset's store; None: built in, or prepared on this machine."""
    fencing_token: int = 0
    """Increases each time a trial of the study is assigned to a worker."""
    resources: dict[str, float] = dataclasses.field(default_factory=dict)
    """What Ray reserves for each worker: CPU, GPU, memory, custom."""
    plugins: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The source of a model that is not of this package; see `plugins.load_shipped`."""
    rank: int = 0
    workers: int = 1
    """Processes that train the trial together; `rank` is the index of this one."""

    def to_json(self) -> str:
        """Serialize the spec as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> TrialSpec:
        """Read what `to_json` wrote."""
        return TrialSpec(**json.loads(text))
