"""What a running study believes of every configuration: the surrogate over its own space.

A Gaussian process is fitted to accuracy alone; what a configuration costs is known. From it follow
what another configuration is expected to gain, which the sampler `front` proposes by; the best that
a cost affords, which trials are stopped by; and how sure the front is, which replicates go by.

Shapes: N candidates, C configurations that were measured, D features, R draws.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.orchestrator.surrogate.acquisition import Staircase, expected_improvement, staircase
from sftsearch.orchestrator.surrogate.features import Encoder
from sftsearch.orchestrator.surrogate.front_probability import front_changes
from sftsearch.orchestrator.surrogate.gp import Surrogate, fit_hyperparameters
from sftsearch.trainables.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState
    from sftsearch.orchestrator.surrogate.gp import Hyperparameters
    from sftsearch.orchestrator.surrogate.observations import Measured, Observations
    from sftsearch.search_spaces.space import Point

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

MAX_OBSERVED = 300
"""Measured configurations the surrogate holds; beyond, those near the front and some others."""
MAX_IMPORTED = 150
"""Configurations of another study it holds besides."""
MAX_CANDIDATES = 4_000
"""Candidates that are compared; beyond, those near the most promising and some others."""
MAX_PAIRS = 250_000
"""Candidates times configurations in the surrogate: the more of these, the fewer of those."""
NUM_DRAWN = 2_000
"""Points drawn from a space too large to price whole, and drawn anew every so often."""
DRAWN_FOR = 50
"""Proposals that the same drawn points serve."""
MAX_TURNS = 5
"""How often points are drawn for them where none is left that is admissible and new."""
MIN_SCALED = 100
"""Admissible points that the encoding needs to see; else it sees those beyond the limits too."""
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
    sigmas: Floats
    """Standard deviation of one replicate around its configuration's true mean, (C,)."""


class Beliefs:
    """The surrogate of one study, kept up with its observations."""

    def __init__(self, admission: Admission, past: Observations, *, seed: int = 0) -> None:
        """Begin without candidates: they are priced and encoded when they are first needed."""
        self.past = past
        self._admission, self._seed = admission, seed
        self._encoder: Encoder | None = None
        self._pool: Candidates | None = None
        self._pool_key = -1, -1
        self._blocks: dict[tuple[int, int], Candidates] = {}
        self._is_free = np.zeros(0, dtype=bool)
        self._num_seen = 0
        # Features and scaled costs of the configurations of the study, by row.
        self._x, self._u = np.zeros((0, 0)), np.zeros((0, 0))
        self._num_placed = 0
        self._x_imported: Floats | None = None
        self._drawn_of: tuple[Measured, Indices] | None = None
        self._anchor: _Anchor | None = None
        self._surrogate: tuple[Measured, Surrogate, Indices] | None = None
        self._posterior: tuple[Measured, Posterior] | None = None
        self._ahead: tuple[tuple[Any, ...], tuple[Surrogate, Staircase]] | None = None
        self._gains: tuple[tuple[Any, ...], tuple[Floats, list[Candidate]]] | None = None

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
        observed_means, observed_deviations = surrogate.observed()
        means[kept] = observed_means[: len(kept)]
        deviations[kept] = observed_deviations[: len(kept)]
        x, u = self._places(measured.rows)
        assert self.past.hyperparameters is not None
        sigma = self.past.hyperparameters.sigma
        is_other = np.ones(len(measured.ids), dtype=bool)
        is_other[kept] = False
        others = np.flatnonzero(is_other)
        if len(others):  # their own values on top of what others say of them
            mean, sd = self._anchored(measured).predict(measured.rows[others], x[others])
            own = sigma**2 / measured.counts[others]
            weight = sd**2 / (sd**2 + own)
            means[others] = mean + weight * (measured.means[others] - mean)
            deviations[others] = sd * np.sqrt(1 - weight)
        slopes = self.past.link.slopes(means, self._spread())
        return Posterior(*self._as_values(means, deviations), u, sigma * slopes)

    def _as_values(self, latent: Floats, deviations: Floats) -> tuple[Floats, Floats]:
        """Return means and deviations of the accuracy, of those on the scale of the surrogate."""
        link, spread = self.past.link, self._spread()
        return link.to_values(latent, spread), deviations * link.slopes(latent, spread)

    def _spread(self) -> float:
        """Return how far a replicate lies from its configuration's mean over all folds."""
        assert self.past.hyperparameters is not None
        return math.hypot(self.past.hyperparameters.sigma, self.past.measured().fold_spread)

    def _fitted(self, measured: Measured) -> tuple[Surrogate, Indices]:
        """Return the surrogate of what was measured and which of it that holds.

        Its hyperparameters are fitted anew where it is time.
        """
        if self._surrogate is not None and self._surrogate[0] is measured:
            return self._surrogate[1:]
        past, number = self.past, len(measured.ids) + len(measured.imported)
        is_due = past.hyperparameters is None or number >= REFIT * past.num_fitted
        if is_due or past.fitted_on is None:
            past.fitted_on = measured
        kept = self._most_telling(measured, past.fitted_on)
        x, means, counts, shared = self._data(measured, kept)
        if is_due:
            past.hyperparameters = fit_hyperparameters(
                x,
                means,
                counts,
                shared_CC=shared,
                pooled_variance=measured.pooled_variance,
                dof=measured.dof,
                start=past.hyperparameters,
            )
            past.num_fitted = number
        assert past.hyperparameters is not None
        surrogate = Surrogate(x, means, counts, past.hyperparameters, shared)
        self._surrogate = measured, surrogate, kept
        return surrogate, kept

    def _data(
        self, measured: Measured, kept: Indices
    ) -> tuple[Floats, Floats, Floats, Floats | None]:
        """Return features, means, counts and shared errors of own configurations, then imported."""
        x, means, counts = (
            self._places(measured.rows[kept])[0],
            measured.means[kept],
            measured.counts[kept],
        )
        if not len(measured.imported):
            return x, means, counts, _shared_errors(measured, kept)
        some = _spread(measured.imported_means, MAX_IMPORTED)
        x_imported = self._imported_features()[measured.imported[some]]
        return (
            np.vstack([x.reshape(len(kept), x_imported.shape[1]), x_imported]),
            np.concatenate([means, measured.imported_means[some]]),
            np.concatenate([counts, measured.imported_counts[some]]),
            _shared_errors(measured, np.append(kept, len(measured.ids) + some)),
        )

    def _imported_features(self) -> Floats:
        """Return the features of all that another study measured."""
        if self._x_imported is None:
            priced = [self._admission.price(one.point) for one in self.past.imported]
            self._x_imported = self._encoding().encode(priced)[0]
        return self._x_imported

    def _most_telling(self, measured: Measured, fitted_on: Measured) -> Indices:
        """Return which of what was measured the surrogate holds: half of it next to the front.

        The rest is drawn from what the hyperparameters were fitted on, and stays until they are
        fitted again.
        """
        number = len(measured.ids)
        if number <= MAX_OBSERVED:
            return np.arange(number)
        near = self._near(measured)[: MAX_OBSERVED // 2]
        if self._drawn_of is None or self._drawn_of[0] is not fitted_on:
            far = fitted_on.rows[self._near(fitted_on)[MAX_OBSERVED // 2 :]]
            random_ = np.random.default_rng([self._seed, len(fitted_on.ids)])
            drawn = random_.permutation(far)[: MAX_OBSERVED - MAX_OBSERVED // 2]
            self._drawn_of = fitted_on, drawn
        return np.union1d(near, np.flatnonzero(np.isin(measured.rows, self._drawn_of[1])))

    def _near(self, measured: Measured) -> Indices:
        """Return the order by what each lacks of the best that its costs afford, (C,)."""
        _, u = self._places(measured.rows)
        order = np.argsort(u.sum(axis=1), kind="stable")
        affordable = np.empty(len(order))
        affordable[order] = np.maximum.accumulate(measured.means[order])
        near: Indices = np.argsort(affordable - measured.means, kind="stable")
        return near

    def _anchored(self, measured: Measured) -> _Anchor:
        """Return what was believed when the hyperparameters were fitted."""
        fitted_on, hyperparameters = self.past.fitted_on, self.past.hyperparameters
        assert fitted_on is not None
        assert hyperparameters is not None
        if self._anchor is None or self._anchor.fitted_on is not fitted_on:
            kept = self._most_telling(fitted_on, fitted_on)
            x, _ = self._places(fitted_on.rows[kept])
            self._anchor = _Anchor(fitted_on, kept, x, hyperparameters)
        return self._anchor

    def _with_pending(self) -> tuple[Surrogate, Staircase]:
        """Return surrogate and front with the trials on their way at their expected value.

        So the next proposal does not go where others already are.
        """
        key = len(self.past), self.past.measured()
        if self._ahead is None or self._ahead[0] != key:
            self._ahead = key, self._expect_pending()
        return self._ahead[1]

    def _expect_pending(self) -> tuple[Surrogate, Staircase]:
        measured, past = self.past.measured(), self.past
        surrogate, kept = self._fitted(measured)
        posterior = self.posterior()
        means, u = posterior.means, posterior.u.reshape(-1, len(past.costs))
        waiting = past.pending()
        if waiting:
            x, known, counts, shared = self._data(measured, kept)
            x_waiting, u_waiting = self._places([o.row for o in waiting])
            expected = surrogate.predict(x_waiting)[0]
            if shared is not None:
                shared = np.pad(shared, (0, len(waiting)))
            assert past.hyperparameters is not None
            surrogate = Surrogate(
                np.vstack([x, x_waiting]),
                np.concatenate([known, expected]),
                np.concatenate([counts, np.ones(len(waiting))]),
                past.hyperparameters,
                shared,
            )
            expected = past.link.to_values(expected, self._spread())
            means, u = np.concatenate([means, expected]), np.vstack([u, u_waiting])
        return surrogate, staircase(u, means, floor=past.floor)

    def front(self) -> list[str]:
        """Return the configurations no cheaper one is believed to be as good as, by rising cost."""
        measured, means = self.past.measured(), self.posterior().means
        order = np.lexsort((-means, measured.costs))
        best_before = np.append(-np.inf, np.maximum.accumulate(means[order])[:-1])
        return [measured.ids[i] for i in order[means[order] > best_before]]

    def draws(self, number: int, seed: int = 0) -> Floats:
        """Return draws of the true means of all that was measured, (number, C).

        Joint for the configurations that the surrogate holds; each of the others by itself.
        """
        measured, posterior = self.past.measured(), self.posterior()
        surrogate, kept = self._fitted(measured)
        random_ = np.random.default_rng([seed, len(measured.ids)])
        drawn = random_.normal(posterior.means, posterior.deviations, (number, len(measured.ids)))
        spread = self._spread()
        mean, covariance = surrogate.observed_joint()
        own = slice(len(kept))  # without what is imported
        mean, covariance = mean[own], covariance[own, own]
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(values.clip(min=0.0))
        latent = mean + random_.standard_normal((number, len(kept))) @ root.T
        drawn[:, kept] = self.past.link.to_values(latent, spread)
        return drawn

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
        assert self.past.hyperparameters is not None
        moved = sd**2 / np.sqrt(sd**2 + self.past.hyperparameters.sigma**2 / replicates)
        mu, moved = self._as_values(mu, moved)
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
        posterior = self.posterior()
        running, replicates = self.past.replicates()
        changes = front_changes(
            posterior.means,
            posterior.deviations**2,
            posterior.sigmas**2,
            posterior.u[:, 0],
            running,
        )
        allowed: Floats = np.where(replicates < maximum, changes, 0.0)
        return allowed

    def gains(self, number: int, branch: int | None) -> tuple[Floats, list[Candidate]]:
        """Return candidates that are not in the study, with the improvement each is expected to be.

        Improvement of the hypervolume: accuracy times scaled cost. Of many candidates only some are
        compared.

        Args:
            number: of the proposal; where candidates are drawn, they follow from it.
            branch: whose candidates; None: of all.
        """
        key = number, branch, len(self.past), self.past.measured()
        if self._gains is None or self._gains[0] != key:
            self._gains = key, self._compare(number, branch)
        return self._gains[1]

    def _compare(self, number: int, branch: int | None) -> tuple[Floats, list[Candidate]]:
        pool = self.candidates(number, branch)
        free = self.free(pool, branch)
        if not len(free):
            return np.zeros(0), []
        surrogate, stairs = self._with_pending()
        assert self.past.hyperparameters is not None

        def gain_of(rows: Indices) -> Floats:
            mu, sd = self._as_values(*surrogate.predict(pool.x[rows]))
            return expected_improvement(pool.u[rows], mu, sd, stairs)

        measured = self.past.measured()
        held = min(MAX_OBSERVED, len(measured.ids)) + min(MAX_IMPORTED, len(measured.imported))
        most = min(MAX_CANDIDATES, MAX_PAIRS // held)
        if len(free) <= most:
            return gain_of(free), [pool.rows[i] for i in free]
        random_ = np.random.default_rng([self._seed, number])
        some = random_.choice(free, most // 2, replace=False)
        gain = gain_of(some)
        best = some[np.argsort(-gain, kind="stable")[:8]]
        scaled = pool.x / self.past.hyperparameters.lengthscales
        more = _close(scaled, best, free, most // 2, random_)
        more = more[~np.isin(more, some)]
        rows = np.append(some, more)
        return np.append(gain, gain_of(more)), [pool.rows[i] for i in rows]

    def candidates(self, number: int, branch: int | None = None) -> Candidates:
        """Return the whole space, or what is drawn of it for a block of proposals.

        Points are drawn again where none is left that is admissible and new (of a branch). Every
        call begins with the first ones, so that what is returned does not depend on calls before.
        """
        if self._admission.table is not None:
            return self._take_up(0, 0)
        block, turn = number // DRAWN_FOR, 0
        pool = self._take_up(block, turn)
        while turn < MAX_TURNS - 1 and not len(self.free(pool, branch)):
            turn += 1
            pool = self._take_up(block, turn)
        return pool

    def _take_up(self, block: int, turn: int) -> Candidates:
        """Return the candidates of a block, with what is free of them up to date."""
        if self._pool is None or self._pool_key != (block, turn):
            self._pool, self._pool_key = self._encoded_block(block, turn), (block, turn)
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
        return self._places(np.arange(len(self.past)))[0]

    def _encoded_block(self, block: int, turn: int) -> Candidates:
        if self._admission.table is None:
            if self._blocks and next(iter(self._blocks))[0] != block:
                self._blocks.clear()
            if (block, turn) not in self._blocks:
                self._blocks[block, turn] = self._encode(self._drawn(block, turn))
            return self._blocks[block, turn]
        known = self._admission.encoded
        if known is None or known[0].costs != self.past.costs:
            pool = self._encode(list(self._admission.table.values()))
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
            self._encoder = Encoder(self._sample(), self.past.costs)
        return self._encoder

    def _sample(self) -> list[Candidate]:
        """Return every candidate, or many of them, to learn their features from."""
        if self._admission.table is not None:
            return list(self._admission.table.values())
        within = self._drawn(0, 0)
        return within if len(within) >= MIN_SCALED else self._drawn(0, 0, within_limits=False)

    def _drawn(self, block: int, turn: int, *, within_limits: bool = True) -> list[Candidate]:
        """Return points drawn of a large space, each once, in the study or not."""
        random_ = random.Random(derive_seed(self._seed, MAX_TURNS * block + turn))
        drawn: dict[str, Candidate] = {}
        for _ in range(NUM_DRAWN):
            point = self._admission.space.draw(random_)
            candidate = self._priced(point, within_limits=within_limits)
            if candidate is not None:
                drawn[candidate.id] = candidate
        return list(drawn.values())

    def _priced(self, point: Point, *, within_limits: bool) -> Candidate | None:
        """Return the priced point; None where it cannot be built, or is refused by a limit."""
        if within_limits:
            return self._admission.within_limits(point)
        try:
            return self._admission.price(point)
        except ConfigError:
            return None

    def _places(self, rows: Sequence[int] | Indices) -> tuple[Floats, Floats]:
        """Return features and scaled costs of configurations in the study."""
        new = self.past.since(self._num_placed)
        if new:
            x, u = self._encode_observed(new)
            self._num_placed += len(new)
            if self._num_placed > len(self._x):
                room = 2 * self._num_placed
                self._x = np.resize(self._x, (room, x.shape[1]))
                self._u = np.resize(self._u, (room, u.shape[1]))
            self._x[self._num_placed - len(new) : self._num_placed] = x
            self._u[self._num_placed - len(new) : self._num_placed] = u
        return self._x[rows], self._u[rows]

    def _encode_observed(self, new: list[ConfigurationState]) -> tuple[Floats, Floats]:
        if self._admission.table is None:
            return self._encoding().encode(self._admission.price(one.point) for one in new)
        pool = self.candidates(0)
        places = [pool.ids[one.id] for one in new]
        return pool.x[places], pool.u[places]


class _Anchor:
    """What was believed when the hyperparameters were fitted, of whatever the study holds.

    To predict all that was measured after every trial would take too long; what the surrogate does
    not hold is far from the front, or was measured since.
    """

    def __init__(
        self, fitted_on: Measured, kept: Indices, x: Floats, hyperparameters: Hyperparameters
    ) -> None:
        """Take up what the surrogate held then.

        Args:
            fitted_on: what was measured then.
            kept: which of it the surrogate held.
            x: the features of these.
            hyperparameters: that were fitted on it.
        """
        self.fitted_on = fitted_on
        means, counts = fitted_on.means[kept], fitted_on.counts[kept]
        self._surrogate = Surrogate(x, means, counts, hyperparameters)
        self._means, self._deviations = np.full((2, 1 + int(fitted_on.rows.max())), np.nan)
        rows = fitted_on.rows[kept]
        found = _without_own(*self._surrogate.observed(), means, counts, hyperparameters)
        self._means[rows], self._deviations[rows] = found

    def predict(self, rows: Indices, x: Floats) -> tuple[Floats, Floats]:
        """Return mean and sd of the true means of configurations, by all values but their own.

        Args:
            rows: their places in the study, ascending, (M,).
            x: their features, (M, D).
        """
        lacking = int(rows[-1]) + 1 - len(self._means)
        if lacking > 0:
            more = np.full(lacking + len(self._means), np.nan)
            self._means = np.append(self._means, more)
            self._deviations = np.append(self._deviations, more)
        unknown = np.isnan(self._means[rows])
        if unknown.any():
            found = self._surrogate.predict(x[unknown])
            self._means[rows[unknown]], self._deviations[rows[unknown]] = found
        return self._means[rows], self._deviations[rows]


def _shared_errors(measured: Measured, rows: Indices) -> Floats | None:
    """Return the covariance of what the means share of the folds' unknown effects; None: nothing.

    Configurations that ran on the same folds are off by the same.
    """
    weights = measured.fold_weights[rows]
    if not measured.fold_covariance.any():
        return None
    shared: Floats = weights @ measured.fold_covariance @ weights.T
    return shared


def _without_own(
    mean: Floats, sd: Floats, values: Floats, counts: Floats, hyperparameters: Hyperparameters
) -> tuple[Floats, Floats]:
    """Return mean and sd of true means by what others say: the own value's factor taken out.

    The posterior is the product of that and the normal density of the own value: precisions and
    precision-weighted means subtract.
    """
    own = counts / hyperparameters.sigma**2
    widest = hyperparameters.amplitude**2 + hyperparameters.tau**2
    known = 1 / np.maximum(sd**2, 1e-12 / own)  # a variance that is lost to rounding
    precision = np.maximum(known - own, 1 / widest)
    return (known * mean - own * values) / precision, 1 / np.sqrt(precision)


def _spread(values: Floats, most: int) -> Indices:
    """Return the places of at most so many values: half of them the best, the rest from all."""
    order = np.argsort(-values, kind="stable")
    if len(order) <= most:
        return np.arange(len(order))
    best, rest = order[: most // 2], order[most // 2 :]
    evenly = np.linspace(0, len(rest) - 1, most - len(best)).round().astype(np.int64)
    return np.concatenate([best, rest[evenly]])


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


def _close(
    x: Floats, best: Indices, free: Indices, count: int, random_: np.random.Generator
) -> Indices:
    """Return the free candidates closest to the best ones, of at most eight times as many.

    Args:
        x: features in units of their lengthscales, (N, D).
        best: the ones to be close to.
        free: those to choose from.
        count: how many to choose.
        random_: draws among the free ones, where there are many.
    """
    sample = random_.choice(free, min(len(free), 8 * count), replace=False)
    own, others = x[sample], x[best]
    squares = np.einsum("ij,ij->i", own, own)[:, None] - 2 * own @ others.T
    apart = (squares + np.einsum("ij,ij->i", others, others)).min(axis=1)
    nearest: Indices = sample[np.argsort(apart, kind="stable")[:count]]
    return nearest
