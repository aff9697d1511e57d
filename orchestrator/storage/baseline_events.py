"""Define the event that records a study's baselines, and the result of one of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, cast

from sftsearch.orchestrator.storage.event import JSON, Event, Numbers

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.event import Groups


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResult:
    """The result of one baseline on one fold, or on the dataset's own split."""

    name: str
    """`majority` or `mean`, `linear`, `mlp`."""
    description: str
    """What it is in words, for example its statistics and modalities."""
    modalities: tuple[str, ...]
    parameters: JSON
    """With `seed` they determine its weights."""
    seed: int
    fold: int | None
    """None: the dataset's own split."""
    values: Numbers
    """Validation metrics and costs by name."""
    groups: Groups
    """Validation samples by subject: (correct, count)."""

    @property
    def key(self) -> str:
        """The key of the result within its study."""
        return self.name if self.fold is None else f"{self.name}, fold {self.fold}"

    @classmethod
    def from_json(cls, body: JSON) -> Self:
        """Parse a result from its JSON."""
        fields = dict(body)
        fields["modalities"] = tuple(cast("list[str]", fields["modalities"]))
        return cls(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselinesFitted(Event):
    """The study's baselines were fitted. They are no trials.

    Later proposals of the sampler `ehvi` have to surpass them.
    """

    kind = "baselines"
    results: list[BaselineResult]
    """The best of each name, on each fold."""
    num_fitted: int
    """How many baselines these were chosen from, over all folds."""
    skipped: list[str] = field(default_factory=list)
    """What the time limit left out, in words."""
    seconds: float = 0.0

    def to_json(self) -> JSON:
        """Return the event as JSON, without its kind."""
        results = [
            {**dataclasses.asdict(one), "modalities": [*one.modalities]} for one in self.results
        ]
        return {**Event.to_json(self), "results": results}

    @classmethod
    def parse_field(cls, name: str, value: object) -> object:
        """Parse the value of one field from its JSON."""
        if name == "results":
            return [BaselineResult.from_json(one) for one in cast("list[JSON]", value)]
        return value
