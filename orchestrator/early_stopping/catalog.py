"""RULES: the catalog of early-stopping rules; add new ones here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.early_stopping.base import EarlyStoppingRule
from sftsearch.orchestrator.early_stopping.dominated import DominatedRule
from sftsearch.orchestrator.early_stopping.median import MedianRule
from sftsearch.orchestrator.early_stopping.mo_asha import MOASHARule

if TYPE_CHECKING:
    from sftsearch.search_spaces.search_plan import EarlyStopping

RULES: dict[str, type[EarlyStoppingRule]] = {
    "dominated": DominatedRule,
    "mo_asha": MOASHARule,
    "median": MedianRule,
    "none": EarlyStoppingRule,
}
"""The `kind` of `search.early_stopping` in a study file -> the rule, built from its options."""


def build_rule(section: EarlyStopping) -> EarlyStoppingRule:
    """Build the rule of a study file's `early_stopping` section."""
    return RULES[section.kind](**section.model_dump(exclude={"kind"}))
