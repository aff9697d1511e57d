"""Record which events of a study MLflow already has, in a file beside the journal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sftsearch.orchestrator.storage.study_record import StudyFacts

if TYPE_CHECKING:
    from pathlib import Path

BOOKKEEPING = "mirror.json"
"""File in a study's folder."""


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """The part of a study's journal that MLflow has."""

    run_id: str = ""
    """Id of the study's parent run; with another one, everything must be written again."""
    through: int = 0
    """The number of the last mirrored event; 0: none."""
    time: float = 0.0
    """Time of that event; it differs if the journal was replaced."""
    facts: StudyFacts = field(default_factory=StudyFacts)
    """Facts of the study up to that event."""

    def write(self, folder: Path) -> None:
        """Write the bookkeeping to a study's folder, atomically."""
        partial = folder / f"{BOOKKEEPING}.part"
        content = {"run_id": self.run_id, "through": self.through, "time": self.time}
        partial.write_text(json.dumps(content | {"facts": self.facts.to_json()}))
        partial.replace(folder / BOOKKEEPING)


def read_bookkeeping(folder: Path) -> Bookkeeping | None:
    """Read a study's bookkeeping; return None if it is missing or damaged."""
    try:
        content = json.loads((folder / BOOKKEEPING).read_bytes())
        facts = StudyFacts.from_json(content["facts"])
        return Bookkeeping(
            str(content["run_id"]), int(content["through"]), float(content["time"]), facts
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def num_mirrored(folder: Path) -> int | None:
    """Return the number of the last mirrored event of a study; None if it is not known."""
    mirrored = read_bookkeeping(folder)
    return None if mirrored is None else mirrored.through
