"""Sampler: who proposes the next configuration, and from what.

Random numbers derive from the sampler's seed and the proposal's number alone, so the same history
gives the same proposal, also in a resumed study. Proposing changes nothing: a proposal is part of
the history when the study enters it (`OptunaStudy.enter`).
"""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sftsearch.orchestrator.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
    from sftsearch.orchestrator.surrogate.model import SurrogateModel
    from sftsearch.search_spaces.space import Point


@dataclass(frozen=True, slots=True)
class Proposal:
    """A point to try next; its number is that of the proposals before it."""

    point: Point
    carried: Mapping[str, object] = field(default_factory=dict)
    """What the sampler must find with the proposal later on, as JSON has it."""


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What a sampler proposes from."""

    study: OptunaStudy
    """The proposals so far and what became of them."""
    admission: Admission
    """What may still be admitted."""
    surrogate: SurrogateModel
    """What the surrogate expects."""


class Sampler(Protocol):
    """Proposes the next configuration of a study; built from its section of the study file."""

    seed: int

    @abstractmethod
    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; None when nothing is left to propose.

        Args:
            history: of the study; left as it is.
            branch: the one to draw from; None: any.
        """

    def given(self, history: History, point: Point, branch: int | None) -> Proposal:
        """Return a proposal of a point that somebody else has chosen, as the sampler needs it."""
        return Proposal(point)

    def draw_uniform(self, history: History, branch: int | None) -> Proposal | None:
        """Propose, uniformly, any admissible configuration that is not in the study.

        It stands in for a sampler that has nothing to go by, or proposes what is refused.
        """
        seed = derive_seed(self.seed, history.study.num_proposals)
        candidate = history.admission.draw(random.Random(seed), branch)
        return None if candidate is None else self.given(history, candidate.point, branch)


def nearest_free(admission: Admission, drawn: Point) -> Point | None:
    """Return what is proposed for a drawn point: in an enumerated space, the nearest that is new.

    None: its branch has none left.
    """
    if admission.table is None:
        return drawn
    candidate = admission.nearest(drawn)
    return None if candidate is None else candidate.point
