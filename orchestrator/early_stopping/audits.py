"""Estimate how often early stopping is wrong, from stops that were not carried out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scipy import special  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Audit:
    """A stop that was decided and not carried out."""

    key: str
    epoch: int
    probability: float | None
    threshold: float | None
    final: float | None = None
    """The trial's final value; None until it has one."""

    @property
    def is_false(self) -> bool:
        """Whether the stop would have been wrong: the final value exceeds the threshold.

        Without a finished trial at this cost there is no threshold, and any value is the best.
        """
        return self.final is not None and (self.threshold is None or self.final > self.threshold)


class FalseStopRate(NamedTuple):
    """How often a decided stop would have been wrong, with an interval."""

    rate: float
    low: float
    high: float
    num: int


def false_stop_rate(audits: Iterable[Audit], *, level: float = 0.95) -> FalseStopRate:
    """Estimate the share of decided stops that are wrong, from the audits that have finished.

    The Clopper-Pearson interval covers the true share with probability at least `level`. Without a
    finished audit the rate is NaN and the interval [0, 1].

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the
    case of the binomial".
    """
    finished = [audit for audit in audits if audit.final is not None]
    num, wrong = len(finished), sum(audit.is_false for audit in finished)
    tail = (1 - level) / 2
    low = float(special.betaincinv(wrong, num - wrong + 1, tail)) if wrong else 0.0
    high = float(special.betaincinv(wrong + 1, num - wrong, 1 - tail)) if wrong < num else 1.0
    return FalseStopRate(wrong / num if num else math.nan, low, high, num)
