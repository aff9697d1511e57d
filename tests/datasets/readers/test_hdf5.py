"""HDF5 files read by a child process: values, refused files, crashes of the child."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers import hdf5
from sftsearch.datasets.readers.hdf5 import Array, Reader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "features.h5"
    with h5py.File(file, "w") as writer:
        writer["a/x"] = np.arange(12, dtype=np.float32).reshape(4, 3)
        writer["a/b/y"] = np.arange(5, dtype=">i2")
        writer["number"] = 2.5
        writer.create_dataset("names", data=["one", "two"], dtype=h5py.string_dtype())
        writer.create_dataset("small", data=np.zeros((1000, 1000)), compression="gzip")
    return file


def read_all(reader: Reader) -> None:
    for name in reader.arrays():
        reader.read(name)


@pytest.mark.medium
def test_arrays_are_listed_and_read(file: Path) -> None:
    with Reader(file) as reader:
        arrays = reader.arrays()
        assert set(arrays) == {"a/x", "a/b/y", "number", "names", "small"}
        assert arrays["a/x"] == Array("a/x", (4, 3), "<f4")
        assert set(reader.arrays("a")) == {"x", "b/y"}
        x = np.arange(12, dtype=np.float32).reshape(4, 3)
        np.testing.assert_array_equal(reader.read("a/x"), x)
        np.testing.assert_array_equal(reader.read("a/x", 1, 3), x[1:3])
        np.testing.assert_array_equal(reader.read("a/x", 3, 100), x[3:])
        np.testing.assert_array_equal(reader.read("a/b/y"), np.arange(5))
        assert reader.read("number") == 2.5
        assert reader.read("names").tolist() == ["one", "two"]


@pytest.mark.medium
def test_an_error_leaves_the_reader_alive(file: Path) -> None:
    with Reader(file) as reader:
        with pytest.raises(DatasetError, match=f"Cannot read {file}: ValueError: there is no a/z"):
            reader.read("a/z")
        with pytest.raises(DatasetError, match="a is not an array"):
            reader.read("a")
        assert len(reader.read("a/b/y")) == 5


@pytest.mark.medium
def test_large_arrays_and_chunks_are_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(file, "a") as writer:  # a huge shape without stored data
        writer.create_dataset("bomb", shape=(1 << 20, 1 << 20), dtype="f8", chunks=(64, 64))
        writer.create_dataset("chunk", shape=(4, 1 << 28), dtype="f8", chunks=(1, 1 << 28))
    with Reader(file) as reader:
        with pytest.raises(DatasetError, match="bomb has 8796093022208 bytes, more than"):
            reader.read("bomb")
        with pytest.raises(DatasetError, match="chunk has "):
            reader.read("chunk", 0, 1)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["external", "soft", "circle", "virtual", "raw"])
def test_links_and_external_data_are_refused(file: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as writer:
        writer["secret"] = np.arange(3)
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(file, "a") as writer:
        if kind == "external":
            writer["link"] = h5py.ExternalLink(str(other), "/secret")
        elif kind == "soft":
            writer["link"] = h5py.SoftLink("/a/x")
        elif kind == "circle":
            writer["a/link"] = writer["a"]
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=(3,), dtype="i8")
            layout[:] = h5py.VirtualSource(str(other), "secret", shape=(3,))
            writer.create_virtual_dataset("link", layout)
        else:
            writer.create_dataset(
                "link", shape=(3,), dtype="i8", external=[(str(tmp_path / "raw"), 0, 24)]
            )
    with Reader(file) as reader, pytest.raises(DatasetError, match="link"):
        read_all(reader)


@pytest.mark.medium
@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.h5"
    file.write_bytes(content)
    with (
        Reader(file) as reader,
        pytest.raises(DatasetError, match=f"Cannot read {file}: ") as error,
    ):
        reader.arrays()
    assert "\n" not in str(error.value)


@pytest.mark.medium
def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])
    with Reader(file) as reader, pytest.raises(DatasetError):
        read_all(reader)


@pytest.mark.medium
def test_a_crashed_child_gives_one_line(file: Path) -> None:
    with Reader(file) as reader:
        assert reader.arrays()
        reader.process.send_signal(signal.SIGSEGV)
        with pytest.raises(DatasetError, match=r"it is damaged: reading it crashed .*-11"):
            reader.read("a/x")


@pytest.mark.medium
def test_a_hanging_child_is_killed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SECONDS", 1.0)
    with Reader(file) as reader:
        assert reader.arrays()
        reader.process.send_signal(signal.SIGSTOP)
        with pytest.raises(DatasetError, match="took too long"):
            reader.read("a/x")


@pytest.mark.medium
def test_flipped_bytes_never_crash_the_parent(file: Path, tmp_path: Path) -> None:
    content, random = file.read_bytes(), np.random.default_rng(0)
    for case in range(12):
        changed = bytearray(content)
        for position in random.integers(0, len(changed), size=40):
            changed[position] = random.integers(0, 256)
        damaged = tmp_path / f"{case}.h5"
        damaged.write_bytes(bytes(changed))
        with Reader(damaged) as reader, contextlib.suppress(DatasetError):
            read_all(reader)
