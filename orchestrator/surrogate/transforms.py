"""The scale on which replicates vary alike: shares by their log odds, other metrics as they are.

A share of right decisions varies less from seed to seed and from fold to fold the closer it is to 1
(or 0); its log odds vary alike everywhere. The surrogate works on that scale and answers in shares.
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
"""Shares are told apart from here to 1 less it: the log odds of 0 and 1 are infinite."""


@dataclass(frozen=True, slots=True)
class OutcomeTransform:
    """From values of a metric, higher is better, to the scale they are modelled on, and back."""

    is_share: bool = False
    sign: float = 1.0
    """-1 where the values are shares that are minimised: so they come with that sign."""
    floor: float = 0.0
    """What chance reaches: shares below half of it count as that half."""

    def to_latent(self, values: ArrayLike) -> Floats:
        """Return the values on the scale they are modelled on; NaN stays."""
        values = np.asarray(values, dtype=float)
        if not self.is_share:
            return values
        shares = np.clip(self.sign * values, max(LEAST, self.floor / 2), 1 - LEAST)
        latent: Floats = self.sign * special.logit(shares)
        return latent

    def to_values(self, latent: ArrayLike, spread: float = 0.0) -> Floats:
        """Return the mean values where the latent is as given, give or take a normal spread.

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
        """Return the derivatives of `to_values`, which turn deviations into those of values."""
        latent = np.asarray(latent, dtype=float)
        if not self.is_share:
            return np.ones_like(latent)
        shares = special.expit(latent * _shrinkage(spread))
        slopes: Floats = shares * (1 - shares) * _shrinkage(spread)
        return slopes


def _shrinkage(spread: float) -> float:
    return float(1 / np.sqrt(1 + np.pi * spread**2 / 8))
