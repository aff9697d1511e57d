"""Custom datasets: a folder of arrays with a table of labels."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.arrays import open_source, read_array, read_member
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2


def values(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number)
    return {
        "sound": random.standard_normal((1 + number % 3, 2)).astype(np.float32),
        "picture": random.integers(0, 256, (4, 3), dtype=np.uint8),
    }


def write(folder: Path, layout: str) -> None:
    lines = ["name,label,split,subject"]
    lines += [f"s{n},{'yn'[n % 2]},{SPLITS[n]},p{n // 2}" for n in range(8)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    for n in range(8):
        if layout == "npz":
            np.savez_compressed(folder / f"s{n}.npz", **values(n))
            continue
        for name, array in values(n).items():
            (folder / name).mkdir(exist_ok=True)
            np.save(folder / name / f"s{n}.npy", np.asfortranarray(array))


@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_samples_are_read(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout)
    source = open_source(tmp_path)
    assert source.classes == ("n", "y")
    assert {k: (m.num_tokens, m.num_features, m.variable_length)
            for k, m in source.modalities.items()} == {
        "picture": (4, 3, False), "sound": (3, 2, True)
    }  # fmt: skip
    store = open_store(prepare("mine", source, tmp_path / "store").path)
    train = store.split("train")
    for n in range(4):
        expected = values(n)
        length = len(expected["sound"])
        np.testing.assert_array_equal(train.modalities["sound"][n][:length], expected["sound"])
        np.testing.assert_array_equal(train.modalities["picture"][n], expected["picture"])
    assert store.spec.subjects["test"] == ("p3",)


def test_one_array_of_all_samples_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "id,label\n" + "".join(f"s{n},{n % 2}\n" for n in range(20))
    )
    motion = np.random.default_rng(0).standard_normal((20, 5, 3))
    np.save(tmp_path / "motion.npy", motion)
    source = open_source(tmp_path, dtype="float16")
    assert source.samples[7].label == 1
    np.testing.assert_array_equal(source.samples[7].read()["motion"], motion[7])  # type: ignore[arg-type]
    assert prepare("mine", source, tmp_path / "store").num_samples == 20


def test_a_missing_file_is_a_missing_modality(tmp_path: Path) -> None:
    write(tmp_path, "npy")
    (tmp_path / "picture" / "s3.npy").unlink()
    source = open_source(tmp_path, tokens="sound=2")
    assert source.modalities["picture"].variable_length
    assert source.modalities["sound"].num_tokens == 2
    assert source.samples[3].read()["picture"] is None


def test_multilabel_and_regression_labels(tmp_path: Path) -> None:
    write(tmp_path, "npy")
    rows = "".join(f"s{n},{n % 2},{(n + 1) % 2},{SPLITS[n]}\n" for n in range(8))
    (tmp_path / "labels.csv").write_text("name,label:red,label:big,split\n" + rows)
    source = open_source(tmp_path)
    assert (source.task, source.classes) == ("multilabel", ("red", "big"))
    assert source.samples[1].label == (1, 0)
    rows = "".join(f"s{n},{n / 2},{SPLITS[n]}\n" for n in range(8))
    (tmp_path / "scores.csv").write_text("name,label,split\n" + rows)
    source = open_source(tmp_path, table="scores.csv")
    assert (source.task, source.samples[3].label) == ("regression", 1.5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "the first line must be unique column names"),
        ("a,b\n1,2\n", "one of them `name`"),
        ("name,name\n1,2\n", "unique column names"),
        ("name,label\n", "it has no samples"),
        ("name,label\ns0\n", "line 2 must have 2 cells"),
        ("name,split\ns0,train\n", "it has neither a column `label`"),
        (
            "name,label\n../s0,1\n",
            r"A file must be in .*, but got",
        ),
        ('name,label\n"s0,1\n', "unexpected end of data"),
        ("name,label:a\ns0,2\n", "must have 1 labels of 0 and 1"),
    ],
)
def test_invalid_tables_are_refused(tmp_path: Path, table: str, message: str) -> None:
    write(tmp_path, "npy")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DatasetError, match=message) as raised:
        open_source(tmp_path)
    assert "\n" not in str(raised.value)


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Cannot read"),
        (b"\x93NUMPY\x09\x00", "its .npy version"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"), "ends too early"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 10**9)}"), "Cannot read"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 9)}"),
            "not fit the file",
        ),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}"), "Cannot read"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}", bytes(8)), "be numbers"),
        (npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1, 1)}", bytes(16)), "be numbers"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", bytes(16)), "be numbers"),
        (npy("__import__('os').system('true')"), "Cannot read"),
        (npy("(" * 5000), "Cannot read"),
    ],
)
def test_invalid_arrays_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as raised:
        read_array(file)
    assert "\n" not in str(raised.value)


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="it must be numbers"):
        read_array(file)


@pytest.mark.medium
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    write(tmp_path, "npz")
    inner = io.BytesIO()
    inner.write(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)}"))
    inner.write(bytes(200_000_000))
    with zipfile.ZipFile(tmp_path / "s0.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sound.npy", inner.getvalue())
    open_source(tmp_path)  # reads only the header
    assert read_member(tmp_path / "s0.npz", "sound").shape == (3, 2)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder, "npy")
    secret = tmp_path / "secret.npy"
    np.save(secret, np.zeros((1, 2)))
    (folder / "sound" / "s0.npy").unlink()
    (folder / "sound" / "s0.npy").symlink_to(secret)
    with pytest.raises(DatasetError, match="A file must be in"):
        open_source(folder)


def test_invalid_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"labels.csv: No such file"):
        open_source(tmp_path)
    (tmp_path / "labels.csv").write_text("name,label\ns0,1\n")
    with pytest.raises(DatasetError, match=r"it has no MODALITY/NAME.npy, NAME.npz or MODALITY"):
        open_source(tmp_path)
    (tmp_path / "Big Name").mkdir()
    np.save(tmp_path / "Big Name" / "s0.npy", np.zeros((1, 2)))
    with pytest.raises(DatasetError, match="a modality name must be lower case, but is 'Big Name'"):
        open_source(tmp_path)


def test_widths_must_agree(tmp_path: Path) -> None:
    write(tmp_path, "npy")
    np.save(tmp_path / "sound" / "s2.npy", np.zeros((2, 5)))
    with pytest.raises(DatasetError, match=r"sound has different feature counts: \[2, 5\]"):
        open_source(tmp_path)
    extra: Any = np.zeros((7, 2, 2))
    np.save(tmp_path / "extra.npy", extra)
    with pytest.raises(DatasetError, match="it must have 8 samples in C order, but has 7"):
        open_source(tmp_path)


def test_hidden_folders_are_no_modalities(tmp_path: Path) -> None:
    write(tmp_path, "npy")
    before = list(open_source(tmp_path).modalities)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    np.save(tmp_path / ".ipynb_checkpoints" / "s0.npy", np.zeros((2, 2)))
    (tmp_path / "._sound.npy").write_bytes(b"\0\5\26\7")
    assert list(open_source(tmp_path).modalities) == before
