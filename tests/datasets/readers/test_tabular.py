"""Labels, splits and subjects from the table of a custom dataset."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.tabular import parse_pairs, read_labels, read_splits


@pytest.mark.parametrize(
    ("values", "names", "task", "classes", "expected"),
    [
        (["b", "a", "b"], None, "classification", ("a", "b"), [1, 0, 1]),
        ([2, 0, 2], None, "classification", ("0", "1", "2"), [2, 0, 2]),
        ([1, 0, 1], ["yes", "no", "yes"], "classification", ("no", "yes"), [1, 0, 1]),
        ([True, False], None, "classification", ("0", "1"), [1, 0]),
        ([0.5, 1, -2], None, "regression", (), [0.5, 1.0, -2.0]),
        ([[0, 1], [1, 1]], None, "multilabel", ("label_0", "label_1"), [(0, 1), (1, 1)]),
    ],
)
def test_the_task_is_inferred_from_the_labels(
    values: Any, names: Any, task: str, classes: tuple[str, ...], expected: Any
) -> None:
    found = read_labels("x", values, names, "auto")
    assert (found.task, found.classes, found.values) == (task, classes, expected)
    assert read_labels("x", values, names, task) == found


@pytest.mark.parametrize(
    ("values", "names", "task", "message"),
    [
        ([None, ""], None, "auto", "no sample has a label"),
        ([0, -1], None, "auto", r"classes must be in \[0, 10000\), but got -1 to 0"),
        ([0, 10**9], None, "auto", "classes must be in"),
        ([0, "a"], None, "auto", "classes must be strings or integers, but got int, str"),
        ([0, 1.5], None, "classification", "classes must be strings or integers"),
        ([0.5, float("inf")], None, "auto", "the label of sample 1 must be finite, not inf"),
        (["a"], None, "regression", "must be finite, not 'a'"),
        ([[0, 1], [1]], None, "auto", "sample 1 must have 2 labels of 0 and 1"),
        ([[0, 2]], None, "auto", "sample 0 must have 2 labels of 0 and 1"),
        ([[]], None, "auto", "must have 0 labels"),
        ([0, 0], ["a", "b"], "auto", "class 0 has two names: 'a' and 'b'"),
        ([0], None, "sorting", "`task` must be auto, classification, multilabel or regression"),
    ],
)
def test_invalid_labels_are_refused(values: Any, names: Any, task: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        read_labels("x", values, names, task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "missing", "classes"),
    [
        ([1, None, 0], {1}, ("0", "1")),
        (["", "b", "a", " "], {0, 3}, ("a", "b")),
        ([0.5, float("nan")], {1}, ()),
        ([[0, 1], [1, None]], {1}, ("label_0", "label_1")),
    ],
)
def test_missing_labels_are_of_no_class(
    values: list[Any], missing: set[int], classes: tuple[str, ...]
) -> None:
    found = read_labels("x", values, None, "auto")
    assert (found.missing, found.classes) == (missing, classes)
    faults = [found.fault(number) for number in range(len(values))]
    assert [number for number, fault in enumerate(faults) if fault] == sorted(missing)
    assert set(faults) == {"", "it has no label"}


def test_common_split_names_are_accepted() -> None:
    given = ["Train", "val", "dev", "validation", "valid", "test", "training"]
    names = list("abcdefg")
    found = read_splits("x", given, [None] * 7, [0] * 7, names)
    assert found == ["train", *["validation"] * 4, "test", "train"]
    with pytest.raises(DatasetError, match=r"a split must be one of train, .* got 'later'"):
        read_splits("x", ["later"], [None], [0], ["a"])


def test_splits_are_drawn_by_subject() -> None:
    people = [f"p{n % 10}" for n in range(100)]
    names = [str(n) for n in range(100)]
    found = read_splits("x", None, people, [0] * 100, names)
    of_person = {person: {s for s, p in zip(found, people, strict=True) if p == person}
                 for person in people}  # fmt: skip
    assert all(len(splits) == 1 for splits in of_person.values())
    assert Counter(next(iter(s)) for s in of_person.values()) == {
        "train": 6, "validation": 2, "test": 2
    }  # fmt: skip
    reordered = read_splits("x", None, people[::-1], [0] * 100, names[::-1])
    assert reordered == found[::-1]  # the order of rows does not matter


def test_splits_are_drawn_within_classes() -> None:
    labels = [0] * 80 + [1] * 10
    found = read_splits("x", None, [None] * 90, labels, [str(n) for n in range(90)])
    assert Counter(found[:80]) == {"train": 48, "validation": 16, "test": 16}
    assert Counter(found[80:]) == {"train": 6, "validation": 2, "test": 2}


def test_parse_pairs() -> None:
    assert parse_pairs("", "dims") == {}
    assert parse_pairs("audio=32,image=1", "dims") == {"audio": 32, "image": 1}
    for wrong in ("audio", "audio=", "audio=0", "audio=-1", "audio=x", "audio=1e3"):
        with pytest.raises(DatasetError, match="Option `dims` must be NAME=NUMBER"):
            parse_pairs(wrong, "dims")
