"""The surrogate of a running study, as Search and the samplers use it.

A Gaussian process is fitted to accuracy alone, because costs are known. It provides the expected
improvement of new configurations (sampler `ehvi`), the best accuracy at a cost (early stopping)
and the uncertainty of the front (replicates).

The measurements are in `Observations`. Answers come from snapshots: a `FittedModel`, replaced after
every measurement, and an `Outlook`, also replaced after every admission.

Shapes: C measured configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.surrogate.candidate_pool import CandidatePool
from sftsearch.orchestrator.surrogate.features import StudyFeatures
from sftsearch.orchestrator.surrogate.fitted_model import StudyData, fit
from sftsearch.orchestrator.surrogate.front_probability import knowledge_gradient
from sftsearch.orchestrator.surrogate.proposals import (
    Comparison,
    Outlook,
    expected_seconds,
    look_ahead,
    seconds_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.surrogate.fitted_model import Fit, FittedModel, Posterior
    from sftsearch.orchestrator.surrogate.observations import (
        Alternative,
        Measurements,
        Observations,
    )
    from sftsearch.search_spaces.point import Point

    Floats = NDArray[np.float64]

NUM_AHEAD = 20
"""Number of proposals whose expected gain decides whether a study has converged."""
MIN_JUDGED = 4
"""Configurations with a value before replicates are compared with new configurations."""


@dataclass(frozen=True, slots=True)
class Option:
    """A configuration to train next."""

    configuration_id: str
    rate: float
    """Expected gain, accuracy times scaled cost, per second of training."""


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """The last comparison and its arguments."""

    number: int
    branch: int | None
    outlook: Outlook
    comparison: Comparison

    def is_of(self, number: int, branch: int | None) -> bool:
        """Return whether the comparison has these arguments."""
        return (self.number, self.branch) == (number, branch)


class SurrogateModel:
    """The surrogate of one study."""

    def __init__(
        self,
        admission: Admission,
        past: Observations,
        *,
        seed: int = 0,
        last_fit: Fit | None = None,
        on_fit: Callable[[Fit], None] | None = None,
    ) -> None:
        """Start from the state of the study; encoding and fitting wait until first use.

        Args:
            admission: of the study's space.
            past: the observations of the study.
            seed: the sampler's seed.
            last_fit: the last fit in the journal of a resumed study.
            on_fit: is called with every new fit before it is used.
        """
        self.past = past
        self.pool = CandidatePool(admission, past.costs, seed=seed)
        self.features = StudyFeatures(self.pool.encode_taken)
        """Features of the study's configurations, by row."""
        self.last_fit = last_fit
        """Its hyperparameters are used until the next fit is due, which starts from them."""
        self._features_imported = StudyFeatures(self.pool.encode_points)
        self._seed, self._on_fit = seed, on_fit
        self._model: FittedModel | None = None
        self._outlook: Outlook | None = None
        self._compared: _Compared | None = None
        for imported in past.imported:
            self.import_(imported.id, imported.point)
        for observed in past.all:
            self.take(observed.id, observed.point)

    # ------------------------------------------------------------ updates

    def take(self, configuration_id: str, point: Point) -> None:
        """Add an admitted configuration; call in the order of `Observations`."""
        self.pool.take(configuration_id)
        self.features.add(configuration_id, point)
        self._outlook = None

    def import_(self, configuration_id: str, point: Point) -> None:
        """Add a configuration of another study; call in the order of `Observations`."""
        self._features_imported.add(configuration_id, point)

    def surpass(self, alternatives: Sequence[Alternative]) -> None:
        """Expect a gain only from configurations that no alternative dominates."""
        self.past.alternatives = list(alternatives)
        self._outlook = None

    def require(self, value: float) -> None:
        """Set the worst value of the first objective that is of interest."""
        self.past.require(value)
        self._outlook = None

    # ------------------------------------------------------------ measurements

    def fitted(self) -> FittedModel:
        """Return the model of all measurements; it is cached until the next measurement.

        Only this method fits the study's surrogate and calls `on_fit`.
        """
        measurements = self.past.measured()
        if self._model is None or self._model.measurements is not measurements:
            model = fit(self._data(measurements), self.last_fit, self._model)
            if model.fit is not self.last_fit:
                if self._on_fit is not None:
                    self._on_fit(model.fit)
                self.last_fit = model.fit
            self._model = model
        return self._model

    def _data(self, measurements: Measurements) -> StudyData:
        x, u = self.features.arrays()
        x_imported = np.zeros((0, 0))
        if len(measurements.imported):
            x_imported, _ = self._features_imported.arrays()
        u = u.reshape(-1, len(self.past.costs))  # also if nothing was admitted
        return StudyData(measurements, x, u, x_imported, self.past.transform, self._seed)

    def posterior(self) -> Posterior:
        """Return the posterior of every configuration with a value."""
        return self.fitted().posterior

    def affordable(self, cost: float) -> float | None:
        """Return the best posterior mean at a cost or below; None if nothing is affordable.

        `cost` has the unit of the study's cost.
        """
        # Without an affordable configuration there may be nothing to fit.
        is_any = bool((self.past.measured().costs <= cost).any())
        return self.fitted().affordable(cost) if is_any else None

    def front(self) -> list[str]:
        """Return the ids on the front of the posterior means, by rising cost.

        Those below the lowest accuracy of interest are left out; if all are, the best one is kept.
        """
        front = self.fitted().front()
        interesting = dict(zip(self.past.measured().ids, self._is_interesting(), strict=True))
        return [identity for identity in front if interesting[identity]] or front[-1:]

    def _is_interesting(self) -> NDArray[np.bool_]:
        """Return which measured configurations reach the lowest accuracy of interest, (C,)."""
        least = -np.inf if self.past.least is None else self.past.least
        reached: NDArray[np.bool_] = self.posterior().means >= least
        return reached

    def draws(self, number: int, seed: int = 0) -> Floats:
        """Draw the true means of all measured configurations, (number, C)."""
        return self.fitted().draws(number, seed)

    # ------------------------------------------------------------ expected gains

    def can_judge(self) -> bool:
        """Return whether enough was measured to compare new configurations with replicates."""
        return len(self.past.measured().ids) >= MIN_JUDGED

    def best_replicate(self, maximum: int) -> Option | None:
        """Return the configuration whose next replicate changes the front most per second.

        None if no configuration may get another replicate, or none would change anything.
        """
        if not self.past.has_values:
            return None
        measurements = self.past.measured()
        rates = self._changes(maximum) / seconds_of(measurements)
        best = int(rates.argmax())
        return Option(measurements.ids[best], rates[best]) if rates[best] > 0 else None

    def best_new(self, number: int, replicates: int) -> Option | None:
        """Return the most promising new configuration and its expected gain per second.

        The gain is that of its first `replicates` replicates.
        """
        comparison = self.compare(number)
        row, best = comparison.best_row, comparison.best
        if row is None or best is None:
            return None
        gain = self._look_ahead().gain_of_replicates(comparison.among, row, replicates)
        cost = getattr(best.cost, self.past.costs[0])
        seconds = expected_seconds(self.past.measured(), cost) * replicates
        return Option(best.id, gain / seconds)

    def gain_ahead(self, number: int, maximum: int) -> float:
        """Return an upper bound of the gain of the next `NUM_AHEAD` proposals and all replicates.

        Overlapping gains are counted twice. The unit is accuracy times scaled cost.
        """
        gains = np.sort(self.compare(number).gains)[::-1]
        return float(gains[:NUM_AHEAD].sum() + self._changes(maximum).sum())

    def _changes(self, maximum: int) -> Floats:
        """Return how much another replicate of each is expected to change the front, (C,)."""
        posterior = self.posterior()
        running, replicates = self.past.replicates()
        changes = knowledge_gradient(
            posterior.means,
            posterior.deviations**2,
            posterior.sigmas**2,
            posterior.u[:, 0],
            running,
        )
        may_get = (replicates < maximum) & self._is_interesting()
        allowed: Floats = np.where(may_get, changes, 0.0)
        return allowed

    def compare(self, number: int, branch: int | None = None) -> Comparison:
        """Compare candidates that are not in the study by expected improvement.

        If there are many, only a subset is compared.

        Args:
            number: of the proposal; it seeds the drawn candidates.
            branch: of the candidates; None for all branches.
        """
        among, free = self.pool.candidates(number, branch)
        if not len(free):
            return Comparison(among, free, np.zeros(0))
        outlook, last = self._look_ahead(), self._compared
        if last is not None and last.outlook is outlook and last.is_of(number, branch):
            return last.comparison
        comparison = outlook.compare(number, among, free)
        self._compared = _Compared(number, branch, outlook, comparison)
        return comparison

    def _look_ahead(self) -> Outlook:
        model = self.fitted()
        if self._outlook is None or self._outlook.model is not model:
            waiting = [observed.row for observed in self.past.pending()]
            x, u = self.features.arrays()
            others = self.past.alternatives
            self._outlook = look_ahead(
                model,
                x[waiting],
                u[waiting],
                self.past.floor,
                self.pool.scale([other.costs for other in others]),
                np.array([other.value for other in others]),
            )
        return self._outlook
