"""Spoken digits with MNIST images, from the published files."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from sftsearch.datasets.digits import SPEAKERS
from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.digits_large import open_source, read_idx
from sftsearch.datasets.readers.sound import log_mel, read_sound
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def write(folder: Path) -> None:
    (folder / "recordings").mkdir()
    random = np.random.default_rng(0)
    for speaker in [name for names in SPEAKERS.values() for name in names]:
        for digit in range(10):
            file = folder / "recordings" / f"{digit}_{speaker}_0.wav"
            soundfile.write(file, random.uniform(-0.5, 0.5, 1600), 8000)
    for part, count in (("train", 60), ("t10k", 30)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        images[:, 0, 0] = labels  # marks each image with its label
        packed = gzip.compress(idx(images)) if part == "train" else idx(images)
        ending = ".gz" if part == "train" else ""
        (folder / f"{part}-images-idx3-ubyte{ending}").write_bytes(packed)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_each_recording_has_an_image_of_its_digit(folder: Path) -> None:
    source = open_source(folder, tokens=15)
    store = open_store(prepare("digits_large", source, folder / "store").path)
    assert store.spec.subjects == {name: tuple(sorted(who)) for name, who in SPEAKERS.items()}
    seen = set()
    for name in ("train", "validation", "test"):
        split = store.split(name, unseal_test=True)
        images = split.modalities["image"]
        assert images.shape == (len(split), 196, 4)
        np.testing.assert_allclose(images[:, 0, 0] * 255, split.labels, rtol=1e-5)
        seen |= {image.tobytes() for image in images[:]}
    assert len(seen) == 60  # no image is used twice
    sound = log_mel(
        read_sound(folder / "recordings/0_nicolas_0.wav", 8000), rate=8000, num_bands=32
    )
    audio = store.split("validation").modalities["audio"][0]
    np.testing.assert_allclose(audio, sound[:15] / 5, rtol=1e-6)


def test_patches_are_two_by_two_pixels(folder: Path) -> None:
    image = np.arange(784, dtype=np.uint8).reshape(28, 28)
    (folder / "train-images-idx3-ubyte.gz").unlink()
    (folder / "train-images-idx3-ubyte").write_bytes(idx(np.stack([image] * 60)))
    first = next(s for s in open_source(folder).samples if s.split == "train").read()["image"]
    assert first is not None
    np.testing.assert_allclose(first[0] * 255, [0, 1, 28, 29], rtol=1e-6)
    np.testing.assert_allclose(first[15] * 255, image[2:4, 2:4].reshape(-1), rtol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes([0, 0, 8, 1]),
        bytes([0, 0, 9, 1, 0, 0, 0, 1, 7]),
        bytes([0, 0, 8, 1, 0, 0, 0, 9, 7]),
        bytes([0, 0, 8, 1, 255, 255, 255, 255, 7]),
        bytes([0, 0, 8, 1, 0, 0, 0, 1, 7, 7]),
    ],
)
def test_invalid_idx_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DatasetError, match=r"it is not an IDX file|its header \[.*\] does not fit"):
        read_idx(tmp_path, "x", ())


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DatasetError, match="it is not an IDX file"):
        read_idx(tmp_path, "x", ())
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(1000))[:-20])
    with pytest.raises(DatasetError, match=r"x.gz: "):
        read_idx(tmp_path, "x", ())


def test_invalid_folders_are_refused(folder: Path) -> None:
    (folder / "recordings" / "5_nobody_0.wav").write_bytes(b"")
    with pytest.raises(DatasetError, match="the speaker must be one of george, jackson"):
        open_source(folder)
    (folder / "recordings" / "5_nobody_0.wav").rename(folder / "recordings" / "five.wav")
    with pytest.raises(DatasetError, match=r"it must be named DIGIT_SPEAKER_NUMBER.wav"):
        open_source(folder)
    (folder / "recordings" / "five.wav").unlink()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(30, np.uint8)))
    with pytest.raises(DatasetError, match="t10k has too few images of 1"):
        open_source(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match="t10k-labels-idx1-ubyte: No such file"):
        open_source(folder)
