"""Values by replicate and pending trials of all configurations of a running study.

Shapes: C measured configurations, I imported ones, R replicates, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.surrogate.fold_effects import additive_means
from sftsearch.orchestrator.surrogate.transforms import OutcomeTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.storage.events import ImportedConfiguration
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """The configurations with a value, as arrays in the order of admission."""

    ids: list[str]
    rows: Indices
    """Their rows among all admitted configurations, ascending, (C,)."""
    means: Floats
    """Mean accuracy, higher is better, on the scale of `Observations.transform`, (C,); adjusted for
    fold effects."""
    counts: Floats
    """Replicates of each mean, (C,)."""
    pooled_variance: float
    """Variance of the replicates around their configuration's mean."""
    dof: float
    """Degrees of freedom of the pooled variance."""
    costs: Floats
    """The cost by which configurations are compared, (C,)."""
    searched_costs: Floats
    """The cost that candidates also have, (C,)."""
    seconds: Floats
    """Mean seconds of a replicate, (C,)."""
    imported: Indices
    """Indices in `Observations.imported` of those without a value of this study, (I,)."""
    imported_means: Floats
    """(I,), as `means`."""
    imported_counts: Floats
    """(I,), as `counts`."""
    fold_weights: Floats
    """Share of the replicates by fold: own configurations, then imported ones, (C + I, K)."""
    fold_covariance: Floats
    """Posterior covariance of the fold effects, (K, K); see `AdditiveFit`."""
    fold_spread: float
    """Standard deviation of the fold effects."""

    @property
    def num_known(self) -> int:
        """Number of configurations with a value, own and imported."""
        return len(self.ids) + len(self.imported)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A model outside the study that a configuration has to surpass, such as a baseline."""

    value: float
    """Of the first objective, higher is better."""
    costs: tuple[float, ...]
    """In the order of `Observations.costs`."""


class Observations:
    """All configurations of a study, in the order of admission."""

    def __init__(
        self,
        objective: str,
        costs: tuple[str, ...],
        *,
        judged_cost: str | None = None,
        sign: float = 1.0,
        floor: float | None = None,
        least: float | None = None,
        num_folds: int | None = None,
        is_share: bool = False,
    ) -> None:
        """Start empty.

        Args:
            objective: the first objective, the accuracy.
            costs: the objectives that are known for every point, the study's cost first.
            judged_cost: by which admitted configurations are compared; None: the first of `costs`.
            sign: 1 if the first objective is maximized, -1 if it is minimized.
            floor: value of the first objective at chance level, if known.
            least: worst value of the first objective that is of interest, if any is too bad.
            num_folds: number of folds; replicate r uses fold r modulo it.
            is_share: whether the first objective is in [0, 1].
        """
        self.costs, self.sign, self.num_folds = costs, sign, num_folds
        self.judged_cost = judged_cost or costs[0]
        self._objective = objective
        self._floor = floor
        self.least = None if least is None else sign * least
        """Lowest accuracy that is of interest, higher is better; None: any is."""
        self.transform = OutcomeTransform(is_share, sign, floor or 0.0)
        """Maps values to the scale of the surrogate."""
        self.alternatives: list[Alternative] = []
        """What can be had without the study: its baselines."""
        self.imported: list[ImportedConfiguration] = []
        """Measurements of another study, which are not part of this study."""
        self._imported_index: dict[str, int] = {}
        self._by_id: dict[str, ConfigurationState] = {}
        self._in_flight: dict[str, ConfigurationState] = {}
        # By row, with spare capacity.
        self._ids = np.empty(64, dtype=object)
        self._values = np.full((64, 2), np.nan)
        self._seconds = np.zeros(64)
        self._costs = np.zeros((64, 2))  # the judged one, the searched one
        self._is_complete = np.zeros(64, dtype=bool)
        self._num_pending = np.zeros(64, dtype=np.int64)
        self._num_replicates = np.zeros(64, dtype=np.int64)
        self._measured: Measurements | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __getitem__(self, configuration_id: str) -> ConfigurationState:
        return self._by_id[configuration_id]

    @property
    def all(self) -> list[ConfigurationState]:
        """Every configuration, in the order of admission."""
        return list(self._by_id.values())

    @property
    def floor(self) -> float:
        """The value assumed where nothing is affordable: chance level, or the worst value seen.

        At least the lowest one of interest, so that what is worse gains nothing.
        """
        floor = self._floor
        if floor is None:
            is_any = np.isfinite(self._values).any()
            floor = float(np.nanmin(self._values)) if is_any else 0.0
        return floor if self.least is None else max(floor, self.least)

    def require(self, value: float) -> None:
        """Set the worst value of the first objective that is of interest."""
        self.least = self.sign * value

    def admit(self, configuration: ConfigurationState) -> None:
        """Add an admitted configuration."""
        row = configuration.row
        if row == len(self._values):
            self._grow()
        self._by_id[configuration.id] = configuration
        self._ids[row] = configuration.id
        self._costs[row] = [configuration.cost[name] for name in (self.judged_cost, self.costs[0])]
        self._set_values(configuration)
        self.begin(configuration)

    def import_(self, imported: ImportedConfiguration) -> None:
        """Add a configuration of another study; call before any configuration is admitted.

        If this study trains it too, its replicates replace the imported ones of the same number;
        the other imported replicates still count.
        """
        self._imported_index[imported.id] = len(self.imported)
        self.imported.append(imported)
        self._measured = None

    def begin(self, configuration: ConfigurationState) -> None:
        """Record that replicates of a configuration were admitted."""
        ended = configuration.values or configuration.failed or configuration.stopped
        if configuration.pending and not ended:
            self._in_flight[configuration.id] = configuration
        else:
            self._in_flight.pop(configuration.id, None)
        self._is_complete[configuration.row] = configuration.is_complete
        self._num_pending[configuration.row] = len(configuration.pending)
        self._num_replicates[configuration.row] = configuration.num_replicates

    def end(self, configuration: ConfigurationState) -> None:
        """Record that a replicate of a configuration ended, with any status."""
        self.begin(configuration)
        self._set_values(configuration)
        self._measured = None

    def _set_values(self, configuration: ConfigurationState) -> None:
        row, seconds = configuration.row, 0.0
        self._values[row] = np.nan
        index = self._imported_index.get(configuration.id)
        imported = None if index is None else self.imported[index]
        if imported is not None:
            for replicate, objectives in imported.objectives.items():
                self._set(row, replicate, objectives[0])
                if replicate not in configuration.values:
                    seconds += imported.seconds[replicate]
        for replicate, values in configuration.values.items():
            self._set(row, replicate, values[self._objective])
            seconds += values.get("seconds", 0.0)
        self._seconds[row] = seconds
        if configuration.failed or configuration.stopped:
            self._values[row] = np.nan

    def _set(self, row: int, replicate: int, value: float) -> None:
        while replicate >= self._values.shape[1]:
            self._values = np.hstack([self._values, np.full_like(self._values, np.nan)])
        self._values[row, replicate] = self.sign * value

    @property
    def has_values(self) -> bool:
        """Whether any configuration has a value."""
        return len(self.measured().ids) > 0

    def measured(self) -> Measurements:
        """Return the configurations that have a value."""
        if self._measured is None:
            self._measured = self._measure()
        return self._measured

    def pending(self) -> list[ConfigurationState]:
        """Return the configurations without a value that may still get one."""
        return list(self._in_flight.values())

    def replicates(self) -> tuple[Indices, Indices]:
        """Return pending and admitted replicates of the measured configurations, each (C,)."""
        rows = self.measured().rows
        return self._num_pending[rows], self._num_replicates[rows]

    def _grow(self) -> None:
        self._values = np.vstack([self._values, np.full_like(self._values, np.nan)])
        self._ids = np.append(self._ids, np.empty_like(self._ids))
        self._seconds = np.append(self._seconds, np.zeros_like(self._seconds))
        self._costs = np.vstack([self._costs, np.zeros_like(self._costs)])
        self._is_complete = np.append(self._is_complete, np.zeros_like(self._is_complete))
        self._num_pending = np.append(self._num_pending, np.zeros_like(self._num_pending))
        self._num_replicates = np.append(self._num_replicates, np.zeros_like(self._num_replicates))

    def _imported_values(self) -> tuple[Indices, Floats]:
        """Return index and values of imported configurations that this study did not complete."""
        indices = [
            index
            for identity, index in self._imported_index.items()
            if identity not in self._by_id or not self._by_id[identity].is_complete
        ]
        width = max([self._values.shape[1], *(1 + max(i.objectives) for i in self.imported)])
        values_IR = np.full((len(indices), width), np.nan)
        for row, index in enumerate(indices):
            for replicate, objectives in self.imported[index].objectives.items():
                values_IR[row, replicate] = self.sign * objectives[0]
        return np.array(indices, dtype=np.int64), values_IR

    def _measure(self) -> Measurements:
        rows = np.flatnonzero(self._is_complete)
        imported, imported_IR = self._imported_values()
        missing = imported_IR.shape[1] - self._values.shape[1]
        own_CR = np.pad(self._values[rows], ((0, 0), (0, missing)), constant_values=np.nan)
        values_CR = self.transform.to_latent(np.vstack([own_CR, imported_IR]))
        used = np.isfinite(values_CR).any(axis=0)
        last = int(np.flatnonzero(used).max()) + 1 if used.any() else 1
        folds_R = np.arange(last) % (self.num_folds or 1)
        fit = additive_means(values_CR[:, :last], folds_R)
        means, counts, number = fit.means, fit.counts, len(rows)
        return Measurements(
            ids=self._ids[rows].tolist(),
            rows=rows,
            means=means[:number],
            counts=counts[:number],
            pooled_variance=fit.variance,
            dof=fit.dof,
            costs=self._costs[rows, 0],
            searched_costs=self._costs[rows, 1],
            seconds=self._seconds[rows] / np.maximum(counts[:number], 1),
            imported=imported,
            imported_means=means[number:],
            imported_counts=counts[number:],
            fold_weights=fit.weights,
            fold_covariance=fit.covariance,
            fold_spread=float(np.std(fit.effects)) if len(fit.effects) else 0.0,
        )
