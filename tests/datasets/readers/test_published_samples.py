"""Excerpts of published files; their folder is not part of the project."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import Prepared, prepare
from sftsearch.datasets.reader_catalog import read_source
from sftsearch.datasets.readers import audiovisual, huggingface, safe_pickle

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("SFTSEARCH_SAMPLES", ROOT.parent / "shared" / "samples"))
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs the published samples")


@pytest.mark.parametrize("folder", ["1.18.4/plain", "3.6.0/plain", "5.2.0/plain"])
def test_folders_of_several_versions_of_the_library_are_read(folder: str) -> None:
    source = huggingface.open_source(SAMPLES / "huggingface" / folder, modalities="energy,stats")
    assert source.classes == tuple(f"d{number}" for number in range(10))
    assert {sample.split for sample in source.samples} == {"train", "validation", "test"}
    assert source.modalities["energy"].num_features == 8
    assert (source.modalities["stats"].num_tokens, source.modalities["stats"].num_features) == (
        4,
        3,
    )
    for sample in source.samples:
        assert all(np.isfinite(x_TF).all() for x_TF in sample.read().values() if x_TF is not None)


def test_a_folder_of_git_lfs_pointers_is_refused() -> None:
    with pytest.raises(DatasetError, match="Git LFS pointer"):
        huggingface.open_source(SAMPLES / "huggingface" / "lfs_pointers")


@pytest.mark.parametrize("name", ["mustard_split_indices.p", "class_weights.pkl"])
def test_published_pickles_are_loaded(name: str) -> None:
    assert len(safe_pickle.load(SAMPLES / "pickles" / name)) > 0


def test_published_test_clips_without_labels_are_refused(tmp_path: Path) -> None:
    kinetics = SAMPLES / "kinetics"
    for split, name in (("train", "val"), ("val", "val"), ("test", "test")):
        content = (kinetics / f"kinetics-400_{name}.csv").read_bytes()
        (tmp_path / f"{split}.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=r"test\.csv: it has no column label"):
        audiovisual.open_kinetics_sounds(tmp_path, classes="")


def write_features(folder: Path, clips: list[str]) -> None:
    """Give every clip the published I3D features and the sound of a published recording."""
    (folder / "features" / "rgb").mkdir(parents=True)
    (folder / "audio").mkdir()
    recordings = sorted((SAMPLES / "fsdd").glob("*.wav"))
    for number, clip in enumerate(clips):
        rgb = SAMPLES / "i3d" / "women_long_jump_rgb.npy"
        shutil.copy(rgb, folder / "features" / "rgb" / f"{clip}_rgb.npy")
        shutil.copy(recordings[number % len(recordings)], folder / "audio" / f"{clip}.wav")


def prepared(reader: str, folder: Path, store: Path, *options: str) -> Prepared:
    return prepare("mine", read_source(reader, folder, options), store, options=options)


def test_the_first_published_lists_of_vggsound_are_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "vgg"
    folder.mkdir()
    lines = (SAMPLES / "vggsound" / "test.csv").read_text().splitlines()[:60]
    names = sorted({line.split(",")[0].removesuffix(".mp4") for line in lines})
    (folder / "train.csv").write_text("\n".join(lines[:40]) + "\n")
    (folder / "test.csv").write_text("\n".join(lines[40:]) + "\n")
    write_features(folder, names)
    done = prepared("vggsound", folder, tmp_path / "store", "modalities=rgb,spec")
    assert done.num_samples == len(names) == 60
    rgb = next(one for one in done.report.coverage if one.modality == "rgb")
    assert (rgb.missing, rgb.shortest, rgb.longest) == (0, 14, 14)


@pytest.mark.parametrize("train", ["balanced_train_segments.csv", "header_without_hash.csv"])
def test_published_lists_of_audioset_are_prepared(tmp_path: Path, train: str) -> None:
    folder = tmp_path / "audioset"
    folder.mkdir()
    published = SAMPLES / "audioset"
    shutil.copy(published / train, folder / "balanced_train_segments.csv")
    for name in ("eval_segments.csv", "class_labels_indices.csv"):
        shutil.copy(published / name, folder / name)
    clips = []
    for name in ("balanced_train_segments.csv", "eval_segments.csv"):
        for line in (folder / name).read_text().splitlines():
            if not line.startswith(("#", "YTID")):
                video, start, *_ = line.split(", " if ", " in line else ",")
                clips.append(f"{video}_{int(float(start)):06d}")
    write_features(folder, clips)
    done = prepared("audioset", folder, tmp_path / "store")
    assert done.num_samples == len(set(clips))


@pytest.mark.parametrize("version", ["400", "600"])
def test_published_lists_of_kinetics_are_prepared(tmp_path: Path, version: str) -> None:
    folder = tmp_path / "kinetics"
    folder.mkdir()
    header, *lines = (SAMPLES / "kinetics" / f"kinetics-{version}_val.csv").read_text().splitlines()
    parts = {"train": lines[:20], "val": lines[20:30], "test": lines[30:]}
    names = header.split(",")
    clips = []
    for split, rows in parts.items():
        (folder / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")
        for row in csv.DictReader(rows, names):
            start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            clips.append(f"{row['youtube_id']}_{start:06d}_{end:06d}")
    write_features(folder, clips)
    with pytest.raises(DatasetError, match=r"different names, but got \('abseiling',\)"):
        prepared("kinetics_sounds", folder, tmp_path / "store", "classes=")  # of one class only
    for split in ("train", "val", "test"):
        file = folder / f"{split}.csv"
        first, *others = file.read_text().splitlines()
        others[::2] = [row.replace("abseiling", "yoga") for row in others[::2]]
        file.write_text("\n".join([first, *others]) + "\n")
    done = prepared("kinetics_sounds", folder, tmp_path / "store", "classes=")
    assert done.num_samples == len(clips)
    assert [warning for warning in done.report.warnings if "has no sample of" in warning] == []


def test_published_recordings_of_digits_are_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(SAMPLES / "fsdd", folder / "recordings", ignore=shutil.ignore_patterns("*.md"))
    for file in (folder / "recordings").glob("*_yweweler_*.wav"):  # a test split needs its speaker
        file.rename(file.with_name(file.name.replace("yweweler", "theo")))
    images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        head = np.array([0x803, 40, 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = np.array([0x801, 40], ">u4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    done = prepared("digits_large", folder, tmp_path / "store")
    assert done.num_samples == 24


@pytest.mark.parametrize(
    "folder", ["1.18.4/plain", "3.6.0/plain", "5.2.0/plain", "5.2.0/largelist"]
)
def test_folders_of_the_library_are_prepared(tmp_path: Path, folder: str) -> None:
    done = prepared("huggingface", SAMPLES / "huggingface" / folder, tmp_path / "store")
    wave = next(one for one in done.report.coverage if one.modality == "wave")
    assert wave.missing == 0
    assert wave.longest == 800


@pytest.mark.parametrize(
    ("folder", "reader", "message"),
    [
        ("csd", "mosi", "it must have one .*label.*csd of sentiment, not 0"),
        ("pickles/mustard_split_indices.p", "mosei", "it must have train, valid and test"),
        ("pickles/class_weights.pkl", "mosi", "it must have train, valid and test"),
        ("rgbd", "arrays", r"labels\.csv: No such file or directory"),
        ("mfeat", "arrays", r"labels\.csv: No such file or directory"),
        ("i3d", "arrays", r"labels\.csv: No such file or directory"),
    ],
)
def test_other_folders_are_refused_with_the_reason(folder: str, reader: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_source(reader, SAMPLES / folder)
