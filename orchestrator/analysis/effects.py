"""Estimate what each value of a parameter is worth: the difference in accuracy to a reference.

The configurations tried are averaged over, and in each only the parameter is switched. So the
difference is not confounded by the sampler, which tries values in combinations that it expects to
be good; see `effect_model`. Only parameters with few values are compared.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.effect_model import EffectModel
from sftsearch.orchestrator.analysis.measured import measure
from sftsearch.orchestrator.analysis.variants import Variants

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.analysis.bound import BoundStudy
    from sftsearch.orchestrator.analysis.configurations import Interval
    from sftsearch.orchestrator.analysis.front import Front

MOST_VALUES = 6
"""Values of a parameter that are compared; one with more is not."""
FEWEST_OF_VALUE = 3
"""Configurations that a value needs."""
FEWEST_OF_PARAMETER = 8
"""Configurations in which a parameter has an effect that it needs."""
FEWEST_OF_STUDY = 12
"""Configurations with a value that a study needs."""
MOST_OF_STUDY = 150
"""Configurations that the process is fitted to; of more, this many are drawn by their ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueEffect:
    """The difference between a value and the reference."""

    value: object
    mean: float
    """In units of the metric."""
    interval: Interval
    """95 % credible interval."""
    num_configurations: int
    """Configurations tried with this value."""

    @property
    def within_noise(self) -> bool:
        """Return whether the interval contains 0."""
        return self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterEffect:
    """The values of one parameter, compared in the models that have tried several of them."""

    parameter: str
    models: tuple[str, ...]
    reference: object
    """The default if it was tried, else the lowest number or the most frequent value."""
    num_configurations: int
    """Configurations that are averaged over: those in which the parameter has an effect."""
    num_without: int
    """Configurations of these models in which it has none, such as `mixup_alpha` without mixup."""
    values: tuple[ValueEffect, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effects:
    """What the values of parameters are worth."""

    parameters: tuple[ParameterEffect, ...]
    """Those that vary in the most configurations first."""
    num_configurations: int
    """Configurations that the process is fitted to."""
    num_predicted: int = 0
    """Those of them that were stopped early, with predicted values; see `predict_stopped`."""
    num_stopped: int
    """Configurations that were stopped early, cannot be predicted and are left out."""


def effects_of(front: Front, bound: BoundStudy) -> Effects | None:
    """Return the effects of parameters; None with too few configurations or no such parameter."""
    measured = measure(front, most=MOST_OF_STUDY)
    if len(measured.tried) < FEWEST_OF_STUDY:
        return None
    variants = Variants(measured.tried, bound, most_values=MOST_VALUES)
    groups = [
        group
        for name in variants.names
        for models in variants.comparable_models(name)
        if (group := _group(variants, name, models)) is not None
    ]
    if not groups:
        return None
    model = EffectModel(
        variants.rows,
        measured.values,
        num_folds=front.study.folds,
        transform=measured.transform,
        uncertainty_N=measured.uncertainty,
    )
    found = [_effect(group, variants, model, front.objectives.sign) for group in groups]
    found.sort(key=lambda one: (-one.num_configurations - one.num_without, one.parameter))
    return Effects(
        parameters=tuple(found),
        num_configurations=len(measured.tried),
        num_predicted=sum(measured.is_predicted),
        num_stopped=measured.num_unknown,
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """A parameter with comparable values in some models."""

    parameter: str
    models: tuple[str, ...]
    levels: list[int | None]
    """Index in `values` of each configuration's value; None where it has no effect."""
    values: list[object]
    """The reference first."""
    num_without: int


def _group(variants: Variants, name: str, models: tuple[str, ...]) -> _Group | None:
    """Return the values to compare; None if fewer than two have enough configurations."""
    members = [n for n, c in enumerate(variants.tried) if c.model in models]
    active = [n for n in members if variants.has_effect(n, name)]
    counts = Counter(variants.text(n, name) for n in active)
    kept = {text for text, number in counts.items() if number >= FEWEST_OF_VALUE}
    if len(kept) < 2 or len(active) < FEWEST_OF_PARAMETER:
        return None
    first = _reference(name, {text: counts[text] for text in kept}, variants.defaults(active[0]))
    order = [first, *sorted(kept - {first}, key=_by_value)]
    is_active = set(active)
    levels = [
        order.index(variants.text(n, name))
        if n in is_active and variants.text(n, name) in kept
        else None
        for n in range(len(variants.tried))
    ]
    return _Group(
        name, models, levels, [json.loads(text) for text in order], len(members) - len(active)
    )


def _by_value(text: str) -> tuple[float, str]:
    value = json.loads(text)
    return (float(value) if isinstance(value, int | float) else 0.0, text)


def _reference(name: str, counts: Mapping[str, int], defaults: Mapping[str, object]) -> str:
    """Return the default if it was tried, else the lowest number or the most frequent value."""
    for text in counts:
        if name in defaults and json.loads(text) == defaults[name]:
            return text
    values = [json.loads(text) for text in counts]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return min(counts, key=_by_value)
    return min(counts, key=lambda text: (-counts[text], text))


def _effect(group: _Group, variants: Variants, model: EffectModel, sign: float) -> ParameterEffect:
    name = group.parameter
    averaged = [n for n, level in enumerate(group.levels) if level is not None]
    references = {n: variants.switched(n, name, group.values[0]) for n in averaged}
    effects = []
    for level, value in enumerate(group.values[1:], start=1):
        pairs = [
            (switched, reference)
            for n, reference in references.items()
            if reference is not None and (switched := variants.switched(n, name, value)) is not None
        ]
        if not pairs:
            continue
        mean, low, high = model.difference(
            group.levels, ([one for one, _ in pairs], level), ([other for _, other in pairs], 0)
        )
        effects.append(
            ValueEffect(
                value=value,
                mean=sign * mean,
                interval=(low, high) if sign > 0 else (-high, -low),
                num_configurations=group.levels.count(level),
            )
        )
    return ParameterEffect(
        parameter=name,
        models=group.models,
        reference=group.values[0],
        num_configurations=len(averaged),
        num_without=group.num_without,
        values=tuple(effects),
    )
