"""Compare calibration measures with closed forms and scikit-learn's logistic regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import calibration


def test_brier_of_a_constant_share_is_its_variance() -> None:
    truths = np.arange(10) < 3
    assert calibration.brier(np.full(10, 0.3), truths) == pytest.approx(0.3 * 0.7)
    assert calibration.brier(truths, truths) == 0.0
    assert calibration.brier(~truths, truths) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        calibration.brier([], [])


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_recalibration_slope_agrees_with_logistic_regression(factor: float) -> None:
    generator = np.random.default_rng(8)
    logits = generator.normal(0, 1.5, 400)
    truths = generator.random(400) < 1 / (1 + np.exp(-factor * logits))
    probabilities = 1 / (1 + np.exp(-logits))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(logits[:, None], truths)
    found = calibration.recalibration_slope(probabilities, truths, clip=1e-6)
    assert found == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert found == pytest.approx(factor, rel=0.3)


def test_recalibration_slope_of_two_probabilities_is_a_ratio_of_log_odds() -> None:
    """0.2 is true 1 in 4 times and 0.8 is true 3 in 4 times: log 3 over log 4."""
    probabilities, truths = (
        [0.2] * 4 + [0.8] * 4,
        [True, False, False, False] + [True] * 3 + [False],
    )
    found = calibration.recalibration_slope(probabilities, truths)
    assert found == pytest.approx(math.log(3) / math.log(4), rel=1e-9)


def test_recalibration_slope_clips_certain_probabilities() -> None:
    probabilities, truths = [0.0] * 10 + [1.0] * 10, [True] + [False] * 9 + [True] * 9 + [False]
    found = calibration.recalibration_slope(probabilities, truths, clip=0.01)
    assert found == pytest.approx(math.log(9) / math.log(99), rel=1e-9)


def test_recalibration_slope_may_be_infinite_or_undefined() -> None:
    assert calibration.recalibration_slope([0.1, 0.9], [False, True]) == math.inf
    assert calibration.recalibration_slope([0.1, 0.9], [True, False]) == -math.inf
    for probabilities, truths in (([0.1, 0.9], [True, True]), ([0.5, 0.5], [True, False])):
        with pytest.raises(ValueError, match="true and false"):
            calibration.recalibration_slope(probabilities, truths)
