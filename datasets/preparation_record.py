"""Record the progress of a preparation in a file next to the parts it has written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.writer import Moments, sync

if TYPE_CHECKING:
    from pathlib import Path

RECORD = "progress.json"


@dataclass(slots=True)
class PreparationRecord:
    """Progress of a preparation, as stored in the record file."""

    identity: str
    done: int = 0
    """Samples of the source that are in a part or were dropped."""
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    content: str = ""
    """Chained sha256 of everything written; equal for equal samples."""
    moments: dict[str, Moments] = field(default_factory=dict)
    num_zeroed: int = 0
    dropped: list[str] = field(default_factory=list)


def write_record(folder: Path, state: PreparationRecord) -> None:
    """Write the record atomically."""
    record = asdict(state)
    for found in record["moments"].values():
        found["mean"], found["squares"] = found["mean"].tolist(), found["squares"].tolist()
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(record), encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / RECORD)


def read_record(folder: Path, identity: str) -> PreparationRecord | None:
    """Return the record of an earlier preparation with this identity, or None."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["identity"] != identity:
            return None
        moments = {
            name: Moments(found["count"], np.array(found["mean"]), np.array(found["squares"]))
            for name, found in record.pop("moments").items()
        }
        return PreparationRecord(**record, moments=moments)
    except (OSError, ValueError, LookupError, TypeError):
        return None  # an unreadable record restarts the preparation
