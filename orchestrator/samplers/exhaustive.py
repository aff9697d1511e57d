"""Propose every admissible configuration once, in order of cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.samplers.base import Proposal, Sampler

if TYPE_CHECKING:
    from sftsearch.orchestrator.samplers.base import History
    from sftsearch.search_spaces.search_plan import Exhaustive


class ExhaustiveSampler(Sampler):
    """Proposes the cheapest admissible configuration that is not in the study."""

    seed = 0

    def __init__(self, section: Exhaustive) -> None:
        """Accept a section, which has no settings."""

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        candidate = history.admission.cheapest(branch)
        return None if candidate is None else Proposal(candidate.point)
