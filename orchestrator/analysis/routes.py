"""Summarize the routes of gated models: shares of samples by route, class and resource weight.

A gated model measures `route_1`, `route_2`, ... and, by class, `route_1/NAME`, ...: shares of
validation samples; see `docs/metrics.md`.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front

WEIGHT = "resource_weight"
"""The parameter of gated models that weights the cost of routes in the loss."""
_ROUTE = re.compile(r"route_([1-9][0-9]*)(?:/(.+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedConfiguration:
    """The routes of one configuration."""

    configuration: ConfigurationSummary
    weight: float | None
    """Its resource weight (lambda), if it has one."""
    expected: float | None
    """Its expected GFLOPs."""
    shares: tuple[float, ...]
    """Share of all validation samples, by route."""
    by_class: dict[str, tuple[float, ...]]
    """Share of a class's validation samples, by route."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightLevel:
    """Means over the configurations with one resource weight."""

    weight: float
    num_configurations: int
    expected: float
    shares: tuple[float, ...]


def routes_of(front: Front) -> list[RoutedConfiguration]:
    """Return the finished configurations with routes, by rising resource weight."""
    found = [_read(c) for c in front.finished]
    routed = [one for one in found if one.shares]
    return sorted(routed, key=lambda one: (one.weight or 0.0, one.expected or 0.0))


def _read(c: ConfigurationSummary) -> RoutedConfiguration:
    shares: dict[int, float] = {}
    by_class: dict[str, dict[int, float]] = {}
    for name, value in c.values.items():
        if match := _ROUTE.fullmatch(name):
            of = shares if match[2] is None else by_class.setdefault(match[2], {})
            of[int(match[1])] = value
    weight = c.parameters.get(WEIGHT)
    return RoutedConfiguration(
        configuration=c,
        weight=float(weight) if isinstance(weight, int | float) else None,
        expected=c.values.get("gflops_expected"),
        shares=tuple(shares[i] for i in sorted(shares)),
        by_class={name: tuple(found[i] for i in sorted(found)) for name, found in by_class.items()},
    )


def levels_of(routed: Sequence[RoutedConfiguration]) -> list[WeightLevel]:
    """Return means by rising weight; empty with fewer than two weights or different routes."""
    weighted = [one for one in routed if one.weight is not None and one.expected is not None]
    weights = sorted({one.weight for one in weighted if one.weight is not None})
    if len(weights) < 2 or len({len(one.shares) for one in weighted}) != 1:
        return []
    levels = []
    for weight in weights:
        own = [one for one in weighted if one.weight == weight]
        by_route = zip(*(one.shares for one in own), strict=True)
        levels.append(
            WeightLevel(
                weight=weight,
                num_configurations=len(own),
                expected=statistics.fmean(one.expected for one in own if one.expected is not None),
                shares=tuple(statistics.fmean(values) for values in by_route),
            )
        )
    return levels
