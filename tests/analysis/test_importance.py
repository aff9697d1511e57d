"""Importance of parameters: known functions, the divergence by hand, expectation by chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.analysis import importance
from sftsearch.orchestrator.analysis.importance import importance_by_band

from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

Row = dict[str, Any]


def _rows(number: int, seed: int = 0) -> list[Row]:
    """Return random configurations with independent parameters of every kind."""
    generator = np.random.default_rng(seed)
    return [
        {
            "depth": int(generator.integers(1, 7)),
            "rate": float(10 ** generator.uniform(-4, -2)),
            "pooling": ["max", "mean", "attention", "none"][generator.integers(4)],
            "modalities": [["a"], ["b"], ["a", "b"]][generator.integers(3)],
            "mixup": bool(generator.integers(2)),
        }
        for _ in range(number)
    ]


def _only_band(rows: Sequence[Row], values: ArrayLike, **options: float) -> dict[str, float]:
    (band,) = importance_by_band(rows, values, np.ones(len(rows)), [1.0], **options)
    assert band.num_configurations == len(rows)
    return band.importances


ONE: dict[str, Callable[[Row], float]] = {
    "depth": lambda row: row["depth"],
    "rate": lambda row: -abs(math.log10(row["rate"]) + 3),  # best in the middle
    "pooling": lambda row: {"max": 0.0, "mean": 3.0, "attention": 1.0, "none": 2.0}[row["pooling"]],
    "modalities": lambda row: len(row["modalities"]),
    "mixup": lambda row: row["mixup"],
}


@pytest.mark.parametrize("name", ONE)
def test_importance_finds_the_only_relevant_parameter(name: str) -> None:
    """Average over tables; noise breaks ties of levels."""
    generator = np.random.default_rng(1)
    found = []
    for seed in range(8):
        rows = _rows(400, seed)
        values = [ONE[name](row) + generator.normal(0, 0.05) for row in rows]
        importances = _only_band(rows, values)
        assert next(iter(importances)) == name
        found.append(importances[name])
    assert np.mean(found) > 0.9


@pytest.mark.parametrize("kind", [float, str])
def test_importance_is_shared_by_two_equal_parameters(kind: type) -> None:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(20):
        x_ND = generator.integers(0, 4, (400, 3))
        rows = [{"a": kind(a), "b": kind(b), "c": kind(c)} for a, b, c in x_ND]
        importances = _only_band(rows, x_ND[:, 0] + x_ND[:, 1] + generator.normal(0, 0.1, 400))
        found.append([importances[name] for name in "abc"])
    assert np.mean(found, axis=0) == pytest.approx([0.5, 0.5, 0.0], abs=0.05)


def test_importance_grows_with_the_coefficient() -> None:
    x_ND = np.random.default_rng(3).random((400, 2))
    rows = [{"a": a, "b": b} for a, b in x_ND.tolist()]
    importances = _only_band(rows, x_ND @ [1, 2])
    assert importances["b"] > 2 * importances["a"] > 0


def test_importance_depends_only_on_ranks() -> None:
    rows = _rows(100)
    values = np.random.default_rng(4).random(100)
    found = _only_band(rows, values)
    for transformed in (np.exp(9 * values), values**3 - 5, np.argsort(np.argsort(values))):
        assert _only_band(rows, transformed) == found


def test_importance_does_not_depend_on_the_order_of_rows_and_names() -> None:
    generator = np.random.default_rng(5)
    rows, values, order = _rows(100), generator.random(100), generator.permutation(100)
    moved = [dict(reversed(rows[i].items())) for i in order]
    found, expected = _only_band(moved, values[order]), _only_band(rows, values)
    assert list(found) == list(expected)
    assert [*found.values()] == pytest.approx([*expected.values()], rel=1e-9)


def test_importance_shares_fall_and_sum_to_1() -> None:
    rows = _rows(60)
    shares = [*_only_band(rows, [row["depth"] + row["mixup"] for row in rows]).values()]
    assert sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)
    assert min(shares) >= 0


def test_importance_depends_on_the_budget() -> None:
    """`a` matters among cheap configurations, `b` among the better, expensive ones."""
    generator = np.random.default_rng(7)
    x_ND, cost = generator.integers(0, 4, (600, 2)), np.repeat([1.0, 10.0], 300)
    values = np.where(cost > 1, 10 + x_ND[:, 1], x_ND[:, 0]) + generator.normal(0, 0.1, 600)
    rows = [{"a": a, "b": b} for a, b in x_ND.tolist()]
    none, cheap, expensive = importance_by_band(rows, values, cost, [0.5, 1.0, 10.0])
    assert (none.limit, none.num_configurations, none.importances) == (0.5, 0, {})
    assert cheap.num_configurations == 300
    assert cheap.importances["a"] > 0.9
    assert expensive.num_configurations == 600
    assert expensive.importances["b"] > 0.9


def test_importance_within_a_region_may_differ() -> None:
    """`a` separates good from bad; among the good it is constant, and `b` matters."""
    generator = np.random.default_rng(8)
    x_ND = generator.integers(0, 2, (400, 2))
    rows = [{"a": a, "b": b} for a, b in x_ND.tolist()]
    values = 10 * x_ND[:, 0] + x_ND[:, 1] + generator.normal(0, 0.1, 400)
    share = float(x_ND[:, 0].mean())
    assert _only_band(rows, values)["a"] > 0.3
    assert _only_band(rows, values, region=share)["b"] == pytest.approx(1.0)


def test_importance_treats_absent_as_a_level() -> None:
    """A parameter of one branch separates the branches as well as `kind` does."""
    generator = np.random.default_rng(9)
    branch = generator.integers(0, 2, 400)
    rows = [{"kind": "x", "stride": 2} if b else {"kind": "y"} for b in branch]
    importances = _only_band(rows, branch + generator.normal(0, 0.1, 400))
    assert importances == pytest.approx({"kind": 0.5, "stride": 0.5})


def test_importance_of_equal_values_is_0() -> None:
    rows = _rows(50)
    assert set(_only_band(rows, [0.5] * 50).values()) == {0.0}
    constant = [{"a": 1, "b": "x"}] * 50
    assert _only_band(constant, np.arange(50.0)) == {"a": 0.0, "b": 0.0}


def test_importance_of_too_few_configurations_is_empty() -> None:
    values = np.arange(14.0).tolist()
    assert _only_band(_rows(14), values) == {}
    assert len(_only_band(_rows(15), [*values, 14.0])) == 5


def test_importance_of_a_small_band_rests_on_its_four_best() -> None:
    """Of 15 configurations a tenth would be two, in which `a` and `b` cannot be distinguished."""
    rows = [{"a": "x" if n < 4 else "y", "b": "x" if n in (0, 1, 8, 9) else "y"} for n in range(15)]
    values = [15.0 - n for n in range(15)]
    found = _only_band(rows, values)
    is_best = np.arange(15) < 4
    own = {
        name: max(0.0, importance.excess_divergence([row[name] for row in rows], is_best))
        for name in ("a", "b")
    }
    assert found == pytest.approx({n: v / sum(own.values()) for n, v in own.items()})
    assert found["a"] > 0.9


def test_importance_counts_stopped_configurations() -> None:
    """Wide ones end at 0.9 and narrow ones at 0.5; the narrow ones are mostly stopped at 0.4."""
    trials = []
    for n in range(24):
        wide = n % 3 == 0
        values, curve = {"top1": 0.9 if wide else 0.5, "gflops": 1.0 + n}, (0.4, 0.4, 0.5, 0.5, 0.5)
        more: dict[str, Any] = {"configuration": {"dim": 8 if wide else 4, "lucky": n % 2}}
        if wide:
            more["curve"] = (0.8, 0.8, 0.9, 0.9, 0.9)
        elif n % 3 == 1:
            more["curve"] = curve
        else:
            more |= {"curve": curve[:2], "epoch": 2, "status": "stopped"}
            values["top1"] = 0.4
        trials.append(trial(f"c{n:02d}", 0, values, **more))
    (band,) = importance.importance_of(summarize(small_study(*trials)))
    assert (band.num_configurations, band.num_predicted) == (24, 8)
    assert band.importances["dim"] > 0.8
    alone = small_study(*(t for t in trials if t.status == "finished"))
    (band,) = importance.importance_of(summarize(alone))
    assert (band.num_configurations, band.num_predicted) == (16, 0)
    assert importance.importance_of(summarize(small_study(*alone.trials[:14]))) == ()


def test_excess_divergence_of_two_levels_by_hand() -> None:
    """30 configurations, 15 of each level; of the 6 best 5 are `x`; the prior adds one."""
    column = ["x"] * 15 + ["y"] * 15
    is_best = np.zeros(30, dtype=bool)
    is_best[[0, 1, 2, 3, 4, 15]] = True
    best, everyone = np.array([5.5, 1.5]) / 7, np.array([0.5, 0.5])
    divergence = np.sum((best - everyone) ** 2 / everyone)
    # If 6 are drawn from 15 and 15, the count of x has variance 6 * 1/2 * 1/2 * 24/29.
    by_chance = 2 * (6 * 0.25 * 24 / 29) / 7**2 / 0.5
    assert importance.excess_divergence(column, is_best) == pytest.approx(divergence - by_chance)


@pytest.mark.parametrize("column", ["levels", "numbers", "conditional"])
def test_excess_divergence_by_chance_alone_is_0_on_average(column: str) -> None:
    """Average over random choices of the best."""
    generator = np.random.default_rng(10)
    numbers: list[Any] = (generator.random(100) ** 2).tolist()
    columns: dict[str, list[Any]] = {
        "levels": [str(number) for number in generator.integers(0, 8, 100)],
        "numbers": numbers,
        "conditional": [importance.ABSENT if i % 3 else x for i, x in enumerate(numbers)],
    }
    found = [
        importance.excess_divergence(columns[column], generator.permutation(100) < 12)
        for _ in range(1000)
    ]
    # The prior adds a small bias, because it weighs more on the smaller sample.
    assert abs(np.mean(found)) < 5 * np.std(found) / math.sqrt(1000) + 0.003


def test_to_levels_divides_many_numbers_into_equal_bins() -> None:
    levels, num_ordered = importance.to_levels([float(x) for x in range(100, 0, -1)])
    assert num_ordered == 20
    assert np.bincount(levels).tolist() == [5] * 20
    assert levels[0] == 19
    assert np.all(np.diff(levels) <= 0)


@pytest.mark.parametrize(
    ("column", "levels", "num_ordered"),
    [
        ([4, 1, 4.0, 2], [2, 0, 2, 1], 3),
        ([4, importance.ABSENT, 1], [1, 2, 0], 2),
        ([True, False, True], [1, 0, 1], 0),
        (["b", "a", None], [1, 0, 2], 0),
        ([{"x": 1, "y": 2}, {"y": 2, "x": 1}, [1]], [1, 1, 0], 0),
        ([importance.ABSENT] * 2, [0, 0], 0),
    ],
)
def test_to_levels_orders_numbers_and_puts_absent_last(
    column: list[Any], levels: list[int], num_ordered: int
) -> None:
    assert importance.to_levels(column)[0].tolist() == levels
    assert importance.to_levels(column)[1] == num_ordered


@pytest.mark.parametrize("number", [10, 30, 70, 1000])
def test_is_among_best_takes_a_tenth(number: int) -> None:
    """Independent of how 0.1 times the number is rounded."""
    assert importance.is_among_best(np.arange(float(number)), 0.1).sum() == number // 10


def test_is_among_best_includes_ties_with_the_last() -> None:
    assert importance.is_among_best(np.array([3.0, 1.0, 2.0, 2.0, 2.0]), 0.4).sum() == 4


@pytest.mark.parametrize(
    ("values", "costs", "options", "message"),
    [
        ([1.0], [1.0, 2.0], {}, "2, 1 and 2"),
        ([1.0, math.nan], [1.0, 2.0], {}, "NaN"),
        ([1.0, 2.0], [1.0, math.nan], {}, "NaN"),
        ([1.0, 2.0], [1.0, 2.0], {"target": 0.0}, "target=0.0"),
        ([1.0, 2.0], [1.0, 2.0], {"target": 0.5, "region": 0.5}, "region=0.5"),
    ],
)
def test_importance_refuses_invalid_arguments(
    values: list[float], costs: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        importance_by_band([{"a": 1}, {"a": 2}], values, costs, [1.0], **options)
