"""Write the configuration table as CSV, with numbers at full precision."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front


def to_csv(analysis: Analysis) -> str:
    """Return a header and one row per configuration of the table."""
    front = analysis.front
    rows = [_flat(c, front) for c in front.table]
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(c: ConfigurationSummary, front: Front) -> dict[str, object]:
    row: dict[str, object] = {
        "configuration_id": c.configuration_id,
        "model": c.model,
        "status": c.status,
        "on_front": int(c.on_front),
        "knee": int(c.is_knee),
        "indistinguishable": int(c.indistinguishable),
        "num_seeds": len(c.seeds),
        "fresh": int(c.is_fresh),
        "thinned": int(c.is_thinned),
        "still_rising": "" if c.still_rising is None else int(c.still_rising),
    }
    for name, value in c.values.items():
        row[name] = value
        row[f"{name}_sd"] = c.deviations.get(name, "")
    row |= _ends(f"{front.y}_interval", c.interval)
    row["front_probability"] = "" if c.front_probability is None else c.front_probability
    row["difference_to"] = "" if c.difference is None else c.difference.other
    row["difference"] = "" if c.difference is None else c.difference.mean
    row |= _ends("difference", None if c.difference is None else c.difference.interval)
    row |= {f"test_{name}": value for name, value in c.test_values.items()}
    if front.study.confirmed:
        row |= _ends(f"test_{front.y}_interval", c.test_interval)
    row |= {f"parameter.{name}": _cell(value) for name, value in c.parameters.items()}
    row["reasons"] = "; ".join(c.reasons)
    return row


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, float | str]:
    low, high = ("", "") if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


def _cell(value: object) -> object:
    return value if isinstance(value, (str, int, float)) else json.dumps(value)
