"""Define the interface of samplers, which propose the next configuration of a study.

Random numbers are derived from the sampler's seed and the proposal's number, so the same history
gives the same proposal, also in a resumed study. Proposing has no side effects: a proposal becomes
part of the history when the study enters it (`OptunaStudy.enter`).
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
    from sftsearch.search_spaces.point import Point


@dataclass(frozen=True, slots=True)
class Proposal:
    """A point to try next."""

    point: Point
    carried: Mapping[str, object] = field(default_factory=dict)
    """Data that the sampler needs with the proposal later; must be JSON-serializable."""


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """The data from which a sampler proposes."""

    study: OptunaStudy
    """The proposals so far and their results."""
    admission: Admission
    """Which configurations may still be admitted."""
    surrogate: SurrogateModel
    """Predictions of accuracy."""


class Sampler(Protocol):
    """Proposes the next configuration of a study; built from its section of the study file."""

    seed: int

    @abstractmethod
    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; None when nothing is left to propose.

        Args:
            history: of the study; not modified.
            branch: to draw from; None: any.
        """

    def given(self, history: History, point: Point, branch: int | None) -> Proposal:
        """Return a proposal of a given point, with the data that the sampler needs."""
        return Proposal(point)

    def draw_uniform(self, history: History, branch: int | None) -> Proposal | None:
        """Draw uniformly from the admissible configurations that are not in the study.

        Used if the sampler has too little data or its proposals are refused.
        """
        seed = derive_seed(self.seed, history.study.num_proposals)
        candidate = history.admission.draw(random.Random(seed), branch)
        return None if candidate is None else self.given(history, candidate.point, branch)


def nearest_free(admission: Admission, drawn: Point) -> Point | None:
    """Return the nearest new admissible point in an enumerated space, else the drawn point.

    None if the branch has no configuration left.
    """
    if admission.table is None:
        return drawn
    candidate = admission.nearest(drawn)
    return None if candidate is None else candidate.point
