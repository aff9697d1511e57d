"""Modalities can be declared as sensors of three axes; fingerprints of others stay as they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets import prepare, wearables
from sftsearch.datasets.errors import DatasetError, UserError
from sftsearch.datasets.reader_catalog import read_source
from sftsearch.datasets.spec import ModalitySpec
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("axes", [0, 2, 6, True, "3"])
def test_axes_are_three(axes: Any) -> None:
    with pytest.raises(DatasetError, match="`axes` must be 3, for features in triples"):
        ModalitySpec(num_tokens=4, num_features=6, axes=axes)


def test_axes_need_triples_of_features() -> None:
    with pytest.raises(DatasetError, match=r"\(axes=3, num_features=4\)"):
        ModalitySpec(num_tokens=4, num_features=4, axes=3)


def test_an_omitted_axes_is_not_hashed() -> None:
    """The fields before `axes` existed, in their order; fingerprints hash their JSON."""
    plain = ModalitySpec(num_tokens=4, num_features=6)
    assert json.dumps(plain.hashed()) == json.dumps(
        {"num_tokens": 4, "num_features": 6, "variable_length": False, "dtype": "float32"}
    )
    assert ModalitySpec(num_tokens=4, num_features=6, axes=3).hashed()["axes"] == 3


def test_every_sensor_of_wearables_has_axes() -> None:
    assert {shape.axes for shape in wearables.spec().modalities.values()} == {3}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write twelve samples of `imu` (6 features) and `image` (2 features) as arrays."""
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [f"s{i:02d},{'ab'[i % 2]},{('train', 'validation', 'test')[i % 3]}" for i in range(12)]
    (folder / "labels.csv").write_text("\n".join(["name,label,split", *rows]) + "\n")
    random = np.random.default_rng(0)
    for name, features in (("imu", 6), ("image", 2)):
        np.save(folder / f"{name}.npy", random.normal(size=(12, 5, features)).astype(np.float32))
    return folder


def test_an_option_of_every_reader_declares_axes(files: Path, tmp_path: Path) -> None:
    assert {m.axes for m in read_source("arrays", files).modalities.values()} == {None}
    source = read_source("arrays", files, ["axes=imu=3"])
    assert {name: m.axes for name, m in source.modalities.items()} == {"imu": 3, "image": None}
    prepare.prepare("mine", source, tmp_path / "store")
    assert open_store(tmp_path / "store").spec.modalities["imu"].axes == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("axes=imo=3", "No modality of option `axes` is called 'imo'. Did you mean 'imu'"),
        ("axes=image=3", r"`axes` must be 3, for features in triples, but got \(axes=3, num_fea"),
        ("axes=imu", "Option `axes` must be NAME=NUMBER,..., but got 'imu'"),
    ],
)
def test_wrong_axes_are_refused(files: Path, option: str, message: str) -> None:
    with pytest.raises((UserError, DatasetError), match=message):
        read_source("arrays", files, [option])
