"""NTU RGB+D skeletons in their text format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError, UserError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.ntu_rgbd import (
    TRAINING,
    TRAINING_120,
    VALIDATING,
    open_source,
    read_skeletons,
)
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path


def joints(body: int, frame: int) -> np.ndarray:
    return np.arange(75).reshape(25, 3) / 100 + body + frame / 10


def skeleton(frames: list[list[int]]) -> str:
    """Return the text of a file whose frames have these bodies."""
    lines = [str(len(frames))]
    for number, bodies in enumerate(frames):
        lines.append(str(len(bodies)))
        for body in bodies:
            lines += [f"{body} 0 1 1 1 1 0 -0.2 0.1 2", "25"]
            for x, y, z in joints(body, number):
                lines.append(f"{x} {y} {z} 1 2 3 4 0.1 0.2 0.3 0.4 2")
    return "\n".join(lines) + "\n"


def name(performer: int, action: int, camera: int = 1) -> str:
    return f"S001C{camera:03d}P{performer:03d}R001A{action:03d}.skeleton"


def write(folder: Path) -> None:
    for performer in (1, 2, 3, 8, 13):
        (folder / name(performer, 5)).write_text(skeleton([[7], [7], [7]]))
        (folder / name(performer, 50)).write_text(skeleton([[7, 9], [7, 9], [7]]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_skeletons_are_read(folder: Path) -> None:
    frames = read_skeletons(folder / name(1, 50))
    assert [list(frame) for frame in frames] == [["7", "9"], ["7", "9"], ["7"]]
    np.testing.assert_allclose(frames[1]["9"], joints(9, 1))


def test_coordinates_are_relative_to_the_first_spine_base(folder: Path) -> None:
    source = open_source(folder, tokens=4)
    store = open_store(prepare("ntu", source, folder / "store").path)
    train = store.split("train")
    people = ("performer 001", "performer 002", "performer 013")
    assert store.spec.subjects["train"] == people
    assert train.lengths["person_1"].tolist() == [3] * len(train)
    both = int(np.argmax(train.labels == 49))
    alone = int(np.argmax(train.labels == 4))
    assert train.lengths["person_2"][alone] == 0
    origin = joints(7, 0)[0]
    first, second = (train.modalities[f"person_{n}"][both] for n in (1, 2))
    for frame in range(3):
        expected = (joints(7, frame) - origin).reshape(-1)
        np.testing.assert_allclose(first[frame], expected, atol=1e-6)
    np.testing.assert_allclose(second[1], (joints(9, 1) - origin).reshape(-1), atol=1e-6)
    assert not second[2].any()  # absent in this frame


def test_frames_are_drawn_evenly(folder: Path) -> None:
    (folder / name(1, 7)).write_text(skeleton([[7]] * 9))
    sample = next(s for s in open_source(folder, tokens=3).samples if s.label == 6)
    person = sample.read()["person_1"]
    assert person is not None
    np.testing.assert_allclose(person[:, 0], [0.0, 0.4, 0.8], atol=1e-6)


@pytest.mark.medium
def test_the_published_protocols(folder: Path) -> None:
    assert len(TRAINING) == 20
    assert set(VALIDATING) == {8, 16, 27, 38} == set(TRAINING[4::5])
    splits = {s.subject: s.split for s in open_source(folder).samples}
    assert splits == {
        "performer 001": "train", "performer 002": "train", "performer 003": "test",
        "performer 008": "validation",
        "performer 013": "train",
    }  # fmt: skip
    for n in range(20):
        (folder / name(1 + n, 9, camera=2 + n % 2)).write_text(skeleton([[7]]))
    viewed = open_source(folder, protocol="cross_view").samples
    assert {s.split for s in viewed if "C001" in s.name} == {"test"}
    assert sum(s.split == "validation" for s in viewed) > 0
    assert all(s.subject is None for s in viewed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it ends too early"),
        ("0\n", "it has no frames"),
        ("1\n0\n", "it has no bodies"),
        ("2\n1\n7 0 0\n25\n0 0 0\n", "it ends too early"),
        ("99999999\n", "a count must be an integer up to 10000"),
        ("1\n99\n", "a count must be an integer up to 10"),
        ("-1\n", "a count must be an integer"),
        ("1\n1\n7\n24\n", "a body must have 25 joints"),
        ("1\n1\n7\n25\n" + "a b c\n" * 25, "could not convert"),
        ("1\n1\n\n25\n" + "1 2 3\n" * 25, "list index out of range"),
        ("1\n1\n7\n25\n" + "1 2\n" * 25, "cannot reshape"),
    ],
)
def test_invalid_files_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / name(1, 8)).write_text(content)
    sample = next(s for s in open_source(folder).samples if s.label == 7)
    with pytest.raises(DatasetError, match=message) as raised:
        sample.read()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"protocol": "cross_eye"},
            "`protocol` must be one of cross_subject, cross_view, cross_setup",
        ),
        ({"tokens": 0}, "`tokens` positive"),
        ({"classes": 61}, "`classes` 60 or 120"),
    ],
)
def test_options_are_checked(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_source(folder, **options)


def test_invalid_file_names_are_refused(folder: Path) -> None:
    (folder / "x.skeleton").write_text("1")
    with pytest.raises(DatasetError, match="it must be named SsssCcccPpppRrrrAaaa"):
        open_source(folder)
    (folder / "x.skeleton").rename(folder / name(1, 121))
    with pytest.raises(DatasetError, match="action 121 is unknown"):
        open_source(folder)
    (folder / name(1, 121)).rename(folder / name(1, 61))
    assert len(open_source(folder).samples) == 10  # of the 120-class dataset


def test_the_120_classes_have_their_own_training_performers(folder: Path) -> None:
    assert len(TRAINING_120) == len(set(TRAINING_120)) == 53
    assert set(TRAINING) < set(TRAINING_120)
    for performer in (41, 45, 103, 106):
        (folder / name(performer, 120)).write_text(skeleton([[7]]))
    splits = {s.subject: s.split for s in open_source(folder, classes=120).samples}
    assert [splits[f"performer {n:03d}"] for n in (41, 45, 103, 106)] == [
        "test", "train", "train", "test",
    ]  # fmt: skip


def test_even_setups_are_for_training_in_the_cross_setup_protocol(folder: Path) -> None:
    for setup in (2, 17, 18):
        (folder / f"S{setup:03d}C002P001R001A120.skeleton").write_text(skeleton([[7]]))
    samples = open_source(folder, classes=120, protocol="cross_setup").samples
    splits = {sample.name[:4]: sample.split for sample in samples}
    assert (splits["S001"], splits["S017"]) == ("test", "test")
    assert {splits["S002"], splits["S018"]} <= {"train", "validation"}
    assert all(sample.subject is None for sample in samples)


def test_recordings_of_one_person_have_one_modality(folder: Path) -> None:
    for file in folder.glob("*A050.skeleton"):
        file.unlink()
    source = open_source(folder)
    assert list(source.modalities) == ["person_1"]
    assert source.notes == ["No recording has two people: read without person_2."]
    both = open_source(folder, modalities="person_2,person_1")
    assert list(both.modalities) == ["person_1", "person_2"]
    assert not both.notes


def test_the_second_person_can_be_left_out(folder: Path) -> None:
    assert list(open_source(folder).modalities) == ["person_1", "person_2"]
    assert list(open_source(folder, modalities="person_1").modalities) == ["person_1"]
    with pytest.raises(UserError, match="No modality of this dataset is called 'person_3'"):
        open_source(folder, modalities="person_3")


def test_hidden_files_are_no_recordings(folder: Path) -> None:
    (folder / f"._{name(1, 5)}").write_bytes(b"\0\5\26\7")
    assert len(open_source(folder).samples) == 10


def test_a_recording_of_nobody_is_dropped_or_named(folder: Path, tmp_path: Path) -> None:
    (folder / name(1, 8)).write_text("2\n0\n0\n")
    with pytest.raises(DatasetError, match=r"A008\.skeleton: it has no bodies"):
        prepare("ntu", open_source(folder), tmp_path / "failed")
    done = prepare("ntu", open_source(folder), tmp_path / "dropped", bad="drop")
    assert done.num_samples == 10
