"""Compare the baselines with closed forms and slow references."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from rivals import convert_hpo_bench, moasha, optuna_samplers

KINDS: tuple[optuna_samplers.Kind, ...] = ("random", "tpe", "nsga2", "gp")
BRANCHES = [
    {"branch": "a", "a.width": width, "a.lr": lr, "a.fixed": 7}
    for width in (8, 16, 64)
    for lr in (1e-3, 1e-2)
] + [{"branch": "b", "b.kind": kind, "b.deep": deep} for kind in "xyz" for deep in (False, True)]
GRID = [{"x": x, "y": y} for x in range(8) for y in range(8)]
DIAGONAL = [{"x": x, "y": (x + 3) % 8} for x in range(8)]  # 8 of the 64 points of its grid


def search(rival: optuna_samplers.Rival, num_trials: int) -> list[int]:
    """Ask for rows with two pending trials; a row's values depend on its index."""
    asked = [rival.ask(), rival.ask()]
    while len(asked) < num_trials:
        index = asked[-2]
        rival.tell(index, accuracy=math.sin(index), cost=1.0 + index)
        asked.append(rival.ask())
    return asked


def cases() -> list[Any]:
    """Return all combinations; of the slow Gaussian processes only those in use."""
    return [
        pytest.param(kind, missing, rows, id=f"{name}-{missing}-{kind}")
        for name, rows in (("branches", BRANCHES), ("grid", GRID), ("diagonal", DIAGONAL))
        for missing in ("redraw", "nearest")
        for kind in KINDS
        if kind != "gp" or (rows is DIAGONAL) == (missing == "nearest")
    ]


@pytest.mark.parametrize(("kind", "missing", "rows"), cases())
def test_rival_ask_returns_rows(
    kind: optuna_samplers.Kind, missing: optuna_samplers.Missing, rows: list[dict[str, Any]]
) -> None:
    full_grid = rows is not DIAGONAL
    rival = optuna_samplers.optuna_rival(kind, rows, seed=1, missing=missing)
    assert set(search(rival, 13)) <= set(range(len(rows)))
    if full_grid or missing == "nearest":
        assert rival.num_refused == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rival_is_deterministic_for_a_seed(kind: optuna_samplers.Kind) -> None:
    table = optuna_samplers.Table(BRANCHES)
    one, same, other = (
        search(optuna_samplers.optuna_rival(kind, table, seed), 13) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@pytest.mark.medium
def test_rival_random_draws_a_full_grid_uniformly() -> None:
    """Chi-squared with 63 degrees of freedom is below 114 in 9,999 of 10,000 cases."""
    rival = optuna_samplers.optuna_rival("random", GRID, seed=0)
    counts = np.bincount([rival.ask() for _ in range(4096)], minlength=64)
    assert np.sum((counts - 64) ** 2 / 64) < 114


def test_rival_tpe_learns_the_better_branch() -> None:
    rival = optuna_samplers.optuna_rival("tpe", BRANCHES, seed=0)
    asked = []
    for _ in range(60):
        asked.append(rival.ask())
        is_b = BRANCHES[asked[-1]]["branch"] == "b"
        rival.tell(asked[-1], accuracy=0.9 if is_b else 0.1, cost=1.0 if is_b else 10.0)
    assert sum(BRANCHES[index]["branch"] == "b" for index in asked[30:]) > 20


@pytest.mark.medium
def test_rival_falls_back_to_unseen_rows() -> None:
    """The table has 997 rows of a million grid points: a draw hits one with probability 0.001."""
    rows = [{"x": i, "y": i * 7 % 997} for i in range(997)]
    rival = optuna_samplers.optuna_rival("tpe", rows, seed=0)
    asked = [rival.ask() for _ in range(3)]
    assert len(set(asked)) == 3
    assert rival.num_refused >= 3 * optuna_samplers.MAX_DRAWS - 1


def test_rival_distinguishes_dropped_trials_from_repeated_rows() -> None:
    rival = optuna_samplers.optuna_rival("random", [{"x": 0}], seed=0)
    assert [rival.ask() for _ in range(3)] == [0, 0, 0]
    rival.tell(0, accuracy=0.5, cost=math.e)
    rival.drop(0)
    rival.tell(0, accuracy=0.25, cost=1.0)
    trials = rival._study.get_trials()
    assert [trial.values for trial in trials] == [[0.5, 1.0], None, [0.25, 0.0]]


@pytest.mark.parametrize(
    "rows", [[{"x": 1}, {"x": 1}], [{"x": 1}, {"y": 1}], [{"branch": "a", "x": 1}, {"branch": "a"}]]
)
def test_table_refuses_rows_that_are_not_a_grid(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="Row 1"):
        optuna_samplers.Table(rows)


def test_table_nearest_minimizes_the_distance() -> None:
    table = optuna_samplers.Table(DIAGONAL)
    for x, y in itertools.product(range(8), repeat=2):
        distances = [abs(row["x"] - x) + abs(row["y"] - y) for row in DIAGONAL]
        assert distances[table.nearest(0, (x, y))] == min(distances)


# ------------------------------------------------------------------ MO-ASHA


def test_non_dominated_ranks_orders_a_chain_by_dominance() -> None:
    points = np.array([[2.0, 2.0], [0.0, 0.0], [3.0, 3.0], [1.0, 1.0]])
    assert moasha.non_dominated_ranks(points).tolist() == [2, 0, 3, 1]


def test_non_dominated_ranks_orders_a_front_by_epsilon_net() -> None:
    """On a line the order is left end, right end, middle."""
    points = np.array([[2.0, 2.0], [4.0, 0.0], [0.0, 4.0], [1.0, 3.0]])
    assert moasha.non_dominated_ranks(points).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("seed", range(5))
def test_non_dominated_ranks_agree_with_dominance(seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (40, 2)).astype(float)  # with ties
    ranks = moasha.non_dominated_ranks(points)
    assert sorted(ranks) == list(range(40))
    for i, j in itertools.permutations(range(40), 2):
        if np.all(points[i] <= points[j]) and np.any(points[i] < points[j]):
            assert ranks[i] < ranks[j]


def test_moasha_stops_the_best_trial_only_as_shipped() -> None:
    """The last trial dominates all earlier ones; only the corrected rule never stops it."""
    pytest.importorskip("syne_tune", reason="syne-tune needs a separate environment")
    stops = {True: 0, False: 0}
    for corrected, seed in itertools.product(stops, range(50)):
        rule = moasha.Rule(num_epochs=9, reduction_factor=3, seed=seed, corrected=corrected)
        values = np.random.default_rng(seed).random((20, 2))
        for trial, (accuracy, cost) in enumerate(values):
            rule.report(trial, epoch=1, accuracy=float(accuracy), cost=float(1 + cost))
        stops[corrected] += rule.report("best", epoch=1, accuracy=1.0, cost=0.5)
    assert stops[True] == 0
    assert stops[False] >= 25


# ------------------------------------------------------------------ public tables


@pytest.mark.parametrize(("inputs", "width", "depth"), [(4, 16, 1), (21, 40, 2), (5, 25, 3)])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_num_perceptron_parameters_agrees_with_scikit_learn(
    inputs: int, width: int, depth: int, num_classes: int
) -> None:
    model = MLPClassifier([width] * depth, max_iter=1)
    data = np.random.default_rng(0).random((20, inputs))
    model.partial_fit(data, np.arange(20) % num_classes, classes=range(num_classes))
    counted = sum(part.size for part in (*model.coefs_, *model.intercepts_))
    formula = convert_hpo_bench.num_perceptron_parameters(inputs, width, depth, num_classes)
    assert formula == counted


def test_scaled_log_loss_is_0_for_the_mean_and_1_for_the_best() -> None:
    scaled = convert_hpo_bench.scaled_log_loss(np.array([[0.01, 0.01], [0.1, 1.0], [5.0, 0.001]]))
    np.testing.assert_allclose(scaled, [[1, 1], [0.5, 0], [0, 1]])


def test_values_of_missing_replicates_are_nan() -> None:
    rows = [{"val_acc": [90.0, 91.0]}, {"val_acc": [50.0]}]
    value = convert_hpo_bench.values_of("nasbench201", rows)["value"]
    np.testing.assert_allclose(value, [[0.9, 0.91], [0.5, np.nan]])


def test_order_of_ids_concatenates_index_digits() -> None:
    ids, configurations = convert_hpo_bench.order_of_ids({"x": [3, 5], "op": ["a", "b", "c"]})
    assert ids == ["00", "01", "02", "10", "11", "12"]
    assert configurations[5] == {"x": 5, "op": "c"}
