"""Define the columns of the configuration table: text and sort key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.parameters import (
    abbreviate_parameter,
    format_parameter,
    varying_parameters,
)
from sftsearch.orchestrator.metrics import KNOWN_METRICS, MISSING, metric
from sftsearch.orchestrator.report.cells import (
    format_front_probability,
    format_gain,
    format_interval,
    format_mean,
    format_replicates,
    gain_heading,
    status_label,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front

    Show = Callable[[ConfigurationSummary], str]
    Key = Callable[[ConfigurationSummary], float | str | None]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    header: str
    format: Show
    key: Key
    """Sort key; None sorts last in both directions."""
    is_number: bool = True
    """Whether it is right-aligned."""
    format_full: Show | None = None
    """The full text, if `format` abbreviates."""


def columns(front: Front) -> list[Column]:
    """Return the table's columns, with the parameters that vary."""
    measured = {name for c in front.configurations for name in c.values}
    found = _leading_columns(front)
    found += [_value_column(name) for name in front.objectives.names[1:] if name in measured]
    found.append(
        Column(
            gain_heading(front),
            lambda c: format_gain(c, front),
            lambda c: None if c.difference is None else c.difference.mean,
            is_number=False,
            format_full=lambda c: verdict(c, front),
        )
    )
    if front.study.confirmed:
        found += _test_columns(front)
    varying = varying_parameters(front.configurations)
    found += [_parameter_column(name, front) for name in varying]
    if front.num_groups or front.front_probability_source == "posterior":
        header = "front probability"
        found.append(Column(header, format_front_probability, lambda c: c.front_probability))
    others = (name for name in KNOWN_METRICS if name not in front.objectives.names)
    found += [_value_column(name) for name in others if name in measured]
    if any(c.still_rising is not None for c in front.configurations):
        found.append(Column("still rising", _format_rising, _format_rising, is_number=False))
    heading = "seeds" if front.study.folds is None else "replicates"
    return [*found, Column(heading, format_replicates, lambda c: float(len(c.seeds)))]


def _leading_columns(front: Front) -> list[Column]:
    """Return the columns of status, id, model and accuracy."""
    found = [
        Column("", status_label, lambda c: status_label(c) or None, is_number=False),
        Column("configuration", lambda c: c.configuration_id, lambda c: c.configuration_id, False),
        Column("model", lambda c: c.model, lambda c: c.model, is_number=False),
        Column(
            metric(front.y).label,
            lambda c: format_mean(c, front.y),
            lambda c: c.values.get(front.y) if c.seeds else None,
        ),
    ]
    if front.num_groups:
        found.append(
            Column(
                "95 % CI",
                lambda c: format_interval(c.interval),
                lambda c: _low(c.interval),
            )
        )
    return found


def _format_rising(c: ConfigurationSummary) -> str:
    return MISSING if c.still_rising is None else "yes" if c.still_rising else "no"


def _value_column(name: str) -> Column:
    def format_value(c: ConfigurationSummary) -> str:
        return metric(name).format(c.values.get(name))

    return Column(metric(name).label, format_value, lambda c: c.values.get(name))


def _parameter_column(name: str, front: Front) -> Column:
    def key(c: ConfigurationSummary) -> float | str | None:
        value = c.parameters.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        return None if value is None else format_parameter(c, name)

    keys = [key(c) for c in front.configurations]
    return Column(
        name,
        lambda c: abbreviate_parameter(c, name, front.configurations),
        key,
        is_number=not any(isinstance(value, str) for value in keys),
        format_full=lambda c: format_parameter(c, name),
    )


def _test_columns(front: Front) -> list[Column]:
    label = f"test {metric(front.y).label}"

    def format_value(c: ConfigurationSummary) -> str:
        return metric(front.y).format(c.test_values.get(front.y))

    found = [Column(label, format_value, lambda c: c.test_values.get(front.y))]
    if metric(front.y).is_counted:
        found.append(
            Column(
                "test 95 % CI",
                lambda c: format_interval(c.test_interval),
                lambda c: _low(c.test_interval),
            )
        )
    return found


def _low(interval: tuple[float, float] | None) -> float | None:
    return None if interval is None else interval[0]
