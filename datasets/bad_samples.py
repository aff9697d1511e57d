"""Group the samples that cannot be used by reason, and name them in one error."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LISTED = "bad_samples.csv"
MAX_NAMES = 20
"""Samples that an error names; more are listed in a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A sample that cannot be used."""

    name: str
    split: str
    reason: str
    """Such as "it has no bodies"; may contain numbers of this sample."""
    message: str
    """One sentence that names the sample or its file."""
    is_nonfinite: bool = False
    """Its only fault is NaN or infinity, which `--nan` handles."""


def by_reason(bad: Sequence[BadSample]) -> dict[str, list[str]]:
    """Return the names of bad samples by reason; reasons that differ in numbers only are one."""
    groups: dict[str, list[BadSample]] = defaultdict(list)
    for one in bad:
        groups[re.sub(r"-?\d+(\.\d+)?", "#", one.reason)].append(one)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return {group[0].reason: [one.name for one in group] for group in ordered}


def describe(groups: dict[str, list[str]], most: int) -> str:
    """Return counts, reasons and up to `most` names of each, as one text."""
    parts = []
    for reason, names in groups.items():
        more = f" and {len(names) - most} more" if len(names) > most else ""
        parts.append(f"{len(names)} x {reason} ({', '.join(names[:most])}{more})")
    return "; ".join(parts)


def refusal(bad: Sequence[BadSample], num_samples: int, folder: Path) -> DatasetError:
    """Return the error that names all bad samples and the options that handle them.

    Args:
        bad: the samples.
        num_samples: the number of all samples that were read.
        folder: where the list is written if there are too many for a line.
    """
    hints = []
    if not all(one.is_nonfinite for one in bad):
        hints.append("`--bad drop` leaves out what cannot be used.")
    if any(one.is_nonfinite for one in bad):
        hints.append("For numbers that are not finite choose `--nan zero` or `--nan drop`.")
    if len(bad) == 1:
        return DatasetError(" ".join([bad[0].message, *hints]))
    groups = by_reason(bad)
    text = describe(groups, MAX_NAMES if len(bad) <= MAX_NAMES else 3)
    if len(bad) > MAX_NAMES:
        hints.append(f"All are listed in {_write_list(bad, folder / LISTED)}.")
    return DatasetError(
        " ".join([f"{len(bad)} of {num_samples} samples cannot be used: {text}.", *hints])
    )


def _write_list(bad: Sequence[BadSample], file: Path) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("sample", "split", "reason"))
        writer.writerows((one.name, one.split, one.reason) for one in bad)
    return file
