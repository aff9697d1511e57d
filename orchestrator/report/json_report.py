"""Write an analysis as JSON, for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from sftsearch.orchestrator.report.advice import describe_modalities, describe_rising
from sftsearch.orchestrator.report.answers import (
    describe_effects,
    describe_standings,
    describe_tokens,
)
from sftsearch.orchestrator.report.cells import verdict
from sftsearch.orchestrator.report.confirmation import describe_confirmation
from sftsearch.orchestrator.report.text import headline, notes

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary
    from sftsearch.orchestrator.analysis.front import Front

SCHEMA_VERSION = 2
"""Increased whenever a key changes its name or meaning.

Version 2 renamed `membership` to `front_probability` and `membership_is` to
`front_probability_source`.
"""


def to_json(analysis: Analysis) -> str:
    """Return the whole analysis as JSON, regardless of `top`.

    `docs/metrics.md` ("What a report concludes") defines `tokens`, `standings` and `effects`;
    `answers` has their sentences. `standings` and `effects` are null with too few configurations.
    """
    front, compared = analysis.front, analysis.families
    study = asdict(front.study)
    trials = study.pop("trials")
    document = {
        "schema_version": SCHEMA_VERSION,
        "study": study,
        "front": _front(front),
        "configurations": [_configuration(c, front) for c in front.configurations],
        "baselines": _baselines(front),
        "families": None if compared is None else asdict(compared),
        "routes": [asdict(level) for level in analysis.route_levels],
        "importance": [asdict(band) for band in analysis.importance],
        "tokens": [asdict(one) for one in analysis.tokens],
        "standings": None if analysis.standings is None else asdict(analysis.standings),
        "effects": None if analysis.effects is None else asdict(analysis.effects),
        "modalities": [asdict(one) for one in analysis.modalities],
        "rising": None if analysis.rising is None else asdict(analysis.rising),
        "confirmation": None if analysis.confirmation is None else asdict(analysis.confirmation),
        "answers": {
            "modalities": describe_modalities(analysis),
            "rising": describe_rising(analysis),
            "confirmation": describe_confirmation(analysis),
            "tokens": describe_tokens(analysis),
            "standings": describe_standings(analysis),
            "effects": describe_effects(analysis),
        },
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
        "front_probability_source": front.front_probability_source,
        "num_chosen": front.num_chosen,
        "hypervolume": front.hypervolume,
        "progress": [asdict(step) for step in front.progress],
    }


def _baselines(front: Front) -> dict[str, object] | None:
    found = front.baselines
    if found is None:
        return None
    contest = None if found.contest is None else asdict(found.contest)
    return {"results": [_configuration(c, front) for c in found.summaries], "contest": contest}


def _configuration(c: ConfigurationSummary, front: Front) -> dict[str, object]:
    more = {"indistinguishable": c.indistinguishable, "verdict": verdict(c, front)}
    return asdict(c) | more


def _finite(value: object) -> object:
    """Return the value with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
