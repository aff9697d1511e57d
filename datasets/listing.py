"""Check the listing of a source: unique names, known splits, and no subject in two splits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.spec import SPLITS, DatasetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.datasets.source import Sample, Source


def resolve_duplicates(samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """Keep the first of samples with the same name; mark it as bad if their entries differ.

    Returns:
        The samples, and how many equal entries were left out.
    """
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_name[sample.name].append(sample)
    kept, num_equal = [], 0
    for first, *others in by_name.values():
        if not all(_are_equal(first, other) for other in others):
            kept.append(replace(first, bad="it is listed more than once, with differences"))
        else:
            kept.append(first)
            num_equal += len(others)
    return kept, num_equal


def _are_equal(one: Sample, other: Sample) -> bool:
    """Return whether two entries are of the same files, with equal split, label and subject."""
    if not one.files:
        return False  # their values may differ
    fields = ("files", "split", "label", "subject", "bad")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def draft_spec(name: str, source: Source, samples: Sequence[Sample]) -> DatasetSpec:
    """Return the spec of the samples, without the fingerprint.

    Raises:
        DatasetError: a split is unknown or empty, a subject is in two splits, or the spec is
            invalid.
    """
    counts = dict.fromkeys(SPLITS, 0)
    people: dict[str, set[str]] = {split: set() for split in SPLITS}
    for sample in samples:
        if sample.split not in counts:
            raise DatasetError(
                f"Sample '{sample.name}' must be in {', '.join(SPLITS)}, but got {sample.split!r}."
            )
        counts[sample.split] += 1
        if sample.subject is not None:
            people[sample.split].add(sample.subject)
    for split, count in counts.items():
        if not count:
            raise DatasetError(f"'{name}' must have samples in every split, but {split} has none.")
    _check_leaks(name, people)
    return DatasetSpec(
        name=name,
        task=source.task,
        modalities=dict(source.modalities),
        classes=source.classes,
        num_samples=counts,
        subjects={split: tuple(sorted(people[split])) for split in SPLITS},
        licence=source.licence,
        attribution=source.attribution,
        source=source.source,
        description=source.description,
        fingerprint="0" * 64,
        best_accuracy=source.best_accuracy,
    )


def _check_leaks(name: str, people: Mapping[str, set[str]]) -> None:
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        leaks = sorted(people[one] & people[other])
        if leaks:
            more = "" if len(leaks) == 1 else f" and {len(leaks) - 1} more"
            raise DatasetError(
                f"Splits of '{name}' must not share a subject, but '{leaks[0]}'{more} "
                f"{'is' if len(leaks) == 1 else 'are'} in {one} and in {other}."
            )
