"""RAVDESS: file names, folds and coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.ravdess import EMOTIONS, fold_of, open_source
from sftsearch.datasets.readers.sound import mfcc, read_sound
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path) -> None:
    for actor in range(1, 25):
        for emotion in (1, 8):
            file = folder / f"Actor_{actor:02d}" / f"03-01-{emotion:02d}-01-02-01-{actor:02d}.wav"
            file.parent.mkdir(exist_ok=True)
            sound = np.random.default_rng(actor).uniform(-0.5, 0.5, 4800 + 160 * actor)
            soundfile.write(file, sound, 48_000)
    (folder / "Actor_01" / "03-02-01-01-02-01-01.wav").write_bytes(b"a song, not read")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_folds_have_two_men_and_two_women(folder: Path) -> None:
    for fold in range(6):
        actors = [actor for actor in range(1, 25) if fold_of(actor) == fold]
        assert len(actors) == 4
        assert sum(actor % 2 for actor in actors) == 2


def test_recordings_are_read(folder: Path) -> None:
    source = open_source(folder, fold=2, tokens=9)
    assert source.classes == EMOTIONS
    store = open_store(prepare("ravdess", source, folder / "store").path)
    assert store.spec.num_samples == {"train": 32, "validation": 8, "test": 8}
    assert store.spec.subjects["test"] == tuple(f"actor {n:02d}" for n in (9, 10, 11, 12))
    assert store.spec.subjects["validation"] == tuple(f"actor {n:02d}" for n in (13, 14, 15, 16))
    test = store.split("test", unseal_test=True)
    assert sorted(set(test.labels.tolist())) == [0, 7]
    expected = mfcc(read_sound(folder / "Actor_09" / "03-01-01-01-02-01-09.wav"))[:9]
    np.testing.assert_array_equal(test.modalities["audio"][0][: len(expected)], expected)
    assert test.modalities["audio"].shape == (8, 9, 13)


def test_invalid_folders_and_options_are_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="`fold` must be 0 to 5"):
        open_source(folder, fold=6)
    with pytest.raises(DatasetError, match="it has no Actor_01"):
        open_source(folder / "Actor_01")
    wrong = folder / "Actor_02" / "03-01-09-01-02-01-02.wav"
    wrong.write_bytes(b"")
    with pytest.raises(DatasetError, match="its emotion 9 or actor 2 is unknown"):
        open_source(folder)
    wrong.rename(folder / "Actor_02" / "03-01-01-01-02-01-03.wav")
    with pytest.raises(DatasetError, match="it is of actor 3, but in the folder of another actor"):
        open_source(folder)
