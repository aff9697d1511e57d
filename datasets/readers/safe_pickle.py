"""Load pickles of numpy arrays without running code: only allow-listed globals are accepted.

A pickle is a program; `pickle.load` calls the globals it names. The allow-list has the functions
that rebuild numpy arrays, dtypes and scalars, and `_codecs.encode`, with which old protocols write
bytes. All of them are replaced by stand-ins, because numpy trusts the state in a pickle: a dtype
with wrong flags turns numbers into pointers, and an array may claim any shape.
"""

from __future__ import annotations

import math
import pickle
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.source import unreadable

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

MAX_BYTES = 64 << 30
"""Maximum size of a file."""
MAPPED_BYTES = 1 << 16
"""Minimum size of arrays that are memory-mapped instead of read; pickles frame smaller ones."""
_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_ORDERS = {"<": "<", ">": ">", "=": "=", "|": "|"}
_CORES = ("numpy.core", "numpy._core")  # of numpy 1 and 2


def load(file: Path) -> Any:
    """Load a pickle of dicts, lists, tuples, strings, bytes, numbers and numpy arrays.

    Raises:
        DatasetError: the pickle has other objects or is damaged.
    """
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise unreadable(file, f"it has {size} bytes; at most {MAX_BYTES} are allowed")
        with file.open("rb") as stream:
            return _Rebuilder().rebuild(_Unpickler(stream, size).load())
    except OSError as error:
        raise unreadable(file, error.strerror or error) from error
    except _RefusedError as error:
        raise unreadable(file, f"{error}; no code was run") from error
    except MemoryError as error:
        raise unreadable(file, "it is not a valid pickle, it exceeds the memory") from error
    except _DAMAGED as error:
        why = f"it is not a valid pickle, {type(error).__name__}: {error}"
        raise unreadable(file, why) from error


_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""Raised by the unpickler for bytes that are not a pickle."""


class _RefusedError(Exception):
    """The pickle names a global or an object that is not allowed."""


_Pure: Any = pickle._Unpickler


class _Unpickler(_Pure):  # type: ignore[misc]
    """The unpickler of Python, restricted to allow-listed globals.

    It is the implementation in Python: that in C allocates as much memory as a number in the file
    requests.
    """

    def __init__(self, stream: io.BufferedReader, size: int) -> None:
        self._stream, self._size = stream, size
        # Strings of Python 2, which include the content of arrays, are latin-1.
        super().__init__(self, encoding="latin1")

    # The unpickler reads from itself, so that no read exceeds the file.
    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._size - self._stream.tell():
            raise EOFError("it ends too early")
        return self._stream.read(count)

    def readline(self) -> bytes:
        return self._stream.readline()

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; see `pickle.Unpickler.find_class`."""
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"it names {module}.{name}, which is not allowed"[:150])
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Reject references to external objects."""
        raise _RefusedError("it refers to an external object")

    def _load_sized(self, layout: str, convert: Callable[[bytes], Any]) -> None:
        (count,) = struct.unpack(layout, self._unframer.read(struct.calcsize(layout)))
        if count >= MAPPED_BYTES and not self._unframer.current_frame:
            start = self._stream.tell()
            if not 0 <= count <= self._size - start:
                raise EOFError("it ends too early")
            self._stream.seek(count, 1)
            self.append(_Mapped(self._stream.name, start, count))
        else:
            self.append(convert(self._unframer.read(count)))

    def load_bytes(self) -> None:
        self._load_sized("<I", bytes)

    def load_bytes8(self) -> None:
        self._load_sized("<Q", bytes)

    def load_bytearray8(self) -> None:
        self._load_sized("<Q", bytearray)

    def load_string(self) -> None:
        self._load_sized("<i", lambda content: content.decode("latin1"))

    dispatch = _Pure.dispatch | {
        pickle.BINBYTES[0]: load_bytes,
        pickle.BINBYTES8[0]: load_bytes8,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.BINSTRING[0]: load_string,
    }


class _Mapped:
    """Stand-in for a large bytes object, which stays in the file."""

    def __init__(self, file: str, start: int, count: int) -> None:
        self.file, self.start, self.count = file, start, count

    def __setstate__(self, state: Any) -> None:
        raise ValueError("bytes have no state")


class _StandIn:
    """Stand-in for a function; a pickle cannot change its state."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no state")


class _DType:
    """Stand-in for a dtype of numbers, strings or objects."""

    def __init__(self, text: str) -> None:
        self.text, self.order = text, "="

    def __setstate__(self, state: Any) -> None:
        """Set the byte order; reject fields and ignore flags."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in _ORDERS:
            raise ValueError(f"the state of a dtype is invalid: {state!r:.60}")
        if any(value is not None for value in state[2:5]):
            raise ValueError("a dtype has fields")
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        native: Any = np.dtype(self.text)
        dtype: np.dtype[Any] = native.newbyteorder("=" if self.order == "|" else self.order)
        return dtype


class _Array:
    """Stand-in for an array."""

    def __init__(self) -> None:
        self.values: Any = None

    def __setstate__(self, state: Any) -> None:
        """Check the state and build the values."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError(f"the state of an array is invalid: {state!r:.60}")
        shape, dtype, is_fortran, content = state[-4:]
        if not isinstance(dtype, _DType):
            raise ValueError(f"the dtype of an array is invalid: {dtype!r:.60}")
        self.values = _build_array(shape, dtype, bool(is_fortran), content)


def _build_array(shape: Any, dtype: _DType, is_fortran: bool, content: Any) -> Any:
    """Return an array, or (shape, list) of objects, because these may be stand-ins themselves."""
    if not isinstance(shape, tuple) or len(shape) > 8:
        raise ValueError(f"the shape of an array is invalid: {shape!r:.60}")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"the shape of an array is invalid: {shape!r:.60}")
    count = math.prod(shape)
    if dtype.text == "O":
        if not isinstance(content, list) or len(content) != count:
            raise ValueError(f"an array of {count} objects has a different content")
        return shape, content
    kind, order = dtype.to_numpy(), "F" if is_fortran else "C"
    if isinstance(content, _Mapped) and content.count == count * kind.itemsize > 0:
        mapped = np.memmap(content.file, kind, "r", content.start, (count,))
        return _check_strings(mapped).reshape(shape, order=order)  # type: ignore[call-overload]
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or len(content) != count * kind.itemsize:
        raise ValueError(f"the size of an array does not fit its shape {shape} and dtype {kind}")
    flat = _check_strings(np.frombuffer(content, kind))
    return flat.reshape(shape, order=order)  # type: ignore[call-overload]


_PLAIN = (str, bytes, bytearray, int, float, complex, np.generic, np.ndarray)


def _check_strings(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array; check for invalid code points, which numpy does not do."""
    if flat.dtype.kind == "U" and flat.size:
        codes = flat.view(np.dtype("u4").newbyteorder(flat.dtype.byteorder))
        if codes.max() > 0x10FFFF:
            raise ValueError("a string has invalid characters")
    return flat


class _Rebuilder:
    """Replaces stand-ins by arrays; an object is rebuilt once, however often it is referenced."""

    def __init__(self) -> None:
        self._rebuilt: dict[int, Any] = {}

    def rebuild(self, found: Any) -> Any:
        if id(found) in self._rebuilt:
            return self._rebuilt[id(found)]
        rebuilt: Any
        if isinstance(found, _Array):
            rebuilt = self._array(found.values)
        elif isinstance(found, dict):
            rebuilt = self._rebuilt[id(found)] = {}
            items = found.items()
            rebuilt.update({self.rebuild(key): self.rebuild(value) for key, value in items})
        elif isinstance(found, list):
            rebuilt = self._rebuilt[id(found)] = []
            rebuilt.extend(map(self.rebuild, found))
        elif isinstance(found, tuple):
            rebuilt = tuple(map(self.rebuild, found))
        elif found is None or isinstance(found, _PLAIN):
            return found
        else:
            raise ValueError(f"it has an object of type {type(found).__name__}")
        self._rebuilt[id(found)] = rebuilt
        return rebuilt

    def _array(self, values: Any) -> npt.NDArray[Any]:
        if isinstance(values, np.ndarray):
            return values
        if values is None:
            raise ValueError("an array has no state")
        shape, content = values
        array = np.empty(len(content), dtype=object)
        for i, value in enumerate(content):
            array[i] = self.rebuild(value)
        return array.reshape(shape)


def _dtype(text: Any, align: Any = False, copy: Any = True) -> _DType:
    if isinstance(text, bytes):
        text = text.decode("latin1")
    is_text = (
        isinstance(text, str) and text[:1] in ("S", "U") and text[1:].isdigit() and len(text) < 8
    )
    is_object = text in ("O", "O8", "O4")
    if text not in _KINDS and not is_object and not (is_text and int(text[1:]) > 0):
        raise ValueError(f"a dtype must be numbers, strings or objects, but is {text!r:.60}")
    return _DType("O" if is_object else text)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise ValueError("only arrays can be reconstructed")
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    """Build an array of protocol 5; numpy 2.3 and later give `axes` for transposed arrays."""
    if not isinstance(dtype, _DType) or dtype.text == "O":
        raise ValueError("the dtype of a buffer must be numbers or strings")
    array = _build_array(shape, dtype, order == "F", content)
    if order != "K" or axes is None:
        return array
    is_valid = isinstance(axes, tuple | list) and all(type(axis) is int for axis in axes)
    if not is_valid or sorted(axes) != list(range(array.ndim)):
        raise ValueError(f"the axes of an array are invalid: {axes!r:.60}")
    return array.transpose(axes)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if not isinstance(dtype, _DType) or dtype.text == "O":
        raise ValueError("the dtype of a scalar must be numbers or strings")
    return _build_array((), dtype, False, content)[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes must be encoded as latin-1")
    return text.encode("latin1")


_NDARRAY = object()  # an argument of `_reconstruct`; not callable
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn(_dtype),
    ("_codecs", "encode"): _StandIn(_encode),
    # Protocols before 3 write empty bytes as a call without arguments.
    ("__builtin__", "bytes"): _StandIn(lambda: b""),
}
for _core in _CORES:
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _StandIn(_reconstruct)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _StandIn(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _StandIn(_from_buffer)
