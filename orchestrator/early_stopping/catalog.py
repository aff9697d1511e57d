"""RULES: which trials to stop before their last epoch. The one place to add a rule."""

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
"""The `kind` of `search.stopping` in a study file -> the rule, built from its other options."""


def build_rule(section: EarlyStopping) -> EarlyStoppingRule:
    """Build the rule of a study file's stopping section."""
    return RULES[section.kind](**section.model_dump(exclude={"kind"}))
