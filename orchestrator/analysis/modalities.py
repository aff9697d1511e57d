"""Judge each modality: what is lost without it, and what it costs.

Every configuration with another modality is compared with itself with and without the modality. A
Gaussian process over all parameters estimates the difference, so a pair that was tried counts most,
and similar configurations stand in for a pair that was not; see `effect_model`. Trials that were
stopped early count with their predicted values; see `curves.predict_stopped`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftsearch.orchestrator.analysis.effect_model import NORMAL_95, EffectModel
from sftsearch.orchestrator.analysis.measured import measure
from sftsearch.orchestrator.analysis.variants import flatten
from sftsearch.orchestrator.metrics import EXACT_COSTS, metric
from sftsearch.orchestrator.surrogate.features import BRANCH

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.bound import BoundStudy
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import Front

    Parameters = dict[str, object]

Advice = Literal["leave out", "keep", "not decided"]

FEWEST_OF_STUDY = 12
"""Configurations with a value that a study needs."""
FEWEST_OF_SIDE = 3
"""Configurations that are needed with the modality, and as many without it."""
MOST_OF_STUDY = 150
"""Configurations that the process is fitted to; of more, this many are drawn by their ids."""
MARGIN = 0.005
"""A loss of a share that is accepted for a lower cost: half a point."""
CERTAIN = 1.281552
"""Standard normal quantile of 90 %, the probability that an advice needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityVerdict:
    """The difference that leaving one modality out makes."""

    modality: str
    advice: Advice
    """`leave out` if at most `MARGIN` is lost without it with a probability of 90 %, `keep` if
    something is lost with 90 %; else `not decided`."""
    mean: float
    """Without it minus with it, in units of the metric."""
    interval: Interval
    """95 % credible interval."""
    cost: str
    """The metric of `cost_ratio`."""
    cost_ratio: float | None
    """Cost without it as a share of that with it, geometric mean; None if it cannot be computed."""
    models: tuple[str, ...]
    """Models tried with and without it; the others are not compared."""
    num_with: int
    """Configurations of these models with it and another modality."""
    num_without: int
    num_pairs: int
    """Those of them whose counterpart, equal in all else, was tried too, in pairs."""
    num_predicted: int
    """Those that were stopped early, with predicted values."""


def verdicts_of(front: Front, bound: BoundStudy) -> tuple[ModalityVerdict, ...]:
    """Return a verdict for each modality that was tried with and without, best to leave out first.

    Empty with fewer than `FEWEST_OF_STUDY` configurations.
    """
    tried = _Tried(front, bound)
    names = dict.fromkeys(name for used in tried.used for name in used)
    sides = [side for name in names if (side := tried.side(name)) is not None]
    if len(tried.rows) < FEWEST_OF_STUDY or not sides:
        return ()
    measured = tried.measured
    model = EffectModel(
        tried.rows,
        measured.values,
        num_folds=front.study.folds,
        transform=measured.transform,
        uncertainty_N=measured.uncertainty,
    )
    cost = front.x if front.x in EXACT_COSTS else "gflops"
    margin = MARGIN if metric(front.y).is_share else 0.0
    found = [_judge(side, tried, model, cost, margin) for side in sides]
    sign = front.objectives.sign
    return tuple(
        sorted((v for v in found if v is not None), key=lambda v: (-sign * v.mean, v.modality))
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """A modality, and which configurations are compared with and without it."""

    modality: str
    models: tuple[str, ...]
    levels: list[int | None]
    """1 with it, 0 without it, None if it is not compared; by configuration."""


class _Tried:
    """The configurations with a value, their modalities and their rows for the process."""

    def __init__(self, front: Front, bound: BoundStudy) -> None:
        self.measured = measure(front, most=MOST_OF_STUDY)
        self.bound, self.sign = bound, front.objectives.sign
        self.models = [c.model for c in self.measured.tried]
        self.used = [_modalities(c, bound) for c in self.measured.tried]
        self.parameters: list[Parameters] = [
            c.parameters | {"modalities": names}
            for c, names in zip(self.measured.tried, self.used, strict=True)
        ]
        self.rows = [_row(*one) for one in zip(self.models, self.parameters, strict=True)]

    def side(self, name: str) -> _Side | None:
        """Return what is compared for a modality; None if too few configurations can be."""
        known = list(zip(self.models, self.used, strict=True))
        # A configuration with one modality alone has no counterpart without it.
        having = {model for model, names in known if name in names and len(names) > 1}
        models = having & {model for model, names in known if name not in names}
        levels = [
            int(name in names) if model in models and set(names) - {name} else None
            for model, names in known
        ]
        few = min(levels.count(0), levels.count(1)) < FEWEST_OF_SIDE
        return None if few else _Side(name, tuple(sorted(models)), levels)

    def switched(self, n: int, name: str) -> tuple[Parameters, Parameters]:
        """Return the parameters of a configuration without a modality and with it."""
        others = [one for one in self.used[n] if one != name]
        own = self.parameters[n]
        return own | {"modalities": others}, own | {"modalities": [*others, name]}

    def num_pairs(self, side: _Side) -> int:
        """Return the number of configurations tried both with and without a modality."""
        keys: tuple[set[str], set[str]] = (set(), set())
        for n, level in enumerate(side.levels):
            if level is not None:
                names = sorted(one for one in self.used[n] if one != side.modality)
                row = {k: v for k, v in self.rows[n].items() if not k.endswith(f".{side.modality}")}
                keys[level].add(json.dumps(row | {"modalities": names}, sort_keys=True))
        return len(keys[0] & keys[1])


def _modalities(c: ConfigurationSummary, bound: BoundStudy) -> list[str]:
    """Return the modalities of a configuration; without a list these are all of the dataset."""
    names = c.parameters.get("modalities")
    if isinstance(names, list | tuple):
        return [str(name) for name in names]
    return [] if bound.spec is None else list(bound.spec.modalities)


def _row(model: str, parameters: Parameters) -> Parameters:
    flat = flatten({name: value for name, value in parameters.items() if name != "model"})
    return {BRANCH: model, **{name: value for name, value in flat.items() if value is not None}}


def _judge(
    side: _Side, tried: _Tried, model: EffectModel, cost: str, margin: float
) -> ModalityVerdict | None:
    """Return the verdict; None if no model allows a configuration in both forms."""
    without, with_it, ratios = [], [], []
    for n, level in enumerate(side.levels):
        if level is None:
            continue
        both = tried.switched(n, side.modality)
        costs = _costs(tried.models[n], both, cost, tried.bound)
        if costs is not None:
            without.append(_row(tried.models[n], both[0]))
            with_it.append(_row(tried.models[n], both[1]))
            ratios += [math.log(costs[0] / costs[1])] if min(costs) > 0 else []
    if not without:
        return None
    mean, low, high = model.difference(side.levels, (without, 0), (with_it, 1))
    compared = [n for n, level in enumerate(side.levels) if level is not None]
    return ModalityVerdict(
        modality=side.modality,
        advice=advise(mean, (high - low) / (2 * NORMAL_95), margin),
        mean=tried.sign * mean,
        interval=(low, high) if tried.sign > 0 else (-high, -low),
        cost=cost,
        cost_ratio=math.exp(float(np.mean(ratios))) if ratios else None,
        models=side.models,
        num_with=side.levels.count(1),
        num_without=side.levels.count(0),
        num_pairs=tried.num_pairs(side),
        num_predicted=sum(tried.measured.is_predicted[n] for n in compared),
    )


def advise(mean: float, sd: float, margin: float) -> Advice:
    """Return the advice for a normal difference without minus with, more is better.

    Args:
        mean: of the difference.
        sd: its standard deviation.
        margin: a loss that is accepted for the lower cost without the modality.
    """
    if mean - CERTAIN * sd > -margin:
        return "leave out"
    return "keep" if mean + CERTAIN * sd < 0 else "not decided"


def _costs(
    model: str, both: tuple[Parameters, Parameters], cost: str, bound: BoundStudy
) -> tuple[float, float] | None:
    """Return the costs of two configurations, 0 if they are not known; None if one is invalid.

    Without the dataset or the model nothing is known, and both are valid.
    """
    first, second = (bound.cost_of(model, one, cost) for one in both)
    if first is None and second is None:
        return 0.0, 0.0
    return None if first is None or second is None else (first, second)
