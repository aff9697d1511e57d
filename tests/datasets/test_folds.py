"""Grouped folds of real datasets, compared with the samples of their splits."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.errors import DatasetError, SealedSplitError
from sftsearch.datasets.folds import deal, fold_of, open_fold

if TYPE_CHECKING:
    from sftsearch.datasets.store import Store

DATASETS = {"digits": 4, "wearables": 5}


def people(store: Store, name: str) -> list[str]:
    return [store.spec.subjects[name][code] for code in store.split(name).subjects]


@pytest.mark.parametrize(("name", "num_folds"), DATASETS.items())
def test_every_sample_is_in_one_validation_fold(name: str, num_folds: int) -> None:
    store = open_dataset(name)
    everything = {
        (person, *row.tobytes()[:64])
        for split in ("train", "validation")
        for person, row in zip(
            people(store, split), store.split(split).modalities[first(store)], strict=True
        )
    }
    validated: list[tuple[object, ...]] = []
    for number in range(num_folds):
        fold = open_fold(store, number, num_folds)
        train, validation = set(people(fold, "train")), set(people(fold, "validation"))
        assert not train & validation
        assert len(train | validation) == len(
            set(people(store, "train") + people(store, "validation"))
        )
        rows = fold.split("validation").modalities[first(store)][:]
        validated += [
            (person, *row.tobytes()[:64])
            for person, row in zip(people(fold, "validation"), rows, strict=True)
        ]
        assert fold.spec.num_samples["validation"] == len(rows)
        assert len(fold.split("train")) + len(rows) == len(store.split("train")) + len(
            store.split("validation")
        )
    assert set(validated) == everything


def first(store: Store) -> str:
    return next(iter(store.spec.modalities))


@pytest.mark.parametrize(("name", "num_folds"), DATASETS.items())
def test_labels_and_lengths_stay_with_their_samples(name: str, num_folds: int) -> None:
    store = open_dataset(name)
    fold = open_fold(store, 1, num_folds)
    known = {}
    for source in (store.split("train"), store.split("validation")):
        for i, row in enumerate(source.modalities[first(store)]):
            facts = (source.labels[i], *(length[i] for length in source.lengths.values()))
            known[row.tobytes()] = facts
    for split in (fold.split("train"), fold.split("validation")):
        for i in np.random.default_rng(0).choice(len(split), 50):
            row = split.modalities[first(store)][np.array([i])][0]
            facts = (split.labels[i], *(length[i] for length in split.lengths.values()))
            assert known[row.tobytes()] == facts


@pytest.mark.parametrize(("name", "num_folds"), DATASETS.items())
def test_statistics_of_a_fold_are_those_of_its_training_split(name: str, num_folds: int) -> None:
    """Compare with sums over the valid tokens of its training samples, in float64."""
    store = open_dataset(name)
    fold = open_fold(store, 0, num_folds)
    split = fold.split("train")
    for modality, (mean_F, std_F) in fold.statistics.items():
        x_NTF = split.modalities[modality][:].astype(np.float64)
        lengths = split.lengths.get(modality, np.full(len(x_NTF), x_NTF.shape[1]))
        tokens = np.concatenate([x[:n] for x, n in zip(x_NTF, lengths, strict=True)])
        np.testing.assert_allclose(mean_F, tokens.mean(axis=0), rtol=1e-5, atol=1e-6)
        deviations = np.sqrt((tokens**2).mean(axis=0) - tokens.mean(axis=0) ** 2)
        np.testing.assert_allclose(std_F, deviations, rtol=1e-5)


def test_as_many_folds_as_speakers_leave_one_out() -> None:
    spec = open_dataset("digits").spec
    assert deal(spec, 4) == [("jackson",), ("lucas",), ("nicolas",), ("yweweler",)]


def test_parts_differ_by_one_person_at_most() -> None:
    sizes = [len(part) for part in deal(open_dataset("wearables").spec, 5)]
    assert sizes == [4, 4, 3, 3, 3]


def test_the_test_split_is_unchanged_and_sealed() -> None:
    store = open_dataset("digits")
    fold = open_fold(store, 2, 4)
    with pytest.raises(SealedSplitError):
        fold.split("test")
    expected, found = store.split("test", unseal_test=True), fold.split("test", unseal_test=True)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert fold.spec.subjects["test"] == store.spec.subjects["test"]


def test_every_fold_has_a_fingerprint_of_its_own() -> None:
    store = open_dataset("digits")
    prints = {open_fold(store, k, n).spec.fingerprint for n in (3, 4) for k in range(n)}
    assert len(prints | {store.spec.fingerprint}) == 8


def test_fold_of_replicates_is_round_robin() -> None:
    assert [fold_of(replicate, 3) for replicate in range(5)] == [0, 1, 2, 0, 1]
    assert fold_of(7, None) is None
    store = open_dataset("digits")
    assert open_fold(store, None, None) is store


def test_a_fold_can_be_pickled() -> None:
    fold = open_fold(open_dataset("digits"), 3, 4)
    again = pickle.loads(pickle.dumps(fold))
    assert again.spec == fold.spec
    np.testing.assert_array_equal(again.split("train").labels, fold.split("train").labels)


@pytest.mark.parametrize("num_folds", [0, 1, 5])
def test_a_wrong_number_of_folds_is_refused(num_folds: int) -> None:
    with pytest.raises(DatasetError, match=f"from 2 to the 4 subjects.*but got {num_folds}"):
        deal(open_dataset("digits").spec, num_folds)


def test_folds_need_subjects() -> None:
    spec = open_dataset("digits").spec
    nameless = replace(spec, subjects={**spec.subjects, "validation": ()})
    with pytest.raises(DatasetError, match="names none"):
        deal(nameless, 2)
