"""SAMPLERS: the catalog of samplers; add new ones here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.samplers.ehvi import EHVISampler
from sftsearch.orchestrator.samplers.exhaustive import ExhaustiveSampler
from sftsearch.orchestrator.samplers.genetic import NSGA2Sampler, NSGA3Sampler
from sftsearch.orchestrator.samplers.optuna_samplers import (
    GPSampler,
    QuasiRandomSampler,
    TPESampler,
    UniformSampler,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.samplers.base import Sampler
    from sftsearch.search_spaces.search_plan import SamplerSection

SAMPLERS: dict[str, Callable[[Any], Sampler]] = {  # each takes the section of its own kind
    "ehvi": EHVISampler,
    "tpe": TPESampler,
    "nsga2": NSGA2Sampler,
    "nsga3": NSGA3Sampler,
    "gp": GPSampler,
    "quasi_random": QuasiRandomSampler,
    "random": UniformSampler,
    "exhaustive": ExhaustiveSampler,
}
"""The `kind` of `search.sampler` in a study file -> the sampler, built from its section."""


def build_sampler(section: SamplerSection) -> Sampler:
    """Build the sampler of a study file's sampler section."""
    return SAMPLERS[section.kind](section)
