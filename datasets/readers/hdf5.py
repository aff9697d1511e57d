"""Read HDF5 files in a child process, because a damaged file may crash the HDF5 library.

The parent requests a listing or a slice with one line of JSON; the child responds with a line of
JSON and raw bytes. Memory and time of the child are limited, and it follows no links.

This module is also the program of the child: `python -m sftsearch.datasets.readers.hdf5 FILE`.
"""

from __future__ import annotations

import contextlib
import itertools
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
"""Maximum size of a slice."""
MAX_MEMORY = 8 << 30
"""Limit of the address space of the child: HDF5 itself, and a slice of compressed chunks."""
MAX_NAMES = 2_000_000
MAX_ATTRIBUTES, MAX_ATTRIBUTE_BYTES = 1000, 1 << 20
SECONDS = 120.0
"""Time limit of a response."""


@dataclass(frozen=True, slots=True)
class Array:
    """Description of an array of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Reader:
    """A file and the child process that reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        command = [sys.executable, "-P", "-m", _MODULE, str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        """The child; if it dies, the next request raises a `DatasetError`."""
        # With `__del__`, a reference cycle could collect the process first, which warns.
        self._end = weakref.finalize(self, _end, self.process)

    def arrays(self, group: str = "/") -> dict[str, Array]:
        """Return all arrays below a group, by path relative to the group.

        Raises:
            DatasetError: the file is damaged.
        """
        response, _ = self._request({"list": group})
        return {
            name: Array(name, tuple(shape), dtype)
            for name, (shape, dtype) in response["arrays"].items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return rows of an array of numbers, or a flat array of strings.

        Raises:
            DatasetError: the array is missing or too large, or the file is damaged.
        """
        response, content = self._request({"read": name, "start": start, "stop": stop})
        if "texts" in response:
            return np.array(response["texts"], dtype=object)
        kind, shape = np.dtype(response["dtype"]), tuple(response["shape"])
        if kind.hasobject or math.prod(shape) * kind.itemsize != len(content):
            raise unreadable(self.file, f"the size of {name} does not fit its shape")
        return np.frombuffer(content, kind).reshape(shape)

    def attributes(self, path: str = "/") -> dict[str, Any]:
        """Return the attributes of a group or array: texts, numbers, lists of them, and tables.

        A table, such as the `split` of Fuel, is a list of rows {column: value}; columns of
        references are left out.

        Raises:
            DatasetError: there is no such item, or the file is damaged.
        """
        response, _ = self._request({"attributes": path})
        found: dict[str, Any] = response["attributes"]
        return found

    def _request(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timeout = threading.Timer(SECONDS, self.process.kill)
        timeout.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            response = json.loads(self.process.stdout.readline(MAX_BYTES))
            content = self.process.stdout.read(int(response["num_bytes"]))
            if len(content) != response["num_bytes"]:
                raise EOFError
        except (OSError, EOFError, ValueError) as error:
            code = self.process.wait()
            raise unreadable(
                self.file, f"it is damaged: reading it crashed or took too long (exit code {code})"
            ) from error
        finally:
            timeout.cancel()
        if "error" in response:
            raise unreadable(self.file, response["error"])
        return response, content

    def close(self) -> None:
        """End the child; garbage collection of the reader ends it too."""
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


# ------------------------------------------------------------------ child process


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
                response: dict[str, Any] = {"arrays": _list_arrays(file, request["list"])}
            elif "attributes" in request:
                response = {"attributes": _attributes(_get_item(file, request["attributes"]))}
            else:
                response, content = _slice(file, request["read"], request["start"], request["stop"])
        except MemoryError:
            response = {"error": "it needs more memory than is available"}
        except Exception as error:  # h5py raises many types for damaged files
            response = {"error": f"{type(error).__name__}: {error}"[:300]}
        _respond(sys.stdout.buffer, response | {"num_bytes": len(content)}, content)


def _respond(pipe: BinaryIO, response: dict[str, Any], content: bytes) -> None:
    pipe.write(json.dumps(response).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def _list_arrays(file: Any, group: str) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}
    top = _get_item(file, group)
    pending = [("", top)]
    seen = {top.id.__hash__()}
    while pending:
        prefix, parent = pending.pop()
        for name in parent:
            link = parent.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{prefix}{name} is a link; links are not followed")
            item = parent[name]
            if isinstance(item, h5py.Dataset):
                found[f"{prefix}{name}"] = [list(item.shape or ()), item.dtype.str]
            elif isinstance(item, h5py.Group):
                if item.id.__hash__() in seen:
                    raise ValueError(f"{prefix}{name} is linked more than once")
                seen.add(item.id.__hash__())
                pending.append((f"{prefix}{name}/", item))
            if len(found) + len(pending) > MAX_NAMES:
                raise ValueError(f"it has more than {MAX_NAMES} arrays and groups")
    return found


def _attributes(item: Any) -> dict[str, Any]:
    """Return the attributes of simple types and moderate size."""
    found = {}
    for name in itertools.islice(item.attrs, MAX_ATTRIBUTES):
        kind = item.attrs.get_id(name)
        if math.prod(kind.shape) * kind.dtype.itemsize <= MAX_ATTRIBUTE_BYTES:
            found[name] = _plain(np.asarray(item.attrs[name]))
    return found


def _plain(values: npt.NDArray[Any]) -> Any:
    """Convert an array to numbers, texts and lists; None for other types."""
    if values.dtype.names:
        columns = {name: _plain(values[name]) for name in values.dtype.names}
        columns = {name: column for name, column in columns.items() if isinstance(column, list)}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if values.dtype.kind in "fiub":
        return values.tolist()
    if values.dtype.kind not in "SUO":
        return None
    texts = values.ravel().tolist()
    if not all(isinstance(text, str | bytes) for text in texts):
        return None
    decoded = [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in texts]
    return decoded if values.ndim else decoded[0]


def _get_item(file: Any, path: str) -> Any:
    """Return the item at a path; follow hard links only."""
    import h5py

    item = file
    for name in filter(None, path.split("/")):
        if not isinstance(item, h5py.Group) or name not in item:
            raise ValueError(f"there is no {path}")
        if not isinstance(item.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{path} is a link; links are not followed")
        item = item[name]
    return item


def _slice(file: Any, name: str, start: int, stop: int | None) -> tuple[dict[str, Any], bytes]:
    import h5py

    array = _get_item(file, name)
    if not isinstance(array, h5py.Dataset):
        raise ValueError(f"{name} is not an array")
    if array.is_virtual or array.external:
        raise ValueError(f"{name} is stored in other files; they are not read")
    shape = array.shape or ()
    rows = range(*slice(start, stop).indices(shape[0])) if shape else range(1)
    row_bytes = math.prod(shape[1:]) * array.dtype.itemsize
    if len(rows) * row_bytes > MAX_BYTES:
        raise ValueError(f"{name} has {len(rows) * row_bytes} bytes, more than {MAX_BYTES}")
    if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > MAX_BYTES:
        raise ValueError(f"{name} has chunks of more than {MAX_BYTES} bytes")
    values = array[rows.start : rows.stop] if shape else array[()]
    if array.dtype.kind in "OS":
        texts = [
            text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            for text in np.ravel(values)
        ]
        return {"texts": texts}, b""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be numbers, but is {array.dtype}")
    values = np.ascontiguousarray(values)
    return {"dtype": values.dtype.str, "shape": list(values.shape)}, values.tobytes()


if __name__ == "__main__":
    _serve(sys.argv[1])
