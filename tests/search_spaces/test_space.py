"""Size, enumeration and draws of search spaces."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sftsearch.search_spaces import space
from sftsearch.search_spaces.schema import DISTRIBUTION, Branch, Choice, FloatRange, IntRange
from sftsearch.search_spaces.space import Space

DECIMALS = st.decimals(-1000, 1000, places=3)
STEPS = st.decimals("0.001", 50, places=3)
CHOICES = st.lists(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers()),
    min_size=1,
    max_size=6,
    unique_by=json.dumps,
).map(lambda listed: Choice(kind="choice", values=listed))


@st.composite
def int_ranges(draw: st.DrawFn) -> IntRange:
    low = draw(st.integers(-50, 50))
    high = low + draw(st.integers(0, 100))
    log = low > 0 and draw(st.booleans())
    return IntRange(
        kind="int", low=low, high=high, log=log, step=1 if log else draw(st.integers(1, 120))
    )


@st.composite
def stepped_ranges(draw: st.DrawFn) -> FloatRange:
    low, step = draw(DECIMALS), draw(STEPS)
    high = low + step * draw(st.integers(0, 40)) + draw(st.decimals(0, "0.999", places=3)) * step
    return FloatRange(kind="float", low=float(low), high=float(high), step=float(step))


FINITE = CHOICES | int_ranges() | stepped_ranges()


@pytest.mark.medium
@given(FINITE)
def test_values_are_unique_and_as_many_as_count(axis: space.Axis) -> None:
    listed = space.values(axis)
    assert space.count(axis) == len(listed)
    assert len({json.dumps(value) for value in listed}) == len(listed)


@pytest.mark.medium
@given(FINITE, st.integers(0, 2**32))
def test_draw_returns_one_of_the_values(axis: space.Axis, seed: int) -> None:
    listed = [json.dumps(value) for value in space.values(axis)]
    random_ = random.Random(seed)
    assert all(json.dumps(space.draw(axis, random_)) in listed for _ in range(20))


@pytest.mark.medium
@given(stepped_ranges())
def test_values_of_a_stepped_range_are_exact_decimals(axis: FloatRange) -> None:
    """Compare with fractions: value i is the float nearest to low + i * step."""
    low, high, step = (Fraction(str(end)) for end in (axis.low, axis.high, axis.step))
    listed = space.values(axis)
    assert listed == [float(low + i * step) for i in range(len(listed))]
    assert low + (len(listed) - 1) * step <= high < low + len(listed) * step


def test_values_of_tenths_are_exact() -> None:
    axis = FloatRange(kind="float", low=0.0, high=1.0, step=0.1)
    assert space.values(axis) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert space.count(axis) == 11  # in binary, (1.0 - 0.0) // 0.1 is 9


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ({"kind": "int", "low": 1, "high": 10, "step": 4}, [1, 5, 9]),
        ({"kind": "int", "low": -3, "high": -3}, [-3]),
        ({"kind": "float", "low": 2, "high": 2}, [2.0]),
        ({"kind": "float", "low": 0.5, "high": 0.7, "step": 0.3}, [0.5]),
        ({"kind": "choice", "values": [[1, 2], None, True, 1]}, [[1, 2], None, True, 1]),
    ],
)
def test_values_of_edge_cases(axis: dict[str, Any], values: list[Any]) -> None:
    assert space.values(DISTRIBUTION.validate_python(axis)) == values


def test_values_of_a_continuous_range_raises() -> None:
    axis = FloatRange(kind="float", low=0.0, high=1.0)
    assert space.count(axis) == math.inf
    with pytest.raises(ValueError, match="continuous range"):
        space.values(axis)


def test_draw_does_not_list_a_large_stepped_range() -> None:
    axis = FloatRange(kind="float", low=0.0, high=1e9, step=0.001)
    assert space.count(axis) == 10**12 + 1
    drawn = space.draw(axis, random.Random(0))
    assert Decimal(str(drawn)) % Decimal("0.001") == 0


@pytest.mark.parametrize("log", [False, True])
def test_draw_is_uniform_on_the_scale_of_a_continuous_range(log: bool) -> None:
    """Kolmogorov-Smirnov test against the closed form of the distribution."""
    axis = FloatRange(kind="float", low=1e-4, high=1e-1, log=log)
    random_ = random.Random(1)
    drawn = [space.draw(axis, random_) for _ in range(4000)]
    assert all(axis.low <= value <= axis.high for value in drawn)
    reference = stats.loguniform(1e-4, 1e-1) if log else stats.uniform(1e-4, 1e-1 - 1e-4)
    assert stats.kstest(drawn, reference.cdf).pvalue > 0.001


def test_draw_of_log_integers_follows_the_bin_widths() -> None:
    axis = IntRange(kind="int", low=1, high=8, log=True)
    random_ = random.Random(2)
    counts = Counter(space.draw(axis, random_) for _ in range(8000))
    width = math.log(8.5 / 0.5)
    expected = [8000 * math.log((k + 0.5) / (k - 0.5)) / width for k in range(1, 9)]
    assert stats.chisquare([counts[k] for k in range(1, 9)], expected).pvalue > 0.001


def branches(*parameters: dict[str, Any]) -> list[Branch]:
    return [Branch(kind=f"model{i}", **more) for i, more in enumerate(parameters)]


def axis_of(values: list[Any]) -> dict[str, Any]:
    return {"kind": "choice", "values": values}


@settings(max_examples=50)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), FINITE, max_size=2), min_size=1, max_size=3
    ).filter(lambda axes: sum(math.prod(map(space.count, one.values())) for one in axes) < 3000)
)
def test_points_are_unique_and_as_many_as_size(axes: list[dict[str, Any]]) -> None:
    whole = Space(branches(*({k: v.model_dump() for k, v in one.items()} for one in axes)))
    listed = list(whole.points())
    assert whole.size() == len(listed)
    texts = [json.dumps([point.branch, point.values], sort_keys=True) for point in listed]
    assert len(set(texts)) == len(texts)
    random_ = random.Random(0)
    for _ in range(10):
        drawn = whole.draw(random_)
        assert json.dumps([drawn.branch, drawn.values], sort_keys=True) in texts


def test_points_are_ordered_by_branch_and_include_literals() -> None:
    whole = Space(branches({"a": 7, "b": axis_of([1, 2])}, {"stride": {"left": 2}}))
    assert whole.models == ["model0", "model1"]
    assert [(point.branch, point.values) for point in whole.points()] == [
        (0, {"a": 7, "b": 1}),
        (0, {"a": 7, "b": 2}),
        (1, {"stride": {"left": 2}}),
    ]


def test_space_has_an_axis_per_distribution_in_a_mapping() -> None:
    """`Point.parameters` rebuilds the mapping."""
    tokens = {"left": axis_of([1, 2]), "right": 7, "top": axis_of([4])}
    whole = Space(branches({"tokens": tokens, "a": {"left": 3}}))
    assert {name: space.values(axis) for name, axis in whole.axes[0].items()} == {
        "tokens.left": [1, 2],
        "tokens.top": [4],
    }
    assert whole.size() == 2
    assert [point.parameters for point in whole.points()] == [
        {"a": {"left": 3}, "tokens": {"left": left, "right": 7, "top": 4}} for left in (1, 2)
    ]
    assert whole.draw(random.Random(0)) in list(whole.points())


def test_draw_gives_all_branches_equal_probability() -> None:
    whole = Space(branches({"a": axis_of(list(range(100)))}, {}))
    random_ = random.Random(3)
    counts = Counter(whole.draw(random_).branch for _ in range(4000))
    assert stats.binomtest(counts[0], 4000).pvalue > 0.001
    assert {whole.draw(random_, 1).branch for _ in range(10)} == {1}


def test_size_of_a_huge_space_is_a_float() -> None:
    wide = {"kind": "int", "low": 0, "high": 2**53 - 1}
    assert Space(branches({str(i): wide for i in range(3)})).size() == pytest.approx(2.0**159)
    assert Space(branches({str(i): wide for i in range(100)})).size() == math.inf
    continuous = {"kind": "float", "low": 0.0, "high": 1.0}
    assert Space(branches({"a": wide, "b": continuous}, {})).size() == math.inf
