"""Access the tokens of many samples without copying the memory map.

Indexing copies the selected rows only.

Shapes: N samples, T tokens (the maximum of a sample), F features, M tokens of all samples together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt


class Samples(Protocol):
    """The tokens of many samples: an array, or one of the classes below."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T, F)."""

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return the samples of an index array, mask or slice, (n, T, F), or of an int, (T, F)."""


def views(source: Samples, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Return views of the valid tokens of some samples, (t, F) each; nothing is copied."""
    if isinstance(source, Rows | Ragged):
        return source.views(rows)
    return [source[row] for row in rows.tolist()]


class _Viewed(ABC):
    """Samples stored in separate arrays, copied into one array on access."""

    shape: tuple[int, ...]

    @abstractmethod
    def views(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """See `views`."""

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return a copy of some samples; see `Samples`."""
        chosen = np.arange(self.shape[0])[rows]
        out = np.zeros((chosen.size, *self.shape[1:]), dtype=np.float32)
        for one, view in zip(out, self.views(np.atleast_1d(chosen)), strict=True):
            one[: len(view)] = view
        return out[0] if chosen.ndim == 0 else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all samples as a numpy array."""
        return np.asarray(self[:], dtype=dtype)


class Rows(_Viewed):
    """Selected rows of the concatenation of several `Samples`."""

    def __init__(self, parts: Sequence[Samples], index: npt.NDArray[np.int64]) -> None:
        self._parts, self._index = list(parts), index
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (len(index), *parts[0].shape[1:])

    def views(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """See `views`."""
        index = self._index[rows]
        part_of = np.searchsorted(self._starts, index, side="right") - 1
        within = index - self._starts[part_of]
        found: list[npt.NDArray[Any]] = [np.zeros(0)] * len(index)
        for number in np.unique(part_of).tolist():
            positions = np.flatnonzero(part_of == number)
            of_part = views(self._parts[number], within[positions])
            for position, view in zip(positions.tolist(), of_part, strict=True):
                found[position] = view
        return found


class Ragged(_Viewed):
    """Samples of different lengths, stored without padding; copies are padded with zeros.

    Samples are stored in consecutive parts; sample i of a part is values[starts[i]:starts[i + 1]].
    """

    def __init__(
        self,
        values: Sequence[npt.NDArray[Any]],
        starts: Sequence[npt.NDArray[np.int64]],
        num_tokens: int,
    ) -> None:
        """Wrap arrays without copying.

        Args:
            values: (M, F) for each part.
            starts: (n + 1,) for each part, rising from 0 to M in steps of at most `num_tokens`.
            num_tokens: T.
        """
        self.parts = tuple(values)
        self.lengths = np.concatenate([np.diff(ends) for ends in starts])
        self._starts = np.concatenate([ends[:-1] for ends in starts])
        self._part_of = np.repeat(np.arange(len(starts)), [len(ends) - 1 for ends in starts])
        self.shape = (len(self.lengths), num_tokens, values[0].shape[1])

    def views(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """See `views`."""
        starts, lengths = self._starts[rows].tolist(), self.lengths[rows].tolist()
        slices = zip(self._part_of[rows].tolist(), starts, lengths, strict=True)
        parts = self.parts
        return [parts[part][start : start + length] for part, start, length in slices]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The samples of one split; from a store, they are read-only views of the memory map."""

    name: str
    modalities: Mapping[str, Samples]
    """(N, T, F) by modality, in the order of the spec."""
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    """By task: (N,) class indices, int64; (N, C) of 0 and 1, float32; or (N,) numbers, float32."""
    subjects: npt.NDArray[np.int64]
    """(N,), indices into the subjects of this split in the spec; -1 if the subject is unknown."""
    lengths: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """(N,) leading valid tokens by modality of variable length; 0: the modality is missing."""

    def __len__(self) -> int:
        return len(self.labels)
