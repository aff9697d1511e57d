"""Write the configuration table as CSV, with numbers at full precision."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front


def to_csv(analysis: Analysis) -> str:
    """Return a header and one row per configuration of the table."""
    front = analysis.front
    rows = [configuration_row(c, front) for c in front.table]
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def configuration_row(c: ConfigurationSummary, front: Front) -> dict[str, object]:
    """Return the columns of a configuration and their plain values; None if there is none."""
    row: dict[str, object] = {
        "configuration_id": c.configuration_id,
        "model": c.model,
        "status": c.status,
        "on_front": c.on_front,
        "knee": c.is_knee,
        "indistinguishable": c.indistinguishable,
        "num_seeds": len(c.seeds),
        "fresh": c.is_fresh,
        "thinned": c.is_thinned,
        "still_rising": c.still_rising,
    }
    for name, value in c.values.items():
        row[name] = value
        row[f"{name}_sd"] = c.deviations.get(name)
    row |= _ends(f"{front.y}_interval", c.interval)
    row["front_probability"] = c.front_probability
    row["difference_to"] = None if c.difference is None else c.difference.other
    row["difference"] = None if c.difference is None else c.difference.mean
    row |= _ends("difference", None if c.difference is None else c.difference.interval)
    row |= {f"test_{name}": value for name, value in c.test_values.items()}
    if front.study.confirmed:
        row |= _ends(f"test_{front.y}_interval", c.test_interval)
    row |= parameter_columns(c.parameters)
    row["reasons"] = "; ".join(c.reasons)
    return row


def parameter_columns(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the columns of parameters; lists and mappings become JSON."""
    plain = (str, int, float)
    return {
        f"parameter.{name}": value if isinstance(value, plain) else json.dumps(value)
        for name, value in parameters.items()
    }


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, object]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


def _cell(name: str, value: object) -> object:
    """Write a flag as 0 or 1, and None as an empty cell; parameters stay as they are."""
    if value is None:
        return ""
    if isinstance(value, bool) and not name.startswith("parameter."):
        return int(value)
    return value
