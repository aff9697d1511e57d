"""Compare each family with the best other one at equal compute and equal tuning together.

At each of some budgets, families are compared by the expected best of equally many of their
configurations that cost no more. `families` compares them at equal compute and equal tuning
separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.analysis.families import (
    difference_of,
    expected_best,
    family_of,
    members_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.orchestrator.analysis.configurations import (
        ConfigurationSummary,
        Difference,
        Interval,
    )
    from sftsearch.orchestrator.analysis.front import Front

NUM_BUDGETS = 3
"""Budgets to compare at, at equal ratios; some may coincide after rounding."""
FEWEST_WITHIN = 3
"""Configurations within a budget that a family needs; with fewer its best is too uncertain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A family within a budget."""

    family: str
    num_within: int
    """Its finished configurations that cost at most the budget."""
    value: float | None
    """The expected best; None if fewer than `FEWEST_WITHIN` are within the budget."""
    interval: Interval | None
    difference: Difference | None
    """To the best other family at this budget; None if `value` is None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A budget, and every family at it."""

    limit: float
    """The highest cost."""
    num_drawn: int
    """Configurations that the expected best is drawn from, equal for all families."""
    standings: tuple[Standing, ...]
    """In alphabetical order of the families."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standings:
    """The standing of every family at every budget."""

    budgets: tuple[Budget, ...]
    """By rising limit."""
    num_stopped: dict[str, int]
    """Configurations that were stopped early and are left out, by family; without families that
    have none."""


def standings_of(front: Front) -> Standings | None:
    """Compare families at some budgets; None unless two have `FEWEST_WITHIN` configurations."""
    members = members_of(front)
    if not front.objectives.is_cost_minimized:
        return None
    limits = _limits(front, members)
    if not limits:
        return None
    stopped = [family_of(c, front.by) for c in front.configurations if c.status == "stopped"]
    return Standings(
        budgets=tuple(_at(front, members, limit) for limit in limits),
        num_stopped={name: stopped.count(name) for name in sorted(set(stopped))},
    )


def _limits(front: Front, members: Mapping[str, Sequence[ConfigurationSummary]]) -> list[float]:
    """Return budgets at equal ratios, from the lowest that allows a comparison to the highest cost.

    They are rounded up to two significant digits, which are quoted more easily.
    """
    costs = [
        sorted(c.values[front.x] for c in found)
        for found in members.values()
        if len(found) >= FEWEST_WITHIN
    ]
    if len(costs) < 2 or min(own[0] for own in costs) <= 0:
        return []
    lowest = sorted(own[FEWEST_WITHIN - 1] for own in costs)[1]
    highest = max(c.values[front.x] for c in front.finished)
    limits = np.geomspace(lowest, highest, NUM_BUDGETS)
    return sorted({round_up(float(limit)) for limit in limits})


def round_up(value: float) -> float:
    """Return the next number with two significant digits that is not less than a positive value."""
    decimals = 1 - math.floor(math.log10(value))
    # The small offset keeps 0.0012 from becoming 0.0013 by rounding error.
    return round(math.ceil(round(value * 10.0**decimals, 6)) / 10.0**decimals, max(decimals, 0))


def _at(
    front: Front, members: Mapping[str, Sequence[ConfigurationSummary]], limit: float
) -> Budget:
    within = {
        name: [c for c in found if c.values[front.x] <= limit] for name, found in members.items()
    }
    compared = {name: found for name, found in within.items() if len(found) >= FEWEST_WITHIN}
    num_drawn = min(map(len, compared.values()))
    values, draws = expected_best(front, compared, num_drawn)

    def standing(name: str) -> Standing:
        if name not in values:
            return Standing(
                family=name,
                num_within=len(within[name]),
                value=None,
                interval=None,
                difference=None,
            )
        others = [other for other in values if other != name]
        rival = max(others, key=lambda other: front.objectives.sign * values[other])
        return Standing(
            family=name,
            num_within=len(within[name]),
            value=values[name],
            interval=bootstrap.share_interval(draws[name]) if name in draws else None,
            difference=difference_of(name, rival, values, draws),
        )

    return Budget(limit=limit, num_drawn=num_drawn, standings=tuple(map(standing, members)))
