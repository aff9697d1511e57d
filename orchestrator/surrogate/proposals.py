"""What candidates are expected to improve the front by, while other trials are on their way.

Shapes: N candidates, M of them that are compared, W configurations on their way, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.surrogate.acquisition import Staircase, expected_improvement, staircase
from sftsearch.orchestrator.surrogate.anchor import MAX_IMPORTED, MAX_OBSERVED
from sftsearch.orchestrator.surrogate.gp import GaussianProcess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Candidate
    from sftsearch.orchestrator.surrogate.candidate_pool import Candidates
    from sftsearch.orchestrator.surrogate.fitted_model import FittedModel
    from sftsearch.orchestrator.surrogate.observations import Measurements

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

MAX_CANDIDATES = 4_000
"""Candidates that are compared; beyond, those near the most promising and some others."""
MAX_PAIRS = 250_000
"""Candidates times configurations in the surrogate: the more of these, the fewer of those."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The improvement that each of some candidates is expected to be."""

    among: Candidates
    rows: Indices
    """Which of them were compared, (M,)."""
    gains: Floats
    """Of the hypervolume: accuracy times scaled cost, (M,)."""

    @property
    def candidates(self) -> list[Candidate]:
        """Those that were compared."""
        return [self.among.rows[i] for i in self.rows]

    @property
    def best_row(self) -> int | None:
        """The row of the most promising one; None: there is none."""
        return int(self.rows[int(self.gains.argmax())]) if len(self.rows) else None

    @property
    def best(self) -> Candidate | None:
        """The most promising one; None: there is none."""
        return None if self.best_row is None else self.among.rows[self.best_row]


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """A fitted model with the trials on their way at their expected value.

    So the next proposal does not go where others already are.
    """

    model: FittedModel
    process: GaussianProcess
    stairs: Staircase

    def compare(self, number: int, among: Candidates, free: Indices) -> Comparison:
        """Compare candidates; of many only some.

        Args:
            number: of the proposal, from which it follows which are compared.
            among: the candidates.
            free: the rows of those that may be proposed.
        """
        most = _num_compared(self.model.measurements)
        if len(free) <= most:
            return Comparison(among, free, self._gains(among, free))
        random_ = np.random.default_rng([self.model.data.seed, number])
        some = random_.choice(free, most // 2, replace=False)
        gains = self._gains(among, some)
        best = some[np.argsort(-gains, kind="stable")[:8]]
        lengthscales = self.model.hyperparameters.lengthscales
        more = _close(among.x, lengthscales, best, free, most // 2, random_)
        more = more[~np.isin(more, some)]
        gains = np.append(gains, self._gains(among, more))
        return Comparison(among, np.append(some, more), gains)

    def gain_of_replicates(self, among: Candidates, row: int, replicates: int) -> float:
        """Return what a candidate's first replicates are expected to improve the front by.

        What counts is how far they will move what is known of it.
        """
        mean, sd = self.process.predict(among.x[[row]])
        moved = sd**2 / np.sqrt(sd**2 + self.model.hyperparameters.sigma**2 / replicates)
        mean, moved = self.model.as_values(mean, moved)
        return float(expected_improvement(among.u[[row]], mean, moved, self.stairs)[0])

    def _gains(self, among: Candidates, rows: Indices) -> Floats:
        means, sds = self.model.as_values(*self.process.predict(among.x[rows]))
        return expected_improvement(among.u[rows], means, sds, self.stairs)


def look_ahead(model: FittedModel, x_waiting: Floats, u_waiting: Floats, floor: float) -> Outlook:
    """Return a fitted model with the trials on their way at their expected value.

    Args:
        model: fitted to what was measured.
        x_waiting: features of the configurations that may still get a value, (W, D).
        u_waiting: scaled costs of them, (W, costs).
        floor: what counts as reached where nothing is affordable.
    """
    held, process = model.held, model.process
    means, u = model.posterior.means, model.posterior.u
    if len(x_waiting):
        expected = process.predict(x_waiting)[0]
        process = GaussianProcess(
            np.vstack([held.x, x_waiting]),
            np.concatenate([held.means, expected]),
            np.concatenate([held.counts, np.ones(len(x_waiting))]),
            model.hyperparameters,
            None if held.shared is None else np.pad(held.shared, (0, len(x_waiting))),
        )
        expected = model.to_values(expected)
        means, u = np.concatenate([means, expected]), np.vstack([u, u_waiting])
    return Outlook(model, process, staircase(u, means, floor=floor))


def seconds_of(measurements: Measurements) -> Floats:
    """Return the seconds of a replicate, positive also where they were not measured."""
    return np.maximum(measurements.seconds, 1e-3)


def expected_seconds(measurements: Measurements, cost: float) -> float:
    """Return the seconds that a configuration of some cost takes, by those that were measured."""
    seconds = np.log(seconds_of(measurements))
    costs = np.log(measurements.costs)
    if np.ptp(costs) == 0:
        return float(np.exp(seconds.mean()))
    slope, level = np.polyfit(costs, seconds, 1)
    return float(np.exp(level + slope * np.log(cost)))


def _num_compared(measurements: Measurements) -> int:
    held = min(MAX_OBSERVED, len(measurements.ids))
    held += min(MAX_IMPORTED, len(measurements.imported))
    return min(MAX_CANDIDATES, MAX_PAIRS // held)


def _close(
    x: Floats,
    lengthscales: Floats,
    best: Indices,
    free: Indices,
    count: int,
    random_: np.random.Generator,
) -> Indices:
    """Return the free candidates closest to the best ones, of at most eight times as many.

    Args:
        x: features of the candidates, (N, D).
        lengthscales: the unit of each feature, (D,).
        best: the ones to be close to.
        free: those to choose from.
        count: how many to choose.
        random_: draws among the free ones, where there are many.
    """
    sample = random_.choice(free, min(len(free), 8 * count), replace=False)
    own, others = x[sample] / lengthscales, x[best] / lengthscales
    squares = np.einsum("ij,ij->i", own, own)[:, None] - 2 * own @ others.T
    apart = (squares + np.einsum("ij,ij->i", others, others)).min(axis=1)
    nearest: Indices = sample[np.argsort(apart, kind="stable")[:count]]
    return nearest
