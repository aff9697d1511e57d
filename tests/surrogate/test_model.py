"""Compare the surrogate with dense conditioning and brute force on small synthetic studies."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator.candidates import admission as admissions
from sftsearch.orchestrator.surrogate import anchor, candidate_pool, fitted_model, proposals
from sftsearch.orchestrator.surrogate.anchor import make_anchor, sample_far
from sftsearch.orchestrator.surrogate.fitted_model import Fit, is_fit_due
from sftsearch.orchestrator.surrogate.model import SurrogateModel

from observed import Observations
from toy_study import LISTED, Memory, noise, source_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.storage.trial_state import ConfigurationState

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
    """Return an accuracy that grows with cost, plus variation that cost does not explain."""
    own = noise(candidate.id) * 0.02 + noise(f"{candidate.id}-{replicate}") * 0.01
    return 1 - 1 / (1 + 2000 * candidate.cost.gflops) ** 0.2 + own


class SyntheticStudy:
    """A synthetic study: some configurations with one to three replicates each."""

    def __init__(self, number: int, *, space: str = LISTED, seed: int = 0) -> None:
        self.admission = admission_of(space)
        self.past = Observations(("gflops",), floor=0.1)
        self.fits: list[Fit] = []
        self.surrogate = SurrogateModel(self.admission, self.past, on_fit=self.fits.append)
        self.random_ = np.random.default_rng(seed)
        assert self.admission.table is not None
        self.free = list(self.admission.table.values())
        for _ in range(number):
            self.measure()

    def admit(self, candidate: Candidate | None = None) -> tuple[Candidate, ConfigurationState]:
        if candidate is None:
            candidate = self.free.pop(int(self.random_.integers(len(self.free))))
        observed = self.past.enter(
            len(self.past),
            candidate.id,
            candidate.point,
            model="",
            parameters={},
            cost={"gflops": candidate.cost.gflops},
            epochs=2,
            warmup=0,
            group="",
        )
        self.surrogate.take(candidate.id, candidate.point)
        return candidate, observed

    def measure(self, replicates: int | None = None) -> None:
        candidate, observed = self.admit()
        for replicate in range(replicates or int(self.random_.integers(1, 4))):
            self.past.await_(observed, replicate)
            self.past.finish(observed, replicate, [value_of(candidate, replicate), 0.0], 5.0)

    def dense(self) -> tuple[Floats, Floats]:
        """Return mean and covariance of all true means by dense conditioning."""
        measured, h = self.past.measured(), self.surrogate.fitted().hyperparameters
        x = self.surrogate.features.arrays()[0][measured.rows]
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
def test_posterior_is_that_of_dense_conditioning(number: int) -> None:
    study = SyntheticStudy(number)
    posterior = study.surrogate.posterior()
    mean, covariance = study.dense()
    assert posterior.means == pytest.approx(mean, abs=1e-8)
    assert posterior.deviations == pytest.approx(np.sqrt(np.diag(covariance)), abs=1e-6)


@pytest.mark.medium
def test_draws_have_the_mean_and_covariance_of_the_posterior() -> None:
    study = SyntheticStudy(12)
    study.surrogate.posterior()
    mean, covariance = study.dense()
    draws = study.surrogate.draws(200_000)
    scale = np.sqrt(np.diag(covariance))
    assert np.abs(draws.mean(axis=0) - mean).max() < 5 * scale.max() / math.sqrt(200_000)
    correlation = covariance / np.outer(scale, scale)
    assert np.corrcoef(draws.T) == pytest.approx(correlation, abs=0.015)
    assert draws.std(axis=0) == pytest.approx(scale, rel=0.01)
    assert np.array_equal(study.surrogate.draws(10), study.surrogate.draws(10))


@pytest.mark.medium
def test_affordable_and_front_are_those_of_brute_force() -> None:
    study = SyntheticStudy(20)
    measured, means = study.past.measured(), study.surrogate.posterior().means
    for cost in [0.0, *measured.costs, *(measured.costs * 1.001), 1e9]:
        known = [m for m, c in zip(means, measured.costs, strict=True) if c <= cost]
        assert study.surrogate.affordable(cost) == (max(known) if known else None)
    front = [
        (c, i)
        for i, c, m in zip(measured.ids, measured.costs, means, strict=True)
        if not any(
            (d <= c and n > m) or (d < c and n >= m)
            for d, n in zip(measured.costs, means, strict=True)
        )
    ]
    assert study.surrogate.front() == [i for _, i in sorted(front)]


@pytest.mark.medium
def test_surrogate_is_deterministic() -> None:
    one, two = SyntheticStudy(20), SyntheticStudy(20)
    one.surrogate.fitted()
    for study in (one, two):
        study.measure()
    two.surrogate.last_fit = one.surrogate.last_fit
    assert np.array_equal(one.surrogate.posterior().means, two.surrogate.posterior().means)
    assert np.array_equal(one.surrogate.compare(30).gains, two.surrogate.compare(30).gains)
    assert one.surrogate.best_replicate(4) == two.surrogate.best_replicate(4)


# ------------------------------------------------------------------ queries

QUERIES: dict[str, Callable[[SurrogateModel], object]] = {
    "posterior": lambda s: (s.posterior().means.tobytes(), s.posterior().deviations.tobytes()),
    "affordable": lambda s: s.affordable(float(np.median(s.past.measured().costs))),
    "front": lambda s: s.front(),
    "draws": lambda s: s.draws(5).tobytes(),
    "replicate": lambda s: s.best_replicate(4),
    "new": lambda s: s.best_new(20, 1),
    "ahead": lambda s: s.gain_ahead(20, 4),
    "every": lambda s: s.compare(20).gains.tobytes(),
    "branch": lambda s: s.compare(20, 1).gains.tobytes(),
    "another": lambda s: s.compare(21).gains.tobytes(),
    "features": lambda s: s.features.arrays()[0].tobytes(),
    "free": lambda s: s.pool.candidates(20)[1].tobytes(),
}


def query_in_random_order(seed: int) -> dict[str, object]:
    """Run every query twice in a random order, and return the answers."""
    study = SyntheticStudy(20, space=WIDE)
    study.surrogate.fitted()
    study.measure()
    _, waiting = study.admit()
    study.past.await_(waiting, 0)
    order = np.random.default_rng(seed).permutation([*QUERIES, *QUERIES])
    answers: dict[str, object] = {}
    for name in order:
        answer = QUERIES[name](study.surrogate)
        assert answers.setdefault(name, answer) == answer
    assert len(study.fits) == 1
    return answers


@pytest.mark.medium
@pytest.mark.parametrize("limit", [300, 12])
def test_surrogate_is_not_changed_by_queries(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers do not depend on the order, with all measurements held or only some."""
    limit_to(monkeypatch, MAX_OBSERVED=limit, MAX_CANDIDATES=60)
    first = query_in_random_order(0)
    assert first.keys() == QUERIES.keys()
    for seed in range(1, 4):
        assert query_in_random_order(seed) == first


@pytest.mark.medium
def test_surrogate_answers_like_a_new_one_after_earlier_queries() -> None:
    study = SyntheticStudy(20, space=WIDE)
    for _ in range(6):
        study.measure()
        for query in QUERIES.values():
            query(study.surrogate)
    fresh = SurrogateModel(study.admission, study.past, last_fit=study.surrogate.last_fit)
    for name, query in QUERIES.items():
        assert query(fresh) == query(study.surrogate), name


@pytest.mark.medium
def test_snapshots_do_not_change_after_new_measurements() -> None:
    study = SyntheticStudy(12)
    model, comparison = study.surrogate.fitted(), study.surrogate.compare(12)
    means, gains = model.posterior.means.copy(), comparison.gains.copy()
    front, ids = model.front(), [candidate.id for candidate in comparison.candidates]
    study.measure()
    assert study.surrogate.fitted() is not model
    assert study.surrogate.compare(12) is not comparison
    assert np.array_equal(model.posterior.means, means)
    assert np.array_equal(comparison.gains, gains)
    assert model.front() == front
    assert [candidate.id for candidate in comparison.candidates] == ids


# ------------------------------------------------------------------ fitting


@pytest.mark.medium
def test_fit_is_due_after_15_percent_more_measurements() -> None:
    study = SyntheticStudy(13)
    last = study.surrogate.fitted().fit
    assert last.num == 13
    assert last.fitted_on is study.past.measured()
    due = []
    for _ in range(3):
        study.measure()
        due.append(is_fit_due(study.past.measured(), last))
    assert due == [False, True, True]  # 14, 15 and 16, compared with 13


@pytest.mark.medium
def test_fit_keeps_the_last_hyperparameters_until_a_new_one_is_due() -> None:
    study = SyntheticStudy(13)
    first = study.surrogate.fitted().fit
    study.measure()
    assert study.surrogate.fitted().fit is first
    study.measure()
    second = study.surrogate.fitted().fit
    assert second is not first
    assert second.num == 15
    assert study.surrogate.last_fit is second
    assert study.fits == [first, second]


@pytest.mark.medium
def test_fit_is_a_function_of_data_and_last_fit() -> None:
    study = SyntheticStudy(20)
    model = study.surrogate.fitted()
    for last in (None, model.fit):
        again = fitted_model.fit(model.data, last)
        assert np.array_equal(again.posterior.means, model.posterior.means)
        assert again.hyperparameters.sigma == model.hyperparameters.sigma
    assert fitted_model.fit(model.data, model.fit).fit is model.fit


def test_surrogate_is_not_fitted_before_a_model_is_needed() -> None:
    study = SyntheticStudy(5)
    study.surrogate.can_judge()
    study.surrogate.pool.candidates(5)
    study.surrogate.features.arrays()
    assert study.surrogate.affordable(0.0) is None
    assert study.fits == []


# ----------------------------------------------------------- expected improvement


@pytest.mark.medium
def test_compare_gives_the_expected_improvement_of_all_free_candidates() -> None:
    """Pending trials count as one replicate with their expected value."""
    study = SyntheticStudy(12)
    study.surrogate.fitted()
    _, waiting = study.admit()
    study.past.await_(waiting, 0)
    found = study.surrogate.compare(13)
    assert len(found.candidates) == len(study.free) == 27 - 13
    assert not {c.id for c in found.candidates} & {o.id for o in study.past.all}

    other = SyntheticStudy(12)
    other.surrogate.last_fit = study.surrogate.last_fit
    x = study.surrogate.features.arrays()[0][[waiting.row]]
    expected = float(study.surrogate.fitted().process.predict(x)[0][0])
    _, same = other.admit()
    other.past.await_(same, 0)
    other.past.finish(same, 0, [expected, 0.0], 5.0)
    again = other.surrogate.compare(13)
    assert [c.id for c in again.candidates] == [c.id for c in found.candidates]
    assert found.gains == pytest.approx(again.gains, abs=1e-9)


@pytest.mark.medium
def test_compare_of_a_branch_uses_its_candidates_only() -> None:
    study = SyntheticStudy(12)
    every = study.surrogate.compare(12)
    for branch in (0, 1):
        own = study.surrogate.compare(12, branch)
        rows = [i for i, c in enumerate(every.candidates) if c.point.branch == branch]
        assert every.rows[rows].tolist() == own.rows.tolist()
        assert own.gains == pytest.approx(every.gains[rows], rel=1e-9, abs=1e-15)


@pytest.mark.medium
def test_best_new_has_the_highest_gain_and_a_rate_per_second() -> None:
    study = SyntheticStudy(12)
    found = study.surrogate.compare(12)
    option = study.surrogate.best_new(12, 1)
    assert option is not None
    assert found.best is not None
    assert option.configuration_id == found.best.id
    assert found.best.id == found.candidates[int(found.gains.argmax())].id
    # Replicates move the mean by less than its sd, and more replicates move it further.
    assert 0 < option.rate * 5 <= found.gains.max()
    twice = study.surrogate.best_new(12, 2)
    assert twice is not None
    assert option.rate < 2 * twice.rate


def test_gain_ahead_sums_the_best_proposals_and_all_replicates() -> None:
    study = SyntheticStudy(5)
    gain = study.surrogate.compare(5).gains
    alone = study.surrogate.gain_ahead(5, 1)
    assert alone == pytest.approx(np.sort(gain)[-20:].sum())
    assert study.surrogate.gain_ahead(5, 4) > alone


def test_compare_is_empty_if_every_configuration_is_in_the_study() -> None:
    study = SyntheticStudy(27)
    assert study.surrogate.compare(27).candidates == []
    assert study.surrogate.compare(27).best is None
    assert study.surrogate.best_new(27, 1) is None


def test_surrogate_without_values_returns_none() -> None:
    study = SyntheticStudy(0)
    assert not study.surrogate.can_judge()
    assert study.surrogate.best_replicate(3) is None
    assert study.surrogate.affordable(1.0) is None


# ------------------------------------------------------------------ limits


def limit_to(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    """Lower the limits of the surrogate."""
    for name, limit in limits.items():
        for module in (anchor, candidate_pool, fitted_model, proposals):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, limit)


def full_and_limited(
    number: int, monkeypatch: pytest.MonkeyPatch, **limits: int
) -> tuple[SyntheticStudy, SyntheticStudy]:
    """Return two equal studies, with a full and a limited surrogate."""
    full = SyntheticStudy(number, space=WIDE)
    full.surrogate.compare(number)  # cached before the limits are lowered
    limit_to(monkeypatch, **limits)
    limited = SyntheticStudy(number - 5, space=WIDE)
    fitted_on = limited.past.measured()
    for _ in range(5):  # measured since the hyperparameters were fitted
        limited.measure()
    fitted = full.surrogate.fitted().hyperparameters
    limited.surrogate.last_fit = Fit(fitted, number - 5, fitted_on)
    return full, limited


@pytest.mark.medium
def test_posterior_of_a_limited_surrogate_is_close_to_the_full_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full, limited = full_and_limited(200, monkeypatch, MAX_OBSERVED=80)
    exact, found = full.surrogate.posterior(), limited.surrogate.posterior()
    off = (found.means - exact.means) / exact.deviations
    assert np.abs(off).mean() < 0.5
    assert np.abs(off).max() < 3
    assert found.deviations == pytest.approx(exact.deviations, rel=0.5)
    assert len(limited.surrogate.fitted().kept) <= 80
    # It holds those nearest the front, so the front is nearly the same.
    assert len(set(limited.surrogate.front()) & set(full.surrogate.front())) >= 0.7 * len(
        full.surrogate.front()
    )


@pytest.mark.medium
def test_anchor_predicts_leave_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with dense conditioning with one row left out."""
    limit_to(monkeypatch, MAX_OBSERVED=20)
    study = SyntheticStudy(20)
    model = study.surrogate.fitted()
    measured, h, data = model.measurements, model.hyperparameters, model.data
    x, far = data.x[measured.rows], sample_far(measured, data.u, data.seed)
    known = make_anchor(measured, far, data.x, data.u, h).covering(measured.rows, data.x)
    mean, sd = known.means[measured.rows], known.deviations[measured.rows]
    prior = h.amplitude**2 * matern(x / h.lengthscales) + h.tau**2 * np.eye(20)
    for i in range(20):
        rest = np.arange(20) != i
        total = prior[np.ix_(rest, rest)] + np.diag(h.sigma**2 / measured.counts[rest])
        weights = np.linalg.solve(total, prior[rest, i])
        assert mean[i] == pytest.approx(h.mean + weights @ (measured.means[rest] - h.mean))
        assert sd[i] ** 2 == pytest.approx(prior[i, i] - weights @ prior[rest, i])


@pytest.mark.medium
def test_compare_of_many_candidates_finds_nearly_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    full, limited = full_and_limited(30, monkeypatch, MAX_CANDIDATES=60)
    exact, found = full.surrogate.compare(30), limited.surrogate.compare(30)
    assert len(found.rows) <= 60 < len(exact.rows)
    assert len(set(found.rows.tolist())) == len(found.rows)
    share = stats.percentileofscore(exact.gains, found.gains.max())
    assert share > 97


@pytest.mark.medium
def test_compare_uses_fewer_candidates_after_more_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_to(monkeypatch, MAX_PAIRS=3000)
    counts = [len(SyntheticStudy(n, space=WIDE).surrogate.compare(n).rows) for n in (5, 30, 60)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 307
    assert counts[2] <= 50


# ------------------------------------------------------------------ large spaces


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Admission:
    """A space that is not enumerated."""
    monkeypatch.setattr(admissions, "MAX_TABLE", 0)
    limit_to(monkeypatch, NUM_DRAWN=60, PROPOSALS_PER_DRAW=5)
    return Memory(source_of("trials: 100", space=WIDE)).admission


class LargeSpaceStudy(SyntheticStudy):
    """A study in a space that is not enumerated."""

    def __init__(self, admission: Admission, number: int) -> None:
        self.admission = admission
        self.past = Observations(("gflops",), floor=0.1)
        self.surrogate = SurrogateModel(admission, self.past)
        self.random_ = np.random.default_rng(0)
        for _ in range(number):
            self.measure()

    def admit(self, candidate: Candidate | None = None) -> tuple[Candidate, ConfigurationState]:
        candidates, free = self.surrogate.pool.candidates(len(self.past))
        return super().admit(candidates.rows[int(free[0])])


def drawn_ids(study: SyntheticStudy, number: int) -> list[str]:
    return [candidate.id for candidate in study.surrogate.pool.candidates(number)[0].rows]


@pytest.mark.medium
def test_candidate_pool_redraws_a_large_space_periodically(large: Admission) -> None:
    study = LargeSpaceStudy(large, 12)
    assert large.table is None
    first = drawn_ids(study, 10)
    assert drawn_ids(study, 14) == first
    assert drawn_ids(study, 15) != first
    assert drawn_ids(study, 10) == first
    found = study.surrogate.compare(12)
    assert len(found.gains) == len(found.candidates) > 20
    assert not {c.id for c in found.candidates} & {o.id for o in study.past.all}
    mean, _ = study.dense()
    assert study.surrogate.posterior().means == pytest.approx(mean, abs=1e-8)
    again = LargeSpaceStudy(large, 12)
    assert np.array_equal(again.surrogate.compare(12).gains, found.gains)


def test_candidate_pool_draws_again_when_all_drawn_points_are_used(
    large: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_to(monkeypatch, NUM_DRAWN=3, PROPOSALS_PER_DRAW=100)
    study = LargeSpaceStudy(large, 8)
    assert len(study.past) == 8
    # A new pool, without draws from earlier calls, gives the same candidates.
    expected = drawn_ids(study, 8)
    fresh = SurrogateModel(large, study.past)
    assert [c.id for c in fresh.pool.candidates(8)[0].rows] == expected
    with pytest.raises(IndexError):
        LargeSpaceStudy(large, 3 * candidate_pool.MAX_ROUNDS + 1)


def test_candidate_pool_shares_the_encoded_space_but_not_the_free_rows() -> None:
    one, other = SyntheticStudy(3), SyntheticStudy(5)
    (shared, free), (same, fewer) = (m.surrogate.pool.candidates(5) for m in (one, other))
    assert shared is same
    assert (len(free), len(fewer)) == (24, 22)
