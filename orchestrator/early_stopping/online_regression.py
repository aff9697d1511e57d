"""Fit a linear regression one point at a time, and predict new values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from scipy import special  # type: ignore[import-untyped, unused-ignore]


class Prediction(NamedTuple):
    """Student's t distribution of a new value."""

    mean: float
    scale: float
    degrees: int

    def above(self, threshold: float) -> float:
        """Return the probability that the value exceeds the threshold."""
        if self.scale == 0:  # an exact fit; a value at the threshold counts as above
            return float(self.mean >= threshold)
        return float(special.stdtr(self.degrees, (self.mean - threshold) / self.scale))


@dataclass(slots=True)
class OnlineLinearRegression:
    """Least squares of y = a + b x with normal errors, updated one point at a time.

    Sums are of deviations from the running means, because sums of squares suffer cancellation.

    Source: Welford 1962, "Note on a method for calculating corrected sums of squares and products".
    """

    num: int = 0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0
    _yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """Add a point."""
        self.num += 1
        dx, dy = x - self._x, y - self._y
        self._x += dx / self.num
        self._y += dy / self.num
        self._xx += dx * (x - self._x)
        self._xy += dx * (y - self._y)
        self._yy += dy * (y - self._y)

    def predict(self, x: float) -> Prediction | None:
        """Return the distribution of a new y at x; None for fewer than 3 points or a single x.

        With s^2 the residual variance on n - 2 degrees of freedom, the variance of a new
        observation is s^2 (1 + 1 / n + (x - mean x)^2 / S_xx), which includes the uncertainty of
        the fitted line. As s is estimated, y has Student's t distribution: with 8 points, a normal
        distribution would have 8 % below its 5 % quantile.

        Source: Draper and Smith 1998, Applied Regression Analysis, sec. 3.1.
        """
        if self.num < 3 or self._xx <= 0:
            return None
        degrees = self.num - 2
        slope = self._xy / self._xx
        variance = max(0.0, self._yy - slope * self._xy) / degrees
        inflation = 1 + 1 / self.num + (x - self._x) ** 2 / self._xx
        mean = self._y + slope * (x - self._x)
        return Prediction(mean, math.sqrt(variance * inflation), degrees)
