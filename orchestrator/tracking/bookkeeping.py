"""How far the mirror has come with a study: its own bookkeeping, beside the journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sftsearch.orchestrator.storage.study_record import StudyFacts

if TYPE_CHECKING:
    from pathlib import Path

BOOKKEEPING = "mirror.json"
"""File of a study's folder: the last event that MLflow has, and the study's facts by then."""


def num_mirrored(folder: Path) -> int:
    """Return the number of the last event of a study that MLflow has; 0: none."""
    return read_bookkeeping(folder)[0]


def read_bookkeeping(folder: Path) -> tuple[int, StudyFacts]:
    """Return the last event that MLflow has and the facts by then; without the file, none."""
    try:
        kept = json.loads((folder / BOOKKEEPING).read_bytes())
        return int(kept["through"]), StudyFacts.from_json(kept["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, StudyFacts()  # all is written again, which changes nothing


def write_bookkeeping(folder: Path, through: int, facts: StudyFacts) -> None:
    """Write down what MLflow has; the file is whole or the one before."""
    unfinished = folder / f"{BOOKKEEPING}.part"
    unfinished.write_text(json.dumps({"through": through, "facts": facts.to_json()}))
    unfinished.replace(folder / BOOKKEEPING)
