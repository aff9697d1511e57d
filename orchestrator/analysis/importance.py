"""Compute the importance of parameters, by budget.

PED-ANOVA (Watanabe, Bansal & Hutter 2023, "PED-ANOVA: efficiently quantifying hyperparameter
importance in arbitrary subspaces"): the importance of a parameter is the Pearson divergence between
its distribution among the best configurations and among all. For one objective this is its share of
the variance of the indicator of the best. Importance may depend on the budget, so it is computed
for several upper limits of the cost.

Shapes: N configurations, L levels of a parameter. Numpy only.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.analysis.measured import measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sftsearch.orchestrator.analysis.front import Front

    Floats = NDArray[np.float64]
    Levels = NDArray[np.intp]
    Mask = NDArray[np.bool_]

FEWEST_OF_BAND = 15
"""Configurations that a band needs; with fewer its importances are empty."""
FEWEST_BEST = 4
"""Configurations that count as the best; in a large band it is a tenth."""
MOST_LEVELS = 20
"""A number with more values than this is divided into this many equal-count bins."""
PRIOR_WEIGHT = 1.0
"""Pseudo-configurations, spread evenly over the levels, added to each density."""
FEWEST_OF_STUDY = 15
"""Configurations with a value that a study needs; with fewer there are no bands."""
FEWEST_OF_BANDS = 40
"""Configurations that several bands need; with fewer there is one, of all."""

ABSENT = object()
"""The value of a parameter that a configuration lacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """The importance of parameters among configurations up to a cost."""

    limit: float
    """The highest cost."""
    num_configurations: int
    importances: dict[str, float]
    """By parameter, highest first; the sum is 1. All 0 if no parameter has an effect (such as if
    all values are equal); empty if there are too few configurations."""
    num_predicted: int = 0
    """Configurations that were stopped early and count with predicted values."""


def importance_of(front: Front) -> tuple[Band, ...]:
    """Return the importance of parameters at up to four budgets; empty with too few results.

    The budgets are quantiles of the costs. Configurations that were stopped early count with their
    predicted values; see `measured`.
    """
    measured = measure(front)
    rows = [
        (c, float(value), is_predicted)
        for c, value, is_predicted in zip(
            measured.tried, measured.means(), measured.is_predicted, strict=True
        )
        if front.x in c.values
    ]
    if len(rows) < FEWEST_OF_STUDY or not front.objectives.is_cost_minimized:
        return ()
    shares = [25, 50, 75, 100] if len(rows) >= 2 * FEWEST_OF_BANDS else [50, 75, 100]
    costs = [c.values[front.x] for c, *_ in rows]
    # An observed cost as the limit keeps the configuration at the limit despite rounding.
    limits = np.unique(
        np.percentile(
            costs, shares if len(rows) >= FEWEST_OF_BANDS else [100], method="inverted_cdf"
        )
    )
    found = importance_by_band(
        [{"model": c.model, **c.parameters} for c, *_ in rows],
        [value for _, value, _ in rows],
        costs,
        limits.tolist(),
    )
    predicted = [c.values[front.x] for c, _, is_predicted in rows if is_predicted]
    return tuple(
        replace(band, num_predicted=sum(cost <= band.limit for cost in predicted)) for band in found
    )


def importance_by_band(
    parameters: Sequence[Mapping[str, object]],
    values: ArrayLike,
    costs: ArrayLike,
    limits: Sequence[float],
    *,
    target: float | None = None,
    region: float = 1.0,
) -> tuple[Band, ...]:
    """Return the importance of every parameter among the configurations up to each cost limit.

    Only the ranks of the values count. A parameter that a configuration lacks (of another branch)
    has the level "absent" there, so it shares the importance of the branch.

    Args:
        parameters: of each configuration, JSON values by name. Numbers are ordered; everything else
            (strings, booleans, lists, mappings, null, or numbers mixed with them) is categorical.
        values: to maximize, (N,), such as accuracies.
        costs: (N,).
        limits: the highest cost of each band.
        target: gamma', the share of a band's configurations that are the best; None: a tenth, at
            least `FEWEST_BEST` of them.
        region: gamma, the share that they are compared with; 1 is all.

    Raises:
        ValueError: lengths differ, a value or cost is NaN, or `0 < target < region <= 1` does not
            hold.
    """
    value_N, cost_N = np.asarray(values, dtype=float), np.asarray(costs, dtype=float)
    if not len(parameters) == len(value_N) == len(cost_N):
        got = f"{len(parameters)}, {len(value_N)} and {len(cost_N)}"
        raise ValueError(f"Parameters, values and costs must have equal lengths, but got {got}.")
    if np.isnan(value_N).any() or np.isnan(cost_N).any():
        raise ValueError("Values and costs must be numbers, but got NaN.")
    if not 0 < (0.1 if target is None else target) < region <= 1:
        raise ValueError(f"`0 < target < region <= 1` must hold, but got ({target=}, {region=}).")
    names = sorted({name for row in parameters for name in row})
    columns = {name: [row.get(name, ABSENT) for row in parameters] for name in names}
    bands = []
    for limit in limits:
        (inside,) = np.nonzero(cost_N <= limit)
        in_region = inside[is_among_best(value_N[inside], region)] if len(inside) else inside
        found: dict[str, float] = {}
        if len(in_region) >= FEWEST_OF_BAND:
            share = max(0.1, FEWEST_BEST / len(inside)) if target is None else target
            is_best = (
                value_N[in_region] >= value_N[inside[is_among_best(value_N[inside], share)]].min()
            )
            found = {
                name: max(0.0, excess_divergence([column[i] for i in in_region], is_best))
                for name, column in columns.items()
            }
        bands.append(
            Band(limit=limit, num_configurations=len(inside), importances=_normalize(found))
        )
    return tuple(bands)


def is_among_best(value_N: Floats, share: float) -> Mask:
    """Return which values are in the best share, including ties with the last of them."""
    # The small offset keeps a product such as 0.1 * 30 from rounding up to 4.
    number = max(1, math.ceil(share * len(value_N) - 1e-9))
    cutoff = np.partition(value_N, len(value_N) - number)[len(value_N) - number]
    mask: Mask = value_N >= cutoff
    return mask


def excess_divergence(column: Sequence[object], is_best: Mask) -> float:
    """Return the Pearson divergence of a parameter among the best, minus its expectation by chance.

    The divergence is the sum over levels of (p' - p)^2 / p, with densities p' among the best and p
    among all. Its expectation if the best were drawn from all without replacement is subtracted, so
    the result may be negative.
    """
    level_N, num_ordered = to_levels(column)
    num_all, num_best = len(level_N), int(is_best.sum())
    if num_best == num_all or level_N.max() == 0:
        return 0.0
    share_L = np.bincount(level_N) / num_all
    best_L = np.bincount(level_N[is_best], minlength=len(share_L)) / num_best
    kernel_LL = _kernel(share_L, num_ordered, num_best)
    mixing = num_best / (num_best + PRIOR_WEIGHT)
    density_L = _add_prior(kernel_LL @ share_L, num_all)
    found = np.sum((_add_prior(kernel_LL @ best_L, num_best) - density_L) ** 2 / density_L)
    # The covariance of the levels' shares in a draw without replacement (hypergeometric law).
    covariance_LL = (np.diag(share_L) - np.outer(share_L, share_L)) / num_best
    covariance_LL *= mixing**2 * (num_all - num_best) / (num_all - 1)
    by_chance = np.sum(np.diag(kernel_LL @ covariance_LL @ kernel_LL.T) / density_L)
    return float(found - by_chance)


def to_levels(column: Sequence[object]) -> tuple[Levels, int]:
    """Return each configuration's level, (N,), and the number of ordered levels, which are first.

    The level of absent values is the last.
    """
    is_absent = np.array([value is ABSENT for value in column])
    present = [value for value in column if value is not ABSENT]
    is_ordered = all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)
    if is_ordered:
        values, found = np.unique(np.array(present, dtype=float), return_inverse=True)
        if len(values) > MOST_LEVELS:
            found = found * MOST_LEVELS // len(values)
    else:
        texts = np.array([json.dumps(value, sort_keys=True) for value in present])
        found = np.unique(texts, return_inverse=True)[1]
    num_levels = int(found.max()) + 1 if len(found) else 0
    level_N = np.full(len(column), num_levels)
    level_N[~is_absent] = found
    return level_N, num_levels if is_ordered else 0


def _kernel(share_L: Floats, num_ordered: int, num_best: int) -> Floats:
    """Return the matrix that smooths shares over the ordered levels, (L, L); columns sum to 1.

    It is Gaussian, with Scott's bandwidth for the smaller sample and the spread of the larger, so
    that both are smoothed equally. Other levels are not smoothed.

    Source: Scott 1992, "Multivariate density estimation".
    """
    kernel_LL = np.eye(len(share_L))
    if num_ordered < 2:
        return kernel_LL
    level = np.arange(num_ordered)
    weight = share_L[:num_ordered] / share_L[:num_ordered].sum()
    sd = math.sqrt(weight @ (level - weight @ level) ** 2)
    bandwidth = 1.059 * sd * num_best**-0.2
    gaussian = np.exp(-(((level[:, None] - level) / bandwidth) ** 2) / 2)
    kernel_LL[:num_ordered, :num_ordered] = gaussian / gaussian.sum(axis=0)
    return kernel_LL


def _add_prior(share_L: Floats, number: int) -> Floats:
    """Return the density of `number` configurations and the prior, (L,)."""
    density_L: Floats = (share_L * number + PRIOR_WEIGHT / len(share_L)) / (number + PRIOR_WEIGHT)
    return density_L


def _normalize(found: Mapping[str, float]) -> dict[str, float]:
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return {name: importance / total if total else 0.0 for name, importance in ordered}
