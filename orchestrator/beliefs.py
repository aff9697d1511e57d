"""What a running study believes of every configuration: the surrogate over its own space.

A Gaussian process is fitted to accuracy alone; what a configuration costs is known. From it follow
what another configuration is expected to gain, which the sampler `front` proposes by; the best that
a cost affords, which trials are stopped by; and how sure the front is, which replicates go by.

Shapes: N candidates, C configurations that were measured, D features, R draws.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.encoding import Encoder
from sftsearch.orchestrator.improvement import Staircase, expected_improvement, staircase
from sftsearch.orchestrator.membership import front_changes
from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.orchestrator.surrogate import Surrogate, fit_hyperparameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.admission import Admission, Candidate
    from sftsearch.orchestrator.observations import Measured, Observations

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

MAX_OBSERVED = 300
"""Measured configurations the surrogate holds; beyond, those near the front and some others."""
MAX_CANDIDATES = 4_000
"""Candidates that are compared; beyond, those near the most promising and some others."""
NUM_DRAWN = 2_000
"""Points drawn from a space too large to price whole, and drawn anew every so often."""
DRAWN_FOR = 50
"""Proposals that the same drawn points serve."""
NUM_AHEAD = 20
"""Proposals whose expected gain tells whether a study has converged."""
MIN_JUDGED = 4
"""Configurations with a value before replicates are weighed against new configurations."""
REFIT = 1.15
"""The hyperparameters are fitted anew when so many times as many configurations have a value."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Configurations that may be proposed, as arrays."""

    rows: list[Candidate]
    x: Floats
    """Features, (N, D)."""
    u: Floats
    """Scaled costs, (N, costs)."""
    branches: Indices
    ids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Option:
    """Something to train next."""

    configuration_id: str
    rate: float
    """What it is expected to gain, accuracy times scaled cost, per second of training."""


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What is believed of the configurations that have a value, in the order of `Measured`."""

    means: Floats
    """Of their true means, (C,)."""
    deviations: Floats
    u: Floats
    """Scaled costs, (C, costs)."""
    sigma: float
    """Standard deviation of one replicate around its configuration's true mean."""


class Beliefs:
    """The surrogate of one study, kept up with its observations."""

    def __init__(self, admission: Admission, past: Observations, *, seed: int = 0) -> None:
        """Begin without candidates: they are priced and encoded when they are first needed."""
        self.past = past
        self._admission, self._seed = admission, seed
        self._encoder: Encoder | None = None
        self._pool: Candidates | None = None
        self._pool_block = -1
        self._is_free = np.zeros(0, dtype=bool)
        self._num_seen = 0
        self._encoded: dict[str, tuple[Floats, Floats]] = {}
        self._surrogate: tuple[Measured, Surrogate, Indices] | None = None
        self._posterior: tuple[Measured, Posterior] | None = None

    # ------------------------------------------------------------ what is believed

    def posterior(self) -> Posterior:
        """Return what is believed of every configuration that has a value."""
        measured = self.past.measured()
        if self._posterior is None or self._posterior[0] is not measured:
            self._posterior = measured, self._judge(measured)
        return self._posterior[1]

    def affordable(self, cost: float) -> float | None:
        """Return the best posterior mean at a cost or below; None where nothing is affordable.

        `cost` is of the study's cost and in its unit.
        """
        measured = self.past.measured()
        within = measured.costs <= cost
        return float(self.posterior().means[within].max()) if within.any() else None

    def _judge(self, measured: Measured) -> Posterior:
        surrogate, kept = self._fitted(measured)
        means, deviations = np.empty(len(measured.ids)), np.empty(len(measured.ids))
        means[kept], deviations[kept] = surrogate.observed()
        x, u = self._places(measured.ids)
        assert self.past.hyperparameters is not None
        sigma = self.past.hyperparameters.sigma
        others = np.setdiff1d(np.arange(len(measured.ids)), kept)
        if len(others):  # their own values on top of what the surrogate says without them
            mean, sd = surrogate.predict(x[others])
            own = sigma**2 / measured.counts[others]
            weight = sd**2 / (sd**2 + own)
            means[others] = mean + weight * (measured.means[others] - mean)
            deviations[others] = sd * np.sqrt(1 - weight)
        return Posterior(means, deviations, u, sigma)

    def _fitted(self, measured: Measured) -> tuple[Surrogate, Indices]:
        """Return the surrogate of what was measured and which of it that holds.

        Its hyperparameters are fitted anew where it is time.
        """
        if self._surrogate is not None and self._surrogate[0] is measured:
            return self._surrogate[1:]
        past, number = self.past, len(measured.ids)
        x, u = self._places(measured.ids)
        kept = _most_telling(u, measured.means, np.random.default_rng([self._seed, number]))
        data = x[kept], measured.means[kept], measured.counts[kept]
        if past.hyperparameters is None or number >= REFIT * past.num_fitted:
            past.hyperparameters = fit_hyperparameters(
                *data,
                pooled_variance=measured.pooled_variance,
                dof=measured.dof,
                start=past.hyperparameters,
            )
            past.num_fitted = number
        surrogate = Surrogate(*data, past.hyperparameters)
        self._surrogate = measured, surrogate, kept
        return surrogate, kept

    def _with_pending(self) -> tuple[Surrogate, Staircase]:
        """Return surrogate and front with the trials on their way at their expected value.

        So the next proposal does not go where others already are.
        """
        measured, past = self.past.measured(), self.past
        surrogate, kept = self._fitted(measured)
        posterior = self.posterior()
        means, u = posterior.means, posterior.u
        waiting = past.pending()
        if waiting:
            x, _ = self._places([measured.ids[i] for i in kept])
            x_waiting, u_waiting = self._places([o.id for o in waiting])
            expected = surrogate.predict(x_waiting)[0]
            assert past.hyperparameters is not None
            surrogate = Surrogate(
                np.vstack([x, x_waiting]),
                np.concatenate([measured.means[kept], expected]),
                np.concatenate([measured.counts[kept], np.ones(len(waiting))]),
                past.hyperparameters,
            )
            means, u = np.concatenate([means, expected]), np.vstack([u, u_waiting])
        return surrogate, staircase(u, means, floor=past.floor)

    def front(self) -> list[str]:
        """Return the configurations no cheaper one is believed to be as good as, by rising cost."""
        measured, means = self.past.measured(), self.posterior().means
        chosen, best = [], -np.inf
        for i in np.lexsort((-means, measured.costs)):
            if means[i] > best:
                chosen.append(measured.ids[i])
                best = means[i]
        return chosen

    def draws(self, number: int, seed: int = 0) -> Floats:
        """Return draws of the true means of all that was measured, (number, C).

        Joint for the configurations that the surrogate holds; each of the others by itself.
        """
        measured, posterior = self.past.measured(), self.posterior()
        surrogate, kept = self._fitted(measured)
        random_ = np.random.default_rng([seed, len(measured.ids)])
        drawn = random_.normal(posterior.means, posterior.deviations, (number, len(measured.ids)))
        mean, covariance = surrogate.observed_joint()
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(values.clip(min=0.0))
        drawn[:, kept] = mean + random_.standard_normal((number, len(kept))) @ root.T
        return drawn

    # ------------------------------------------------------------ what may be gained

    def can_judge(self) -> bool:
        """Tell whether enough was measured to weigh a new configuration against a replicate."""
        return len(self.past.measured().ids) >= MIN_JUDGED

    def best_replicate(self, maximum: int) -> Option | None:
        """Return the configuration whose next replicate changes the front most per second.

        None: no configuration may have another one, or none would change anything.
        """
        changes = self._changes(maximum)
        measured = self.past.measured()
        rates = changes / _seconds_of(measured)
        best = int(rates.argmax()) if len(rates) else -1
        return Option(measured.ids[best], rates[best]) if best >= 0 and rates[best] > 0 else None

    def best_new(self, number: int, replicates: int) -> Option | None:
        """Return the new configuration that is expected to improve the front most, per second.

        What counts is how far its first replicates will move what is believed of it.
        """
        surrogate, stairs = self._with_pending()
        gain, candidates = self.gains(number, None)
        if not candidates:
            return None
        best = candidates[int(gain.argmax())]
        x, u = self._encoding().encode([best])
        mu, sd = surrogate.predict(x)
        moved = sd**2 / np.sqrt(sd**2 + self.posterior().sigma ** 2 / replicates)
        seconds = _expected_seconds(self.past.measured(), getattr(best.cost, self.past.costs[0]))
        rate = float(expected_improvement(u, mu, moved, stairs)[0]) / (seconds * replicates)
        return Option(best.id, rate)

    def gain_ahead(self, number: int, maximum: int) -> float:
        """Return what the next `NUM_AHEAD` proposals and all replicates may gain together.

        At most: gains that overlap are counted twice. Accuracy times scaled cost.
        """
        gain, _ = self.gains(number, None)
        return float(np.sort(gain)[::-1][:NUM_AHEAD].sum() + self._changes(maximum).sum())

    def _changes(self, maximum: int) -> Floats:
        """Return how much another replicate of each is expected to change the front, (C,)."""
        measured, posterior = self.past.measured(), self.posterior()
        observed = [self.past[i] for i in measured.ids]
        running = np.array([len(o.pending) for o in observed])
        may = np.array([o.num_replicates < maximum for o in observed], dtype=bool)
        changes = front_changes(
            posterior.means,
            posterior.deviations**2,
            posterior.sigma**2,
            posterior.u[:, 0],
            running,
        )
        allowed: Floats = np.where(may, changes, 0.0)
        return allowed

    def gains(self, number: int, branch: int | None) -> tuple[Floats, list[Candidate]]:
        """Return candidates that are not in the study, with the improvement each is expected to be.

        Improvement of the hypervolume: accuracy times scaled cost. Of many candidates only some are
        compared.

        Args:
            number: of the proposal; where candidates are drawn, they follow from it.
            branch: whose candidates; None: of all.
        """
        pool = self.candidates(number)
        free = self.free(pool, branch)
        if not len(free):
            return np.zeros(0), []
        surrogate, stairs = self._with_pending()

        def gain_of(rows: Indices) -> Floats:
            mu, sd = surrogate.predict(pool.x[rows])
            return expected_improvement(pool.u[rows], mu, sd, stairs)

        if len(free) > MAX_CANDIDATES:
            random_ = np.random.default_rng([self._seed, number])
            some = random_.choice(free, MAX_CANDIDATES // 2, replace=False)
            best = some[np.argsort(-gain_of(some), kind="stable")[:8]]
            free = np.union1d(some, _close(pool.x, best, free, MAX_CANDIDATES // 2, random_))
        return gain_of(free), [pool.rows[i] for i in free]

    def candidates(self, number: int) -> Candidates:
        """Return the whole space, or what is drawn of it for a block of proposals."""
        block = 0 if self._admission.table is not None else number // DRAWN_FOR
        if self._pool is None or block != self._pool_block:
            self._pool, self._pool_block = self._encoded_block(block), block
            self._is_free = np.array([c.id not in self.past for c in self._pool.rows], dtype=bool)
            self._num_seen = len(self.past)
        for observed in self.past.since(self._num_seen):
            if observed.id in self._pool.ids:
                self._is_free[self._pool.ids[observed.id]] = False
        self._num_seen = len(self.past)
        return self._pool

    def free(self, pool: Candidates, branch: int | None) -> Indices:
        """Return which candidates are not in the study."""
        free = self._is_free if branch is None else self._is_free & (pool.branches == branch)
        return np.flatnonzero(free)

    def places_of_study(self) -> Floats:
        """Return the features of all configurations of the study."""
        return self._places([observed.id for observed in self.past.all])[0]

    def _encoded_block(self, block: int) -> Candidates:
        if self._admission.table is None:
            return self._encode(self._list(block))
        known = self._admission.encoded
        if known is None or known[0].costs != self.past.costs:
            pool = self._encode(self._list(block))
            self._admission.encoded = known = self._encoding(), pool
        encoded: tuple[Encoder, Candidates] = known
        self._encoder = encoded[0]
        return encoded[1]

    def _encode(self, rows: list[Candidate]) -> Candidates:
        x, u = self._encoding().encode(rows)
        branches = np.array([c.point.branch for c in rows], dtype=np.int64)
        return Candidates(rows, x, u, branches, {c.id: i for i, c in enumerate(rows)})

    def _encoding(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder(self._list(0), self.past.costs)
        return self._encoder

    def _list(self, block: int) -> list[Candidate]:
        """Return every candidate, or those drawn for a block, in the study or not."""
        if self._admission.table is not None:
            return list(self._admission.table.values())
        random_ = random.Random(derive_seed(self._seed, block))
        points = (self._admission.space.draw(random_) for _ in range(NUM_DRAWN))
        priced = (self._admission.within_limits(point) for point in points)
        return list({c.id: c for c in priced if c is not None}.values())

    def _places(self, ids: Sequence[str]) -> tuple[Floats, Floats]:
        """Return features and scaled costs of configurations in the study."""
        pool = self.candidates(0) if self._admission.table is not None else None
        if pool is not None:
            rows = [pool.ids[identity] for identity in ids]
            return pool.x[rows], pool.u[rows]
        for identity in ids:
            if identity not in self._encoded:
                candidate = self._admission.price(self.past[identity].point)
                x, u = self._encoding().encode([candidate])
                self._encoded[identity] = x[0], u[0]
        known = [self._encoded[identity] for identity in ids]
        return np.array([x for x, _ in known]), np.array([u for _, u in known])


def _seconds_of(measured: Measured) -> Floats:
    """Return the seconds of a replicate, positive also where they were not measured."""
    return np.maximum(measured.seconds, 1e-3)


def _expected_seconds(measured: Measured, cost: float) -> float:
    """Return the seconds that a configuration of some cost takes, by those that were measured."""
    seconds = np.log(_seconds_of(measured))
    costs = np.log(measured.costs)
    if np.ptp(costs) == 0:
        return float(np.exp(seconds.mean()))
    slope, level = np.polyfit(costs, seconds, 1)
    return float(np.exp(level + slope * np.log(cost)))


def _most_telling(u: Floats, means: Floats, random_: np.random.Generator) -> Indices:
    """Return which measured configurations the surrogate holds: half of them next to the front."""
    if len(means) <= MAX_OBSERVED:
        return np.arange(len(means))
    order = np.argsort(u.sum(axis=1), kind="stable")
    affordable = np.empty(len(means))
    affordable[order] = np.maximum.accumulate(means[order])
    near = np.argsort(affordable - means, kind="stable")
    kept, rest = near[: MAX_OBSERVED // 2], near[MAX_OBSERVED // 2 :]
    return np.concatenate([kept, random_.choice(rest, MAX_OBSERVED - len(kept), replace=False)])


def _close(
    x: Floats, best: Indices, free: Indices, count: int, random_: np.random.Generator
) -> Indices:
    """Return the free candidates closest to the best ones, of at most eight times as many."""
    sample = random_.choice(free, min(len(free), 8 * count), replace=False)
    apart = np.min([((x[sample] - x[i]) ** 2).sum(axis=1) for i in best], axis=0)
    nearest: Indices = sample[np.argsort(apart, kind="stable")[:count]]
    return nearest
