"""How far the mirror has come with a study: its own bookkeeping, beside the journal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sftsearch.orchestrator.storage.study_record import StudyFacts

if TYPE_CHECKING:
    from pathlib import Path

BOOKKEEPING = "mirror.json"
"""File of a study's folder."""


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """What MLflow has of a study."""

    through: int = 0
    """The number of the last event that it has; 0: none."""
    time: float = 0.0
    """Of that event: in a journal that was put in its place it is another one."""
    facts: StudyFacts = field(default_factory=StudyFacts)
    """Of the study, by that event."""

    def write(self, folder: Path) -> None:
        """Write it to a study's folder; the file is whole or the one before."""
        unfinished = folder / f"{BOOKKEEPING}.part"
        kept = {"through": self.through, "time": self.time, "facts": self.facts.to_json()}
        unfinished.write_text(json.dumps(kept))
        unfinished.replace(folder / BOOKKEEPING)


def read_bookkeeping(folder: Path) -> Bookkeeping:
    """Return what MLflow has of a study; nothing where that was not noted."""
    try:
        kept = json.loads((folder / BOOKKEEPING).read_bytes())
        facts = StudyFacts.from_json(kept["facts"])
        return Bookkeeping(int(kept["through"]), float(kept["time"]), facts)
    except (OSError, ValueError, KeyError, TypeError):
        return Bookkeeping()  # all is written again, which changes nothing


def num_mirrored(folder: Path) -> int:
    """Return the number of the last event of a study that MLflow has; 0: none."""
    return read_bookkeeping(folder).through
