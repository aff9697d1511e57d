"""Analyse a study once: front, tokens, families, effects and importance of parameters, routes.

Every renderer (terminal, HTML, Markdown, JSON, CSV, PNG) shows one `Analysis`, so all of them have
the same numbers, and the bootstrap runs once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.bound import BoundStudy
from sftsearch.orchestrator.analysis.confirmation import confirmation_of
from sftsearch.orchestrator.analysis.curves import rising_of
from sftsearch.orchestrator.analysis.effects import effects_of
from sftsearch.orchestrator.analysis.families import families_of
from sftsearch.orchestrator.analysis.front import FrontOptions, build_front, mark_front
from sftsearch.orchestrator.analysis.importance import importance_of
from sftsearch.orchestrator.analysis.modalities import verdicts_of
from sftsearch.orchestrator.analysis.routes import levels_of, routes_of
from sftsearch.orchestrator.analysis.standings import standings_of
from sftsearch.orchestrator.analysis.tokens import tokens_of

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.confirmation import Confirmation
    from sftsearch.orchestrator.analysis.curves import Rising
    from sftsearch.orchestrator.analysis.effects import Effects
    from sftsearch.orchestrator.analysis.families import FamilyComparison
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.analysis.importance import Band
    from sftsearch.orchestrator.analysis.modalities import ModalityVerdict
    from sftsearch.orchestrator.analysis.routes import RoutedConfiguration, WeightLevel
    from sftsearch.orchestrator.analysis.standings import Standings
    from sftsearch.orchestrator.analysis.tokens import SequenceTokens
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """The numbers of a report."""

    front: Front
    families: FamilyComparison | None
    """None with fewer than two families."""
    routes: tuple[RoutedConfiguration, ...]
    """Configurations of gated models."""
    route_levels: tuple[WeightLevel, ...]
    """Means by resource weight; empty with fewer than two weights."""
    importance: tuple[Band, ...]
    """Empty with too few configurations."""
    tokens: tuple[SequenceTokens, ...]
    """By modality; empty if all configurations pool alike."""
    standings: Standings | None
    """Families at equal compute and equal tuning; None if fewer than two can be compared."""
    effects: Effects | None
    """None with too few configurations."""
    modalities: tuple[ModalityVerdict, ...] = ()
    """Modalities that were tried with and without; empty with too few configurations."""
    rising: Rising | None = None
    """How many trials were still rising at their last epoch; None without learning curves."""
    confirmation: Confirmation | None = None
    """What the test split says; None until the study is confirmed."""

    @classmethod
    def of(cls, front: Front) -> Analysis:
        """Return the analysis of a front."""
        routes, bound = routes_of(front), BoundStudy(front.study)
        return cls(
            front=front,
            families=families_of(front),
            routes=tuple(routes),
            route_levels=tuple(levels_of(routes)),
            importance=importance_of(front),
            tokens=tokens_of(front, bound),
            standings=standings_of(front),
            effects=effects_of(front, bound),
            modalities=verdicts_of(front, bound),
            rising=rising_of(front.study),
            confirmation=confirmation_of(front),
        )


def analyse(study: StudyRecord, options: FrontOptions | None = None) -> Analysis:
    """Compute everything that a report shows of a study, which may still be running.

    Args:
        study: the record.
        options: axes, families and filters; by default the study's own.

    Raises:
        UserError: an option does not fit the study; see `FrontOptions`.
    """
    return Analysis.of(build_front(mark_front(study, options or FrontOptions())))
