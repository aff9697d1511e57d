"""The surrogate of a running study: what Search and the sampler ask of its configurations.

A Gaussian process is fitted to accuracy alone; what a configuration costs is known. From it follow
what another configuration is expected to gain, which the sampler `ehvi` proposes by; the best that
a cost affords, which trials are stopped by; and how sure the front is, which replicates go by.

What was measured is in `Observations`. Every answer is that of a snapshot: a `FittedModel`, which
is replaced when something is measured, and an `Outlook`, which is when something is admitted.

Shapes: C configurations that were measured, R draws.
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
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.surrogate.fitted_model import Fit, FittedModel, Posterior
    from sftsearch.orchestrator.surrogate.observations import Measurements, Observations
    from sftsearch.search_spaces.space import Point

    Floats = NDArray[np.float64]

NUM_AHEAD = 20
"""Proposals whose expected gain tells whether a study has converged."""
MIN_JUDGED = 4
"""Configurations with a value before replicates are weighed against new configurations."""


@dataclass(frozen=True, slots=True)
class Option:
    """Something to train next."""

    configuration_id: str
    rate: float
    """What it is expected to gain, accuracy times scaled cost, per second of training."""


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """The comparison that was asked for last, and what it was of."""

    number: int
    branch: int | None
    outlook: Outlook
    comparison: Comparison

    def is_of(self, number: int, branch: int | None) -> bool:
        """Tell whether it is of these candidates."""
        return (self.number, self.branch) == (number, branch)


class SurrogateModel:
    """The surrogate of one study: told what is admitted, asked what to expect."""

    def __init__(
        self,
        admission: Admission,
        past: Observations,
        *,
        seed: int = 0,
        last_fit: Fit | None = None,
        on_fit: Callable[[Fit], None] | None = None,
    ) -> None:
        """Take up the study as it is; nothing is encoded or fitted before it is needed.

        Args:
            admission: of the study's space.
            past: what the study knows of its configurations.
            seed: of the study's sampler.
            last_fit: of a resumed study, that of its journal.
            on_fit: hears of every new fit, before anything follows from it.
        """
        self.past = past
        self.pool = CandidatePool(admission, past.costs, seed=seed)
        self.features = StudyFeatures(self.pool.encode_taken)
        """Of the study's configurations, by row."""
        self.last_fit = last_fit
        """Its hyperparameters hold until the next one is due, which begins there."""
        self._features_imported = StudyFeatures(self.pool.encode_points)
        self._seed, self._on_fit = seed, on_fit
        self._model: FittedModel | None = None
        self._outlook: Outlook | None = None
        self._compared: _Compared | None = None
        for imported in past.imported:
            self.import_(imported.id, imported.point)
        for observed in past.all:
            self.take(observed.id, observed.point)

    # ------------------------------------------------------------ told

    def take(self, configuration_id: str, point: Point) -> None:
        """Note that a configuration was admitted, in the order of `Observations`."""
        self.pool.take(configuration_id)
        self.features.add(configuration_id, point)
        self._outlook = None

    def import_(self, configuration_id: str, point: Point) -> None:
        """Note that another study has measured a configuration, in the order of `Observations`."""
        self._features_imported.add(configuration_id, point)

    # ------------------------------------------------------------ what was measured

    def fitted(self) -> FittedModel:
        """Return the model of what was measured: the same one until something else is.

        This is the one place where a study's surrogate is fitted, and new fits are told of.
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
        u = u.reshape(-1, len(self.past.costs))  # also where nothing was admitted
        return StudyData(measurements, x, u, x_imported, self.past.transform, self._seed)

    def posterior(self) -> Posterior:
        """Return what is known of every configuration that has a value."""
        return self.fitted().posterior

    def affordable(self, cost: float) -> float | None:
        """Return the best posterior mean at a cost or below; None where nothing is affordable.

        `cost` is of the study's cost and in its unit.
        """
        is_any = bool((self.past.measured().costs <= cost).any())  # else there is nothing to fit
        return self.fitted().affordable(cost) if is_any else None

    def front(self) -> list[str]:
        """Return the configurations no cheaper one is likely to be as good as, by rising cost."""
        return self.fitted().front()

    def draws(self, number: int, seed: int = 0) -> Floats:
        """Return draws of the true means of all that was measured, (number, C)."""
        return self.fitted().draws(number, seed)

    # ------------------------------------------------------------ what may be gained

    def can_judge(self) -> bool:
        """Tell whether enough was measured to weigh a new configuration against a replicate."""
        return len(self.past.measured().ids) >= MIN_JUDGED

    def best_replicate(self, maximum: int) -> Option | None:
        """Return the configuration whose next replicate changes the front most per second.

        None: no configuration may have another one, or none would change anything.
        """
        if not self.past.has_values:
            return None
        measurements = self.past.measured()
        rates = self._changes(maximum) / seconds_of(measurements)
        best = int(rates.argmax())
        return Option(measurements.ids[best], rates[best]) if rates[best] > 0 else None

    def best_new(self, number: int, replicates: int) -> Option | None:
        """Return the new configuration that is expected to improve the front most, per second.

        What counts is how far its first replicates will move what is known of it.
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
        """Return what the next `NUM_AHEAD` proposals and all replicates may gain together.

        At most: gains that overlap are counted twice. Accuracy times scaled cost.
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
        allowed: Floats = np.where(replicates < maximum, changes, 0.0)
        return allowed

    def compare(self, number: int, branch: int | None = None) -> Comparison:
        """Compare candidates that are not in the study by what each is expected to improve.

        Of many candidates only some are compared.

        Args:
            number: of the proposal; where candidates are drawn, they follow from it.
            branch: whose candidates; None: of all.
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
            self._outlook = look_ahead(model, x[waiting], u[waiting], self.past.floor)
        return self._outlook
