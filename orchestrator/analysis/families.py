"""Compare families of configurations at equal compute and at equal tuning.

A family is a model, or a model with fixed values of some parameters (`pooling`, `mixup`, ...).

Equal compute: the best configuration of every family at or below each of some costs.

Equal tuning: the best of more configurations is higher by chance alone. So every family is compared
by the expected best of k configurations, where k is the size of the smallest family.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.analysis.configurations import Difference
from sftsearch.orchestrator.analysis.parameters import format_parameter
from sftsearch.orchestrator.analysis.significance import difference
from sftsearch.search_spaces.schema import is_distribution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.search_spaces.schema import Branch

NUM_LEVELS = 4
"""Number of front costs to compare at; the highest cost of all follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestOfFamily:
    """The best configuration of a family at or below a cost."""

    family: str
    configuration_id: str
    value: float
    interval: Interval | None
    difference: Difference | None
    """To the best family at this cost; None for the best one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostLevel:
    """A cost, and the best configuration of every family with one at or below it."""

    cost: float
    families: tuple[BestOfFamily, ...]
    """The best family first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedBest:
    """The expected best accuracy of a family after equal tuning."""

    family: str
    num_run: int
    """Finished configurations."""
    value: float
    interval: Interval | None
    difference: Difference | None
    """To the best family, by its name; None for the best one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyComparison:
    """The comparison of a study's families."""

    names: tuple[str, ...]
    levels: tuple[CostLevel, ...]
    num_drawn: int
    """Configurations that the expected best is drawn from: the size of the smallest family."""
    tuned: tuple[ExpectedBest, ...]


def families_of(front: Front) -> FamilyComparison | None:
    """Compare the families of finished configurations; None if there are fewer than two."""
    members = members_of(front)
    if len(members) < 2:
        return None
    num_drawn = min(map(len, members.values()))
    return FamilyComparison(
        names=tuple(members),
        levels=tuple(_level(front, cost) for cost in _levels(front)),
        num_drawn=num_drawn,
        tuned=tuple(_tune(front, members, num_drawn)),
    )


def members_of(front: Front) -> dict[str, list[ConfigurationSummary]]:
    """Return the finished configurations of each family, by its name in alphabetical order."""
    members: dict[str, list[ConfigurationSummary]] = {}
    for c in front.finished:
        members.setdefault(family_of(c, front.by), []).append(c)
    return dict(sorted(members.items()))


def family_of(c: ConfigurationSummary, by: Sequence[str]) -> str:
    """Return a configuration's family: its model and its values of the parameters `by`."""
    known = [name for name in by if c.parameters.get(name) is not None]
    return " ".join([c.model, *(f"{name}={format_parameter(c, name)}" for name in known)])


def names_of_families(space: Sequence[Branch]) -> tuple[str, ...]:
    """Return a small set of parameters that distinguishes branches of the same model.

    They are literals that differ or that some branch lacks, in the order of the study file.
    """
    chosen: list[str] = []
    for kind in dict.fromkeys(branch.kind for branch in space):
        fixed = [_literals(branch) for branch in space if branch.kind == kind]
        for name in dict.fromkeys(name for literals in fixed for name in literals):
            known = {tuple(literals.get(n) for n in chosen) for literals in fixed}
            more = {tuple(literals.get(n) for n in (*chosen, name)) for literals in fixed}
            if len(more) > len(known):
                chosen.append(name)
    return tuple(chosen)


def _literals(branch: Branch) -> dict[str, str]:
    """Return the branch's parameters that are not searched, as JSON."""
    return {
        name: json.dumps(value, sort_keys=True)
        for name, value in (branch.model_extra or {}).items()
        if name in branch.parameters and not is_distribution(value)
    }


def _levels(front: Front) -> list[float]:
    costs = [c.values[front.x] for c in front.points]
    picks = np.linspace(0, len(costs) - 1, min(NUM_LEVELS, len(costs))).round().astype(int)
    every = [c.values[front.x] for c in front.finished]
    last = max(every, key=lambda cost: front.objectives.cost_sign * cost)
    return list(dict.fromkeys([*(costs[i] for i in picks), last]))


def _level(front: Front, cost: float) -> CostLevel:
    sign = front.objectives.cost_sign
    best: dict[str, ConfigurationSummary] = {}
    for c in _by_quality(front, front.finished):
        if sign * c.values[front.x] <= sign * cost:
            best[family_of(c, front.by)] = c  # sorted worst first, so the best stays
    ranked = _by_quality(front, list(best.values()))[::-1]
    return CostLevel(
        cost=cost,
        families=tuple(
            BestOfFamily(
                family=family_of(c, front.by),
                configuration_id=c.configuration_id,
                value=c.values[front.y],
                interval=c.interval,
                difference=None
                if c is ranked[0]
                else difference(c, ranked[0], front.y, front.draws),
            )
            for c in ranked
        ),
    )


def _by_quality(
    front: Front, configurations: Sequence[ConfigurationSummary]
) -> list[ConfigurationSummary]:
    """Return the configurations, worst first."""
    return sorted(configurations, key=lambda c: (front.quality(c), c.configuration_id))


def _tune(
    front: Front, members: Mapping[str, Sequence[ConfigurationSummary]], num_drawn: int
) -> list[ExpectedBest]:
    """Return the expected best of each family, in the order of `members`."""
    values, draws = expected_best(front, members, num_drawn)
    best = max(values, key=lambda name: front.objectives.sign * values[name])
    return [
        ExpectedBest(
            family=name,
            num_run=len(found),
            value=values[name],
            interval=bootstrap.share_interval(draws[name]) if name in draws else None,
            difference=None if name == best else difference_of(name, best, values, draws),
        )
        for name, found in members.items()
    ]


def expected_best(
    front: Front, members: Mapping[str, Sequence[ConfigurationSummary]], num_drawn: int
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Return each family's expected best of `num_drawn` configurations, and its bootstrap draws.

    Families with a configuration that is not counted by group have no draws, (R,).
    """
    values, draws = {}, {}
    for name, found in members.items():
        ranked = _by_quality(front, found)
        weights = best_of(len(ranked), num_drawn)
        values[name] = float(weights @ np.array([c.values[front.y] for c in ranked]))
        # The ranking is fixed: ranking again in each draw would select on noise.
        own = [front.draws[c.configuration_id] for c in ranked if c.configuration_id in front.draws]
        if len(own) == len(ranked):
            draws[name] = weights @ np.stack(own)
    return values, draws


def difference_of(
    name: str, other: str, values: Mapping[str, float], draws: Mapping[str, NDArray[np.float64]]
) -> Difference:
    """Return the difference between two families, from the results of `expected_best`."""
    known = name in draws and other in draws
    interval = bootstrap.percentile_interval(draws[name] - draws[other]) if known else None
    return Difference(other=other, mean=values[name] - values[other], interval=interval)


def best_of(num_run: int, num_drawn: int) -> NDArray[np.float64]:
    """Return the probability of each configuration to be the best drawn, worst first, (num_run,).

    Of n configurations in rising order, the i-th (from 1) is the best in C(i - 1, k - 1) of the
    C(n, k) draws of k without replacement. The sum of values weighted by these probabilities is
    the expected best.

    Args:
        num_run: n, the number of configurations.
        num_drawn: k, from 1 to n.

    Source: the expected validation performance of Dodge et al. 2019, arXiv:1909.03004, eq. 1,
    drawn without replacement.
    """
    whole = math.comb(num_run, num_drawn)
    counts = [math.comb(i, num_drawn - 1) / whole for i in range(num_run)]
    return np.array(counts)
