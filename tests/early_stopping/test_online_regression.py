"""The online regression against numpy's least squares and Student's t distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sftsearch.orchestrator.early_stopping.online_regression import OnlineLinearRegression


@pytest.mark.parametrize("num", [3, 8, 50])
def test_regression_agrees_with_least_squares(num: int) -> None:
    """Against numpy's least squares, and the predictive variance from its hat matrix."""
    generator = np.random.default_rng(num)
    x = generator.normal(0.7, 0.1, num)
    y = 0.2 + 0.8 * x + generator.normal(0, 0.02, num)
    line = OnlineLinearRegression()
    for pair in zip(x, y, strict=True):
        line.add(*pair)
    design = np.column_stack([np.ones(num), x])
    coefficients, residual, _, _ = np.linalg.lstsq(design, y, rcond=None)
    for new in (0.3, 0.7, 1.2):
        row = np.array([1.0, new])
        leverage = row @ np.linalg.inv(design.T @ design) @ row
        scale = math.sqrt(residual[0] / (num - 2) * (1 + leverage))
        prediction = line.predict(new)
        assert prediction is not None
        assert prediction == pytest.approx((row @ coefficients, scale, num - 2), rel=1e-9)
        expected = stats.t(num - 2, row @ coefficients, scale).sf(0.75)
        assert prediction.above(0.75) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_regression_is_accurate_far_from_zero() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0])
    near, far = OnlineLinearRegression(), OnlineLinearRegression()
    for a, b in zip(x, y, strict=True):
        near.add(a, b)
        far.add(a + 1e8, b + 1e8)
    one, other = near.predict(4.0), far.predict(4.0 + 1e8)
    assert one is not None
    assert other is not None
    assert other.scale == pytest.approx(one.scale, rel=1e-6)
    assert other.mean - 1e8 == pytest.approx(one.mean, abs=1e-6)


def test_regression_needs_three_points_and_two_distinct_x() -> None:
    line = OnlineLinearRegression()
    for _ in range(9):
        line.add(0.3, 0.6)
    assert line.predict(0.3) is None
    line = OnlineLinearRegression()
    line.add(0.0, 0.0)
    line.add(1.0, 1.0)
    assert line.predict(0.5) is None


def test_prediction_from_points_on_a_line_has_no_variance() -> None:
    line = OnlineLinearRegression()
    for x in range(8):
        line.add(float(x), 2.0 * x)
    prediction = line.predict(10.0)
    assert prediction is not None
    assert prediction.scale == 0.0
    assert [prediction.above(at) for at in (19.0, 20.0, 21.0)] == [1.0, 1.0, 0.0]


def test_prediction_from_eight_points_has_five_percent_below_its_quantile() -> None:
    """The scaled error has Student's t distribution exactly; a normal one is too narrow."""
    generator = np.random.default_rng(0)
    num_fits, below, below_normal = 6000, 0, 0
    x = generator.normal(size=(num_fits, 9))
    y = 1 + 2 * x + generator.normal(size=(num_fits, 9))
    quantile, normal = stats.t.ppf(0.05, 6), stats.norm.ppf(0.05)
    for fit in range(num_fits):
        line = OnlineLinearRegression()
        for n in range(8):
            line.add(x[fit, n], y[fit, n])
        prediction = line.predict(x[fit, 8])
        assert prediction is not None
        below += y[fit, 8] < prediction.mean + quantile * prediction.scale
        below_normal += y[fit, 8] < prediction.mean + normal * prediction.scale
    error = math.sqrt(0.05 * 0.95 / num_fits)
    assert below / num_fits == pytest.approx(0.05, abs=4 * error)
    assert below_normal / num_fits == pytest.approx(stats.t.cdf(normal, 6), abs=5 * error)  # 7.6 %
