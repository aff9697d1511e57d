"""Encode each kind of parameter, absent parameters and costs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.surrogate.features import MAX_CATEGORIES, MIDDLE, Encoder
from sftsearch.trainables.cost import Cost

from toy_study import Memory, source_of

if TYPE_CHECKING:
    from sftsearch.orchestrator.candidates.admission import Candidate

CANDIDATE = next(
    iter((Memory(source_of("trials: 1")).admission.table or {}).values())
)  # `candidate` replaces its point and configuration


def candidate(branch: int = 0, gflops: float = 1.0, **parameters: Any) -> Candidate:
    configuration = replace(CANDIDATE.configuration, parameters=parameters)
    point = replace(CANDIDATE.point, branch=branch)
    cost = Cost(gflops, gflops / 2, int(1000 * gflops))
    return replace(CANDIDATE, point=point, configuration=configuration, cost=cost)


def features(*rows: dict[str, Any]) -> np.ndarray:
    """Return the features of candidates of one branch, without the cost feature."""
    candidates = [candidate(**row) for row in rows]
    x, _ = Encoder(candidates, ("gflops",)).encode(candidates)
    return x[:, :-1]


def test_encoder_scales_numbers_over_the_observed_range() -> None:
    assert features({"a": 10}, {"a": 20}, {"a": 15}).ravel() == pytest.approx([0, 1, 0.5])
    assert features({"a": -1.0}, {"a": 0.0}, {"a": 3.0}).ravel() == pytest.approx([0, 0.25, 1])


def test_encoder_log_scales_positive_numbers_that_span_a_factor_of_four() -> None:
    found = features({"a": 1e-4}, {"a": 1e-2}, {"a": 1e-3}).ravel()
    assert found == pytest.approx([0, 1, 0.5])
    assert features({"a": 1}, {"a": 4}, {"a": 2}).ravel() == pytest.approx([0, 1, 0.5])
    assert features({"a": 1}, {"a": 3}, {"a": 2}).ravel() == pytest.approx([0, 1, 0.5])
    assert features({"a": 0}, {"a": 8}, {"a": 4}).ravel() == pytest.approx([0, 1, 0.5])


def test_encoder_gives_lists_a_feature_per_entry() -> None:
    found = features({"m": ["a", "b"]}, {"m": ["b"]}, {"m": ["b", "c"]}, {"m": []})
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_encoder_encodes_other_values_one_hot() -> None:
    assert features({"a": "x"}, {"a": "y"}, {"a": "z"}).tolist() == np.eye(3).tolist()
    assert features({"a": True}, {"a": False}, {"a": True}).tolist() == [[0], [1], [0]]
    assert features({"a": 1}, {"a": "auto"}, {"a": True}).tolist() == np.eye(3).tolist()
    many = features(*({"a": f"v{i}"} for i in range(MAX_CATEGORIES + 10)))
    assert many.shape == (MAX_CATEGORIES + 10, MAX_CATEGORIES)
    assert (many[MAX_CATEGORIES:] == 0).all()


def test_encoder_flattens_mappings() -> None:
    found = features({"tokens": {"a": 1, "b": 2}}, {"tokens": {"a": 2, "b": 2}})
    assert found.tolist() == [[0], [1]]  # b never varies


def test_encoder_puts_missing_parameters_in_the_middle() -> None:
    found = features({"a": 1, "m": ["x"]}, {"a": 3, "m": ["y"]}, {"a": None}, {"m": ["x", "y"]})
    assert found.tolist() == [[0, 1, 0], [1, 0, 1], [MIDDLE] * 3, [MIDDLE, 1, 1]]
    # A parameter with one value still shows which configurations have it.
    assert features({"a": "x"}, {}).tolist() == [[1], [MIDDLE]]
    assert features({"a": 8}, {}).shape == (2, 0)


def test_encoder_drops_constant_parameters() -> None:
    assert features({"a": 1, "b": "x", "c": [1]}, {"a": 1, "b": "x", "c": [1]}).shape == (2, 0)


def test_encoder_distinguishes_branches_and_shares_parameters_of_the_same_name() -> None:
    one, two = candidate(0, dim=8), candidate(1, dim=16)
    x, _ = Encoder([one, two], ("gflops",)).encode([one, two])
    assert x.tolist() == [[0, 0, 0], [1, 1, 0]]
    three = [candidate(n, dim=8 * (n + 1)) for n in range(3)]
    x, _ = Encoder(three, ("gflops",)).encode(three)
    assert x[:, :3].tolist() == np.eye(3).tolist()


def test_encoder_puts_log_scaled_costs_last() -> None:
    rows = [candidate(gflops=g, dim=n) for n, g in enumerate((1.0, 10.0, 100.0))]
    encoder = Encoder(rows, ("gflops", "parameters"))
    x, u = encoder.encode(rows)
    assert u.tolist() == pytest.approx(np.array([[0, 0], [0.5, 0.5], [1, 1]]))
    assert x[:, -2:].tolist() == u.tolist()
    # Outside the observed costs u is extrapolated, but the feature is clipped to [0, 1].
    x, u = encoder.encode([candidate(gflops=1000.0, dim=1), candidate(gflops=0.1, dim=1)])
    assert u[:, 0] == pytest.approx([1.5, -0.5])
    assert x[:, -2].tolist() == [1, 0]
    assert encoder.scale([[10.0, 1000.0]]) == pytest.approx(np.array([[0.5, 0.0]]))


def test_encoder_scales_equal_costs_to_zero() -> None:
    rows = [candidate(dim=1), candidate(dim=2)]
    assert Encoder(rows, ("gflops",)).encode(rows)[1].tolist() == [[0], [0]]


def test_encoder_keeps_unseen_values_within_bounds() -> None:
    seen = [candidate(a=1, b=0, c="x", m=["p"]), candidate(a=8, b=1, c="y", m=["q"])]
    encoder = Encoder([*seen, candidate(a=2, b=1, c="z", m=["p", "q"])], ("gflops",))
    x, _ = encoder.encode([candidate(a=0.1, b=-3, c="new", m=["r"]), candidate(a=99, b=7)])
    assert x.shape == (2, 8)
    assert ((x >= 0) & (x <= 1)).all()


def test_encoder_of_no_candidates_returns_no_rows() -> None:
    encoder = Encoder([candidate(a=1), candidate(a=2)], ("gflops",))
    x, u = encoder.encode([])
    assert x.shape == (0, 2)
    assert u.shape == (0, 1)


def test_encoder_of_a_real_space_is_within_bounds_and_injective() -> None:
    table = Memory(source_of("trials: 1")).admission.table
    assert table is not None
    x, u = Encoder(list(table.values()), ("gflops",)).encode(table.values())
    assert ((x >= 0) & (x <= 1)).all()
    assert u.min() == 0
    assert u.max() == 1
    assert len(np.unique(x, axis=0)) == len(table) == 27
