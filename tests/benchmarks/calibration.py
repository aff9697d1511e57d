"""How well probabilities agree with what came true.

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
    """Return the mean squared difference of probabilities and truths: 0 is perfect.

    Always saying the share of the true gives that share's p (1 - p).

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
    """Return the slope of a logistic regression of the truths on the probabilities' logits.

    1 is calibrated; below 1 the probabilities are too near 0 and 1, above 1 too near their mean.
    The intercept is free. Where the logits separate the true from the false without overlap the
    slope is infinite, of either sign.

    Args:
        probabilities: (P,); shares of draws may be 0 or 1, whose logits are infinite.
        truths: whether each came true, (P,) bool.
        clip: probabilities below it, or above 1 less it, are taken as that.

    Raises:
        ValueError: all truths, or all clipped probabilities, are equal: there is no slope.

    Source: Cox 1958, "Two further applications of a model for binary regression".
    """
    logits = special.logit(np.clip(np.asarray(probabilities, dtype=float), clip, 1 - clip))
    is_true = np.asarray(truths, dtype=bool)
    if is_true.all() or not is_true.any() or np.ptp(logits) == 0:
        raise ValueError("A slope needs true and false cases, and probabilities that differ.")
    if logits[is_true].min() >= logits[~is_true].max():
        return math.inf
    if logits[is_true].max() <= logits[~is_true].min():
        return -math.inf
    return _fit_logistic(logits, is_true.astype(float))


def _fit_logistic(x: Floats, y: Floats) -> float:
    """Return the slope of greatest likelihood, by Newton's method with halved steps.

    Args:
        x: one predictor, (P,), standardised here, so that the system is well conditioned.
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
