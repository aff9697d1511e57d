"""What a running study knows of its configurations: values by replicate, and what is on its way.

Shapes: C configurations that were measured, R replicates, K folds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.surrogate import additive_means

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sftsearch.orchestrator.surrogate import Hyperparameters
    from sftsearch.search_spaces.space import Point

    Floats = NDArray[np.float64]


@dataclass(slots=True)
class Observed:
    """A configuration of the study and what became of its trials so far."""

    number: int
    """Of its proposal."""
    id: str
    point: Point
    model: str
    parameters: dict[str, Any]
    cost: dict[str, float]
    """What is known without training."""
    row: int
    """Its place in the arrays of `Observations`."""
    epochs: int = 1
    """Of each of its trials."""
    warmup: int = 0
    """Epochs before mixup sets in; 0 without mixup."""
    group: str = ""
    """Branch and mixup setting: what learns alike."""
    values: dict[int, list[float]] = field(default_factory=dict)
    """Objectives of each finished replicate."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The configurations with a value, as arrays in the order of their admission."""

    ids: list[str]
    means: Floats
    """Of the accuracy, higher is better, (C,); comparable between different folds."""
    counts: Floats
    """Replicates behind each mean, (C,)."""
    pooled_variance: float
    """Of the replicates around their configuration's mean."""
    dof: float
    costs: Floats
    """Of the study's cost, (C,)."""
    seconds: Floats
    """Mean seconds of a replicate, (C,)."""


class Observations:
    """All configurations that a study admitted, in that order."""

    def __init__(
        self,
        costs: tuple[str, ...],
        *,
        sign: float = 1.0,
        floor: float | None = None,
        num_folds: int | None = None,
    ) -> None:
        """Begin with none.

        Args:
            costs: the objectives that are known without training, the study's cost first.
            sign: 1 where the first objective is maximised, -1 where it is minimised.
            floor: what chance reaches of the first objective; None: not known.
            num_folds: replicate r is of fold r modulo so many.
        """
        self.costs, self.sign, self.num_folds = costs, sign, num_folds
        self._floor = floor
        self.hyperparameters: Hyperparameters | None = None
        """Of the surrogate, as they were fitted last."""
        self.num_fitted = 0
        """How many configurations had a value then."""
        self._by_id: dict[str, Observed] = {}
        self._in_flight: dict[str, Observed] = {}
        self._values = np.full((64, 2), np.nan)
        self._seconds = np.zeros(64)
        self._measured: Measured | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, configuration_id: str) -> bool:
        return configuration_id in self._by_id

    def __getitem__(self, configuration_id: str) -> Observed:
        return self._by_id[configuration_id]

    @property
    def all(self) -> list[Observed]:
        """Every configuration, in the order of admission."""
        return list(self._by_id.values())

    def since(self, number: int) -> list[Observed]:
        """Return the configurations after the first so many, in the order of admission."""
        return (
            list(itertools.islice(self._by_id.values(), number, None)) if number < len(self) else []
        )

    @property
    def floor(self) -> float:
        """What counts as reached where nothing is affordable: chance, or the worst value seen."""
        if self._floor is not None:
            return self._floor
        return float(np.nanmin(self._values)) if np.isfinite(self._values).any() else 0.0

    def admit(
        self, number: int, configuration_id: str, point: Point, body: Mapping[str, Any]
    ) -> Observed:
        """Take up a configuration; `body` is that of its `admitted` event."""
        row = len(self._by_id)
        if row == len(self._values):
            self._values = np.vstack([self._values, np.full_like(self._values, np.nan)])
            self._seconds = np.concatenate([self._seconds, np.zeros_like(self._seconds)])
        observed = Observed(
            number=number,
            id=configuration_id,
            point=point,
            model=body["model"],
            parameters=dict(body["parameters"]),
            cost=dict(body["cost"]),
            row=row,
            epochs=body["epochs"],
            warmup=body["warmup"],
            group=body["group"],
        )
        self._by_id[configuration_id] = observed
        return observed

    def begin(self, observed: Observed, replicate: int, *, fresh: bool = False) -> None:
        """Take note that a replicate was admitted."""
        observed.pending.add(replicate)
        if fresh:
            observed.fresh.add(replicate)
        self._in_flight[observed.id] = observed

    def finish(
        self, observed: Observed, replicate: int, values: list[float], seconds: float
    ) -> None:
        """Take the objectives of a finished replicate, and the seconds it trained."""
        self._end(observed, replicate)
        observed.values[replicate] = values
        while replicate >= self._values.shape[1]:
            self._values = np.hstack([self._values, np.full_like(self._values, np.nan)])
        self._values[observed.row, replicate] = self.sign * values[0]
        self._seconds[observed.row] += seconds
        self._measured = None

    def drop(self, observed: Observed, replicate: int, *, stopped: bool) -> None:
        """Take note that a replicate was stopped or failed: its configuration has no value."""
        self._end(observed, replicate)
        observed.stopped |= stopped
        observed.failed |= not stopped
        self._values[observed.row] = np.nan
        self._measured = None

    def withdraw(self, observed: Observed, replicate: int) -> None:
        """Take note that a replicate will not be run after all."""
        self._end(observed, replicate)
        observed.fresh.discard(replicate)

    @property
    def has_values(self) -> bool:
        """Whether any configuration has a value."""
        return len(self.measured().ids) > 0

    def measured(self) -> Measured:
        """Return the configurations that have a value."""
        if self._measured is None:
            self._measured = self._measure()
        return self._measured

    def pending(self) -> list[Observed]:
        """Return the configurations without a value that may still get one."""
        waiting = self._in_flight.values()
        return [o for o in waiting if not (o.values or o.failed or o.stopped)]

    def _end(self, observed: Observed, replicate: int) -> None:
        observed.pending.discard(replicate)
        if not observed.pending:
            self._in_flight.pop(observed.id, None)

    def _measure(self) -> Measured:
        complete = [o for o in self._by_id.values() if o.is_complete]
        rows = np.array([o.row for o in complete], dtype=np.int64)
        values_CR = self._values[rows]
        used = np.isfinite(values_CR).any(axis=0)
        last = int(np.flatnonzero(used).max()) + 1 if used.any() else 1
        folds_R = np.arange(last) % (self.num_folds or 1)
        means, counts, variance, dof, _ = additive_means(values_CR[:, :last], folds_R)
        return Measured(
            ids=[o.id for o in complete],
            means=means,
            counts=counts,
            pooled_variance=variance,
            dof=dof,
            costs=np.array([o.cost[self.costs[0]] for o in complete], dtype=float),
            seconds=self._seconds[rows] / np.maximum(counts, 1),
        )
