"""Define the interface of early-stopping rules and what they share: rungs, audits, options.

A rule is asked about an epoch (`decide`, which has no side effects), then receives the decision
(`record`) and how trials end (`on_finished`, `on_stopped`). Its state depends only on these calls
and their order, not on a clock, and its random draws only on a seed and the trial's key. So
replaying the calls when a study resumes restores the same state.

Values are maximized; negate a metric that is to be minimized. Costs are minimized and known before
training, as a lower and an upper bound that are equal if the cost is exact. A trial is compared by
its own lower and its competitors' upper bound. A rung is an epoch at which trials are judged, by
the value of that epoch and not the best so far.

Judge only the first replicate of a configuration: stopping bad later ones would leave only the
lucky ones, and bias the mean.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.early_stopping.audits import Audit

if TYPE_CHECKING:
    from collections.abc import Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An epoch of a running trial, with what a rule needs to judge it."""

    key: str
    """The trial's key, which stays the same when the study is resumed."""
    epoch: int
    """From 1."""
    value: float
    """Validation value of this epoch, to be maximized."""
    cost_low: float
    cost_high: float
    group: Hashable = None
    """Trials of a group have comparable learning curves: same branch, same mixup setting."""
    warmup: int = 0
    """Epochs before mixup starts; 0 without mixup."""
    epochs: int
    """Number of epochs of the trial."""
    best_affordable: float | None = None
    """A(c): the best posterior mean of the finished configurations whose upper cost is at most
    this trial's lower one; None if there is no such configuration."""

    def __post_init__(self) -> None:
        assert self.epoch >= 1, self
        assert self.cost_low <= self.cost_high, self


class Decision(NamedTuple):
    """A rule's decision about a trial after an epoch."""

    stop: bool
    audit: bool = False
    """The rule would stop the trial, but lets it run on to check whether that is right."""
    probability: float | None = None
    """Probability that the final value exceeds `threshold`; None if the rule has no estimate."""
    threshold: float | None = None
    """A(c) - delta; None if no trial of this cost has finished or no rule was asked."""


@functools.cache
def rungs(epochs: int, warmup: int, min_epochs: int, reduction_factor: float) -> tuple[int, ...]:
    """Return the epochs at which a trial is judged, ascending, before its last.

    They are `min_epochs` times the powers of the reduction factor, so that trials with and without
    mixup have the same rungs. Rungs less than two epochs after the warm-up of mixup are left out,
    because its effect is not visible before.
    """
    first = max(min_epochs, warmup + 2 if warmup else 1)
    series = (min_epochs * reduction_factor**k for k in itertools.count())
    rounded = map(round, itertools.takewhile(lambda epoch: epoch < epochs, series))
    return tuple(sorted({epoch for epoch in rounded if first <= epoch < epochs}))


@dataclass(slots=True)
class RunningTrial:
    """A running trial, which becomes an observation of its group when it finishes."""

    group: Hashable
    epochs: int
    values: dict[int, float] = field(default_factory=dict)
    """Values by rung."""


@dataclass(kw_only=True)
class EarlyStoppingRule:
    """Stops no trial: the rule `none`, and the base class of the others.

    A rule overrides `_judge`, and `_add` or `_learn` to collect the data for it.

    Raises:
        UserError: an option is out of its range.
    """

    delta: float = 0.005
    """How far a final value may be below the best at its cost and still be worth training, in the
    metric's unit; the default is half a point of accuracy."""
    audit_share: float = 0.1
    """Share of the decided stops that are not carried out; 0: the rule as in its paper."""
    seed: int = 0
    """Seed of the draw of audits."""
    min_epochs: int = 2
    """The first rung."""
    reduction_factor: float = 2.0
    """Ratio between two rungs; MO-ASHA keeps one trial in `reduction_factor`."""
    _trials: dict[str, RunningTrial] = field(init=False, repr=False, default_factory=dict)
    _audits: dict[str, Audit] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_option("delta", self.delta, "at least 0", self.delta >= 0)
        check_option("audit_share", self.audit_share, "from 0 to 1", 0 <= self.audit_share <= 1)
        check_option("min_epochs", self.min_epochs, "at least 1", self.min_epochs >= 1)
        is_above_one = 1 < self.reduction_factor < math.inf
        check_option("reduction_factor", self.reduction_factor, "above 1", is_above_one)

    @property
    def audits(self) -> tuple[Audit, ...]:
        """The stops that were decided and not carried out, oldest first."""
        return tuple(self._audits.values())

    def judges(self, epochs: int, warmup: int, epoch: int) -> bool:
        """Return whether trials are judged after an epoch; `decide` stops none at others."""
        return epoch in rungs(epochs, warmup, self.min_epochs, self.reduction_factor)

    def decide(self, report: Report) -> Decision:
        """Decide whether a trial stops after an epoch, without changing the rule.

        Only the first finite report of a trial at a rung counts. An audited trial is not judged
        again.
        """
        if not self._counts(report):
            return Decision(stop=False)
        is_judged = report.key not in self._audits
        stop, probability = self._judge(report) if is_judged else (False, None)
        if probability is not None and not math.isfinite(probability):
            probability = None
        audit = stop and self._is_audited(report.key)
        return Decision(stop and not audit, audit, probability, self._threshold(report))

    def record(self, report: Report, decision: Decision) -> None:
        """Record an epoch and the decision about it, made now or by an earlier driver."""
        if not self._counts(report):
            return
        trial = self._trials.setdefault(report.key, RunningTrial(report.group, report.epochs))
        trial.values[report.epoch] = report.value
        self._add(report)
        if decision.audit:
            audit = Audit(report.key, report.epoch, decision.probability, decision.threshold)
            self._audits[report.key] = audit

    def on_finished(self, key: str, final_value: float) -> None:
        """Record that a trial finished, with its final value."""
        if key in self._audits:
            self._audits[key] = dataclasses.replace(self._audits[key], final=final_value)
        trial = self._trials.pop(key, None)
        if trial is not None:
            self._learn(trial, final_value)

    def on_stopped(self, key: str) -> None:
        """Record that a trial ended without a final value, stopped or failed."""
        self._trials.pop(key, None)

    def _counts(self, report: Report) -> bool:
        """Return whether a report is the first finite one of a trial at a rung."""
        known = self._trials.get(report.key)
        is_known = known is not None and report.epoch in known.values
        is_rung = self.judges(report.epochs, report.warmup, report.epoch)
        return is_rung and not is_known and math.isfinite(report.value)

    def _judge(self, report: Report) -> tuple[bool, float | None]:
        """Return whether to stop and the estimated probability, without changing the rule."""
        return False, None

    def _add(self, report: Report) -> None:
        """Add the value of a trial at a rung."""

    def _learn(self, trial: RunningTrial, final_value: float) -> None:
        """Learn from a finished trial."""

    def _threshold(self, report: Report) -> float | None:
        best = report.best_affordable
        return None if best is None else best - self.delta

    def _is_audited(self, key: str) -> bool:
        """Draw an audit, depending only on the seed and the key, not on other decisions."""
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        return int.from_bytes(digest[:8], "little") < self.audit_share * 2**64


def check_option(name: str, value: float, range_: str, is_inside: bool) -> None:
    """Check that an option is inside its range.

    Raises:
        UserError: it is not inside.
    """
    if not is_inside:
        raise UserError(f"`{name}` of a stopping rule must be {range_}, but got {value}.")
