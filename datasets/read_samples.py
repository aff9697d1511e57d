"""Keep the samples that a preparation has read, so that the next one reads only what is new.

A folder has parts of up to 64 MiB: `part-00000.arrow` has the values of some samples, and
`part-00000.json` their keys. A part without a complete JSON file is ignored. The key of a sample
changes with the files that it is read from (`sample_key`), so one changed file costs one sample.

Shapes: T tokens, F features.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sftsearch.datasets.writer import sync

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.source import Sample
    from sftsearch.datasets.spec import ModalitySpec

    Values = Mapping[str, npt.NDArray[Any]]
    """(T, F) by modality, of the storage type; no tokens: the modality is missing."""


MAX_MAPPED = 2
"""Parts that are mapped at a time, which bounds the memory; samples are read in order."""


@dataclass(frozen=True, slots=True)
class ReadSample:
    """A sample that was read, and where its values are."""

    lengths: tuple[int, ...]
    """Tokens in the files by modality, before they are cut; 0: the modality is missing."""
    num_zeroed: int
    """Non-finite numbers that were replaced by 0."""
    part: int
    row: int


def sample_key(sample: Sample, revision: str) -> str:
    """Return a hash of the name of a sample and of the state of its files.

    Args:
        sample: the sample.
        revision: the state of all files; used if the sample does not name its own.
    """
    digest = hashlib.sha256(f"{sample.name}\0".encode("utf-8", "replace"))
    for file in sample.files:
        state = file.stat()
        text = f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0"
        digest.update(text.encode("utf-8", "replace"))
    if not sample.files:
        digest.update(revision.encode())
    return digest.hexdigest()[:32]


class ReadSamples:
    """The samples in the parts of a folder, by key."""

    def __init__(
        self,
        folder: Path,
        modalities: Mapping[str, ModalitySpec],
        identity: str,
        part_bytes: int,
    ) -> None:
        """Load the index of the parts; delete the parts of another identity.

        Args:
            folder: an existing folder.
            modalities: the shapes of the values.
            identity: a hash of everything that values depend on except their files.
            part_bytes: the size from which pending samples are written as a part.
        """
        self._folder, self._modalities = folder, dict(modalities)
        self._identity, self._part_bytes = identity, part_bytes
        self._found: dict[str, ReadSample] = {}
        self._columns: dict[int, dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]] = {}
        self._next = 0
        self._load()
        self._pending: list[tuple[str, Values]] = []
        self._pending_bytes = 0

    def _load(self) -> None:
        for file in sorted(self._folder.glob("part-*.json")):
            try:
                index = json.loads(file.read_text(encoding="utf-8"))
                if index["identity"] != self._identity:
                    raise ValueError("of another identity")
                number = int(file.stem.removeprefix("part-"))
                found = {
                    key: ReadSample(tuple(lengths), zeroed, number, row)
                    for row, (key, lengths, zeroed) in enumerate(index["samples"])
                }
            except (OSError, ValueError, LookupError, TypeError):
                file.unlink(missing_ok=True)
                continue
            self._found |= found
            self._next = number + 1

    def find(self, key: str) -> ReadSample | None:
        """Return the sample with this key, or None."""
        return self._found.get(key)

    def add(
        self, key: str, values: Values, lengths: tuple[int, ...], num_zeroed: int
    ) -> ReadSample:
        """Add a sample; it is on disk after its part is full or `flush` was called."""
        read = ReadSample(lengths, num_zeroed, self._next, len(self._pending))
        self._found[key] = read
        self._pending.append((key, values))
        self._pending_bytes += sum(x_TF.nbytes for x_TF in values.values())
        if self._pending_bytes >= self._part_bytes:
            self.flush()
        return read

    def flush(self) -> None:
        """Write the pending samples as a part, the index last."""
        if not self._pending:
            return
        arrays = [self._column(name) for name in self._modalities]
        batch = pa.record_batch(arrays, names=list(self._modalities))
        name = f"part-{self._next:05d}"
        file = self._folder / f"{name}.arrow"
        with pa.OSFile(os.fspath(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as out:
            out.write_batch(batch)
        sync(file)
        entries = [(key, self._found[key]) for key, _ in self._pending]
        samples = [(key, read.lengths, read.num_zeroed) for key, read in entries]
        new = self._folder / f"{name}.new"
        new.write_text(json.dumps({"identity": self._identity, "samples": samples}))
        sync(new)
        new.replace(self._folder / f"{name}.json")
        self._pending, self._pending_bytes, self._next = [], 0, self._next + 1

    def _column(self, name: str) -> pa.Array:
        arrays = [values[name] for _, values in self._pending]
        ends = np.cumsum([0, *(x_TF.size for x_TF in arrays)], dtype=np.int64)
        flat = np.concatenate([x_TF.reshape(-1) for x_TF in arrays])
        return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(flat))

    def values(self, read: ReadSample) -> dict[str, npt.NDArray[Any]]:
        """Return the values of a sample in a written part, (T, F) by modality, without copying."""
        if read.part not in self._columns:
            if len(self._columns) == MAX_MAPPED:
                del self._columns[next(iter(self._columns))]
            self._columns[read.part] = self._map(read.part)
        found = {}
        for name, (flat, ends) in self._columns[read.part].items():
            x = flat[ends[read.row] : ends[read.row + 1]]
            found[name] = x.reshape(-1, self._modalities[name].num_features)
        return found

    def _map(self, part: int) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        """Map a part; return the flat values and the ends of the samples by modality."""
        file = os.fspath(self._folder / f"part-{part:05d}.arrow")
        batch = pa.ipc.open_file(pa.memory_map(file)).get_batch(0)
        found = {}
        for name, shape in self._modalities.items():
            column = batch.column(name)
            flat = np.frombuffer(column.values.buffers()[1], shape.dtype, len(column.values))
            ends = np.frombuffer(column.offsets.buffers()[1], np.int64, len(column.offsets))
            found[name] = (flat, ends)
        return found
