"""Beliefs against dense conditioning, brute force and the whole route, on small made-up studies."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.surrogate import model as module
from sftsearch.orchestrator.surrogate.model import Beliefs
from sftsearch.orchestrator.surrogate.observations import Observations

from toy_study import LISTED, Memory, noise, source_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.surrogate.observations import Observed

    Floats = NDArray[np.float64]

WIDE = """
  - {kind: sft, patch: 8, num_heads: 4, fused_layers: {kind: int, low: 1, high: 3},
     stride: {kind: choice, values: [1, 2, 4, 8]}, dim: {kind: int, low: 8, high: 64, step: 8},
     learning_rate: {kind: choice, values: [1e-3, 3e-3, 1e-2]}}
  - {kind: concat, patch: 8, num_heads: 4, num_layers: {kind: int, low: 1, high: 3},
     dim: {kind: int, low: 8, high: 64, step: 8}}
"""
"""312 configurations."""


@functools.cache
def admission_of(space: str) -> Admission:
    return Memory(source_of("trials: 100", space=space)).admission


def value_of(candidate: Candidate, replicate: int) -> float:
    """An accuracy that grows with cost, with much that cost does not explain."""
    own = noise(candidate.id) * 0.02 + noise(f"{candidate.id}-{replicate}") * 0.01
    return 1 - 1 / (1 + 2000 * candidate.cost.gflops) ** 0.2 + own


class Made:
    """A study that was made up: some configurations with one to three replicates each."""

    def __init__(self, number: int, *, space: str = LISTED, seed: int = 0) -> None:
        self.admission = admission_of(space)
        self.past = Observations(("gflops",), floor=0.1)
        self.beliefs = Beliefs(self.admission, self.past)
        self.random_ = np.random.default_rng(seed)
        assert self.admission.table is not None
        self.free = list(self.admission.table.values())
        for _ in range(number):
            self.measure()

    def admit(self, candidate: Candidate | None = None) -> tuple[Candidate, Observed]:
        if candidate is None:
            candidate = self.free.pop(int(self.random_.integers(len(self.free))))
        body = {"model": "", "parameters": {}, "epochs": 2, "warmup": 0, "group": ""}
        cost = {"gflops": candidate.cost.gflops}
        number = len(self.past)
        observed = self.past.admit(number, candidate.id, candidate.point, body | {"cost": cost})
        return candidate, observed

    def measure(self, replicates: int | None = None) -> None:
        candidate, observed = self.admit()
        for replicate in range(replicates or int(self.random_.integers(1, 4))):
            self.past.begin(observed, replicate)
            self.past.finish(observed, replicate, [value_of(candidate, replicate), 0.0], 5.0)

    def dense(self) -> tuple[Floats, Floats]:
        """Return mean and covariance of all true means: the normal density, conditioned densely."""
        measured, h = self.past.measured(), self.past.hyperparameters
        assert h is not None
        x, _ = self.beliefs._places(measured.rows)
        prior = h.amplitude**2 * matern(x / h.lengthscales) + h.tau**2 * np.eye(len(x))
        noise = np.diag(h.sigma**2 / measured.counts)
        gain = prior @ np.linalg.inv(prior + noise)
        return h.mean + gain @ (measured.means - h.mean), prior - gain @ prior


def matern(z: Floats) -> Floats:
    """Return Matern 5/2 between all rows, pair by pair."""
    kernel = np.empty((len(z), len(z)))
    for i, a in enumerate(z):
        for j, b in enumerate(z):
            r = math.sqrt(5) * math.dist(a, b)
            kernel[i, j] = (1 + r + r * r / 3) * math.exp(-r)
    return kernel


# ------------------------------------------------------------------ posterior


@pytest.mark.parametrize("number", [1, 2, 5, 26])
def test_the_posterior_is_that_of_dense_conditioning(number: int) -> None:
    made = Made(number)
    posterior = made.beliefs.posterior()
    mean, covariance = made.dense()
    assert posterior.means == pytest.approx(mean, abs=1e-8)
    assert posterior.deviations == pytest.approx(np.sqrt(np.diag(covariance)), abs=1e-6)


@pytest.mark.medium
def test_draws_have_the_mean_and_covariance_of_the_posterior() -> None:
    made = Made(12)
    made.beliefs.posterior()
    mean, covariance = made.dense()
    draws = made.beliefs.draws(200_000)
    scale = np.sqrt(np.diag(covariance))
    assert np.abs(draws.mean(axis=0) - mean).max() < 5 * scale.max() / math.sqrt(200_000)
    correlation = covariance / np.outer(scale, scale)
    assert np.corrcoef(draws.T) == pytest.approx(correlation, abs=0.015)
    assert draws.std(axis=0) == pytest.approx(scale, rel=0.01)
    assert np.array_equal(made.beliefs.draws(10), made.beliefs.draws(10))


@pytest.mark.medium
def test_the_best_affordable_mean_and_the_front_are_those_of_brute_force() -> None:
    made = Made(20)
    measured, means = made.past.measured(), made.beliefs.posterior().means
    for cost in [0.0, *measured.costs, *(measured.costs * 1.001), 1e9]:
        known = [m for m, c in zip(means, measured.costs, strict=True) if c <= cost]
        assert made.beliefs.affordable(cost) == (max(known) if known else None)
    front = [
        (c, i)
        for i, c, m in zip(measured.ids, measured.costs, means, strict=True)
        if not any(
            (d <= c and n > m) or (d < c and n >= m)
            for d, n in zip(measured.costs, means, strict=True)
        )
    ]
    assert made.beliefs.front() == [i for _, i in sorted(front)]


def test_equal_histories_give_equal_beliefs_and_choices() -> None:
    one, two = Made(20), Made(20)
    one.beliefs.posterior()
    for made in (one, two):
        made.measure()
    two.past.hyperparameters, two.past.num_fitted = one.past.hyperparameters, one.past.num_fitted
    assert np.array_equal(one.beliefs.posterior().means, two.beliefs.posterior().means)
    assert np.array_equal(one.beliefs.gains(30, None)[0], two.beliefs.gains(30, None)[0])
    assert one.beliefs.best_replicate(4) == two.beliefs.best_replicate(4)


# ----------------------------------------------------------- improvement ahead


def test_gains_are_the_expected_improvement_of_all_that_is_not_in_the_study() -> None:
    """With those on their way at their expected value, as if they had one replicate there."""
    made = Made(12)
    made.beliefs.posterior()
    _, waiting = made.admit()
    made.past.begin(waiting, 0)
    gain, candidates = made.beliefs.gains(13, None)
    assert len(candidates) == len(made.free) == 27 - 13
    assert not {c.id for c in candidates} & {o.id for o in made.past.all}

    other = Made(12)
    other.past.hyperparameters, other.past.num_fitted = made.past.hyperparameters, 12
    x, _ = made.beliefs._places([waiting.row])
    assert made.beliefs._surrogate is not None
    expected = float(made.beliefs._surrogate[1].predict(x)[0][0])
    _, same = other.admit()
    other.past.begin(same, 0)
    other.past.finish(same, 0, [expected, 0.0], 5.0)
    found, again = other.beliefs.gains(13, None)
    assert [c.id for c in again] == [c.id for c in candidates]
    assert gain == pytest.approx(found, abs=1e-9)


@pytest.mark.medium
def test_gains_of_a_branch_are_of_its_candidates_alone() -> None:
    made = Made(12)
    every, candidates = made.beliefs.gains(12, None)
    for branch in (0, 1):
        gain, own = made.beliefs.gains(12, branch)
        places = [i for i, c in enumerate(candidates) if c.point.branch == branch]
        assert [candidates[i].id for i in places] == [c.id for c in own]
        assert gain == pytest.approx(every[places], rel=1e-9, abs=1e-15)


@pytest.mark.medium
def test_the_best_new_one_is_the_one_that_gains_most_and_its_rate_is_by_the_second() -> None:
    made = Made(12)
    gain, candidates = made.beliefs.gains(12, None)
    option = made.beliefs.best_new(12, 1)
    assert option is not None
    assert option.configuration_id == candidates[int(gain.argmax())].id
    # It moves the belief by less than all of its uncertainty, and by the more the more replicates.
    assert 0 < option.rate * 5 <= gain.max()
    twice = made.beliefs.best_new(12, 2)
    assert twice is not None
    assert option.rate < 2 * twice.rate


def test_what_may_be_gained_ahead_is_that_of_the_best_proposals_and_of_all_replicates() -> None:
    made = Made(5)
    gain, _ = made.beliefs.gains(5, None)
    alone = made.beliefs.gain_ahead(5, 1)
    assert alone == pytest.approx(np.sort(gain)[-20:].sum())
    assert made.beliefs.gain_ahead(5, 4) > alone


def test_nothing_is_left_where_every_configuration_is_in_the_study() -> None:
    made = Made(27)
    assert made.beliefs.gains(27, None)[1] == []
    assert made.beliefs.best_new(27, 1) is None


def test_without_a_value_nothing_is_judged() -> None:
    made = Made(0)
    assert not made.beliefs.can_judge()
    assert made.beliefs.best_replicate(3) is None
    assert made.beliefs.affordable(1.0) is None


# ------------------------------------------------------- more than is compared


def pair(number: int, monkeypatch: pytest.MonkeyPatch, **limits: int) -> tuple[Made, Made]:
    """Return a study, and the same one whose beliefs are held to limits."""
    whole = Made(number, space=WIDE)
    whole.beliefs.posterior()
    whole.beliefs.gains(number, None)  # kept, and so not held to the limits
    for name, limit in limits.items():
        monkeypatch.setattr(module, name, limit)
    some = Made(number - 5, space=WIDE)
    some.beliefs.posterior()
    for _ in range(5):  # measured since the hyperparameters were fitted
        some.measure()
    some.past.hyperparameters = whole.past.hyperparameters
    some.past.num_fitted, some.past.fitted_on = number - 5, None
    return whole, some


@pytest.mark.medium
def test_beliefs_of_a_part_are_close_to_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, some = pair(200, monkeypatch, MAX_OBSERVED=80)
    exact, found = whole.beliefs.posterior(), some.beliefs.posterior()
    off = (found.means - exact.means) / exact.deviations
    assert np.abs(off).mean() < 0.5
    assert np.abs(off).max() < 3
    assert found.deviations == pytest.approx(exact.deviations, rel=0.5)
    kept = some.beliefs._fitted(some.past.measured())[1]
    assert len(kept) <= 80
    # Those next to the front are among them, so the front is nearly the same.
    assert len(set(some.beliefs.front()) & set(whole.beliefs.front())) >= 0.7 * len(
        whole.beliefs.front()
    )


def test_what_the_surrogate_does_not_hold_is_believed_by_all_values_but_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what the anchor holds that is dense conditioning with one row left out."""
    monkeypatch.setattr(module, "MAX_OBSERVED", 20)
    made = Made(20)
    made.beliefs.posterior()
    measured, h = made.past.measured(), made.past.hyperparameters
    assert h is not None
    x, _ = made.beliefs._places(measured.rows)
    mean, sd = made.beliefs._anchored(measured).predict(measured.rows, x)
    prior = h.amplitude**2 * matern(x / h.lengthscales) + h.tau**2 * np.eye(20)
    for i in range(20):
        rest = np.arange(20) != i
        total = prior[np.ix_(rest, rest)] + np.diag(h.sigma**2 / measured.counts[rest])
        weights = np.linalg.solve(total, prior[rest, i])
        assert mean[i] == pytest.approx(h.mean + weights @ (measured.means[rest] - h.mean))
        assert sd[i] ** 2 == pytest.approx(prior[i, i] - weights @ prior[rest, i])


def test_of_many_candidates_nearly_the_best_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, some = pair(30, monkeypatch, MAX_CANDIDATES=60)
    exact, _ = whole.beliefs.gains(30, None)
    found, candidates = some.beliefs.gains(30, None)
    assert len(candidates) <= 60 < len(exact)
    assert len({c.id for c in candidates}) == len(candidates)
    share = stats.percentileofscore(exact, found.max())
    assert share > 97


def test_the_more_is_measured_the_fewer_candidates_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 3000)
    counts = [len(Made(n, space=WIDE).beliefs.gains(n, None)[1]) for n in (5, 30, 60)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 307
    assert counts[2] <= 50


# ------------------------------------------------------------------ large spaces


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Admission:
    """A space that is not priced whole."""
    monkeypatch.setattr(admissions, "MAX_TABLE", 0)
    monkeypatch.setattr(module, "NUM_DRAWN", 60)
    monkeypatch.setattr(module, "DRAWN_FOR", 5)
    return Memory(source_of("trials: 100", space=WIDE)).admission


class Drawn(Made):
    """A study in a space that is not priced whole."""

    def __init__(self, admission: Admission, number: int) -> None:
        self.admission = admission
        self.past = Observations(("gflops",), floor=0.1)
        self.beliefs = Beliefs(admission, self.past)
        self.random_ = np.random.default_rng(0)
        for _ in range(number):
            self.measure()

    def admit(self, candidate: Candidate | None = None) -> tuple[Candidate, Observed]:
        pool = self.beliefs.candidates(len(self.past))
        free = self.beliefs.free(pool, None)
        return super().admit(pool.rows[int(free[0])])


@pytest.mark.medium
def test_a_large_space_is_drawn_anew_every_so_often(large: Admission) -> None:
    made = Drawn(large, 12)
    assert large.table is None
    first = {c.id for c in made.beliefs.candidates(10).rows}
    assert {c.id for c in made.beliefs.candidates(14).rows} == first
    assert {c.id for c in made.beliefs.candidates(15).rows} != first
    assert {c.id for c in made.beliefs.candidates(10).rows} == first
    gain, candidates = made.beliefs.gains(12, None)
    assert len(gain) == len(candidates) > 20
    assert not {c.id for c in candidates} & {o.id for o in made.past.all}
    mean, _ = made.dense()
    assert made.beliefs.posterior().means == pytest.approx(mean, abs=1e-8)
    again = Drawn(large, 12)
    assert np.array_equal(again.beliefs.gains(12, None)[0], gain)


def test_where_what_was_drawn_is_used_up_more_is_drawn(
    large: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUM_DRAWN", 3)
    monkeypatch.setattr(module, "DRAWN_FOR", 100)
    made = Drawn(large, 8)
    assert len(made.past) == 8
    # The same, whatever was asked before: the second time no draw is left from the first call.
    here = [c.id for c in made.beliefs.candidates(8).rows]
    fresh = Beliefs(large, made.past)
    assert [c.id for c in fresh.candidates(8).rows] == here
    with pytest.raises(IndexError):
        Drawn(large, 3 * module.MAX_TURNS + 1)
