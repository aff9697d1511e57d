"""Pickles of numpy arrays, of which nothing is run: every global but a few is refused first.

A pickle is a program; `pickle.load` calls what it names. Here it may name what rebuilds numpy's
arrays, dtypes and scalars, and `_codecs.encode`, by which old protocols write bytes; and even these
are stand-ins of ours. numpy's own would believe the state that a pickle gives them: a dtype with
wrong flags makes pointers of numbers, an array may claim any shape.
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
"""Of a file; what is larger is no pickle of features."""
MAPPED_BYTES = 1 << 16
"""Arrays of so many bytes are mapped from the file and not read; pickles frame smaller ones."""
_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_ORDERS = {"<": "<", ">": ">", "=": "=", "|": "|"}
_CORES = ("numpy.core", "numpy._core")  # of numpy 1 and 2


def load(file: Path) -> Any:
    """Return what a pickle holds: dicts, lists, tuples, texts, numbers and numpy's arrays.

    Raises:
        DatasetError: it names anything else, or is damaged.
    """
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise unreadable(file, f"it has {size} bytes, and may have {MAX_BYTES}")
        with file.open("rb") as stream:
            return _Rebuilt().of(_Unpickler(stream, size).load())
    except OSError as error:
        raise unreadable(file, error.strerror or error) from error
    except _RefusedError as error:
        raise unreadable(file, f"{error}; nothing of it was run") from error
    except MemoryError as error:
        raise unreadable(file, "it is no sound pickle, it claims more than there is") from error
    except _DAMAGED as error:
        why = f"it is no sound pickle, {type(error).__name__}: {error}"
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
"""What the unpickler raises on its way through bytes that are no pickle."""


class _RefusedError(Exception):
    """What no array needs."""


_Pure: Any = pickle._Unpickler


class _Unpickler(_Pure):  # type: ignore[misc]
    """Python's own, with an allow-list of exact globals, each of them a stand-in.

    It is the one written in Python: the other one gives as much memory as a number of the file
    asks for, before it reads on.
    """

    def __init__(self, stream: io.BufferedReader, size: int) -> None:
        self._stream, self._size = stream, size
        # Python 2's texts are bytes of latin-1, what is in its arrays among them.
        super().__init__(self, encoding="latin1")

    # What the unpickler reads from: nobody gets more than there is.
    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._size - self._stream.tell():
            raise EOFError("it ends too early")
        return self._stream.read(count)

    def readline(self) -> bytes:
        return self._stream.readline()

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; see `pickle.Unpickler.find_class`."""
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"it names {module}.{name}, which no array needs"[:150])
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what lies elsewhere."""
        raise _RefusedError("it names something outside of itself")

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
    """Stands for many bytes of the file, which are left where they are."""

    def __init__(self, file: str, start: int, count: int) -> None:
        self.file, self.start, self.count = file, start, count

    def __setstate__(self, state: Any) -> None:
        raise ValueError("bytes have no state")


class _StandIn:
    """Calls a function; a pickle can change nothing of it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no state")


class _DType:
    """Stands for a dtype: plain numbers, texts, or objects."""

    def __init__(self, text: str) -> None:
        self.text, self.order = text, "="

    def __setstate__(self, state: Any) -> None:
        """Take over the byte order; names, fields and flags are not believed."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in _ORDERS:
            raise ValueError(f"a dtype's state is {state!r:.60}")
        if any(one is not None for one in state[2:5]):
            raise ValueError("a dtype has fields")
        self.order = state[1]

    def real(self) -> np.dtype[Any]:
        dtype: Any = np.dtype(self.text)
        real: np.dtype[Any] = dtype.newbyteorder("=" if self.order == "|" else self.order)
        return real


class _Array:
    """Stands for an array."""

    def __init__(self) -> None:
        self.values: Any = None

    def __setstate__(self, state: Any) -> None:
        """Check and keep what the array is made of."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError(f"an array's state is {state!r:.60}")
        shape, dtype, is_fortran, content = state[-4:]
        if not isinstance(dtype, _DType):
            raise ValueError(f"an array's dtype is {dtype!r:.60}")
        self.values = _checked(shape, dtype, bool(is_fortran), content)


def _checked(shape: Any, dtype: _DType, is_fortran: bool, content: Any) -> Any:
    """Return an array; of objects, (shape, list), for they may stand for arrays themselves."""
    if not isinstance(shape, tuple) or len(shape) > 8:
        raise ValueError(f"an array's shape is {shape!r:.60}")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"an array's shape is {shape!r:.60}")
    count = math.prod(shape)
    if dtype.text == "O":
        if not isinstance(content, list) or len(content) != count:
            raise ValueError(f"an array of {count} objects has others")
        return shape, content
    kind, order = dtype.real(), "F" if is_fortran else "C"
    if isinstance(content, _Mapped) and content.count == count * kind.itemsize > 0:
        mapped = np.memmap(content.file, kind, "r", content.start, (count,))
        return _sound(mapped).reshape(shape, order=order)  # type: ignore[call-overload]
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or len(content) != count * kind.itemsize:
        raise ValueError(f"an array of {shape} {kind} has other bytes than it needs")
    flat = _sound(np.frombuffer(content, kind))
    return flat.reshape(shape, order=order)  # type: ignore[call-overload]


_PLAIN = (str, bytes, bytearray, int, float, complex, np.generic, np.ndarray)


def _sound(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose texts have no characters that are none: numpy would not look."""
    if flat.dtype.kind == "U" and flat.size:
        codes = flat.view(np.dtype("u4").newbyteorder(flat.dtype.byteorder))
        if codes.max() > 0x10FFFF:
            raise ValueError("a text has characters that are none")
    return flat


class _Rebuilt:
    """Puts arrays in the place of what stands for them; each thing once, whatever refers to it."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def of(self, found: Any) -> Any:
        if id(found) in self._known:
            return self._known[id(found)]
        rebuilt: Any
        if isinstance(found, _Array):
            rebuilt = self._array(found.values)
        elif isinstance(found, dict):
            rebuilt = self._known[id(found)] = {}
            rebuilt.update({self.of(key): self.of(value) for key, value in found.items()})
        elif isinstance(found, list):
            rebuilt = self._known[id(found)] = []
            rebuilt.extend(map(self.of, found))
        elif isinstance(found, tuple):
            rebuilt = tuple(map(self.of, found))
        elif found is None or isinstance(found, _PLAIN):
            return found
        else:
            raise ValueError(f"it holds a {type(found).__name__}")
        self._known[id(found)] = rebuilt
        return rebuilt

    def _array(self, values: Any) -> npt.NDArray[Any]:
        if isinstance(values, np.ndarray):
            return values
        if values is None:
            raise ValueError("an array has no state")
        shape, content = values
        array = np.empty(len(content), dtype=object)
        for i, one in enumerate(content):
            array[i] = self.of(one)
        return array.reshape(shape)


def _dtype(text: Any, align: Any = False, copy: Any = True) -> _DType:
    if isinstance(text, bytes):
        text = text.decode("latin1")
    is_text = (
        isinstance(text, str) and text[:1] in ("S", "U") and text[1:].isdigit() and len(text) < 8
    )
    is_object = text in ("O", "O8", "O4")
    if text not in _KINDS and not is_object and not (is_text and int(text[1:]) > 0):
        raise ValueError(f"an array's type must be numbers, texts or objects, but is {text!r:.60}")
    return _DType("O" if is_object else text)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise ValueError("only arrays are rebuilt")
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    if not isinstance(dtype, _DType) or dtype.text == "O":
        raise ValueError("a buffer's type must be numbers or texts")
    return _checked(shape, dtype, order == "F", content)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if not isinstance(dtype, _DType) or dtype.text == "O":
        raise ValueError("a number's type must be a number's")
    return _checked((), dtype, False, content)[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes must be written as latin-1")
    return text.encode("latin1")


_NDARRAY = object()  # is handed over, and cannot be called
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn(_dtype),
    ("_codecs", "encode"): _StandIn(_encode),
    # By which protocols before 3 write the empty bytes; it takes nothing and gives them.
    ("__builtin__", "bytes"): _StandIn(lambda: b""),
}
for _core in _CORES:
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _StandIn(_reconstruct)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _StandIn(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _StandIn(_from_buffer)
