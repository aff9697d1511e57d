"""VGGSound and other audio-visual datasets in their published formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.audiovisual import (
    open_audioset,
    open_epic_kitchens,
    open_kinetics_sounds,
    open_moments_in_time,
    open_vggsound,
)
from sftsearch.datasets.readers.sound import log_mel, read_sound
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("dog, barking", "playing violin", "rain")


def features(clip: str, name: str, tokens: int = 6) -> np.ndarray:
    seed = sum(map(ord, clip + name))
    return np.random.default_rng(seed).standard_normal((tokens, 8)).astype(np.float32)


def write_clip(folder: Path, clip: str, *, lacks: str = "", tokens: int = 6) -> None:
    for name in ("rgb", "flow"):
        file = folder / "features" / name / f"{clip}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        if name != lacks:
            np.save(file, features(clip, name, tokens))
    sound = folder / "audio" / f"{clip}.wav"
    sound.parent.mkdir(parents=True, exist_ok=True)
    if lacks != "spec":
        soundfile.write(sound, np.random.default_rng(0).uniform(-0.5, 0.5, 3200), 16_000)


def vggsound(folder: Path) -> list[tuple[str, str, str]]:
    """Write 20 training and 6 test clips; return (clip, class, split)."""
    rows, lines = [], []
    for number in range(26):
        video, start = f"vid-{number:07d}", 10 * number
        label, split = CLASSES[number % 3], "train" if number < 20 else "test"
        quoted = f'"{label}"' if "," in label else label
        lines.append(f"{video},{start},{quoted},{split}")
        rows.append((f"{video}_{start:06d}", label, split))
    (folder / "vggsound.csv").write_text("\n".join(lines) + "\n")
    for clip, *_ in rows:
        write_clip(folder, clip)
    return rows


def test_vggsound_is_read(tmp_path: Path) -> None:
    rows = vggsound(tmp_path)
    source = open_vggsound(tmp_path, spec_tokens=12)
    assert source.classes == CLASSES
    assert list(source.modalities) == ["rgb", "spec", "flow"]
    order = np.arange(20)
    np.random.RandomState(1111).shuffle(order)  # the paper's code
    held = {rows[i][0] for i in order[16:]}
    found = {s.name: s.split for s in source.samples}
    for clip, _, split in rows:
        assert found[clip] == ("validation" if clip in held else split)
    store = open_store(prepare("vggsound", source, tmp_path / "store").path)
    assert store.spec.num_samples == {"train": 16, "validation": 4, "test": 6}
    test = store.split("test", unseal_test=True)
    for row, (clip, label, _) in enumerate(rows[20:]):
        np.testing.assert_array_equal(test.modalities["rgb"][row], features(clip, "rgb"))
        np.testing.assert_array_equal(test.modalities["flow"][row], features(clip, "flow"))
        tokens = log_mel(read_sound(tmp_path / "audio" / f"{clip}.wav"))
        assert test.lengths["spec"][row] == min(12, len(tokens))
        np.testing.assert_array_equal(test.modalities["spec"][row], tokens[:12])
        assert CLASSES[test.labels[row]] == label


def test_a_class_list_selects_clips(tmp_path: Path) -> None:
    vggsound(tmp_path)
    (tmp_path / "vggs2.txt").write_text("rain\nplaying violin\n\n")
    source = open_vggsound(tmp_path, classes="vggs2.txt", modalities="rgb")
    assert source.classes == ("playing violin", "rain")
    assert len(source.samples) == 17
    (tmp_path / "vggs2.txt").write_text("rain\nsnow\n")
    with pytest.raises(DatasetError, match="no clip has the class 'snow'"):
        open_vggsound(tmp_path, classes="vggs2.txt")
    with pytest.raises(DatasetError, match=r"must be in .*, but got '../vggs2.txt'"):
        open_vggsound(tmp_path, classes="../vggs2.txt")


def test_clips_without_files_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = vggsound(tmp_path)
    (tmp_path / "audio" / f"{rows[3][0]}.wav").unlink()
    source = open_vggsound(tmp_path)
    assert source.notes == ["Left out 1 of 26 listed clips, because they lack files."]
    assert rows[3][0] not in {s.name for s in source.samples}
    kept = {s.name: s for s in open_vggsound(tmp_path, missing=True).samples}
    values = kept[rows[3][0]].read()
    assert values["spec"] is None
    assert values["rgb"] is not None


def test_clips_of_different_lengths_have_variable_length(tmp_path: Path) -> None:
    rows = vggsound(tmp_path)
    write_clip(tmp_path, rows[0][0], tokens=4)
    shape = open_vggsound(tmp_path).modalities["rgb"]
    assert (shape.num_tokens, shape.variable_length) == (6, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vid,1,rain", "row 1 must have 4 cells, but has 3"),
        ("vid,1,rain,dev", "a split must be train or test, not 'dev'"),
        ("../../etc/passwd,1,rain,train", "A video id must be letters, digits, - and _"),
        ("vid,-1,rain,train", "A time must be a number of seconds, but got '-1'"),
        ('vid,1,"rain', "unexpected end of data"),
    ],
)
def test_invalid_annotations_are_refused(tmp_path: Path, line: str, message: str) -> None:
    vggsound(tmp_path)
    (tmp_path / "vggsound.csv").write_text(line + "\n")
    with pytest.raises(DatasetError, match=message) as raised:
        open_vggsound(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": "rgb,smell"}, "`modalities` must be some of rgb, spec, flow"),
        ({"modalities": "rgb,rgb"}, "`modalities` must be some of"),
        ({"spec_tokens": 0}, "`spec_tokens` must be positive"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: Any, message: str) -> None:
    vggsound(tmp_path)
    with pytest.raises(DatasetError, match=message):
        open_vggsound(tmp_path, **options)


def test_invalid_features_are_refused(tmp_path: Path) -> None:
    rows = vggsound(tmp_path)
    file = tmp_path / "features" / "rgb" / f"{rows[0][0]}.npy"
    np.save(file, np.zeros((6, 9)))
    with pytest.raises(DatasetError, match=r"rgb has different feature counts: \[8, 9\]"):
        open_vggsound(tmp_path)
    np.save(file, np.zeros(6))
    with pytest.raises(DatasetError, match=r"must be numbers \(tokens, features\), but is float64"):
        prepare("mine", open_vggsound(tmp_path), tmp_path / "store")
    file.write_bytes(b"\x93NUMPY")
    with pytest.raises(DatasetError, match=f"Cannot read {file}"):
        prepare("mine", open_vggsound(tmp_path), tmp_path / "store")


def test_audioset_has_several_labels(tmp_path: Path) -> None:
    (tmp_path / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/1,"Speech"\n1,/m/2,"Dog, bark"\n2,/m/3,Music\n'
    )
    header = "# Segments csv created\n# num_ytids=9\n# YTID, start_seconds, end_seconds, labels\n"
    lines = [f'id{n}, 30.000, 40.000, "/m/{1 + n % 3},/m/{1 + (n + 1) % 3}"' for n in range(10)]
    (tmp_path / "balanced_train_segments.csv").write_text(header + "\n".join(lines) + "\n")
    (tmp_path / "eval_segments.csv").write_text(header + 'idE, 0.000, 10.000, "/m/2"\n')
    for name in [*(f"id{n}_000030" for n in range(10)), "idE_000000"]:
        write_clip(tmp_path, name)
    source = open_audioset(tmp_path)
    assert source.task == "multilabel"
    assert source.classes == ("Speech", "Dog, bark", "Music")
    labels = {s.name: s.label for s in source.samples}
    assert labels["id0_000030"] == (1, 1, 0)
    assert labels["id2_000030"] == (1, 0, 1)
    assert labels["idE_000000"] == (0, 1, 0)
    assert sum(s.split == "validation" for s in source.samples) == 2
    (tmp_path / "eval_segments.csv").write_text('idE, 0.000, 10.000, "/m/9"\n')
    with pytest.raises(DatasetError, match="label '/m/9' is not in class_labels_indices"):
        open_audioset(tmp_path)


def test_kinetics_sounds_keeps_its_splits(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "test")):
        body = f"blowing nose,vid{n},5,15,{split}\nskiing,other{n},5,15,{split}\n"
        (tmp_path / f"{split}.csv").write_text(
            "label,youtube_id,time_start,time_end,split\n" + body + f"yawning,y{n},1,9,{split}\n"
        )
        write_clip(tmp_path, f"vid{n}_000005_000015")
        write_clip(tmp_path, f"y{n}_000001_000009")
    (tmp_path / "classes.txt").write_text("blowing nose\nyawning\n")
    source = open_kinetics_sounds(tmp_path)
    assert source.classes == ("blowing nose", "yawning")
    assert (
        sorted(s.split for s in source.samples) == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
    )
    assert {s.subject for s in source.samples if s.split == "train"} == {"vid0", "y0"}


def test_moments_in_time_is_read(tmp_path: Path) -> None:
    lines = [f"act{n % 2}/clip{n}.mp4,act{n % 2},2,1" for n in range(10)]
    (tmp_path / "trainingSet.csv").write_text("\n".join(lines))
    (tmp_path / "validationSet.csv").write_text("act1/v.mp4,act1,2,1\n")
    for n in range(10):
        write_clip(tmp_path, f"act{n % 2}/clip{n}")
    write_clip(tmp_path, "act1/v")
    source = open_moments_in_time(tmp_path)
    assert source.classes == ("act0", "act1")
    counts = [sum(s.split == x for s in source.samples) for x in ("train", "validation", "test")]
    assert counts == [8, 2, 1]
    (tmp_path / "validationSet.csv").write_text("../../v.mp4,act1,2,1\n")
    with pytest.raises(DatasetError, match="must be in"):
        open_moments_in_time(tmp_path)


@pytest.mark.parametrize("label", ["verb", "noun"])
def test_epic_kitchens_keeps_videos_in_one_split(tmp_path: Path, label: str) -> None:
    header = "narration_id,participant_id,video_id,verb,verb_class,noun,noun_class\n"
    train = [
        f"P01_{v}_{n},P01,P01_{v},open,{n % 2},door,{n % 3}" for v in range(5) for n in range(4)
    ]
    (tmp_path / "EPIC_100_train.csv").write_text(header + "\n".join(train) + "\n")
    (tmp_path / "EPIC_100_validation.csv").write_text(header + "P02_9_0,P02,P02_9,open,1,door,2\n")
    for line in train:
        write_clip(tmp_path, line.split(",", maxsplit=1)[0])
    write_clip(tmp_path, "P02_9_0")
    source = open_epic_kitchens(tmp_path, label=label)
    assert len(source.classes) == (2 if label == "verb" else 3)
    videos = {split: {s.subject for s in source.samples if s.split == split}
              for split in ("train", "validation", "test")}  # fmt: skip
    assert len(videos["validation"]) == 1
    assert not videos["train"] & videos["validation"]
    assert videos["test"] == {"P02_9"}
    with pytest.raises(DatasetError, match="`label` must be verb or noun"):
        open_epic_kitchens(tmp_path, label="adverb")


def test_a_header_without_a_mark_is_no_clip(tmp_path: Path) -> None:
    (tmp_path / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n0,/m/1,A\n1,/m/2,B\n"
    )
    header = "YTID,start_seconds,end_seconds,positive_labels\n"
    train = "".join(f'YTID{n},30.000,40.000,"/m/{1 + n % 2}"\n' for n in range(5))
    (tmp_path / "balanced_train_segments.csv").write_text(header + train)
    (tmp_path / "eval_segments.csv").write_text(header + 'idE,0.000,10.000,"/m/2"\n')
    names = [*(f"YTID{n}_000030" for n in range(5)), "idE_000000"]
    for name in names:
        write_clip(tmp_path, name)
    assert sorted(s.name for s in open_audioset(tmp_path).samples) == sorted(names)


def test_kinetics_is_read_by_the_names_of_columns(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "test")):
        (tmp_path / f"{split}.csv").write_text(
            "split,time_end,time_start,youtube_id,label\n"
            f"{split},15,5,a{n},skiing\n{split},15,5,b{n},yawning\n"
        )
        write_clip(tmp_path, f"a{n}_000005_000015")
        write_clip(tmp_path, f"b{n}_000005_000015")
    assert open_kinetics_sounds(tmp_path, classes="").classes == ("skiing", "yawning")
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\na2,5,15,test\n")
    with pytest.raises(DatasetError, match=r"test\.csv: it has no column label"):
        open_kinetics_sounds(tmp_path, classes="")


def test_ten_seconds_of_vggsound_fill_its_windows(tmp_path: Path) -> None:
    lines = [f"v{n},5,{'ab'[n % 2]},{'test' if n > 7 else 'train'}" for n in range(10)]
    (tmp_path / "vggsound.csv").write_text("\n".join(lines) + "\n")
    for n in range(10):
        write_clip(tmp_path, f"v{n}_000005")
    shape = open_vggsound(tmp_path).modalities["spec"]
    assert shape.num_tokens == 1 + (10 * 16_000 - 400) // 160
    assert open_vggsound(tmp_path, spec_tokens=1200).modalities["spec"].num_tokens == 1200
