"""Stores: zero-copy reads, atomic writes, and refusal of damaged or hostile files."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from sftsearch.datasets.catalog import cache_folder, describe, open_dataset, store_path
from sftsearch.datasets.errors import DatasetError, SealedSplitError, UserError
from sftsearch.datasets.samples import Split
from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec
from sftsearch.datasets.store import Store, open_store, verify
from sftsearch.datasets.writer import write_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534

SPEC = DatasetSpec(
    name="tiny",
    modalities={
        "zebra": ModalitySpec(num_tokens=3, num_features=2),
        "ant": ModalitySpec(num_tokens=2, num_features=1),
    },
    classes=("no", "yes"),
    num_samples={"train": 7, "validation": 4, "test": 3},
    subjects={"train": ("s1", "s3"), "validation": ("s2",), "test": ()},
    licence="none",
    attribution="nobody",
    source="this test",
    description="A few random numbers.",
    fingerprint="0" * 64,
)
VARIABLE = {
    "zebra": ModalitySpec(num_tokens=3, num_features=2, variable_length=True),
    "ant": ModalitySpec(num_tokens=2, num_features=1, variable_length=True),
}
SPECS = {
    "classification": replace(SPEC, modalities=VARIABLE),
    "multilabel": replace(SPEC, task="multilabel", classes=("big", "red", "old")),
    "regression": replace(
        SPEC,
        task="regression",
        classes=(),
        modalities={**SPEC.modalities, "zebra": VARIABLE["zebra"]},
    ),
}
"""One per task; all modalities of the first have variable length, and one of the last."""


def samples(spec: DatasetSpec = SPEC) -> dict[str, Split]:
    random_ = np.random.default_rng(0)
    splits = {}
    for name in SPLITS:
        count, people = spec.num_samples[name], len(spec.subjects[name])
        splits[name] = Split(
            name=name,
            modalities={
                key: random_.standard_normal((count, shape.num_tokens, shape.num_features)).astype(
                    np.float32
                )
                for key, shape in spec.modalities.items()
            },
            labels=labels(spec, count),
            subjects=np.arange(count, dtype=np.int64) % people if people else np.full(count, -1),
            # Each counts from a different start, so that no sample lacks both.
            lengths={
                key: np.arange(start, start + count) % (shape.num_tokens + 1)
                for start, (key, shape) in enumerate(spec.modalities.items())
                if shape.variable_length
            },
        )
        for key, lengths in splits[name].lengths.items():
            tokens = splits[name].modalities[key]
            for sample, length in enumerate(lengths):
                tokens[sample, length:] = 0
    return splits


def labels(spec: DatasetSpec, count: int) -> np.ndarray:
    numbers = np.arange(count, dtype=np.int64)
    if spec.task == "classification":
        return numbers % spec.num_classes
    if spec.task == "multilabel":  # of three labels the first is always 1, the last always 0
        return (numbers[:, None] % 4 < [4, 2, 0]).astype(np.float32)
    return (numbers / 3).astype(np.float32)


@pytest.fixture(params=SPECS)
def varied(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return a store of each task."""
    spec = SPECS[request.param]
    write_store(tmp_path / "tiny", spec, samples(spec))
    return open_store(tmp_path / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_store(tmp_path / "tiny", SPEC, samples())
    return open_store(tmp_path / "tiny")


def edit_manifest(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message


# Round trip


def test_store_returns_the_written_samples(store: Store) -> None:
    assert store.spec == SPEC
    assert list(store.spec.modalities) == ["zebra", "ant"]
    assert store.class_counts == {"train": (4, 3), "validation": (2, 2), "test": (2, 1)}
    for name, expected in samples().items():
        split = store.split(name, unseal_test=True)
        assert len(split) == SPEC.num_samples[name]
        assert list(split.modalities) == ["zebra", "ant"]
        for key, tokens in expected.modalities.items():
            np.testing.assert_array_equal(split.modalities[key], tokens)
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.subjects, expected.subjects)


def test_tasks_and_lengths_are_read_back(varied: Store) -> None:
    assert varied.spec == SPECS[varied.spec.task]
    verify(varied)
    for name, expected in samples(varied.spec).items():
        split = pickle.loads(pickle.dumps(varied)).split(name, unseal_test=True)
        assert len(split) == varied.spec.num_samples[name]
        np.testing.assert_array_equal(split.labels, expected.labels, strict=True)
        assert list(split.lengths) == list(expected.lengths)
        for key, lengths in expected.lengths.items():
            np.testing.assert_array_equal(split.lengths[key], lengths, strict=True)
        for key, tokens in expected.modalities.items():
            np.testing.assert_array_equal(split.modalities[key], tokens)


def test_class_counts_follow_the_task(varied: Store) -> None:
    assert (
        varied.class_counts["train"]
        == {
            "classification": (4, 3),
            "multilabel": (7, 4, 0),
            "regression": (),
        }[varied.spec.task]
    )


def test_statistics_are_of_valid_tokens(varied: Store) -> None:
    train = samples(varied.spec)["train"]
    for name, (mean, std) in varied.statistics.items():
        tokens = train.modalities[name].astype(np.float64)
        lengths = train.lengths.get(name, [tokens.shape[1]] * len(tokens))
        valid = [tokens[i, t] for i, length in enumerate(lengths) for t in range(length)]
        np.testing.assert_allclose(mean, np.mean(valid, axis=0), rtol=1e-5)
        np.testing.assert_allclose(std, np.std(valid, axis=0), rtol=1e-5)


def test_test_split_stays_sealed(store: Store) -> None:
    with pytest.raises(SealedSplitError, match="sftsearch confirm"):
        store.split("test")
    with pytest.raises(DatasetError, match=r"No split is called 'val'. Known: train, validation"):
        store.split("val")


def test_a_constant_feature_has_standard_deviation_one(tmp_path: Path) -> None:
    splits = samples()
    splits["train"].modalities["ant"][:] = 5.0
    write_store(tmp_path / "tiny", SPEC, splits)
    mean, std = open_store(tmp_path / "tiny").statistics["ant"]
    assert (mean.tolist(), std.tolist()) == ([5.0], [1.0])
    assert not mean.flags.writeable


def test_a_pickled_store_is_its_path(store: Store) -> None:
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert again.spec == store.spec
    assert again.path == store.path


# Zero copies


def mapping_of(array: np.ndarray) -> str:
    """Return the line of /proc/self/maps that contains the start of the array."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line
    raise AssertionError("the array is in no mapping")


@pytest.mark.parametrize("task", ["fixed", *SPECS])
def test_views_are_memory_maps_of_the_file(tmp_path: Path, task: str) -> None:
    spec = SPECS.get(task, SPEC)
    write_store(tmp_path / "tiny", spec, samples(spec))
    store = open_store(tmp_path / "tiny")
    file = store.path / "train.arrow"
    before = pa.total_allocated_bytes()
    splits = [store.split("train"), open_store(store.path).split("train")]
    assert pa.total_allocated_bytes() == before
    for split in splits:
        tokens = [part for x in split.modalities.values() for part in getattr(x, "parts", (x,))]
        for lengths in split.lengths.values():  # computed from the lists
            assert not lengths.flags.writeable
        for array in (*tokens, split.labels, split.subjects):
            assert not array.flags.owndata
            assert not array.flags.writeable
            fields = mapping_of(array).split()
            # Read-only, so all processes that map the file share the pages.
            assert fields[1].startswith("r--")
            assert fields[4] == str(file.stat().st_ino)
            assert fields[5] == str(file)


def test_views_outlive_their_store_and_their_folder(tmp_path: Path) -> None:
    write_store(tmp_path / "tiny", SPEC, samples())
    tokens = open_store(tmp_path / "tiny").split("train").modalities["zebra"]
    shutil.rmtree(tmp_path / "tiny")
    np.testing.assert_array_equal(tokens, samples()["train"].modalities["zebra"])


# Damaged and hostile stores


def set_in(*keys: str | int, value: object) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("spec"),
        lambda manifest: manifest.pop("statistics"),
        lambda manifest: manifest["spec"].pop("licence"),
        lambda manifest: manifest["files"].pop("test"),
        set_in("spec", value=[]),
        set_in("spec", "name", value="../tiny"),
        set_in("spec", "name", value=None),
        set_in("spec", "surprise", value=1),
        set_in("spec", "classes", value=["yes", "yes"]),
        set_in("spec", "classes", value=[1, 2]),
        set_in("spec", "modalities", value={}),
        set_in("spec", "modalities", "ant", "num_tokens", value=-2),
        set_in("spec", "modalities", "ant", "num_tokens", value=2.0),
        set_in("spec", "modalities", "ant", value=[2, 1]),
        set_in("spec", "num_samples", "train", value="seven"),
        set_in("spec", "subjects", "test", value=["s1"]),
        set_in("spec", "fingerprint", value="0" * 63 + "\n"),
        set_in("spec", "best_accuracy", value=1.5),
        set_in("spec", "task", value="clustering"),
        set_in("spec", "task", value=["regression"]),
        set_in("spec", "task", value=None),
        set_in("spec", "task", value="regression"),
        set_in("spec", "modalities", "ant", "variable_length", value=1),
        set_in("spec", "modalities", "ant", "variable_length", value=[]),
        set_in("statistics", "ant", "mean", value=[float("nan")]),
        set_in("statistics", "ant", "mean", value=[1e300]),
        set_in("statistics", "ant", "std", value=[0.0]),
        set_in("statistics", "ant", "std", value=[1.0, 1.0]),
        set_in("statistics", "ant", "std", value="1"),
        set_in("class_counts", "train", value=[4, 4]),
        set_in("class_counts", "train", value=[float("inf")]),
        set_in("files", "train", "num_bytes", value=None),
        set_in("files", "train", "num_bytes", value=12),
        set_in("files", "train", "sha256", value=12),
    ],
)
def test_a_damaged_manifest_is_refused(
    store: Store, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_manifest(store, change)
    with pytest.raises(DatasetError) as raised:
        open_store(store.path)
    assert_one_line(raised.value, str(store.path), "damaged", "Delete the folder")


@pytest.mark.parametrize("counts", [[7, 4], [8, 4, 0], [7, -1, 0], [7, 4, "x"], None])
def test_invalid_label_counts_are_refused(tmp_path: Path, counts: object) -> None:
    spec = SPECS["multilabel"]
    write_store(tmp_path / "tiny", spec, samples(spec))
    edit_manifest(open_store(tmp_path / "tiny"), set_in("class_counts", "train", value=counts))
    with pytest.raises(DatasetError, match=r"damaged .* Delete the folder"):
        open_store(tmp_path / "tiny")


@pytest.mark.parametrize("counts", [[6, 4, 0], [4, 7, 0]])
def test_labels_that_do_not_match_the_counts_are_refused(tmp_path: Path, counts: list[int]) -> None:
    spec = SPECS["multilabel"]
    write_store(tmp_path / "tiny", spec, samples(spec))
    edit_manifest(open_store(tmp_path / "tiny"), set_in("class_counts", "train", value=counts))
    with pytest.raises(DatasetError, match="its labels do not match the class counts"):
        open_store(tmp_path / "tiny").split("train")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_store_of_another_task_is_refused(store: Store, task: str) -> None:
    """Change the task in the manifest, but not the columns."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["spec"]["task"] = task
        if task == "regression":
            manifest["spec"]["classes"] = []
            manifest["class_counts"] = {split: [] for split in SPLITS}

    edit_manifest(store, change)
    with pytest.raises(DatasetError, match="its columns do not match the manifest"):
        open_store(store.path).split("train")


def test_unexpected_or_absent_lengths_are_refused(varied: Store) -> None:
    for value in (True, False):
        edit_manifest(varied, set_in("spec", "modalities", "ant", "variable_length", value=value))
        if varied.spec.modalities["ant"].variable_length != value:
            with pytest.raises(DatasetError, match="its columns do not match the manifest"):
                open_store(varied.path).split("train")
        else:
            assert len(open_store(varied.path).split("train")) == 7


def overwrite(store: Store, before: np.ndarray, after: np.ndarray) -> None:
    """Change numbers in the file of the training split; they must occur once."""
    file = store.path / "train.arrow"
    content = file.read_bytes()
    assert content.count(before.tobytes()) == 1
    assert len(before.tobytes()) == len(after.tobytes())
    file.write_bytes(content.replace(before.tobytes(), after.tobytes()))


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        ("multilabel", 2.0, "`labels` must be 0 or 1"),
        ("multilabel", 0.5, "`labels` must be 0 or 1"),
        ("multilabel", np.nan, "`labels` must be 0 or 1"),
        ("multilabel", -1.0, "`labels` must be 0 or 1"),
        ("regression", np.nan, "`labels` must be finite"),
        ("regression", -np.inf, "`labels` must be finite"),
    ],
)
def test_invalid_labels_are_refused(tmp_path: Path, task: str, value: float, message: str) -> None:
    spec = SPECS[task]
    write_store(tmp_path / "tiny", spec, samples(spec))
    before = samples(spec)["train"].labels
    after = before.copy()
    after.flat[-1] = value
    overwrite(open_store(tmp_path / "tiny"), before, after)
    with pytest.raises(DatasetError, match=f"train.arrow: {message}"):
        open_store(tmp_path / "tiny").split("train")


@pytest.mark.parametrize(
    ("number", "end", "message"),
    [
        (0, 1, r"its lists are not tokens of 2 features"),  # starts after the beginning
        (1, 3, r"its lists are not tokens of 2 features"),  # half a token
        (7, 16, r"its lists are not tokens of 2 features"),  # tokens after the last sample
        (1, -2, r"its lists must have up to 3 tokens"),
        (2, 2**30, r"its lists must have up to 3 tokens"),
        (3, 0, r"its lists must have up to 3 tokens"),
    ],
)
def test_invalid_lists_are_refused(tmp_path: Path, number: int, end: int, message: str) -> None:
    spec = SPECS["classification"]
    write_store(tmp_path / "tiny", spec, samples(spec))
    lengths = samples(spec)["train"].lengths["zebra"]
    before = np.concatenate([[0], 2 * np.cumsum(lengths)]).astype(np.int32)
    after = before.copy()
    after[number] = end
    overwrite(open_store(tmp_path / "tiny"), before, after)
    with pytest.raises(DatasetError, match=f"train.arrow: {message}"):
        open_store(tmp_path / "tiny").split("train")


def test_a_sample_without_any_modality_is_refused(tmp_path: Path) -> None:
    spec = SPECS["classification"]
    write_store(tmp_path / "tiny", spec, samples(spec))
    lengths = samples(spec)["train"].lengths["ant"]
    before = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    after = before.copy()
    after[5] = before[4]  # sample 4 also lacks the zebra; its ant token moves to sample 5
    overwrite(open_store(tmp_path / "tiny"), before, after)
    with pytest.raises(DatasetError, match=r"every sample must have a modality, but sample 4 has"):
        open_store(tmp_path / "tiny").split("train")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"format_version": 1}',
        b"[" * 200_000,
        b" " * (5 << 20),
        b'{"format_version": ' + b"1" * 5000 + b"}",
    ],
)
def test_an_unparsable_manifest_is_refused(store: Store, content: bytes) -> None:
    (store.path / "manifest.json").write_bytes(content)
    with pytest.raises(DatasetError) as raised:
        open_store(store.path)
    assert_one_line(
        raised.value,
        str(store.path),
        "Delete the folder to rebuild the dataset, or prepare it again.",
    )


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, "x" * 10_000])
def test_another_format_version_says_to_delete(store: Store, version: object) -> None:
    edit_manifest(store, set_in("format_version", value=version))
    with pytest.raises(DatasetError) as raised:
        open_store(store.path)
    assert_one_line(
        raised.value,
        "format version",
        "Delete the folder to rebuild the dataset, or prepare it again.",
    )


def test_a_missing_store_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no store at"):
        open_store(tmp_path / "tiny")
    (tmp_path / "tiny").mkdir()
    with pytest.raises(DatasetError, match=r"manifest.json: it is missing.*Delete the folder"):
        open_store(tmp_path / "tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"Cannot read the store .*Not a directory"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("name", SPLITS)
def test_a_truncated_file_is_noticed_at_opening(store: Store, name: str) -> None:
    file = store.path / f"{name}.arrow"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetError) as raised:
        open_store(store.path)
    assert_one_line(raised.value, f"{name}.arrow: it has", "Delete the folder")
    file.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        open_store(store.path)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 600, -4, -100])
def test_a_truncated_file_with_a_matching_manifest_is_refused(store: Store, kept: int) -> None:
    file = store.path / "train.arrow"
    file.write_bytes(file.read_bytes()[:kept])
    edit_manifest(store, set_in("files", "train", "num_bytes", value=file.stat().st_size))
    with pytest.raises(DatasetError) as raised:
        open_store(store.path).split("train")
    assert_one_line(raised.value, "train.arrow", "Delete the folder")


def test_a_changed_number_is_found_by_verify(store: Store) -> None:
    verify(store)
    file = store.path / "train.arrow"
    content = bytearray(file.read_bytes())
    first = content.index(samples()["train"].modalities["zebra"].tobytes())
    content[first] ^= 1
    file.write_bytes(content)
    opened = open_store(store.path)
    with pytest.raises(DatasetError, match=r"train.arrow: sha256 is .* the manifest says"):
        verify(opened)
    file.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        verify(opened)


@pytest.mark.parametrize(
    ("name", "value"), [("labels", 2), ("labels", -1), ("labels", 2**62), ("subjects", 2)]
)
def test_codes_out_of_range_are_refused(store: Store, name: str, value: int) -> None:
    codes = {"labels": samples()["train"].labels, "subjects": samples()["train"].subjects}
    file = store.path / "train.arrow"
    content, wrong = file.read_bytes(), codes[name].copy()
    wrong[0] = value
    # The labels come first, so the first match is their column.
    where = content.index(codes["labels"].tobytes())
    if name == "subjects":
        where = content.index(codes["subjects"].tobytes(), where + 8 * len(wrong))
    file.write_bytes(content[:where] + wrong.tobytes() + content[where + 8 * len(wrong) :])
    with pytest.raises(DatasetError, match=r"train.arrow: `labels` must be|subject without a name"):
        open_store(store.path).split("train")


def test_a_file_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    spec = replace(SPEC, modalities={"zebra": ModalitySpec(num_tokens=6, num_features=1)})
    write_store(tmp_path / "other", spec, samples(spec))
    shutil.copy(tmp_path / "other" / "train.arrow", store.path)
    size = (store.path / "train.arrow").stat().st_size
    edit_manifest(store, set_in("files", "train", "num_bytes", value=size))
    with pytest.raises(DatasetError, match="its columns do not match the manifest"):
        open_store(store.path).split("train")


@pytest.mark.medium
@pytest.mark.parametrize("task", ["fixed", *SPECS])
def test_random_damage_gives_one_line_or_samples(tmp_path: Path, task: str) -> None:
    """Change bytes of the manifest and of the Arrow metadata a thousand times."""
    spec = SPECS.get(task, SPEC)
    write_store(tmp_path / "tiny", spec, samples(spec))
    store = open_store(tmp_path / "tiny")
    draw = random.Random(0)
    for name in ("manifest.json", "train.arrow"):
        file = store.path / name
        intact = file.read_bytes()
        for _ in range(500):
            content = bytearray(intact)
            for _ in range(draw.choice((1, 1, 3))):
                content[draw.randrange(len(content))] = draw.choice((0, 34, 45, 57, 127, 255))
            file.write_bytes(content)
            try:
                split = open_store(store.path).split("train")
            except DatasetError as error:
                assert_one_line(error)
            else:
                assert len(split) == 7
        file.write_bytes(intact)


# Samples that do not match the spec


def with_modality(tokens: np.ndarray) -> dict[str, Split]:
    splits = samples()
    modalities = {**splits["train"].modalities, "ant": tokens}
    return {**splits, "train": replace(splits["train"], modalities=modalities)}


def with_field(**fields: object) -> dict[str, Split]:
    splits = samples()
    return {**splits, "train": replace(splits["train"], **fields)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (with_modality(np.zeros((7, 2, 2), np.float32)), r"must be float32 \(7, 2, 1\)"),
        (with_modality(np.zeros((7, 2, 1))), r"but got float64"),
        (with_modality(np.full((7, 2, 1), np.nan, np.float32)), "must be finite"),
        (with_modality(np.full((7, 2, 1), np.inf, np.float32)), "must be finite"),
        (with_field(modalities={}), r"must have modalities .*, but got \[\]"),
        (with_field(labels=np.arange(7)), r"`labels` .* in \[0, 2\), but got 0 to 6"),
        (with_field(labels=np.zeros(6, np.int64)), r"must have 7 samples, but got 6"),
        (with_field(subjects=np.full(7, -2)), r"`subjects` .* in \[-1, 2\)"),
    ],
)
def test_samples_that_do_not_match_the_spec_are_not_written(
    tmp_path: Path, splits: dict[str, Split], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        write_store(tmp_path / "tiny", SPEC, splits)
    assert list(tmp_path.iterdir()) == []


LENGTHS = np.array([1, 2, 0, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("classification", {"lengths": {}}, r"lengths of \['zebra', 'ant'\], but got \[\]"),
        ("regression", {"lengths": {"ant": LENGTHS}}, r"of \['zebra'\], but got \['ant'\]"),
        ("multilabel", {"lengths": {"ant": LENGTHS}}, r"lengths of \[\], but got \['ant'\]"),
        ("regression", {"lengths": {"zebra": LENGTHS[:6]}}, r"must be int64 \(7,\), but got int64"),
        ("regression", {"lengths": {"zebra": LENGTHS / 1}}, "but got float64"),
        ("regression", {"lengths": {"zebra": LENGTHS + 2}}, r"in \[0, 3\], but got 2 to 4"),
        ("regression", {"lengths": {"zebra": LENGTHS - 1}}, r"in \[0, 3\], but got -1 to 1"),
        ("regression", {"lengths": {"zebra": LENGTHS * 0}}, "zebra .* must be zero after"),
        ("regression", {"labels": np.zeros(7, np.int64)}, r"float32 \(7,\), but got int64"),
        ("regression", {"labels": np.full(7, np.nan, np.float32)}, "`labels` must be finite"),
        ("multilabel", {"labels": np.zeros(7, np.float32)}, r"\(7, 3\), but got float32 \(7,\)"),
        ("multilabel", {"labels": np.full((7, 3), 2, np.float32)}, "`labels` must be 0 or 1"),
    ],
)
def test_lengths_and_labels_that_do_not_match_the_spec_are_not_written(
    tmp_path: Path, task: str, fields: dict[str, Any], message: str
) -> None:
    splits = samples(SPECS[task])
    splits["train"] = replace(splits["train"], **fields)
    with pytest.raises(DatasetError, match=message) as raised:
        write_store(tmp_path / "tiny", SPECS[task], splits)
    assert_one_line(raised.value, "train of 'tiny'")
    assert list(tmp_path.iterdir()) == []


def test_nonzero_padding_is_not_written(tmp_path: Path) -> None:
    spec = SPECS["regression"]
    splits = samples(spec)
    splits["test"].modalities["zebra"][1, 1, 0] = 1e-30  # sample 1 has one token
    with pytest.raises(
        DatasetError, match=r"zebra in test .* must be zero after the length of each sample"
    ):
        write_store(tmp_path / "tiny", spec, splits)


def test_a_modality_may_be_missing_except_from_all_training_samples(tmp_path: Path) -> None:
    spec = SPECS["regression"]
    for name in ("test", "validation", "train"):
        splits = samples(spec)
        splits[name].modalities["zebra"][:] = 0
        splits[name].lengths["zebra"][:] = 0
        if name == "train":
            with pytest.raises(DatasetError, match=r"zebra .* must not be missing from every"):
                write_store(tmp_path / name, spec, splits)
        else:
            write_store(tmp_path / name, spec, splits)
            split = open_store(tmp_path / name).split(name, unseal_test=True)
            assert not split.lengths["zebra"].any()


def test_a_sample_without_modalities_is_not_written(tmp_path: Path) -> None:
    spec = SPECS["classification"]
    splits = samples(spec)
    splits["train"].modalities["ant"][4] = 0
    splits["train"].lengths["ant"][4] = 0
    with pytest.raises(DatasetError, match="must have a modality, but sample 4 has none"):
        write_store(tmp_path / "tiny", spec, splits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Tiny"}, "lower-case"),
        ({"modalities": {"label": ModalitySpec(num_tokens=1, num_features=1)}}, "'label'"),
        ({"modalities": {}}, "must have a modality"),
        ({"classes": ("one",)}, "two or more"),
        ({"classes": ()}, "two or more"),
        ({"task": "multilabel", "classes": ()}, "one or more"),
        ({"task": "multilabel", "classes": ("a", "a")}, "different names"),
        ({"task": "regression"}, "must be empty because its task is regression"),
        ({"task": "Regression"}, "one of classification, multilabel, regression"),
        ({"modalities": {"fused": ModalitySpec(num_tokens=1, num_features=1)}}, "'fused'"),
        ({"modalities": {"bottleneck": VARIABLE["ant"]}}, "'bottleneck'"),
        ({"modalities": {"kind": VARIABLE["ant"]}}, "'kind'"),
        ({"modalities": {**VARIABLE, "ant_length": VARIABLE["ant"]}}, "called 'ant_length'"),
        ({"num_samples": {"train": 7, "test": 3}}, "train, validation, test in this order"),
        ({"num_samples": {"train": 7, "validation": 0, "test": 3}}, "validation=0"),
        ({"subjects": {"train": ("b", "a"), "validation": (), "test": ()}}, "sorted"),
        ({"subjects": {"train": ("a",), "validation": (), "test": ("a",)}}, "'a' is in train"),
        ({"fingerprint": "abc"}, "64 hexadecimal digits"),
        ({"best_accuracy": 0.0}, r"\(0, 1\]"),
    ],
)
def test_an_invalid_spec_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        replace(SPEC, **fields)


# Building


def test_many_threads_may_build_concurrently(tmp_path: Path) -> None:
    gate, stores = threading.Barrier(8), []

    def build() -> None:
        gate.wait()
        stores.append(open_dataset("synthetic", cache=tmp_path))

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.path for store in stores}) == 1
    assert len(stores) == 8
    assert list(tmp_path.iterdir()) == [stores[0].path]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from sftsearch.datasets.catalog import open_dataset
if sys.argv[2] == "kill":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    open_dataset("synthetic", cache=Path(sys.argv[1]))
except ValueError as error:
    sys.exit(str(error))
"""


def build_with_little_space(cache: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(cache), how]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.medium
def test_a_full_disk_gives_one_line_and_leaves_no_files(tmp_path: Path) -> None:
    ended = build_with_little_space(tmp_path, "refuse")
    assert ended.returncode == 1
    assert re.fullmatch(
        r"Cannot build the dataset 'synthetic' in .*: .*[Ff]ile too large.*"
        r"Set SFTSEARCH_CACHE to a writable folder with enough space\.\n",
        ended.stderr,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.medium
def test_a_killed_build_leaves_no_partial_store(tmp_path: Path) -> None:
    assert build_with_little_space(tmp_path, "kill").returncode < 0
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".building-synthetic-")
    store = open_dataset("synthetic", cache=tmp_path)
    verify(store)
    assert left.exists()  # another process may still be writing it
    an_hour_ago = time.time() - 3700
    os.utime(left, (an_hour_ago, an_hour_ago))
    shutil.rmtree(store.path)
    open_dataset("synthetic", cache=tmp_path)
    assert list(tmp_path.iterdir()) == [store.path]


def test_a_store_of_another_fingerprint_in_the_folder_is_refused(tmp_path: Path) -> None:
    store = open_dataset("synthetic", cache=tmp_path)
    fingerprint = store.spec.fingerprint[:32] + "0" * 32
    edit_manifest(store, set_in("spec", "fingerprint", value=fingerprint))
    with pytest.raises(DatasetError, match=r"is not the 'synthetic' .* Delete the folder"):
        open_dataset("synthetic", cache=tmp_path)


def test_texts_may_change_without_a_rebuild(tmp_path: Path) -> None:
    store = open_dataset("synthetic", cache=tmp_path)
    edit_manifest(store, set_in("spec", "description", value="Text of an older version."))
    assert open_dataset("synthetic", cache=tmp_path).spec == describe("synthetic")


def test_an_unknown_dataset_gives_one_line() -> None:
    expected = (
        r"^No dataset is called 'wearable'. Did you mean 'wearables'\? Known: digits, synthetic, "
    )
    for ask in (open_dataset, describe):
        with pytest.raises(UserError, match=expected):
            ask("wearable")


# The cache


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("SFTSEARCH_CACHE", "")
    assert cache_folder() == tmp_path / ".cache" / "sftsearch"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sftsearch"
    monkeypatch.setenv("SFTSEARCH_CACHE", "~/chosen")
    assert cache_folder() == tmp_path / "chosen"
    store = open_dataset("synthetic")
    assert store.path == store_path(describe("synthetic"))
    assert store.path.parent == tmp_path / "chosen"
    assert store.path.name == f"synthetic-{store.spec.fingerprint[:16]}-v2"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTSEARCH_CACHE", "here")
    assert cache_folder() == tmp_path / "here"  # a worker in another folder finds the same


def test_an_unusable_cache_error_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/sftsearch")):
        with pytest.raises(DatasetError) as raised:
            open_dataset("synthetic", cache=cache)
        assert_one_line(raised.value, str(cache), "Set SFTSEARCH_CACHE to a writable folder")


UNPRIVILEGED = """
import os, sys, tempfile
from pathlib import Path
from sftsearch.datasets.catalog import open_dataset
# Do all late imports now: other users may not be able to read the checkout.
with tempfile.TemporaryDirectory() as folder:
    len(open_dataset("synthetic", cache=Path(folder)).split("train"))
if os.getuid() == 0:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
try:
    print(len(open_dataset("synthetic", cache=Path(sys.argv[1])).split("train")))
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Yield a folder that other users can enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def open_unprivileged(cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNPRIVILEGED, str(cache), str(NOBODY)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.medium
def test_a_read_only_cache_is_read_but_not_built_in(public_folder: Path) -> None:
    cache = public_folder / "cache"
    cache.mkdir()
    cache.chmod(0o555)
    ended = open_unprivileged(cache)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Cannot build the dataset 'synthetic' in {cache}: Permission denied. "
        "Set SFTSEARCH_CACHE to a writable folder with enough space.\n"
    )
    cache.chmod(0o755)
    open_dataset("synthetic", cache=cache)
    cache.chmod(0o555)
    ended = open_unprivileged(cache)
    cache.chmod(0o755)
    assert (ended.returncode, ended.stdout) == (0, "2000\n")


@pytest.mark.medium
def test_an_inaccessible_cache_error_names_the_variable(public_folder: Path) -> None:
    cache = public_folder / "cache"
    cache.mkdir()
    cache.chmod(0o000)
    ended = open_unprivileged(cache)
    cache.chmod(0o755)
    assert ended.returncode == 1
    assert "Permission denied. Set SFTSEARCH_CACHE" in ended.stderr
    assert ended.stderr.count("\n") == 1
