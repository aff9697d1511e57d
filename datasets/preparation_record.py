"""How far a preparation is, in a file beside the parts it has written."""

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
    """How far a preparation is; all of it is in its record."""

    identity: str
    done: int = 0
    """Samples of the source that parts hold, or that were dropped."""
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    content: str = ""
    """A chain of sha256 over all that was written: equal for equal samples."""
    moments: dict[str, Moments] = field(default_factory=dict)
    num_zeroed: int = 0
    dropped: list[str] = field(default_factory=list)


def write_record(folder: Path, state: PreparationRecord) -> None:
    """Write how far a preparation is; the file is the old one or the new one."""
    record = asdict(state)
    for found in record["moments"].values():
        found["mean"], found["squares"] = found["mean"].tolist(), found["squares"].tolist()
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(record), encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / RECORD)


def read_record(folder: Path, identity: str) -> PreparationRecord | None:
    """Return how far an earlier preparation of the same came; None where there is none."""
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
        return None  # what cannot be read is begun again
