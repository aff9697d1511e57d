"""The tokens of many samples, read a few at a time from where they lie.

What lies on a memory map is never copied as a whole: an index array copies the rows it names.

Shapes: N samples, T tokens (the most a sample has), F features, M tokens of all samples together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class Samples(Protocol):
    """What holds the tokens of many samples: an array, or one of the classes below."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T, F)."""

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return some samples: by an index array, a mask or a slice, (n, T, F); by a number."""


def views(source: Samples, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Return the valid tokens of some samples, (t, F) each, where they lie; nothing is copied."""
    if isinstance(source, Rows | Ragged):
        return source.views(rows)
    return [source[row] for row in rows.tolist()]


class _Viewed(ABC):
    """Samples that lie here and there, and are copied when they are asked for."""

    shape: tuple[int, ...]

    @abstractmethod
    def views(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        """See `views`."""

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return a copy of some samples, as `Samples`."""
        chosen = np.arange(self.shape[0])[rows]
        out = np.zeros((chosen.size, *self.shape[1:]), dtype=np.float32)
        for one, view in zip(out, self.views(np.atleast_1d(chosen)), strict=True):
            one[: len(view)] = view
        return out[0] if chosen.ndim == 0 else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all samples, for numpy."""
        return np.asarray(self[:], dtype=dtype)


class Rows(_Viewed):
    """Some rows of samples that lie in several places, one behind the other."""

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
            places = np.flatnonzero(part_of == number)
            of_part = views(self._parts[number], within[places])
            for place, view in zip(places.tolist(), of_part, strict=True):
                found[place] = view
        return found


class Ragged(_Viewed):
    """Samples of different lengths, without padding; what is copied of them is padded with zeros.

    They lie in parts, one behind the other: those of a part are values[starts[i]:starts[i + 1]].
    """

    def __init__(
        self,
        values: Sequence[npt.NDArray[Any]],
        starts: Sequence[npt.NDArray[np.int64]],
        num_tokens: int,
    ) -> None:
        """Wrap what lies somewhere.

        Args:
            values: (M, F) by part.
            starts: by part, (n + 1,), rising from 0 to M by at most `num_tokens`.
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
        places = zip(self._part_of[rows].tolist(), starts, lengths, strict=True)
        parts = self.parts
        return [parts[part][start : start + length] for part, start, length in places]
