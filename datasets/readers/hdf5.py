"""HDF5 files, read by a process of their own: a damaged one may take that down, and nothing else.

The child is asked for what there is and for slices, one request a line of JSON; it answers with a
line of JSON and raw bytes. Its memory and time are limited, and it follows no link.

Run as a module this file is the child: `python -m sftsearch.datasets.readers.hdf5 FILE`.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sftsearch.datasets.source import unreadable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_MODULE = "sftsearch.datasets.readers.hdf5"
MAX_BYTES = 1 << 30
"""Of a slice."""
MAX_MEMORY = 8 << 30
"""Of the child, address space: HDF5 itself, and what a slice of compressed chunks needs."""
MAX_NAMES = 2_000_000
SECONDS = 120.0
"""That an answer may take."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array of the file, not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Reader:
    """A file, and the process that reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        command = [sys.executable, "-P", "-m", _MODULE, str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        """Reads the file; whatever becomes of it is a `DatasetError` of the next request."""
        # Not `__del__`: of what refers to itself the process might be collected first, and warn.
        self._end = weakref.finalize(self, _end, self.process)

    def arrays(self, group: str = "/") -> dict[str, Array]:
        """Return all arrays below a group, by their paths without the group's.

        Raises:
            DatasetError: the file is damaged.
        """
        told, _ = self._ask({"list": group})
        return {
            name: Array(name, tuple(shape), dtype)
            for name, (shape, dtype) in told["arrays"].items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return rows of an array of numbers, or of texts as a list of one axis.

        Raises:
            DatasetError: there is no such array, it is too large, or the file is damaged.
        """
        told, content = self._ask({"read": name, "start": start, "stop": stop})
        if "texts" in told:
            return np.array(told["texts"], dtype=object)
        kind, shape = np.dtype(told["dtype"]), tuple(told["shape"])
        if kind.hasobject or math.prod(shape) * kind.itemsize != len(content):
            raise unreadable(self.file, f"{name} has other bytes than it needs")
        return np.frombuffer(content, kind).reshape(shape)

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Timer(SECONDS, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            told = json.loads(self.process.stdout.readline(MAX_BYTES))
            content = self.process.stdout.read(int(told["num_bytes"]))
            if len(content) != told["num_bytes"]:
                raise EOFError
        except (OSError, EOFError, ValueError) as error:
            code = self.process.wait()
            raise unreadable(
                self.file, f"it is damaged: reading it ended the reader or took too long ({code})"
            ) from error
        finally:
            late.cancel()
        if "error" in told:
            raise unreadable(self.file, told["error"])
        return told, content

    def close(self) -> None:
        """End the process; so does whoever drops the reader."""
        self._end()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    child.wait()


# ------------------------------------------------------------------ the child


def _serve(path: str) -> None:
    import h5py  # type: ignore[import-untyped]

    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MAX_MEMORY if limit == resource.RLIM_INFINITY else min(MAX_MEMORY, limit)
    resource.setrlimit(resource.RLIMIT_AS, (most, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file: Any = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        content = b""
        try:
            file = file or h5py.File(path, "r", locking=False)
            if "list" in request:
                told: dict[str, Any] = {"arrays": _listed(file, request["list"])}
            else:
                told, content = _slice(file, request["read"], request["start"], request["stop"])
        except MemoryError:
            told = {"error": "it claims more memory than there is"}
        except Exception as error:  # whatever h5py makes of what is in the file
            told = {"error": f"{type(error).__name__}: {error}"[:300]}
        _answer(sys.stdout.buffer, told | {"num_bytes": len(content)}, content)


def _answer(pipe: BinaryIO, told: dict[str, Any], content: bytes) -> None:
    pipe.write(json.dumps(told).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def _listed(file: Any, group: str) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}
    top = _at(file, group)
    waiting = [("", top)]
    seen = {top.id.__hash__()}
    while waiting:
        prefix, here = waiting.pop()
        for name in here:
            link = here.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{prefix}{name} is a link, which is not followed")
            item = here[name]
            if isinstance(item, h5py.Dataset):
                found[f"{prefix}{name}"] = [list(item.shape or ()), item.dtype.str]
            elif isinstance(item, h5py.Group):
                if item.id.__hash__() in seen:
                    raise ValueError(f"{prefix}{name} leads in a circle")
                seen.add(item.id.__hash__())
                waiting.append((f"{prefix}{name}/", item))
            if len(found) + len(waiting) > MAX_NAMES:
                raise ValueError("it has too many names")
    return found


def _at(file: Any, path: str) -> Any:
    """Follow a path by hard links alone."""
    import h5py

    here = file
    for name in filter(None, path.split("/")):
        if not isinstance(here, h5py.Group) or name not in here:
            raise ValueError(f"there is no {path}")
        if not isinstance(here.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{path} is a link, which is not followed")
        here = here[name]
    return here


def _slice(file: Any, name: str, start: int, stop: int | None) -> tuple[dict[str, Any], bytes]:
    import h5py

    array = _at(file, name)
    if not isinstance(array, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    if array.is_virtual or array.external:
        raise ValueError(f"{name} lies in other files, which are not read")
    shape = array.shape or ()
    rows = range(*slice(start, stop).indices(shape[0])) if shape else range(1)
    row_bytes = math.prod(shape[1:]) * array.dtype.itemsize
    if len(rows) * row_bytes > MAX_BYTES:
        raise ValueError(f"{name} has {len(rows) * row_bytes} bytes, and may have {MAX_BYTES}")
    if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > MAX_BYTES:
        raise ValueError(f"{name} has chunks of more than {MAX_BYTES} bytes")
    values = array[rows.start : rows.stop] if shape else array[()]
    if array.dtype.kind in "OS":
        texts = [
            one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
            for one in np.ravel(values)
        ]
        return {"texts": texts}, b""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} has {array.dtype}, which are no numbers")
    values = np.ascontiguousarray(values)
    return {"dtype": values.dtype.str, "shape": list(values.shape)}, values.tobytes()


if __name__ == "__main__":
    _serve(sys.argv[1])
