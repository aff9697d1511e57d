"""MM-IMDB in its published format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.mmimdb import SIZES, open_source
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

SPLITS = "9,4,5"


def write(folder: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(folder / "multimodal_imdb.hdf5", "w") as file:
        file["features"] = random.standard_normal((18, 300)).astype(np.float32)
        file["vgg_features"] = random.standard_normal((18, 4096)).astype(np.float32)
        file["genres"] = np.arange(18 * 23).reshape(18, 23) % 3 % 2
        file["images"] = np.zeros((18, 3, 4, 4), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


@pytest.mark.medium
def test_films_are_read(folder: Path) -> None:
    source = open_source(folder, splits=SPLITS, text_tokens=3, image_tokens=16)
    assert source.task == "multilabel"
    assert len(source.classes) == 23
    store = open_store(prepare("mmimdb", source, folder / "store").path)
    assert store.spec.num_samples == {"train": 9, "validation": 4, "test": 5}
    with h5py.File(folder / "multimodal_imdb.hdf5") as file:
        text, image, genres = (file[name][:] for name in ("features", "vgg_features", "genres"))
    validation = store.split("validation")
    np.testing.assert_array_equal(validation.modalities["text"], text[9:13].reshape(4, 3, 100))
    np.testing.assert_array_equal(validation.modalities["image"], image[9:13].reshape(4, 16, 256))
    np.testing.assert_array_equal(validation.labels, genres[9:13])


NAMES = [f"Genre {number}" for number in range(23)]


def write_with_attributes(folder: Path, as_json: bool = True) -> None:
    """Write a file with the names of the genres, and with Fuel's table of the splits."""
    write(folder)
    rows = [(b"train", 0, 8), (b"dev", 8, 14), (b"test", 14, 18)]
    kind = [("split", "S5"), ("source", "S12"), ("start", "i8"), ("stop", "i8"),
            ("indices", h5py.ref_dtype), ("available", "?")]  # fmt: skip
    table = np.zeros(2 * len(rows), dtype=kind)
    for number, source in enumerate((b"features", b"genres")):
        for row, (split, start, stop) in enumerate(rows):
            table[number * len(rows) + row] = (split, source, start, stop, None, True)
    with h5py.File(folder / "multimodal_imdb.hdf5", "a") as file:
        file.attrs["split"] = table
        where = file if as_json else file["genres"]
        where.attrs["target_names"] = json.dumps(NAMES) if as_json else NAMES


@pytest.mark.medium
@pytest.mark.parametrize("as_json", [False, True])
def test_the_file_names_genres_and_splits(tmp_path: Path, as_json: bool) -> None:
    write_with_attributes(tmp_path, as_json)
    source = open_source(tmp_path)
    assert source.classes == tuple(NAMES)
    found = [sample.split for sample in source.samples]
    assert found == ["train"] * 8 + ["validation"] * 6 + ["test"] * 4
    assert source.modalities["image"].num_tokens == 1


@pytest.mark.medium
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("train", 0, 9), ("dev", 8, 18)], "splits of its attribute `split` overlap"),
        ([("train", 0, 9), ("test", 9, 17)], "`split` leaves out film 17"),
        ([("later", 0, 18)], "`split` has 'later', 0"),
    ],
)
def test_wrong_splits_of_the_file_are_refused(folder: Path, rows: Any, message: str) -> None:
    kind = [("split", "S5"), ("start", "i8"), ("stop", "i8")]
    with h5py.File(folder / "multimodal_imdb.hdf5", "a") as file:
        file.attrs["split"] = np.array(rows, dtype=kind)
    with pytest.raises(DatasetError, match=message):
        open_source(folder)


def test_split_sizes_equal_those_of_the_paper() -> None:
    assert SIZES == {"train": 15_552, "validation": 2_608, "test": 7_799}
    assert sum(SIZES.values()) == 25_959


@pytest.mark.medium
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"it has 18 films, not 15552,2608,7799: set `--option splits"),
        ({"splits": "9,9"}, "`splits` must be three positive integers"),
        ({"splits": "9,9,0"}, "`splits` must be three positive integers"),
        ({"splits": SPLITS, "image_tokens": 3}, "`image_tokens` must divide the 4096 numbers"),
        ({"splits": SPLITS, "text_tokens": 0}, "`text_tokens` must divide the 300 numbers"),
    ],
)
def test_options_are_checked(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_source(folder, **options)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("genres", np.full((18, 23), 2), "genres must be 0 or 1, but film 0 has 2"),
        ("genres", np.zeros((17, 23)), r"its arrays have different numbers of films: \[17, 18\]"),
        ("features", np.zeros(18), "it has no array features"),
        ("vgg_features", None, "it has no array vgg_features"),
    ],
)
def test_invalid_files_are_refused(folder: Path, name: str, values: Any, message: str) -> None:
    with h5py.File(folder / "multimodal_imdb.hdf5", "a") as file:
        del file[name]
        if values is not None:
            file[name] = values
    with pytest.raises(DatasetError, match=message):
        open_source(folder, splits=SPLITS)
