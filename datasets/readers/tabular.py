"""Derive labels, splits and subjects from the table of a custom dataset; used by several readers.

Without a split column, splits are drawn deterministically: by subject if subjects are known (a
fifth of them for validation and a fifth for testing), otherwise by sample within each class.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.source import unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.datasets.spec import Task

    Label = int | float | tuple[int, ...]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
SUBJECT_COLUMNS = ("subject", "speaker", "participant", "person", "actor", "video")
"""Possible columns of subjects; the first that exists is used."""
MAX_CLASSES = 10_000
HELD_OUT = 0.2
"""Fraction of subjects or samples for each of validation and testing, without given splits."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a table."""

    task: Task
    classes: tuple[str, ...]
    values: list[Label]
    missing: frozenset[int] = frozenset()
    """Samples without a label; their values mean nothing."""

    def fault(self, number: int) -> str:
        """Return why a sample cannot be used, for `Sample.bad`; empty if it can."""
        return "it has no label" if number in self.missing else ""


def read_labels(
    where: object, values: Sequence[Any], names: Sequence[Any] | None, task: str
) -> Labels:
    """Convert the values of a column to labels.

    Strings are class names; integers are class indices, named by `names` or by themselves; other
    numbers are regression targets; lists of 0 and 1 are labels of a multi-label task. None, NaN and
    an empty text mean that the label is missing.

    Args:
        where: the file, for errors.
        values: one per sample.
        names: class names, one per sample, or None.
        task: classification, multilabel or regression; auto: inferred from the values.

    Raises:
        DatasetError: the values do not fit the task.
    """
    if task not in ("auto", "classification", "multilabel", "regression"):
        raise DatasetError(
            f"`task` must be auto, classification, multilabel or regression, but got {task!r}."
        )
    missing = frozenset(i for i, value in enumerate(values) if _is_missing(value))
    first = next((i for i in range(len(values)) if i not in missing), None)
    if first is None:
        raise unreadable(where, "no sample has a label")
    values = [values[first if i in missing else i] for i in range(len(values))]
    names = names and [names[first if i in missing else i] for i in range(len(names))]
    return replace(_convert(where, values, names, task), missing=missing)


def _is_missing(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_missing, value))
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _convert(
    where: object, values: Sequence[Any], names: Sequence[Any] | None, task: str
) -> Labels:
    if task == "multilabel" or (task == "auto" and isinstance(values[0], list | tuple)):
        return _multilabel(where, values)
    if task == "regression" or (task == "auto" and any(isinstance(v, float) for v in values)):
        return _regression(where, values)
    return _classification(where, values, names)


def _multilabel(where: object, values: Sequence[Any]) -> Labels:
    rows = []
    for i, value in enumerate(values):
        row = tuple(value) if isinstance(value, list | tuple) else ()
        if not row or any(one not in (0, 1) for one in row) or len(row) != len(values[0]):
            raise unreadable(
                where, f"sample {i} must have {len(values[0])} labels of 0 and 1, not {value!r:.60}"
            )
        rows.append(tuple(int(one) for one in row))
    if len(rows[0]) > MAX_CLASSES:
        raise unreadable(where, f"it has {len(rows[0])} labels; at most {MAX_CLASSES} are allowed")
    classes = tuple(f"label_{number}" for number in range(len(rows[0])))
    return Labels("multilabel", classes, [*rows])


def _regression(where: object, values: Sequence[Any]) -> Labels:
    for i, value in enumerate(values):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise unreadable(where, f"the label of sample {i} must be finite, not {value!r:.60}")
    return Labels("regression", (), [float(value) for value in values])


def _classification(where: object, values: Sequence[Any], names: Sequence[Any] | None) -> Labels:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        classes = sorted(set(values))
    elif kinds <= {int, bool}:
        low, high = min(values), max(values)
        if low < 0 or high >= MAX_CLASSES:
            raise unreadable(
                where, f"classes must be in [0, {MAX_CLASSES}), but got {low} to {high}"
            )
        name_of = _class_names(where, values, names)
        classes = [name_of.get(number, str(number)) for number in range(high + 1)]
        return Labels("classification", tuple(classes), [int(value) for value in values])
    else:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise unreadable(where, f"classes must be strings or integers, but got {found}")
    codes = {name: code for code, name in enumerate(classes)}
    return Labels("classification", tuple(classes), [codes[value] for value in values])


def _class_names(
    where: object, values: Sequence[Any], names: Sequence[Any] | None
) -> dict[int, str]:
    """Return {class: name} of the named classes; check that each has one name."""
    name_of: dict[int, str] = {}
    for value, name in zip(values, names or (), strict=bool(names)):
        if name_of.setdefault(int(value), str(name)) != str(name):
            raise unreadable(where, f"class {value} has two names: '{name_of[value]}' and '{name}'")
    return name_of


def read_splits(
    where: object,
    given: Sequence[Any] | None,
    subjects: Sequence[str | None],
    labels: Sequence[Label],
    names: Sequence[str],
) -> list[str]:
    """Return the split of each sample, as given or else drawn.

    Raises:
        DatasetError: a name is not in `SPLIT_NAMES`.
    """
    if given is not None:
        unknown = next((s for s in given if str(s).lower() not in SPLIT_NAMES), None)
        if unknown is not None:
            known = ", ".join(SPLIT_NAMES)
            raise unreadable(where, f"a split must be one of {known}, but got {unknown!r:.40}")
        return [SPLIT_NAMES[str(one).lower()] for one in given]
    if all(subject is not None for subject in subjects):
        split_of = _draw_splits(sorted({str(subject) for subject in subjects}))
        return [split_of[str(subject)] for subject in subjects]
    by_class: dict[Label, list[str]] = defaultdict(list)
    for label, name in zip(labels, names, strict=True):
        by_class[0.0 if isinstance(label, float) else label].append(name)
    split_of = {}
    for members in by_class.values():
        split_of |= _draw_splits(members)
    return [split_of[name] for name in names]


def _draw_splits(members: Sequence[str]) -> dict[str, str]:
    """Assign names to splits, depending on the names only."""
    order = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = max(1, round(HELD_OUT * len(order))) if len(order) > 2 else 0
    parts = {"test": order[:held_out], "validation": order[held_out : 2 * held_out]}
    split_of = dict.fromkeys(order, "train")
    return split_of | {name: split for split, part in parts.items() for name in part}


def parse_pairs(text: str, option: str) -> dict[str, int]:
    """Parse a text such as `audio=32,image=1`.

    Raises:
        DatasetError: the text has another form.
    """
    pairs = {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.partition("=")
        if not equals or not number.isdigit() or not 0 < int(number) < 10**9:
            raise DatasetError(f"Option `{option}` must be NAME=NUMBER,..., but got {text!r}.")
        pairs[name.strip()] = int(number)
    return pairs
