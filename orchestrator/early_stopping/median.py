"""Stop trials below the median of other trials' values at the same rung."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sftsearch.orchestrator.early_stopping.base import EarlyStoppingRule, check_option

if TYPE_CHECKING:
    from sftsearch.orchestrator.early_stopping.base import Report


@dataclass(kw_only=True)
class MedianRule(EarlyStoppingRule):
    """Stops a trial below the median of other trials' values at the same rung.

    It ignores cost: a cheap trial is stopped because more expensive ones are better. Unlike its
    source, it compares values of one epoch, not running means, and includes unfinished trials.

    Source: Golovin et al. 2017, "Google Vizier: a service for black-box optimization", sec. 3.2.2.
    """

    min_values: int = 5
    """Number of other values at a rung before a trial is judged."""
    _values: dict[int, list[float]] = field(init=False, repr=False, default_factory=dict)
    """Sorted values by rung."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("min_values", self.min_values, "at least 1", self.min_values >= 1)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        values = self._values.get(report.epoch, [])
        num = len(values)
        if num < self.min_values:
            return False, None
        return report.value < (values[(num - 1) // 2] + values[num // 2]) / 2, None

    def _add(self, report: Report) -> None:
        bisect.insort(self._values.setdefault(report.epoch, []), report.value)
