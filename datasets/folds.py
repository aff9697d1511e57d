"""Grouped cross-validation folds: a replicate trains and validates on different subjects.

The subjects of the training and validation splits are pooled. Fold k of K validates on the k-th
part of them and trains on the other parts; the test split is unchanged and stays sealed. With as
many folds as subjects this is leave-one-subject-out. Samples are not copied: folds share the memory
maps of the store.

Shapes: N samples, T tokens, F features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.sample_checks import count_classes
from sftsearch.datasets.samples import Rows, Split
from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.store import Store
from sftsearch.datasets.writer import training_statistics

if TYPE_CHECKING:
    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec

POOLED = SPLITS[:2]
"""The splits whose subjects are pooled."""


def deal(spec: DatasetSpec, num_folds: int) -> list[tuple[str, ...]]:
    """Return the validation subjects of each fold, sorted; sizes differ by one at most.

    Raises:
        DatasetError: a pooled split names no subjects, or there are fewer subjects than folds.
    """
    people = sorted(person for split in POOLED for person in spec.subjects[split])
    if not all(spec.subjects[split] for split in POOLED):
        raise DatasetError(
            f"`folds` needs subjects, but the dataset '{spec.name}' names none. Remove `folds`."
        )
    if not 2 <= num_folds <= len(people):
        raise DatasetError(
            f"`folds` must be from 2 to the {len(people)} subjects of '{spec.name}' outside its "
            f"test split, but got {num_folds}."
        )
    return [tuple(people[k::num_folds]) for k in range(num_folds)]


def fold_of(replicate: int, num_folds: int | None) -> int | None:
    """Return the fold of a replicate, round-robin; None without folds."""
    return None if num_folds is None else replicate % num_folds


def open_fold(store: Store, number: int | None, num_folds: int | None) -> Store:
    """Return the store of one fold, or the store itself without folds.

    Raises:
        DatasetError: the number of folds is invalid for the dataset, or a file is damaged.
    """
    if number is None or num_folds is None:
        return store
    parts = deal(store.spec, num_folds)
    validation = parts[number]
    train = tuple(sorted(set().union(*parts) - set(validation)))
    subjects = {"train": train, "validation": validation, "test": store.spec.subjects["test"]}
    pooled = {name: store.split(name) for name in POOLED}
    splits = {name: _select(store, pooled, name, subjects[name]) for name in POOLED}
    identity = f"{store.spec.fingerprint}, fold {number} of {num_folds}"
    spec = replace(
        store.spec,
        subjects=subjects,
        num_samples={
            **{name: len(split) for name, split in splits.items()},
            "test": store.spec.num_samples["test"],
        },
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    )
    return Fold(
        spec=spec,
        path=store.path,
        statistics={
            name: (mean_F.astype(np.float32), std_F.astype(np.float32))
            for name, (mean_F, std_F) in training_statistics(splits["train"]).items()
        },
        class_counts={
            **{name: count_classes(spec, split.labels) for name, split in splits.items()},
            "test": store.class_counts["test"],
        },
        checksums=store.checksums,
        base=store,
        splits=splits,
        number=number,
        num_folds=num_folds,
    )


def open_pooled(store: Store) -> Store:
    """Return the store with the samples of training and validation together as its training split.

    The validation split has the same samples as before, all of which are now trained on, and no
    subjects.

    Raises:
        DatasetError: a file is damaged.
    """
    spec, parts = store.spec, [store.split(name) for name in POOLED]
    train, validation = parts
    people = tuple(sorted(person for name in POOLED for person in spec.subjects[name]))
    code_of = {person: code for code, person in enumerate(people)}
    index = np.arange(len(train) + len(validation))
    pooled = Split(
        name="train",
        modalities={
            key: Rows([one.modalities[key] for one in parts], index) for key in spec.modalities
        },
        labels=np.concatenate([one.labels for one in parts]),
        subjects=np.concatenate([_codes(store, one, code_of) for one in parts]),
        lengths={key: np.concatenate([one.lengths[key] for one in parts]) for key in train.lengths},
    )
    identity = f"{spec.fingerprint}, training and validation"
    return Fold(
        spec=replace(
            spec,
            subjects={**spec.subjects, "train": people, "validation": ()},
            num_samples={**spec.num_samples, "train": len(index)},
            fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        ),
        path=store.path,
        statistics={
            name: (mean_F.astype(np.float32), std_F.astype(np.float32))
            for name, (mean_F, std_F) in training_statistics(pooled).items()
        },
        class_counts={**store.class_counts, "train": count_classes(spec, pooled.labels)},
        checksums=store.checksums,
        base=store,
        splits={
            "train": pooled,
            "validation": replace(validation, subjects=np.full(len(validation), -1)),
        },
        number=None,
        num_folds=None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Fold(Store):
    """A store with other splits of its samples; `statistics` are those of its training split."""

    base: Store
    splits: dict[str, Split]
    number: int | None
    """None: training and validation are pooled."""
    num_folds: int | None

    def split(self, name: str, *, unseal_test: bool = False) -> Split:
        """Return a split; see `Store.split`."""
        split = self.splits.get(name)
        return split if split else self.base.split(name, unseal_test=unseal_test)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.number is None:
            return open_pooled, (self.base,)
        return open_fold, (self.base, self.number, self.num_folds)


def _select(store: Store, pooled: dict[str, Split], name: str, people: tuple[str, ...]) -> Split:
    """Return the samples of some people from the pooled splits, in store order."""
    code_of, parts = {person: code for code, person in enumerate(people)}, list(pooled.values())
    codes = np.concatenate([_codes(store, split, code_of) for split in parts])
    index = np.flatnonzero(codes >= 0)

    def gather(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        joined: npt.NDArray[Any] = np.concatenate(arrays)[index]
        return joined

    return Split(
        name=name,
        modalities={
            key: Rows([split.modalities[key] for split in parts], index)
            for key in store.spec.modalities
        },
        labels=gather([split.labels for split in parts]),
        subjects=codes[index],
        lengths={key: gather([split.lengths[key] for split in parts]) for key in parts[0].lengths},
    )


def _codes(store: Store, split: Split, code_of: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the code of each sample's subject, -1 for a subject without a code, (N,)."""
    names = store.spec.subjects[split.name]
    of_name = np.array([code_of.get(person, -1) for person in names] + [-1], dtype=np.int64)
    return of_name[split.subjects]  # code -1 selects the last entry: no subject
