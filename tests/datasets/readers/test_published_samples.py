"""Excerpts of published files; their folder is not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
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
