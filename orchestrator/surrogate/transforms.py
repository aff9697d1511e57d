"""Transform metrics to the surrogate's scale: log odds for shares, unchanged for other metrics.

A share of correct decisions varies less between seeds and folds the closer it is to 0 or 1; its log
odds have about the same variance everywhere. The surrogate models log odds and returns shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

LEAST = 0.002
"""Shares are clipped to [LEAST, 1 - LEAST], because the log odds of 0 and 1 are infinite."""


@dataclass(frozen=True, slots=True)
class OutcomeTransform:
    """Map values of a metric (higher is better) to the scale of the surrogate and back."""

    is_share: bool = False
    sign: float = 1.0
    """-1 if the values are negated because the share is minimized."""
    floor: float = 0.0
    """Share at chance level; shares below half of it count as half of it."""

    def to_latent(self, values: ArrayLike) -> Floats:
        """Return the values on the scale of the surrogate; NaNs stay."""
        values = np.asarray(values, dtype=float)
        if not self.is_share:
            return values
        shares = np.clip(self.sign * values, max(LEAST, self.floor / 2), 1 - LEAST)
        latent: Floats = self.sign * special.logit(shares)
        return latent

    def to_values(self, latent: ArrayLike, spread: float = 0.0) -> Floats:
        """Return mean values for latent means with a normal spread (a standard deviation).

        The mean of a logistic function of a normal variable is close to that function at
        latent / sqrt(1 + pi spread^2 / 8).

        Source: MacKay 1992, "The evidence framework applied to classification networks", eq. 5.
        """
        latent = np.asarray(latent, dtype=float)
        if not self.is_share:
            return latent
        values: Floats = self.sign * special.expit(self.sign * latent * _shrinkage(spread))
        return values

    def slopes(self, latent: ArrayLike, spread: float = 0.0) -> Floats:
        """Return the derivatives of `to_values`, which convert deviations to those of values."""
        latent = np.asarray(latent, dtype=float)
        if not self.is_share:
            return np.ones_like(latent)
        shares = special.expit(latent * _shrinkage(spread))
        slopes: Floats = shares * (1 - shares) * _shrinkage(spread)
        return slopes


def _shrinkage(spread: float) -> float:
    return float(1 / np.sqrt(1 + np.pi * spread**2 / 8))
