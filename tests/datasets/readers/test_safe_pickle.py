"""Pickles of arrays are loaded; everything else is refused without running code."""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import functools
import operator
import os
import pickle
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.safe_pickle import load

if TYPE_CHECKING:
    from pathlib import Path

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "features.pkl"


def features() -> dict[str, Any]:
    ids = np.array(["a$_$0", "b$_$1"], dtype=object)
    nested = np.empty(2, dtype=object)
    nested[:] = [np.arange(3), ["x", 1.5]]
    return {
        "train": {
            "audio": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "big endian": np.arange(3, dtype=">i4"),
            "empty": np.zeros((0, 5), np.float16),
            "id": ids,
            "nested": nested,
            "text": np.array(["one", "three"]),
            "bytes": np.array([b"one", b"three"]),
            "flag": np.array([True, False]),
            "number": np.float64(2.5),
            "lengths": [3, 4],
            "raw": b"\x00\xff",
        }
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in other)
    if isinstance(other, np.ndarray) and other.dtype == object:
        return one.shape == other.shape and all(map(same, one.flat, other.flat))
    if isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nested_arrays_are_read(file: Path, protocol: int) -> None:
    file.write_bytes(pickle.dumps(features(), protocol))
    assert same(load(file), features())


@pytest.mark.medium
@given(
    array=npst.arrays(
        dtype=st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "u2", "i8", "?", "U3", "S2"]),
        shape=npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_any_array_is_read(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, protocol: int
) -> None:
    file = tmp_path_factory.mktemp("pickles") / "array.pkl"
    file.write_bytes(pickle.dumps(array, protocol))
    assert same(load(file), array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_large_arrays_are_left_in_the_file(file: Path, protocol: int) -> None:
    """Protocol 2 writes bytes as a string, which must be read into memory."""
    large = np.asfortranarray(np.arange(3 << 16, dtype=np.float32).reshape(3, -1))
    file.write_bytes(pickle.dumps({"a": large, "b": large[1:2].copy()}, protocol))
    found = load(file)
    assert same(found, {"a": large, "b": large[1:2]})
    assert found["a"].flags.f_contiguous
    assert isinstance(found["a"], np.memmap) == (protocol > 2)
    assert not found["a"].flags.writeable


def test_module_names_of_numpy_1_are_read(file: Path) -> None:
    content = pickle.dumps(features(), 2)
    assert b"numpy._core" in content
    file.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert same(load(file), features())


def test_texts_of_python_2_are_latin_1(file: Path) -> None:
    """In protocol 2 of Python 2 the bytes of an array are a SHORT_BINSTRING."""
    content = struct.pack("<2f", 1.5, -2.0)
    file.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(content)]) + content + b"tb."
    )  # fmt: skip
    np.testing.assert_array_equal(load(file), np.array([1.5, -2.0], dtype=np.float32))


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "function",
    [os.system, eval, exec, builtins.__import__, getattr, open, subprocess.Popen, operator.call,
     functools.partial, copyreg._reconstructor, np.load, np.fromfile, np.memmap, np.zeros,
     bytearray, set, map],
    ids=lambda function: getattr(function, "__name__", str(function)),
)  # fmt: skip
def test_other_globals_are_refused(file: Path, protocol: int, function: Any) -> None:
    marker = file.with_name("marker")
    content = pickle.dumps([features(), Call(function, f"touch {marker}")], protocol)
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"it names .*; no code was run") as raised:
        load(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04\x8c\x15numpy._core.multiarray\x8c\x0bos.systemxx\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile.\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
        b"\x80\x04\x8c\x07_codecs\x8c\x06decode\x93.",
        b"\x80\x02cnumpy\nload\n.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(ios\nsystem\nS'true'\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"P123\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_handwritten_programs_are_refused(file: Path, program: bytes) -> None:
    file.write_bytes(program)
    with pytest.raises(DatasetError):
        load(file)


def pickled_array(shape: bytes, dtype: bytes, content: bytes) -> bytes:
    """Return the pickle of an array with a custom state."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + dtype + b"\x89" + content + b"tb."
    )


def pickled_dtype(text: bytes, state: bytes) -> bytes:
    return b"cnumpy\ndtype\nU" + bytes([len(text)]) + text + b"K\x00K\x01\x87R" + state


PLAIN = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
FOUR = b"U\x04abcd"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (pickled_array(b"\x8a\x05\x00\x00\x00\x00\x01\x85", pickled_dtype(b"f4", PLAIN), FOUR),
         "the size of an array does not fit its shape"),
        (pickled_array(b"J\xff\xff\xff\xff\x85", pickled_dtype(b"f4", PLAIN), FOUR),
         "the shape of an array is"),
        (pickled_array(b"K\x01\x85", pickled_dtype(b"f4", PLAIN), b"K\x07"),
         "the size of an array"),
        (pickled_array(b"K\x01\x85", pickled_dtype(b"O8", PLAIN), b"U\x08AAAAAAAA"),
         "array of 1 objects has a different content"),
        (pickled_array(b"K\x01\x85", pickled_dtype(b"O", PLAIN), b"U\x08AAAAAAAA"),
         "array of 1 objects has a different content"),
        (pickled_array(b"K\x01\x85", pickled_dtype(b"V8", PLAIN), b"U\x08AAAAAAAA"),
         "must be numbers, strings or objects"),
        (pickled_array(b"K\x01\x85", pickled_dtype(b"f4", b"(K\x03U\x01<]NNNNtb"), FOUR),
         "a dtype has fields"),
        (pickled_array(b"K\x01\x85", pickled_dtype(b"f4", b"(K\x03U\x01?NNNNNtb"), FOUR),
         "the state of a dtype is"),
        (pickled_array(b"K\x01\x85", b"K\x05", FOUR), "the dtype of an array is"),
        (b"\x80\x02cnumpy\nndarray\n\x8a\x04\x00\x00\x00\x40\x85R.", "TypeError"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
         "an array has no state"),
        (b"\x80\x02cnumpy\ndtype\n.", "it has an object of type _StandIn"),
        (b"\x80\x02cnumpy\ndtype\nN}U\x0c__defaults__)s\x86b.", "a function has no state"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.", "EOFError"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00abc.", "EOFError"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00abc.", "EOFError"),
    ],
)  # fmt: skip
def test_invalid_states_are_refused(file: Path, program: bytes, message: str) -> None:
    file.write_bytes(program)
    with pytest.raises(DatasetError, match=message):
        load(file)


def test_shared_and_cyclic_references_are_loaded_once(file: Path) -> None:
    bomb: list[Any] = [1]
    for _ in range(60):
        bomb = [bomb, bomb]
    file.write_bytes(pickle.dumps(bomb, 4))
    found = load(file)
    assert found[0] is found[1]
    loop: list[Any] = []
    loop.append(loop)
    file.write_bytes(pickle.dumps(loop, 4))
    found = load(file)
    assert found[0] is found


def test_strings_with_invalid_characters_are_refused(file: Path) -> None:
    """Numpy would make Python raise a SystemError."""
    content = pickle.dumps(np.array(["abc"]), 4)
    assert content.count(b"c\x00\x00\x00") == 1
    file.write_bytes(content.replace(b"c\x00\x00\x00", b"c\x00\x11\x00"))
    with pytest.raises(DatasetError, match="a string has invalid characters"):
        load(file)


def test_a_memo_index_allocates_no_memory(file: Path) -> None:
    """LONG_BINPUT of two billion, for which the C code of pickle allocates sixteen gigabytes."""
    file.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    assert load(file) == []


@pytest.mark.medium
def test_deep_nesting_is_refused(file: Path) -> None:
    file.write_bytes(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(DatasetError, match="RecursionError"):
        load(file)


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"\x80\x04.", b"\x80\xff."])
def test_what_is_no_pickle_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="it is not a valid pickle"):
        load(file)


@pytest.mark.medium
def test_every_truncation_and_many_flips_are_read_or_refused(file: Path) -> None:
    content = pickle.dumps(features(), 4)
    random = np.random.default_rng(0)
    for case in range(3000):
        changed = bytearray(content)
        if case < len(content):
            changed = changed[:case]
        for position in random.integers(0, max(len(changed), 1), size=3) if case >= 300 else ():
            if len(changed):
                changed[position % len(changed)] = random.integers(0, 256)
        file.write_bytes(bytes(changed))
        with contextlib.suppress(DatasetError):
            load(file)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Cannot read .*none.pkl: No such file"):
        load(tmp_path / "none.pkl")
    with pytest.raises(DatasetError, match="Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_transposed_arrays_are_read(tmp_path: Path, axes: tuple[int, ...], protocol: int) -> None:
    wanted = np.arange(24.0).reshape(2, 3, 4).transpose(axes)
    file = tmp_path / "transposed.pkl"
    file.write_bytes(pickle.dumps(wanted, protocol))
    np.testing.assert_array_equal(load(file), wanted)


def test_large_transposed_arrays_are_read(tmp_path: Path) -> None:
    wanted = np.arange(90_000).reshape(300, 100, 3).transpose(0, 2, 1)  # is memory-mapped
    file = tmp_path / "large.pkl"
    file.write_bytes(pickle.dumps(wanted, 5))
    np.testing.assert_array_equal(load(file), wanted)


class _Buffer:
    """An array as a pickle of a new numpy describes it, with any order of axes."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes

    def __reduce__(self) -> Any:
        content = np.arange(6.0).tobytes()
        return np._core.numeric._frombuffer, (content, np.dtype("f8"), (2, 3), "K", self.axes)


@pytest.mark.parametrize("axes", [(0,), (0, 0), (0, 2), (-1, 0), (True, 0), "10", 1, (0.0, 1.0)])
def test_invalid_orders_of_axes_are_refused(tmp_path: Path, axes: Any) -> None:
    file = tmp_path / "axes.pkl"
    file.write_bytes(pickle.dumps(_Buffer(axes), 5))
    with pytest.raises(DatasetError, match="the axes of an array are invalid"):
        load(file)
