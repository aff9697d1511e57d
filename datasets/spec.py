"""Define a dataset spec: modalities, classes, splits, subjects, license and fingerprint."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from sftsearch.datasets.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME_PATTERN = r"[a-z][a-z0-9_]{0,63}"
"""Names of datasets and modalities, which become folders, columns and words of a study file."""

SPLITS = ("train", "validation", "test")
"""The splits of every dataset, in this order."""

RESERVED_NAMES = ("label", "subject", "fused", "bottleneck", "kind")
"""Forbidden modality names: columns of a store, sequences of a model, key of a distribution."""

FORMAT_VERSION = 2
"""Of stores; increased whenever older stores can no longer be read."""

MANIFEST = "manifest.json"
"""File of a store with its spec."""

Task = Literal["classification", "multilabel", "regression"]
"""Type of label: one class, 0 or 1 for each of several labels, or a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalitySpec:
    """The shape of one modality of one sample: `num_tokens` tokens of `num_features` numbers."""

    num_tokens: int
    """Tokens per sample, T."""
    num_features: int
    """Numbers per token, F."""
    variable_length: bool = False
    """Whether a sample may have fewer valid tokens; with no token the modality is missing."""
    dtype: Literal["float32", "float16"] = "float32"
    """Storage type of the numbers; models receive float32."""
    axes: int | None = None
    """3: the features are the x, y and z axes of a sensor, or several such triples."""

    def __post_init__(self) -> None:
        for field, count in (("num_tokens", self.num_tokens), ("num_features", self.num_features)):
            if not _is_count(count, least=1):
                raise DatasetError(f"`{field}` must be a positive integer, but got {count!r}.")
        if not isinstance(self.variable_length, bool):
            raise DatasetError(
                f"`variable_length` must be true or false, but got {self.variable_length!r}."
            )
        if self.dtype not in ("float32", "float16"):
            raise DatasetError(f"`dtype` must be float32 or float16, but got {self.dtype!r}.")
        if self.axes is not None and (self.axes != 3 or self.num_features % 3):
            raise DatasetError(
                "`axes` must be 3, for features in triples, but got "
                f"(axes={self.axes!r}, num_features={self.num_features})."
            )

    def hashed(self) -> dict[str, int | bool | str]:
        """Return the fields that a fingerprint depends on: all but an omitted `axes`."""
        fields = asdict(self)
        if self.axes is None:
            del fields["axes"]  # added later; fingerprints stay
        return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """A dataset without its samples; equal fingerprints mean equal samples.

    Raises:
        DatasetError: a field is invalid, or two splits share a subject.
    """

    name: str
    """Name as in `datasets/catalog.py`: lower-case letters, digits and underscores."""
    modalities: Mapping[str, ModalitySpec]
    """By name; the insertion order is the modality order throughout."""
    classes: tuple[str, ...]
    """Names of the classes, or of the labels of a multi-label task; empty for regression."""
    num_samples: Mapping[str, int]
    """By split."""
    subjects: Mapping[str, tuple[str, ...]]
    """By split, sorted: the people recorded in it; empty if unknown."""
    licence: str
    """Name of the license of the samples."""
    attribution: str
    """Credit, shown with all results."""
    source: str
    """URL of the published files, or the module that generates the samples."""
    description: str
    """One sentence."""
    fingerprint: str
    """sha256 of the content, 64 hexadecimal digits."""
    task: Task = "classification"
    """The type of the labels."""
    best_accuracy: float | None = None
    """Expected test accuracy of the Bayes-optimal classifier, if known; of a multi-label task, the
    fraction of correct labels."""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_classes()
        self._check_splits()
        if not re.fullmatch(r"[0-9a-f]{64}", self.fingerprint):
            raise DatasetError(
                f"`fingerprint` of '{self.name}' must be 64 hexadecimal digits, "
                f"but got {self.fingerprint!r}."
            )
        best = self.best_accuracy
        if best is not None and not 0.0 < best <= 1.0:
            raise DatasetError(
                f"`best_accuracy` of '{self.name}' must be in (0, 1], but got {best!r}."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes or labels; 0 for regression."""
        return len(self.classes)

    @property
    def num_outputs(self) -> int:
        """Number of model outputs per sample: one per class or label, or one for regression."""
        return 1 if self.task == "regression" else len(self.classes)

    def _check_names(self) -> None:
        for name in (self.name, *self.modalities):
            if not re.fullmatch(NAME_PATTERN, name) or name in RESERVED_NAMES:
                raise DatasetError(
                    "A name must be lower-case letters, digits and underscores and none of "
                    f"{', '.join(RESERVED_NAMES)}, but got {name!r}."
                )
        if not self.modalities:
            raise DatasetError(f"'{self.name}' must have a modality, but `modalities` is empty.")
        for name, shape in self.modalities.items():
            if shape.variable_length and f"{name}_length" in self.modalities:
                raise DatasetError(
                    f"No modality of '{self.name}' may be called '{name}_length': that name is "
                    f"reserved for the lengths of '{name}'."
                )

    def _check_classes(self) -> None:
        if self.task not in get_args(Task):
            raise DatasetError(
                f"`task` of '{self.name}' must be one of {', '.join(get_args(Task))}, "
                f"but got {self.task!r}."
            )
        if self.task == "regression" and self.classes:
            raise DatasetError(
                f"`classes` of '{self.name}' must be empty because its task is regression, "
                f"but got {self.classes!r}."
            )
        least = {"classification": 2, "multilabel": 1, "regression": 0}[self.task]
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < least:
            raise DatasetError(
                f"`classes` of '{self.name}' must be {('', 'one', 'two')[least]} or more different "
                f"names, but got {self.classes!r}."
            )

    def _check_splits(self) -> None:
        for field, by_split in (("num_samples", self.num_samples), ("subjects", self.subjects)):
            if tuple(by_split) != SPLITS:
                raise DatasetError(
                    f"`{field}` of '{self.name}' must have the splits {', '.join(SPLITS)} "
                    f"in this order, but got {', '.join(map(str, by_split)) or 'none'}."
                )
        seen: dict[str, str] = {}
        for split in SPLITS:
            if not _is_count(self.num_samples[split], least=1):
                raise DatasetError(
                    f"`num_samples` of '{self.name}' must be positive integers, "
                    f"but got {split}={self.num_samples[split]!r}."
                )
            people = self.subjects[split]
            if people != tuple(sorted(set(people))):
                raise DatasetError(
                    f"`subjects` of '{self.name}' must be sorted and unique, "
                    f"but got {split}={people!r}."
                )
            for person in people:
                if person in seen:
                    raise DatasetError(
                        f"Splits of '{self.name}' must not share a subject, "
                        f"but '{person}' is in {seen[person]} and in {split}."
                    )
                seen[person] = split


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
