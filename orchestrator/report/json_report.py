"""Write everything that is known of a front as JSON, for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.families import families_of
from sftsearch.orchestrator.analysis.importance import importance_of
from sftsearch.orchestrator.analysis.routes import levels_of, routes_of
from sftsearch.orchestrator.report.cells import verdict
from sftsearch.orchestrator.report.text import headline, notes

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front

SCHEMA_VERSION = 1
"""Raised whenever a key changes its name or meaning."""
_KEYS = {"front_probability": "membership"}
"""What the document calls a field that has another name here."""


def to_json(front: Front) -> str:
    """Return everything, whatever `top` says; keys stay as they are, see `SCHEMA_VERSION`."""
    study = asdict(front.study)
    trials = study.pop("trials")
    compared = families_of(front)
    document = {
        "schema_version": SCHEMA_VERSION,
        "study": study,
        "front": _front(front),
        "configurations": [_configuration(c, front) for c in front.configurations],
        "families": None if compared is None else asdict(compared),
        "routes": [asdict(level) for level in levels_of(routes_of(front))],
        "importance": [asdict(band) for band in importance_of(front)],
        "trials": trials,
    }
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _front(front: Front) -> dict[str, object]:
    objectives = front.objectives
    return {
        "x": front.x,
        "y": front.y,
        "directions": dict(zip(objectives.names, objectives.directions, strict=True)),
        "configuration_ids": [c.configuration_id for c in front.points],
        "headline": headline(front),
        "notes": notes(front),
        "max_gflops": front.max_gflops,
        "num_filtered": front.num_filtered,
        "num_groups": front.num_groups,
        "membership_is": front.front_probability_is,
        "num_chosen": front.num_chosen,
        "hypervolume": front.hypervolume,
        "progress": [asdict(step) for step in front.progress],
    }


def _configuration(c: ConfigurationSummary, front: Front) -> dict[str, object]:
    fields = {_KEYS.get(name, name): value for name, value in asdict(c).items()}
    return fields | {"indistinguishable": c.indistinguishable, "verdict": verdict(c, front)}


def _finite(value: object) -> object:
    """Return the value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
