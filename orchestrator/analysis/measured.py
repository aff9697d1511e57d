"""Collect the values of the configurations tried, predicted for those that were stopped early.

Leaving stopped configurations out would compare only what early stopping found good.

Shapes: N configurations, R replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.analysis.curves import predict_stopped
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.surrogate.transforms import OutcomeTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front

    Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """Configurations and the values of their replicates."""

    tried: tuple[ConfigurationSummary, ...]
    """Finished, or stopped with a predicted value, by id."""
    values: Floats
    """Of replicates, sign-adjusted so that more is better; NaN where one has no value, (N, R)."""
    uncertainty: Floats
    """Variance of each mean because of predictions, on the surrogate's scale, (N,)."""
    transform: OutcomeTransform
    is_predicted: tuple[bool, ...]
    """Whether the values of each configuration are predicted, at least in part."""
    num_unknown: int
    """Stopped configurations without a prediction, which are left out."""

    def means(self) -> Floats:
        """Return the mean of each configuration's replicates, more is better, (N,)."""
        means_N: Floats = np.nanmean(self.values, axis=1)
        return means_N


def measure(front: Front, *, most: int | None = None) -> Measured:
    """Return the values of all replicates, not only of fresh ones: all that was tried counts.

    Args:
        front: of the study.
        most: configurations to use; of more, this many are drawn by their ids.
    """
    name, sign = front.y, front.objectives.sign
    predicted = predict_stopped(front.study) if name == front.study.objectives[0][0] else {}
    by_id: dict[str, dict[int, tuple[float, float]]] = {}
    for t in front.study.trials:
        own = by_id.setdefault(t.configuration_id, {})
        if t.status == "finished" and name in t.values:
            own[t.seed] = (sign * t.values[name], 0.0)
        elif t.key in predicted:
            own[t.seed] = (sign * predicted[t.key].value, predicted[t.key].variance)
    stopped = [c for c in front.configurations if c.status == "stopped"]
    known = [c for c in stopped if by_id.get(c.configuration_id)]
    tried = sorted([*front.finished, *known], key=lambda c: c.configuration_id)
    if most is not None and len(tried) > most:
        # Ids are hashes, so equal steps through them are as good as a random draw.
        picks = np.linspace(0, len(tried) - 1, most).round().astype(int)
        tried = [tried[i] for i in picks]
    found = [by_id[c.configuration_id] for c in tried]
    values_NR = np.full((len(tried), 1 + max((max(one) for one in found), default=0)), np.nan)
    for n, one in enumerate(found):
        for seed, (value, _) in one.items():
            values_NR[n, seed] = value
    # The mean over n replicates has the sum of their variances over n^2.
    variances = [sum(v for _, v in one.values()) / len(one) ** 2 for one in found]
    return Measured(
        tried=tuple(tried),
        values=values_NR,
        uncertainty=np.array(variances),
        transform=OutcomeTransform(metric(name).is_share, sign),
        is_predicted=tuple(c.status == "stopped" for c in tried),
        num_unknown=len(stopped) - len(known),
    )
