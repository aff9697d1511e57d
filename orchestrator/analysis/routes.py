"""Where gates send samples: what each configuration's routes take, over its weight of their price.

A gated system measures `route_1`, `route_2`, ... and, of classes, `route_1/NAME`, ...: shares of
validation samples; `docs/metrics.md`.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import MISSING, metric
from sftsearch.orchestrator.report.text import brief_parameter, varying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.front import Configuration, Front

WEIGHT = "resource_weight"
"""The parameter of gated systems that weighs the price of routes in the loss."""
_ROUTE = re.compile(r"route_([1-9][0-9]*)(?:/(.+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """The routes of one configuration."""

    configuration: Configuration
    weight: float | None
    """Its lambda, where it has one."""
    expected: float | None
    """Its expected GFLOPs."""
    shares: tuple[float, ...]
    """Of all validation samples, by route."""
    by_class: dict[str, tuple[float, ...]]
    """The same of the samples of a class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """The means of the configurations of one weight."""

    weight: float
    num_configurations: int
    expected: float
    shares: tuple[float, ...]


def routes_of(front: Front) -> list[Routed]:
    """Return the finished configurations with routes, by rising weight."""
    found = [_read(c) for c in front.finished]
    routed = [one for one in found if one.shares]
    return sorted(routed, key=lambda one: (one.weight or 0.0, one.expected or 0.0))


def _read(c: Configuration) -> Routed:
    shares: dict[int, float] = {}
    by_class: dict[str, dict[int, float]] = {}
    for name, value in c.values.items():
        if match := _ROUTE.fullmatch(name):
            of = shares if match[2] is None else by_class.setdefault(match[2], {})
            of[int(match[1])] = value
    weight = c.parameters.get(WEIGHT)
    return Routed(
        configuration=c,
        weight=float(weight) if isinstance(weight, int | float) else None,
        expected=c.values.get("gflops_expected"),
        shares=tuple(shares[i] for i in sorted(shares)),
        by_class={name: tuple(found[i] for i in sorted(found)) for name, found in by_class.items()},
    )


def levels_of(routed: Sequence[Routed]) -> list[Level]:
    """Return the means by weight, rising; none where there are not two, or routes differ."""
    weighted = [one for one in routed if one.weight is not None and one.expected is not None]
    weights = sorted({one.weight for one in weighted if one.weight is not None})
    if len(weights) < 2 or len({len(one.shares) for one in weighted}) != 1:
        return []
    levels = []
    for weight in weights:
        own = [one for one in weighted if one.weight == weight]
        by_route = zip(*(one.shares for one in own), strict=True)
        levels.append(
            Level(
                weight=weight,
                num_configurations=len(own),
                expected=statistics.fmean(one.expected for one in own if one.expected is not None),
                shares=tuple(statistics.fmean(values) for values in by_route),
            )
        )
    return levels


# ------------------------------------------------------------------ the table in words


def headers(routed: Sequence[Routed], front: Front) -> list[str]:
    """Return the heads of the table's columns."""
    most = max(len(one.shares) for one in routed)
    names = [name for name in varying(front.configurations) if name != "model"]
    costs = metric("gflops_expected").label
    return ["configuration", *names, metric(front.y).label, costs, *_route_names(most), "by class"]


def _route_names(count: int) -> list[str]:
    return [f"route {i}" for i in range(1, count + 1)]


def rows(routed: Sequence[Routed], front: Front) -> list[list[str]]:
    """Return a row a configuration; by class, the share of the last route."""
    most = max(len(one.shares) for one in routed)
    names = [name for name in varying(front.configurations) if name != "model"]
    table = []
    for one in routed:
        c = one.configuration
        shares = [f"{share:.2f}" for share in one.shares]
        by_class = [f"{name} {shares[-1]:.2f}" for name, shares in one.by_class.items()]
        table.append(
            [
                c.configuration_id,
                *(
                    MISSING if c.parameters.get(name) is None else brief_parameter(c, name, front)
                    for name in names
                ),
                metric(front.y).show(c.values.get(front.y)),
                metric("gflops_expected").show(one.expected),
                *(shares + [MISSING] * (most - len(shares))),
                ", ".join(by_class) or MISSING,
            ]
        )
    return table


def notes(routed: Sequence[Routed]) -> list[str]:
    """Return how the table is to be read, and what the weight does."""
    told = [
        "Shares of validation samples that take each route, means over replicates; expected "
        "GFLOPs are those of the routes, weighted by their shares, with the gate's. By class: the "
        "share of a class's samples that take the last route."
    ]
    levels = levels_of(routed)
    if levels:
        steps = "; ".join(
            f"{level.weight:g}: {metric('gflops_expected').show(level.expected)} GFLOPs, "
            f"{' / '.join(f'{share:.2f}' for share in level.shares)}"
            for level in levels
        )
        told.append(f"By `{WEIGHT}`, expected cost and shares of routes, on average: {steps}.")
    return told
