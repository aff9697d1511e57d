"""Report what a preparation found: samples by modality and split, what is missing, and warnings.

The report is stored next to the manifest, where `sftsearch data info` reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.bad_samples import by_reason, describe
from sftsearch.datasets.spec import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sftsearch.datasets.bad_samples import BadSample
    from sftsearch.datasets.spec import DatasetSpec

REPORT = "preparation.json"
FEW_VALIDATION_SAMPLES = 30
"""Below it, differences in accuracy of less than about 15 points are noise."""
MAX_NAMES = 5
"""Classes or samples that a warning names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The samples of a split that have a modality, and their tokens in the files."""

    modality: str
    split: str
    samples: int
    missing: int
    shortest: int
    longest: int
    cut: int
    """Samples whose tokens after the maximum were left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationReport:
    """What a preparation found."""

    coverage: tuple[Coverage, ...]
    warnings: tuple[str, ...]
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the samples left out, by reason."""


def report_preparation(
    spec: DatasetSpec,
    lengths: Mapping[str, Sequence[tuple[int, ...]]],
    class_counts: Mapping[str, Sequence[int]],
    dropped: Sequence[BadSample],
    notes: Sequence[str],
) -> PreparationReport:
    """Return the report of a preparation.

    Args:
        spec: the dataset.
        lengths: by split, the tokens of each sample in the files, by modality.
        class_counts: by split, the samples of each class.
        dropped: the samples left out.
        notes: what the reader says.
    """
    coverage = tuple(_coverage(spec, lengths))
    groups = by_reason(dropped)
    warnings = [*notes]
    if dropped:
        total = len(dropped) + sum(map(len, lengths.values()))
        text = describe(groups, MAX_NAMES)
        warnings.append(f"Left out {len(dropped)} of {total} samples: {text}.")
    warnings += _coverage_warnings(spec, coverage)
    warnings += _class_warnings(spec, class_counts)
    warnings += _validation_warnings(spec)
    return PreparationReport(
        coverage=coverage,
        warnings=tuple(warnings),
        dropped={reason: tuple(names) for reason, names in groups.items()},
    )


def _coverage(
    spec: DatasetSpec, lengths: Mapping[str, Sequence[tuple[int, ...]]]
) -> Iterator[Coverage]:
    for number, (modality, shape) in enumerate(spec.modalities.items()):
        for split in SPLITS:
            found = [of_sample[number] for of_sample in lengths[split]]
            present = [length for length in found if length]
            yield Coverage(
                modality=modality,
                split=split,
                samples=len(found),
                missing=len(found) - len(present),
                shortest=min(present, default=0),
                longest=max(present, default=0),
                cut=sum(length > shape.num_tokens for length in found),
            )


def _coverage_warnings(spec: DatasetSpec, coverage: Sequence[Coverage]) -> Iterator[str]:
    for modality, shape in spec.modalities.items():
        of_modality = [one for one in coverage if one.modality == modality]
        for one in of_modality:
            if one.missing > one.samples / 2:
                yield (
                    f"{modality} is missing from {one.missing} of the {one.samples} samples of "
                    f"{one.split}."
                )
        cut, total = sum(one.cut for one in of_modality), sum(one.samples for one in of_modality)
        if cut:
            longest = max(one.longest for one in of_modality)
            yield (
                f"{cut} of {total} samples of {modality} are cut to {shape.num_tokens} tokens; the "
                f"longest has {longest}."
            )


def _class_warnings(spec: DatasetSpec, class_counts: Mapping[str, Sequence[int]]) -> Iterator[str]:
    for split in SPLITS:
        counts = class_counts[split]
        absent = [spec.classes[i] for i, count in enumerate(counts) if not count]
        if absent:
            more = f" and {len(absent) - MAX_NAMES} more" if len(absent) > MAX_NAMES else ""
            shown = ", ".join(absent[:MAX_NAMES])
            yield f"{split} has no sample of {len(absent)} of {len(counts)} classes: {shown}{more}."


def _validation_warnings(spec: DatasetSpec) -> Iterator[str]:
    count, people = spec.num_samples["validation"], spec.subjects["validation"]
    if len(people) == 1:
        yield (
            f"validation has one subject ({people[0]}): the search chooses what fits that one. "
            "Consider `folds` in the study file."
        )
    if count < FEW_VALIDATION_SAMPLES:
        yield (
            f"validation has {count} samples: differences between configurations of less than "
            f"{100 / count:.0f} points mean nothing."
        )


def write_report(folder: Path, report: PreparationReport) -> Path:
    """Write the report of a store and return its file."""
    file = folder / REPORT
    file.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return file


def read_report(folder: Path) -> PreparationReport | None:
    """Return the report of a store; None if it has none that can be read."""
    try:
        found: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return PreparationReport(
            coverage=tuple(Coverage(**one) for one in found["coverage"]),
            warnings=tuple(map(str, found["warnings"])),
            dropped={str(key): tuple(names) for key, names in found["dropped"].items()},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
