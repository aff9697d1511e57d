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

    run_id: str = ""
    """Of the study's parent run: another store, or a run that was made anew, lacks it all."""
    through: int = 0
    """The number of the last event that it has; 0: none."""
    time: float = 0.0
    """Of that event: in a journal that was put in its place it is another one."""
    facts: StudyFacts = field(default_factory=StudyFacts)
    """Of the study, by that event."""

    def write(self, folder: Path) -> None:
        """Write it to a study's folder; the file is whole or the one before."""
        unfinished = folder / f"{BOOKKEEPING}.part"
        kept = {"run_id": self.run_id, "through": self.through, "time": self.time}
        unfinished.write_text(json.dumps(kept | {"facts": self.facts.to_json()}))
        unfinished.replace(folder / BOOKKEEPING)


def read_bookkeeping(folder: Path) -> Bookkeeping | None:
    """Return what MLflow has of a study; None where that was not noted here, or is damaged."""
    try:
        kept = json.loads((folder / BOOKKEEPING).read_bytes())
        facts = StudyFacts.from_json(kept["facts"])
        return Bookkeeping(str(kept["run_id"]), int(kept["through"]), float(kept["time"]), facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def num_mirrored(folder: Path) -> int | None:
    """Return the number of the last event of a study that MLflow has; None: not noted here."""
    done = read_bookkeeping(folder)
    return None if done is None else done.through
