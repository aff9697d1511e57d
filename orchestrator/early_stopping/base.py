"""RULES: which running trials to stop before their last epoch. The one place to add a rule.

A rule is told every epoch of every trial (`decide`) and how each ended (`finished`, `stopped`).
What it decides follows from these calls and their order alone: it knows no clock, and its random
draws derive from a seed and the trial's key. So a rule that is told the same again, as when a study
resumes, is in the same state again.

Values are to be maximized: who minimizes a metric turns its sign. Costs are to be minimized and are
known before training, as a lower and an upper bound that are equal where the cost is exact; a trial
is judged by its own lower and its rivals' upper bound. A rung is an epoch at which trials are
judged, by their value of that very epoch and not the best so far.

Judge the first seed of a configuration only. Stopping a further one because it goes badly would
leave the configuration with its lucky seeds.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import math
import sys
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import special  # type: ignore[import-untyped, unused-ignore]

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Point = tuple[float, float]

MAX_SPREAD = 128
"""Points of one front that are put in the order of an epsilon-net; see `Fronts.is_among`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An epoch of a running trial, and what else a rule needs to judge it."""

    key: str
    """The trial's name, which it keeps when the study is resumed."""
    epoch: int
    """From 1."""
    value: float
    """On validation, of this epoch, to be maximized."""
    cost_low: float
    cost_high: float
    group: Hashable = None
    """Trials of a group have learning curves of one kind: same branch, same mixup setting."""
    warmup: int = 0
    """Epochs before mixup sets in; 0 without mixup."""
    epochs: int
    """Epochs of the whole trial."""
    best_affordable: float | None = None
    """A(c): the best posterior mean of the finished configurations whose upper cost is at most
    this trial's lower one; None if there is no such configuration."""

    def __post_init__(self) -> None:
        assert self.epoch >= 1, self
        assert self.cost_low <= self.cost_high, self


class Decision(NamedTuple):
    """What becomes of a trial after an epoch."""

    stop: bool
    audit: bool = False
    """The rule would stop the trial, but lets it run on to learn whether that would be right."""
    probability: float | None = None
    """That the final value exceeds `threshold`; None where the rule does not estimate it."""
    threshold: float | None = None
    """A(c) - delta; None where nothing is finished at this cost or no rule was asked."""


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

        Where nothing was finished at the trial's cost, whatever it reaches is the best.
        """
        return self.final is not None and (self.threshold is None or self.final > self.threshold)


class FalseStops(NamedTuple):
    """How often a decided stop would have been wrong, with an interval."""

    rate: float
    low: float
    high: float
    num: int


def false_stop_rate(audits: Iterable[Audit], *, level: float = 0.95) -> FalseStops:
    """Estimate the share of decided stops that are wrong, from the audits that have finished.

    The interval is that of Clopper and Pearson, which holds the true share at least `level` of the
    time for every share and number. Without a finished audit the rate is NaN, the interval [0, 1].

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the
    case of the binomial".
    """
    finished = [audit for audit in audits if audit.final is not None]
    num, wrong = len(finished), sum(audit.is_false for audit in finished)
    tail = (1 - level) / 2
    low = float(special.betaincinv(wrong, num - wrong + 1, tail)) if wrong else 0.0
    high = float(special.betaincinv(wrong + 1, num - wrong, 1 - tail)) if wrong < num else 1.0
    return FalseStops(wrong / num if num else math.nan, low, high, num)


@functools.cache
def rungs(epochs: int, warmup: int, min_epochs: int, reduction_factor: float) -> tuple[int, ...]:
    """Return the epochs at which a trial is judged, ascending, before its last.

    They are `min_epochs` times the powers of the reduction factor, so that trials with and without
    mixup meet at the same rungs, less those sooner than two epochs after mixup's warm-up: only
    then can be seen what mixup does.
    """
    first = max(min_epochs, warmup + 2 if warmup else 1)
    series = (min_epochs * reduction_factor**k for k in itertools.count())
    rounded = map(round, itertools.takewhile(lambda epoch: epoch < epochs, series))
    return tuple(sorted({epoch for epoch in rounded if first <= epoch < epochs}))


@dataclass(slots=True)
class _Trial:
    """A running trial: what becomes an observation of its group when it finishes."""

    group: Hashable
    epochs: int
    values: dict[int, float] = field(default_factory=dict)
    """By rung."""


@dataclass(kw_only=True)
class Rule:
    """Stops no trial: the rule `none`, and what the others have in common.

    Raises:
        UserError: an option is out of its range.
    """

    delta: float = 0.005
    """How far below the best at its cost a final value may be without being a loss; in the
    metric's unit, here half a point of accuracy."""
    audit_share: float = 0.1
    """Of the decided stops, those that are not carried out. 0 for a rule as its paper has it."""
    seed: int = 0
    """Of the draw of audits."""
    min_epochs: int = 2
    """The first rung."""
    reduction_factor: float = 2.0
    """From one rung to the next; MO-ASHA keeps one trial in so many."""
    _trials: dict[str, _Trial] = field(init=False, repr=False, default_factory=dict)
    _audits: dict[str, Audit] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check("delta", self.delta, "at least 0", self.delta >= 0)
        _check("audit_share", self.audit_share, "from 0 to 1", 0 <= self.audit_share <= 1)
        _check("min_epochs", self.min_epochs, "at least 1", self.min_epochs >= 1)
        is_above_one = 1 < self.reduction_factor < math.inf
        _check("reduction_factor", self.reduction_factor, "above 1", is_above_one)

    @property
    def audits(self) -> tuple[Audit, ...]:
        """The stops that were decided and not carried out, oldest first."""
        return tuple(self._audits.values())

    def judges(self, epochs: int, warmup: int, epoch: int) -> bool:
        """Tell whether a trial is judged after an epoch: `decide` says nothing at others."""
        return epoch in rungs(epochs, warmup, self.min_epochs, self.reduction_factor)

    def decide(self, report: Report) -> Decision:
        """Say whether a trial stops after an epoch; `apply` notes what was decided.

        Only the first finite report of a trial at a rung counts. A trial that is audited is not
        judged again.
        """
        if not self._counts(report):
            return Decision(stop=False)
        is_judged = report.key not in self._audits
        stop, probability = self._judge(report) if is_judged else (False, None)
        threshold = self._threshold(report)
        is_audited = stop and self._is_audited(report.key)
        return Decision(stop and not is_audited, is_audited, probability, threshold)

    def apply(self, report: Report, decision: Decision) -> None:
        """Take note of an epoch and of what was decided after it."""
        if not self._counts(report):
            return
        trial = self._trials.setdefault(report.key, _Trial(report.group, report.epochs))
        trial.values[report.epoch] = report.value
        self._record(report)
        if decision.audit:
            audit = Audit(report.key, report.epoch, decision.probability, decision.threshold)
            self._audits[report.key] = audit

    def _counts(self, report: Report) -> bool:
        series = rungs(report.epochs, report.warmup, self.min_epochs, self.reduction_factor)
        known = self._trials.get(report.key)
        is_new = known is None or report.epoch not in known.values
        return report.epoch in series and is_new and math.isfinite(report.value)

    def finished(self, key: str, final_value: float) -> None:
        """Hear that a trial ran to its end, with the value that counts for it."""
        if key in self._audits:
            self._audits[key] = dataclasses.replace(self._audits[key], final=final_value)
        trial = self._trials.pop(key, None)
        if trial is not None:
            self._learn(trial, final_value)

    def stopped(self, key: str) -> None:
        """Hear that a trial ended without a final value, stopped or failed."""
        self._trials.pop(key, None)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        """Return whether to stop, and the probability behind it; before the report is recorded."""
        return False, None

    def _record(self, report: Report) -> None:
        """Keep a value at a rung, of whatever trial."""

    def _learn(self, trial: _Trial, final_value: float) -> None:
        """Keep what a finished trial shows."""

    def _threshold(self, report: Report) -> float | None:
        best = report.best_affordable
        return None if best is None else best - self.delta

    def _is_audited(self, key: str) -> bool:
        """Draw by the key alone: neither the order of decisions nor their number matters."""
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        return int.from_bytes(digest[:8], "little") < self.audit_share * 2**64


def _check(name: str, value: float, range_: str, is_inside: bool) -> None:
    if not is_inside:
        raise UserError(f"`{name}` of a stopping rule must be {range_}, but got {value}.")


# --------------------------------------------------------------------- front


class Prediction(NamedTuple):
    """Student's distribution of a value to come."""

    mean: float
    scale: float
    degrees: int

    def above(self, threshold: float) -> float:
        """Return the probability that the value exceeds the threshold."""
        if self.scale == 0:  # the trials so far lie on a line; at the threshold, no stop
            return float(self.mean >= threshold)
        return float(special.stdtr(self.degrees, (self.mean - threshold) / self.scale))


@dataclass(slots=True)
class Line:
    """Least squares of y = a + b x with normal errors, a point at a time.

    The sums are of deviations from the running means: sums of squares would cancel.

    Source: Welford 1962, "Note on a method for calculating corrected sums of squares and products".
    """

    num: int = 0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0
    _yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """Take in a point."""
        self.num += 1
        dx, dy = x - self._x, y - self._y
        self._x += dx / self.num
        self._y += dy / self.num
        self._xx += dx * (x - self._x)
        self._xy += dx * (y - self._y)
        self._yy += dy * (y - self._y)

    def predict(self, x: float) -> Prediction | None:
        """Return the distribution of a new y at x; None from under 3 points or of a single x.

        With s^2 the residual variance on n - 2 degrees of freedom, the variance of a new
        observation is s^2 (1 + 1 / n + (x - mean x)^2 / S_xx): the fitted line is uncertain too,
        above all far from the points. As s is estimated, y has Student's distribution; with 8
        points a normal one would promise 5 % and give 8 %.

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


@dataclass(kw_only=True)
class FrontRule(Rule):
    """Stops a trial that will hardly come near the best finished one of at most its cost.

    It stops when P(final value > A(c) - delta) < `min_probability`. A(c) is the best posterior mean
    at cost up to the trial's, so a cheap trial is never stopped because a dearer one is better, nor
    any while nothing is finished at its cost. The final value is predicted from that at the rung,
    by least squares over the finished trials of the same group and number of epochs.

    Those are the trials that no rung stopped: of equals at this rung, the ones that a later rung
    stopped are missing from the fit. Its mean may be too high and its variance too low; how often
    stops are wrong is therefore measured by the audits, which run to the end.
    """

    min_probability: float = 0.05
    """Of being worth its training; a trial below it is stopped."""
    min_finished: int = 8
    """Finished trials of its group before a trial is judged."""
    _lines: dict[Hashable, Line] = field(init=False, repr=False, default_factory=dict)
    """By group, number of epochs and rung: final value against the value at the rung."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_share = 0 < self.min_probability < 1
        _check("min_probability", self.min_probability, "between 0 and 1", is_share)
        _check("min_finished", self.min_finished, "at least 3", self.min_finished >= 3)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        threshold = self._threshold(report)
        line = self._lines.get((report.group, report.epochs, report.epoch))
        if threshold is None or line is None or line.num < self.min_finished:
            return False, None
        prediction = line.predict(report.value)
        if prediction is None:
            return False, None
        probability = prediction.above(threshold)
        return probability < self.min_probability, probability

    def _learn(self, trial: _Trial, final_value: float) -> None:
        if math.isfinite(final_value):
            for epoch, value in trial.values.items():
                line = self._lines.setdefault((trial.group, trial.epochs, epoch), Line())
                line.add(value, final_value)


# ------------------------------------------------------------------- MO-ASHA


@dataclass(slots=True)
class Fronts:
    """Points (cost, value) by non-dominated rank, a point at a time.

    The points of a rank, a front, are kept by ascending cost, and so by ascending value. A new
    point moves what it dominates in its front to the next, which moves what that dominates, and so
    on; in two dimensions what moves is a contiguous run. A step costs a binary search, and there is
    at most one a front.

    Source: Yakupov and Buzdalov 2015, "Incremental non-dominated sorting with O(N) insertion for
    the two-dimensional case".
    """

    fronts: list[list[Point]] = field(default_factory=list)
    num: int = 0
    _low: Point = (math.inf, math.inf)
    _high: Point = (-math.inf, -math.inf)

    def rank(self, point: Point) -> int:
        """Return the rank that a point has among the others, from 0.

        It is that of the first front with no point that dominates it: if one of a front does,
        so does one of the front before.
        """
        is_free = functools.partial(_is_free, point)
        return bisect.bisect_left(self.fronts, True, key=is_free)

    def add(self, point: Point) -> None:
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

    def is_among(self, point: Point, count: int) -> bool:
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
        return start // step in farthest_first(scaled, math.ceil(room / step))

    def _scaled(self, points: list[Point], new: Point) -> Floats:
        """Return value and log cost, each over the range of all points with the new one, (N, 2)."""
        ends = np.array([np.minimum(self._low, new), np.maximum(self._high, new)])
        table = np.vstack([ends, points])
        table[:, 0] = np.log(np.maximum(table[:, 0], sys.float_info.min))
        span = table[1] - table[0]
        scaled: Floats = (table[2:] - table[0]) / np.where(span > 0, span, 1.0)
        return scaled[:, ::-1]


def _is_free(point: Point, front: list[Point]) -> bool:
    """Tell whether no point of the front dominates this one.

    Among those that cost no more, the dearest has the best value.
    """
    i = bisect.bisect_right(front, (point[0], math.inf))
    return i == 0 or front[i - 1] == point or front[i - 1][1] < point[1]


def _beaten(front: list[Point], first: Point, last: Point) -> tuple[int, int]:
    """Return the slice of a front that a run of points, or one point, dominates.

    The run is from the front before or new. Between its first and its last point it dominates
    all: each point of a front is dominated by one of the front before, which must be of the run.
    """
    start = bisect.bisect_left(front, (first[0], -math.inf))
    if start < len(front) and front[start] == first:
        return start, start  # an equal point, which would dominate the same
    return start, bisect.bisect_right(front, last[1], lo=start, key=itemgetter(1))


def farthest_first(points: Floats, count: int) -> list[int]:
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
class MOASHARule(Rule):
    """Multi-objective asynchronous successive halving: one trial in eta passes a rung.

    A trial goes on if it is among the best ceil(n / eta) of the n trials that came to the rung,
    itself included, by non-dominated rank of value and cost and, within a rank, in the order of an
    epsilon-net. A trial that dominates all others goes on.

    Source: Schmucker et al. 2021, "Multi-objective asynchronous successive halving",
    arXiv:2106.12639.
    """

    _fronts: dict[int, Fronts] = field(init=False, repr=False, default_factory=dict)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        fronts = self._fronts.setdefault(report.epoch, Fronts())
        count = math.ceil((fronts.num + 1) / self.reduction_factor)
        return not fronts.is_among((report.cost_low, report.value), count), None

    def _record(self, report: Report) -> None:
        fronts = self._fronts.setdefault(report.epoch, Fronts())
        fronts.add((report.cost_high, report.value))


# -------------------------------------------------------------------- median


@dataclass(kw_only=True)
class MedianRule(Rule):
    """Stops a trial below the median of the values that others had at the same rung.

    It is blind to cost: a cheap trial is stopped because dearer ones are better. Unlike its source
    it compares the values of one epoch, not running means, and all trials, not finished ones.

    Source: Golovin et al. 2017, "Google Vizier: a service for black-box optimization", sec. 3.2.2.
    """

    min_values: int = 5
    """Other trials at the rung before one is judged."""
    _values: dict[int, list[float]] = field(init=False, repr=False, default_factory=dict)
    """By rung, ascending."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("min_values", self.min_values, "at least 1", self.min_values >= 1)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        values = self._values.get(report.epoch, [])
        num = len(values)
        if num < self.min_values:
            return False, None
        return report.value < (values[(num - 1) // 2] + values[num // 2]) / 2, None

    def _record(self, report: Report) -> None:
        bisect.insort(self._values.setdefault(report.epoch, []), report.value)


RULES: dict[str, Callable[..., Rule]] = {
    "front": FrontRule,
    "mo_asha": MOASHARule,
    "median": MedianRule,
    "none": Rule,
}
"""The name in the study file -> the rule, built from its options as keyword arguments."""
