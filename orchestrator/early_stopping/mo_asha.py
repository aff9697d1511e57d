"""Keep one trial in so many at each rung, by non-dominated rank of value and cost (MO-ASHA)."""

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
"""Points of one front that are put in the order of an epsilon-net; see `NonDominatedSort`."""


@dataclass(slots=True)
class NonDominatedSort:
    """Points (cost, value) by non-dominated rank, a point at a time.

    The points of a rank, a front, are kept by ascending cost, and so by ascending value. A new
    point moves what it dominates in its front to the next, which moves what that dominates, and so
    on; in two dimensions what moves is a contiguous run. A step costs a binary search, and there is
    at most one a front.

    Source: Yakupov and Buzdalov 2015, "Incremental non-dominated sorting with O(N) insertion for
    the two-dimensional case".
    """

    fronts: list[list[CostAndValue]] = field(default_factory=list)
    num: int = 0
    _low: CostAndValue = (math.inf, math.inf)
    _high: CostAndValue = (-math.inf, -math.inf)

    def rank(self, point: CostAndValue) -> int:
        """Return the rank that a point has among the others, from 0.

        It is that of the first front with no point that dominates it: if one of a front does,
        so does one of the front before.
        """
        is_free = functools.partial(_is_free, point)
        return bisect.bisect_left(self.fronts, True, key=is_free)

    def add(self, point: CostAndValue) -> None:
        """Insert a point; equal points have the same rank."""
        self.num += 1
        self._low = min(self._low[0], point[0]), min(self._low[1], point[1])
        self._high = max(self._high[0], point[0]), max(self._high[1], point[1])
        rank, moving, is_whole = self.rank(point), [point], False
        while moving and not is_whole and rank < len(self.fronts):
            front = self.fronts[rank]
            start, end = _beaten(front, moving[0], moving[-1])
            is_whole = end - start == len(front)  # then it becomes a front of its own
            front[start:end], moving = moving, front[start:end]
            rank += 1
        if moving:
            self.fronts.insert(rank, moving)

    def is_among(self, point: CostAndValue, count: int) -> bool:
        """Tell whether a point would be among the best `count` of the points with it.

        Fronts come in their order; where `count` cuts a front, its points come in the order of an
        epsilon-net, over the value and the logarithm of the cost, each scaled to [0, 1]. Of a front
        of more than `MAX_SPREAD` points only every k-th is put in order, this one among them, and
        counts for k. A point comes before its equals, so that it is no worse off than they were.
        """
        rank = self.rank(point)
        room = count - sum(map(len, itertools.islice(self.fronts, rank)))
        front = self.fronts[rank] if rank < len(self.fronts) else []
        start, end = _beaten(front, point, point)
        num_peers = len(front) - (end - start)
        if room <= 0 or num_peers < room:
            return room > 0
        peers = [*front[:start], point, *front[end:]]
        step = math.ceil(len(peers) / MAX_SPREAD)
        scaled = self._scaled(peers[start % step :: step], point)
        return start // step in epsilon_net(scaled, math.ceil(room / step))

    def _scaled(self, points: list[CostAndValue], new: CostAndValue) -> Floats:
        """Return value and log cost, each over the range of all points with the new one, (N, 2)."""
        ends = np.array([np.minimum(self._low, new), np.maximum(self._high, new)])
        table = np.vstack([ends, points])
        table[:, 0] = np.log(np.maximum(table[:, 0], sys.float_info.min))
        span = table[1] - table[0]
        scaled: Floats = (table[2:] - table[0]) / np.where(span > 0, span, 1.0)
        return scaled[:, ::-1]


def _is_free(point: CostAndValue, front: list[CostAndValue]) -> bool:
    """Tell whether no point of the front dominates this one.

    Among those that cost no more, the most expensive has the best value.
    """
    i = bisect.bisect_right(front, (point[0], math.inf))
    return i == 0 or front[i - 1] == point or front[i - 1][1] < point[1]


def _beaten(front: list[CostAndValue], first: CostAndValue, last: CostAndValue) -> tuple[int, int]:
    """Return the slice of a front that a run of points, or one point, dominates.

    The run is from the front before or new. Between its first and its last point it dominates
    all: each point of a front is dominated by one of the front before, which must be of the run.
    """
    start = bisect.bisect_left(front, (first[0], -math.inf))
    if start < len(front) and front[start] == first:
        return start, start  # an equal point, which would dominate the same
    return start, bisect.bisect_right(front, last[1], lo=start, key=itemgetter(1))


def epsilon_net(points: Floats, count: int) -> list[int]:
    """Return the first indices of an epsilon-net: each point is the farthest from all before it.

    The first point has the highest first coordinate; of equals, the earlier comes first.

    Args:
        points: (N, D), scaled; N is at least 1.
        count: how many to return, at most N.

    Source: Clarkson 2006, "Nearest-neighbor searching and metric space dimensions", as used by
    Salinas et al. 2021, "A multi-objective perspective on jointly tuning hardware and
    hyperparameters".
    """
    order = [int(points[:, 0].argmax())]
    distance = np.full(len(points), np.inf)
    while len(order) < count:
        offset = points - points[order[-1]]
        np.minimum(distance, np.einsum("ij,ij->i", offset, offset), out=distance)
        distance[order[-1]] = -1.0  # an equal point, at 0, is still to come
        order.append(int(distance.argmax()))
    return order


@dataclass(kw_only=True)
class MOASHARule(EarlyStoppingRule):
    """Multi-objective asynchronous successive halving: one trial in eta passes a rung.

    A trial goes on if it is among the best ceil(n / eta) of the n trials that came to the rung,
    itself included, by non-dominated rank of value and cost and, within a rank, in the order of an
    epsilon-net. A trial that dominates all others goes on.

    Source: Schmucker et al. 2021, "Multi-objective asynchronous successive halving",
    arXiv:2106.12639.
    """

    _sorts: dict[int, NonDominatedSort] = field(init=False, repr=False, default_factory=dict)
    """By rung: what came to it, its cost the upper bound."""

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        known = self._sorts.get(report.epoch, NonDominatedSort())
        count = math.ceil((known.num + 1) / self.reduction_factor)
        return not known.is_among((report.cost_low, report.value), count), None

    def _add(self, report: Report) -> None:
        known = self._sorts.setdefault(report.epoch, NonDominatedSort())
        known.add((report.cost_high, report.value))
