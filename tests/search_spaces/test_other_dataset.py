"""Adapt study files to datasets with other modalities."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sftsearch.datasets.spec import DatasetSpec, ModalitySpec
from sftsearch.search_spaces.other_dataset import adapt, adapt_branch

LENGTHS = {"long": 64, "short": 12}


def adapted(**branch: Any) -> dict[str, Any]:
    adapt_branch(branch, LENGTHS)
    return branch


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


def test_a_branch_that_fits_stays_the_same() -> None:
    branch = {"modalities": choice(["long"], ["long", "short"]), "patch": 100, "stride": 100}
    assert adapted(**branch) == branch


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (choice(["a"]), choice(["long"], ["short"])),
        (choice(["a", "b"], ["a", "b", "c"]), ["long", "short"]),
        (choice(["a"], ["a", "b", "c"]), choice(["long"], ["short"], ["long", "short"])),
        (["a", "b"], ["long", "short"]),
    ],
)
def test_modalities_are_replaced_by_subsets_of_the_same_sizes(given: Any, expected: Any) -> None:
    assert adapted(modalities=given)["modalities"] == expected


def test_a_parameter_by_modality_gets_the_values_of_the_first() -> None:
    branch = adapted(modalities=["a", "b"], tokens={"a": choice(1, 2), "b": 4})
    assert branch["tokens"] == {"long": choice(1, 2), "short": choice(1, 2)}


def test_longer_patches_and_strides_are_left_out() -> None:
    """In patches of up to 8, 64 and 12 samples are 8 and 2 tokens."""
    branch = adapted(modalities=["a"], patch=choice(4, 8, 16), stride={"a": choice(1, 2, 4, 8, 16)})
    assert branch["patch"] == choice(4, 8)
    assert branch["stride"] == {"long": choice(1, 2, 4, 8), "short": choice(1, 2)}


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (choice(4, 8, 32), choice(4, 8)),
        (choice(16, 32), choice(12)),
        (20, 12),
        ({"kind": "int", "low": 2, "high": 30}, {"kind": "int", "low": 2, "high": 12}),
        (None, None),
    ],
)
def test_one_stride_for_all_is_limited_by_the_shortest_modality(stride: Any, expected: Any) -> None:
    assert adapted(modalities=["a"], stride=stride)["stride"] == expected


def subsets(number: int, *sizes: int) -> set[tuple[str, ...]]:
    """Return the subsets of `number` modalities that replace choices of these sizes."""
    lengths = {f"m{i}": 16 for i in range(number)}
    given = choice(*([f"old{i}" for i in range(size)] for size in sizes))
    branch = {"modalities": given}
    adapt_branch(branch, lengths)
    values: Any = branch["modalities"]
    return {tuple(one) for one in (values["values"] if isinstance(values, dict) else [values])}


@pytest.mark.parametrize(
    ("number", "sizes", "expected"),
    [(4, (1, 2, 4), 15), (4, (2, 4), 11), (3, (2,), 3), (3, (1,), 3), (1, (2, 4), 1)],
)
def test_all_subsets_of_up_to_four_modalities(
    number: int, sizes: tuple[int, ...], expected: int
) -> None:
    """Of n modalities there are 2^n - 1 subsets, n of one and n (n - 1) / 2 of two."""
    assert len(subsets(number, *sizes)) == expected


def test_of_more_modalities_each_all_and_all_but_one() -> None:
    found = subsets(6, 1, 2, 4)
    assert sorted(map(len, found)) == [1] * 6 + [5] * 6 + [6]
    assert sorted(map(len, subsets(6, 2, 4))) == [5] * 6 + [6]


def test_strides_are_at_most_the_fewest_segments_of_a_modality() -> None:
    """12 samples in 16 or more segments are 12 tokens."""
    branch = adapted(modalities=["a"], segments=choice(16, 32), stride={"a": choice(4, 8, 16, 64)})
    assert branch["segments"] == choice(16, 32)
    assert branch["stride"] == {"long": choice(4, 8, 16), "short": choice(4, 8)}


def dataset(samples: int) -> DatasetSpec:
    return DatasetSpec(
        name="other",
        modalities={
            name: ModalitySpec(num_tokens=n, num_features=1) for name, n in LENGTHS.items()
        },
        classes=("no", "yes"),
        num_samples={"train": samples, "validation": 10, "test": 10},
        subjects={"train": (), "validation": (), "test": ()},
        licence="none",
        attribution="nobody",
        source="here",
        description="Nothing.",
        fingerprint="0" * 64,
    )


def study(**training: Any) -> dict[str, Any]:
    stopping = {"kind": "mo_asha", "min_epochs": 4}
    return {
        "dataset": {"kind": "other"},
        "training": training,
        "search": {"early_stopping": stopping},
        "space": [{"kind": "sft"}],
    }


@pytest.mark.parametrize(
    ("own", "samples", "epochs", "least"),
    [
        (2029, 600, 26, 13),  # 8 * ceil(2029 / 48) = 344 steps; 344 / ceil(600 / 48) = 26.5
        (2029, 48, 80, 40),  # at most ten times the epochs
        (2029, 9000, 4, 2),  # at least half of them
        (2029, 2000, 8, 4),
    ],
)
def test_epochs_keep_the_number_of_training_steps(
    own: int, samples: int, epochs: int, least: int
) -> None:
    data = study(epochs=8, batch_size=48)
    notes = adapt(data, dataset(samples), dataset(own))
    assert data["training"]["epochs"] == epochs
    assert data["search"]["early_stopping"]["min_epochs"] == least
    assert [note.split(":")[0] for note in notes] == ([] if epochs == 8 else ["epochs"])


def test_all_parameters_in_epochs_change_with_their_number() -> None:
    data = study(epochs=8, batch_size=10, mixup_warmup=2, patience=3, warmup_epochs=0.5)
    data["space"][0]["mixup_warmup"] = 1
    adapt(data, dataset(100), dataset(200))
    expected = {"epochs": 16, "mixup_warmup": 4, "patience": 6, "warmup_epochs": 1.0}
    assert data["training"] == {"batch_size": 10, **expected}
    assert data["space"][0]["mixup_warmup"] == 2


@pytest.mark.parametrize("axes", [None, 3])
def test_rotation_needs_three_axes(axes: int | None) -> None:
    shape = ModalitySpec(num_tokens=8, num_features=3, axes=axes)
    spec = dataclasses.replace(dataset(100), modalities={"sensor": shape})
    data = study(epochs=8, rotation=15)
    data["space"][0]["rotation"] = choice(0, 15)
    notes = adapt(data, spec, None)
    assert ("rotation" in data["training"]) == ("rotation" in data["space"][0]) == (axes == 3)
    assert len(notes) == (axes is None)


def test_epochs_stay_if_the_own_dataset_is_unknown() -> None:
    data = study(epochs=8)
    assert adapt(data, dataset(10), None) == []
    assert data["training"] == {"epochs": 8}


@pytest.mark.parametrize(
    ("train", "validating", "given", "expected"),
    [
        (9, 3, None, 4),
        (3, 1, None, 4),
        (2, 1, None, None),  # too few people for four folds
        (12, 5, None, None),  # enough validate
        (0, 0, None, None),  # subjects are unknown
        (12, 5, 6, 6),
        (2, 1, 6, 3),  # not more folds than people
    ],
)
def test_few_validation_subjects_lead_to_folds(
    train: int, validating: int, given: int | None, expected: int | None
) -> None:
    people = {"train": train, "validation": validating, "test": 2}
    subjects = {
        split: tuple(f"{split} {i:02d}" for i in range(count)) for split, count in people.items()
    }
    spec = dataclasses.replace(dataset(100), subjects=subjects)
    data = study(epochs=8)
    if given is not None:
        data["dataset"]["folds"] = given
    notes = adapt(data, spec, None)
    assert data["dataset"].get("folds") == expected
    assert [note.split(":")[0] for note in notes] == (["folds"] if expected and not given else [])
