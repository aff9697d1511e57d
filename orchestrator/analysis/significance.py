"""Compute confidence intervals and front probabilities from draws over people and replicates.

Intervals are the central 95 % of draws of Student's t. Draws are paired by person, so the
difference of two configurations' draws is a draw of their difference; see `bootstrap`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator import bootstrap
from sftsearch.orchestrator.analysis.configurations import Difference
from sftsearch.orchestrator.metrics import metric

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.objectives import Objectives

    Draws = Mapping[str, NDArray[np.float64]]


def draw_accuracies(
    finished: Sequence[ConfigurationSummary], y: str, *, folds: int | None
) -> dict[str, NDArray[np.float64]]:
    """Return bootstrap draws of `y` by id, for the configurations with counts by group.

    With folds the draws are shifted by the fold effects, so that they are draws of the reported
    mean.
    """
    counted = _with_groups(finished, folds) if metric(y).is_counted else []
    draws = bootstrap.resample_accuracies([c.groups for c in counted])
    shifts = [0.0 if folds is None else c.values[y] - _pooled(c) for c in counted]
    return {c.configuration_id: draws[:, n] + shifts[n] for n, c in enumerate(counted)}


def difference(
    c: ConfigurationSummary, other: ConfigurationSummary, y: str, draws: Draws
) -> Difference:
    """Return the difference in `y` between two configurations, with its interval from `draws`."""
    own, rival = draws.get(c.configuration_id), draws.get(other.configuration_id)
    interval = None if own is None or rival is None else bootstrap.percentile_interval(own - rival)
    mean = c.values[y] - other.values[y]
    return Difference(other=other.configuration_id, mean=mean, interval=interval)


def compare_with_front(
    finished: Sequence[ConfigurationSummary], objectives: Objectives, draws: Draws
) -> list[ConfigurationSummary]:
    """Add intervals, front probabilities and differences from the front."""
    costs = {c.configuration_id: objectives.costs(c.values) for c in finished}
    shares: dict[str, float] = {}
    if finished and len(draws) == len(finished):  # a subset would have another front
        found = _shares_on_front(np.stack([*draws.values()], axis=1), [costs[i] for i in draws])
        shares = {i: float(share) for i, share in zip(draws, found, strict=True)}
    front = sorted((c for c in finished if c.on_front), key=lambda c: costs[c.configuration_id])
    compared = []
    for c in finished:
        own = draws.get(c.configuration_id)
        rival = _rival(c, front, costs, lambda f: objectives.quality(f.values))
        compared.append(
            replace(
                c,
                interval=None if own is None else bootstrap.share_interval(own),
                front_probability=shares.get(c.configuration_id),
                difference=None if rival is None else difference(c, rival, objectives.y, draws),
            )
        )
    return compared


def _with_groups(
    configurations: Sequence[ConfigurationSummary], folds: int | None
) -> list[ConfigurationSummary]:
    """Return the configurations with the same groups in every replicate, as pairing requires.

    With folds a replicate has the groups of its fold; a configuration then needs at least two
    groups in total, because one group cannot be resampled.
    """
    if folds is not None:
        counted = {
            c.configuration_id: [{name for name, (_, n) in g.items() if n > 0} for g in c.groups]
            for c in configurations
        }
        return [
            c
            for c in configurations
            if all(counted[c.configuration_id])
            and len(set().union(*counted[c.configuration_id])) > 1
        ]
    names = next((set(c.groups[0]) for c in configurations if c.groups and c.groups[0]), set())
    return [
        c
        for c in configurations
        if names and all(set(g) == names and all(n > 0 for _, n in g.values()) for g in c.groups)
    ]


def _pooled(c: ConfigurationSummary) -> float:
    """Return the accuracy over all groups and replicates together."""
    cells = [cell for groups in c.groups for cell in groups.values()]
    return sum(correct for correct, _ in cells) / sum(count for _, count in cells)


def _shares_on_front(
    draws_RN: NDArray[np.float64], costs: Sequence[tuple[float, ...]]
) -> NDArray[np.float64]:
    """Return the share of draws in which each configuration is on the front, (N,).

    Args:
        draws_RN: accuracies, to maximize.
        costs: one or several per configuration, to minimize.
    """
    cost_ND = np.array(costs)
    if cost_ND.shape[1] == 1:
        return bootstrap.share_on_front(draws_RN, cost_ND[:, 0])
    share_N = np.empty(len(costs))
    for n, own in enumerate(cost_ND):
        is_equal, is_rival = np.all(cost_ND == own, axis=1), np.all(cost_ND <= own, axis=1)
        equal_R = draws_RN[:, is_equal].max(axis=1)
        cheaper_R = draws_RN[:, is_rival & ~is_equal].max(axis=1, initial=-np.inf)
        share_N[n] = np.mean((draws_RN[:, n] >= equal_R) & (draws_RN[:, n] > cheaper_R))
    return share_N


def _rival(
    c: ConfigurationSummary,
    front: Sequence[ConfigurationSummary],
    costs: Mapping[str, tuple[float, ...]],
    quality: Callable[[ConfigurationSummary], float],
) -> ConfigurationSummary | None:
    """Return the best front point that costs no more, with which a configuration is compared.

    With two objectives this is the next cheaper point for a front point, and the front point at or
    below its cost for any other. A front point is not compared with points of equal cost.
    """
    own = costs[c.configuration_id]

    def is_rival(f: ConfigurationSummary) -> bool:
        other = costs[f.configuration_id]
        affordable = all(theirs <= ours for theirs, ours in zip(other, own, strict=True))
        return affordable and not (c.on_front and other == own)

    below = [f for f in front if is_rival(f)]
    return max(reversed(below), key=quality, default=None)
