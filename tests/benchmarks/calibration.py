"""Measure the calibration of predicted probabilities.

Shapes: P predictions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def brier(probabilities: ArrayLike, truths: ArrayLike) -> float:
    """Return the mean squared difference of probabilities and outcomes; 0 is perfect.

    Predicting the share p of true cases every time scores p (1 - p).

    Args:
        probabilities: (P,).
        truths: whether each came true, (P,) bool.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    gaps = np.asarray(probabilities, dtype=float) - np.asarray(truths, dtype=float)
    if not gaps.size:
        raise ValueError("A Brier score needs at least one probability, but got none.")
    return float(np.mean(gaps**2))


def recalibration_slope(
    probabilities: ArrayLike, truths: ArrayLike, *, clip: float = 0.001
) -> float:
    """Return the slope of a logistic regression of the outcomes on the probabilities' logits.

    A slope of 1 is calibrated; below 1 the probabilities are too extreme, above 1 too close to
    their mean. The intercept is free. If the logits separate true and false cases without overlap,
    the slope is infinite, with either sign.

    Args:
        probabilities: (P,); may be 0 or 1, whose logits are infinite before clipping.
        truths: whether each came true, (P,) bool.
        clip: probabilities are clipped to [clip, 1 - clip].

    Raises:
        ValueError: all outcomes, or all clipped probabilities, are equal.

    Source: Cox 1958, "Two further applications of a model for binary regression".
    """
    logits = special.logit(np.clip(np.asarray(probabilities, dtype=float), clip, 1 - clip))
    is_true = np.asarray(truths, dtype=bool)
    if is_true.all() or not is_true.any() or np.ptp(logits) == 0:
        raise ValueError("A slope needs true and false cases and different probabilities.")
    if logits[is_true].min() >= logits[~is_true].max():
        return math.inf
    if logits[is_true].max() <= logits[~is_true].min():
        return -math.inf
    return _fit_logistic(logits, is_true.astype(float))


def _fit_logistic(x: Floats, y: Floats) -> float:
    """Return the maximum-likelihood slope, by Newton's method with step halving.

    Args:
        x: one predictor, (P,); standardized here for good conditioning.
        y: 0 or 1, (P,).
    """
    scale = float(np.std(x))
    design = np.column_stack([np.ones(len(x)), (x - x.mean()) / scale])

    def loss(weights: Floats) -> float:
        return float(np.sum(np.logaddexp(0, design @ weights) - y * (design @ weights)))

    weights = np.zeros(2)
    for _ in range(100):
        p = special.expit(design @ weights)
        gradient = design.T @ (p - y)
        step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, gradient)
        if np.abs(step).max() < 1e-10:
            break
        size = 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
    return float(weights[1]) / scale
