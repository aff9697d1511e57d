"""Write the note of a study's run in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.report.confirmation import describe_confirmation
from sftsearch.orchestrator.report.text import headline

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.analyse import Analysis


def describe_study(analysis: Analysis) -> str:
    """Return the headline, what the test split says, and the study's description."""
    confirmed = " ".join(describe_confirmation(analysis))
    parts = [headline(analysis.front), confirmed, analysis.front.study.description]
    return "\n\n".join(filter(None, parts))
