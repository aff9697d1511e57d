"""Keep one trial in eta at each rung, by non-dominated rank of value and cost (MO-ASHA)."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import sys
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.early_stopping.base import EarlyStoppingRule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.early_stopping.base import Report

    Floats = NDArray[np.float64]
    CostAndValue = tuple[float, float]

MAX_SPREAD = 128
"""Most points of one front that are ordered by an epsilon-net; see `NonDominatedSort.is_among`."""


@dataclass(slots=True)
class NonDominatedSort:
    """Points (cost, value) sorted by non-dominated rank, updated one point at a time.

    The points of a rank, a front, are sorted by cost, and so also by value. A new point moves the
    points of its front that it dominates to the next front, these move the points that they
    dominate, and so on. In two dimensions the moved points are contiguous, so each front costs one
    binary search.

    Source: Yakupov and Buzdalov 2015, "Incremental non-dominated sorting with O(N) insertion for
    the two-dimensional case".
    """

    fronts: list[list[CostAndValue]] = field(default_factory=list)
    num: int = 0
    _low: CostAndValue = (math.inf, math.inf)
    _high: CostAndValue = (-math.inf, -math.inf)

    def rank(self, point: CostAndValue) -> int:
        """Return the rank of a point among the others, from 0.

        It is the first front without a point that dominates it. Binary search is valid because a
        point dominated by one of a front is also dominated by one of the previous front.
        """
        is_free = functools.partial(_is_not_dominated, point)
        return bisect.bisect_left(self.fronts, True, key=is_free)

    def add(self, point: CostAndValue) -> None:
        """Insert a point; equal points have the same rank."""
        self.num += 1
        self._low = min(self._low[0], point[0]), min(self._low[1], point[1])
        self._high = max(self._high[0], point[0]), max(self._high[1], point[1])
        rank, moving, is_whole = self.rank(point), [point], False
        while moving and not is_whole and rank < len(self.fronts):
            front = self.fronts[rank]
            start, end = _dominated_slice(front, moving[0], moving[-1])
            is_whole = end - start == len(front)  # the whole front moves and stays one front
            front[start:end], moving = moving, front[start:end]
            rank += 1
        if moving:
            self.fronts.insert(rank, moving)

    def is_among(self, point: CostAndValue, count: int) -> bool:
        """Return whether a point would be among the best `count` points, itself included.

        Points are ordered by rank and, within the front that `count` cuts, by an epsilon-net over
        the value and the logarithm of the cost, each scaled to [0, 1]. Of a front with more than
        `MAX_SPREAD` points, only every k-th is ordered, this one among them, and counts for k.
        A point comes before equal ones, so that it is treated no worse than they were.
        """
        rank = self.rank(point)
        num_left = count - sum(map(len, itertools.islice(self.fronts, rank)))
        front = self.fronts[rank] if rank < len(self.fronts) else []
        start, end = _dominated_slice(front, point, point)
        num_peers = len(front) - (end - start)
        if num_left <= 0 or num_peers < num_left:
            return num_left > 0
        peers = [*front[:start], point, *front[end:]]
        step = math.ceil(len(peers) / MAX_SPREAD)
        scaled = self._scaled(peers[start % step :: step], point)
        return start // step in epsilon_net(scaled, math.ceil(num_left / step))

    def _scaled(self, points: list[CostAndValue], new: CostAndValue) -> Floats:
        """Return value and log cost, each scaled by the range of all points and `new`, (N, 2)."""
        ends = np.array([np.minimum(self._low, new), np.maximum(self._high, new)])
        table = np.vstack([ends, points])
        table[:, 0] = np.log(np.maximum(table[:, 0], sys.float_info.min))
        span = table[1] - table[0]
        scaled: Floats = (table[2:] - table[0]) / np.where(span > 0, span, 1.0)
        return scaled[:, ::-1]


def _is_not_dominated(point: CostAndValue, front: list[CostAndValue]) -> bool:
    """Return whether no point of the front dominates this one.

    Among the points of at most its cost, the most expensive one has the best value.
    """
    i = bisect.bisect_right(front, (point[0], math.inf))
    return i == 0 or front[i - 1] == point or front[i - 1][1] < point[1]


def _dominated_slice(
    front: list[CostAndValue], first: CostAndValue, last: CostAndValue
) -> tuple[int, int]:
    """Return the slice of a front that is dominated by a run of points (or one point).

    The run is new or from the previous front. It dominates all points between its first and last:
    each point of a front is dominated by one of the previous front, which must be in the run.
    """
    start = bisect.bisect_left(front, (first[0], -math.inf))
    if start < len(front) and front[start] == first:
        return start, start  # an equal point is there, which dominates the same points
    return start, bisect.bisect_right(front, last[1], lo=start, key=itemgetter(1))


def epsilon_net(points: Floats, count: int) -> list[int]:
    """Return the first indices of an epsilon-net: each point is farthest from all before it.

    The first point has the highest first coordinate; ties go to the earlier index.

    Args:
        points: (N, D), scaled; N is at least 1.
        count: number of indices to return, at most N.

    Source: Clarkson 2006, "Nearest-neighbor searching and metric space dimensions", as used by
    Salinas et al. 2021, "A multi-objective perspective on jointly tuning hardware and
    hyperparameters".
    """
    order = [int(points[:, 0].argmax())]
    distance = np.full(len(points), np.inf)
    while len(order) < count:
        offset = points - points[order[-1]]
        np.minimum(distance, np.einsum("ij,ij->i", offset, offset), out=distance)
        distance[order[-1]] = -1.0  # below 0, so that equal points still follow
        order.append(int(distance.argmax()))
    return order


@dataclass(kw_only=True)
class MOASHARule(EarlyStoppingRule):
    """Multi-objective asynchronous successive halving: one trial in eta passes a rung.

    A trial continues if it is among the best ceil(n / eta) of the n trials that reached the rung,
    itself included, by non-dominated rank of value and cost and, within a rank, by the order of an
    epsilon-net. A trial that dominates all others always continues.

    Source: Schmucker et al. 2021, "Multi-objective asynchronous successive halving",
    arXiv:2106.12639.
    """

    _sorts: dict[int, NonDominatedSort] = field(init=False, repr=False, default_factory=dict)
    """Trials that reached a rung, with the upper bounds of their costs, by rung."""

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        known = self._sorts.get(report.epoch, NonDominatedSort())
        count = math.ceil((known.num + 1) / self.reduction_factor)
        return not known.is_among((report.cost_low, report.value), count), None

    def _add(self, report: Report) -> None:
        known = self._sorts.setdefault(report.epoch, NonDominatedSort())
        known.add((report.cost_high, report.value))
