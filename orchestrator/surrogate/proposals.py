"""Expected improvement of candidates while other trials are running.

Shapes: N candidates, M of them compared, W pending configurations, K models outside the study, D
features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.surrogate.acquisition import (
    Staircase,
    expected_excess,
    expected_improvement,
    staircase,
)
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
"""Maximum number of compared candidates: a sample, and those near the most promising ones."""
MAX_PAIRS = 250_000
"""Maximum of compared candidates times configurations in the surrogate."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The expected improvement of some candidates."""

    among: Candidates
    rows: Indices
    """The rows that were compared, (M,)."""
    gains: Floats
    """Expected gain in hypervolume, accuracy times scaled cost, (M,)."""
    excesses: Floats | None = None
    """Expected excess over the best model outside the study, at any cost, (M,); None if the study
    is expected to have a better one already, or there is none outside."""

    def joined(self, other: Comparison) -> Comparison:
        """Return both comparisons, of the same outlook, as one."""
        excesses = None
        if self.excesses is not None and other.excesses is not None:
            excesses = np.append(self.excesses, other.excesses)
        rows, gains = np.append(self.rows, other.rows), np.append(self.gains, other.gains)
        return Comparison(self.among, rows, gains, excesses)

    @property
    def candidates(self) -> list[Candidate]:
        """The compared candidates."""
        return [self.among.rows[i] for i in self.rows]

    @property
    def best_row(self) -> int | None:
        """The row of the most promising candidate, if any."""
        return int(self.rows[int(self.gains.argmax())]) if len(self.rows) else None

    @property
    def best(self) -> Candidate | None:
        """The most promising candidate, if any."""
        return None if self.best_row is None else self.among.rows[self.best_row]

    @property
    def most_accurate(self) -> Candidate | None:
        """The candidate with the highest expected excess, if excesses are known."""
        if self.excesses is None or not len(self.rows):
            return None
        return self.among.rows[int(self.rows[int(self.excesses.argmax())])]


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """A fitted model in which pending trials have their expected values.

    This keeps the next proposal away from pending ones.
    """

    model: FittedModel
    process: GaussianProcess
    stairs: Staircase
    target: float | None = None
    """Value of the best model outside the study, if no configuration is expected to reach it."""

    def compare(self, number: int, among: Candidates, free: Indices) -> Comparison:
        """Compare candidates by expected improvement; if there are many, only a subset.

        Args:
            number: of the proposal; it seeds the choice of the subset.
            among: the candidates.
            free: rows of the candidates that may be proposed.
        """
        most = _num_compared(self.model.measurements)
        if len(free) <= most:
            return self._comparison(among, free)
        random_ = np.random.default_rng([self.model.data.seed, number])
        some = random_.choice(free, most // 2, replace=False)
        first = self._comparison(among, some)
        best = some[np.argsort(-first.gains, kind="stable")[:8]]
        lengthscales = self.model.hyperparameters.lengthscales
        more = _close(among.x, lengthscales, best, free, most // 2, random_)
        more = more[~np.isin(more, some)]
        return first.joined(self._comparison(among, more))

    def _comparison(self, among: Candidates, rows: Indices) -> Comparison:
        means, sds = self.model.as_values(*self.process.predict(among.x[rows]))
        gains = expected_improvement(among.u[rows], means, sds, self.stairs)
        excesses = None if self.target is None else expected_excess(means - self.target, sds)
        return Comparison(among, rows, gains, excesses)

    def gain_of_replicates(self, among: Candidates, row: int, replicates: int) -> float:
        """Return the expected improvement by a candidate's first replicates.

        It depends on how far the replicates will move the posterior mean.
        """
        mean, sd = self.process.predict(among.x[[row]])
        moved = sd**2 / np.sqrt(sd**2 + self.model.hyperparameters.sigma**2 / replicates)
        mean, moved = self.model.as_values(mean, moved)
        return float(expected_improvement(among.u[[row]], mean, moved, self.stairs)[0])


def look_ahead(
    model: FittedModel,
    x_waiting: Floats,
    u_waiting: Floats,
    floor: float,
    u_others: Floats,
    values_others: Floats,
) -> Outlook:
    """Return a fitted model in which pending trials have their expected values.

    Args:
        model: fitted to the measurements.
        x_waiting: features of the pending configurations, (W, D).
        u_waiting: their scaled costs, (W, costs).
        floor: the value assumed where nothing is affordable.
        u_others: scaled costs of models outside the study that have to be surpassed, (K, costs).
        values_others: their values, (K,).
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
    means, u = np.concatenate([means, values_others]), np.vstack([u, u_others])
    target = float(values_others.max(initial=-np.inf))
    if not len(values_others) or model.posterior.means.max() >= target:
        return Outlook(model, process, staircase(u, means, floor=floor))
    return Outlook(model, process, staircase(u, means, floor=floor), target)


def seconds_of(measurements: Measurements) -> Floats:
    """Return the seconds of a replicate, positive even if they were not measured."""
    return np.maximum(measurements.seconds, 1e-3)


def expected_seconds(measurements: Measurements, cost: float) -> float:
    """Estimate the seconds of a configuration by a log-log line on the searched cost."""
    seconds = np.log(seconds_of(measurements))
    costs = np.log(measurements.searched_costs)
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
    """Return the `count` candidates closest to the best ones, from a sample of 8 times as many.

    Args:
        x: features of the candidates, (N, D).
        lengthscales: the unit of each feature, (D,).
        best: rows of the best candidates.
        free: rows to choose from.
        count: how many to choose.
        random_: draws the sample.
    """
    sample = random_.choice(free, min(len(free), 8 * count), replace=False)
    own, others = x[sample] / lengthscales, x[best] / lengthscales
    squares = np.einsum("ij,ij->i", own, own)[:, None] - 2 * own @ others.T
    apart = (squares + np.einsum("ij,ij->i", others, others)).min(axis=1)
    nearest: Indices = sample[np.argsort(apart, kind="stable")[:count]]
    return nearest
