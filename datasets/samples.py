"""The tokens of many samples, read a few at a time from where they lie.

What lies on a memory map is never copied as a whole: an index array copies the rows it names.

Shapes: N samples, T tokens (the most a sample has), F features, M tokens of all samples together.
"""

from __future__ import annotations

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


class Rows:
    """Some rows of samples that lie in several places, one behind the other."""

    def __init__(self, parts: Sequence[Samples], index: npt.NDArray[np.int64]) -> None:
        self._parts, self._index = list(parts), index
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (len(index), *parts[0].shape[1:])

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return a copy of some samples, as `Samples`."""
        index = self._index[rows]
        if index.ndim == 0:
            one: npt.NDArray[np.float32] = self[np.array([rows])][0]
            return one
        chosen = np.empty((len(index), *self.shape[1:]), dtype=np.float32)
        part_of = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(part_of):
            here = part_of == number
            chosen[here] = self._parts[number][index[here] - self._starts[number]]
        return chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all samples, for numpy."""
        return np.asarray(self[:], dtype=dtype)


class Ragged:
    """Samples of different lengths, without padding: sample i is values[starts[i]:starts[i + 1]].

    What is read of them is padded with zeros.
    """

    def __init__(
        self, values: npt.NDArray[Any], starts: npt.NDArray[np.int64], num_tokens: int
    ) -> None:
        """Wrap what lies somewhere.

        Args:
            values: (M, F).
            starts: (N + 1,), rising from 0 to M by at most `num_tokens`.
            num_tokens: T.
        """
        self.values, self._starts = values, starts
        self.lengths = np.diff(starts)
        self.shape = (len(self.lengths), num_tokens, values.shape[1])

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        """Return a copy of some samples, as `Samples`."""
        length_n = self.lengths[rows]
        if length_n.ndim == 0:
            one: npt.NDArray[np.float32] = self[np.array([rows])][0]
            return one
        chosen = np.zeros((len(length_n), *self.shape[1:]), dtype=np.float32)
        # Where every valid token lies: its sample's start, and how far behind that it is.
        ends_n = np.cumsum(length_n)
        total = ends_n[-1] if len(ends_n) else 0
        within = np.arange(total) - np.repeat(ends_n - length_n, length_n)
        sample = np.repeat(np.arange(len(length_n)), length_n)
        chosen[sample, within] = self.values[self._starts[:-1][rows][sample] + within]
        return chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all samples, for numpy."""
        return np.asarray(self[:], dtype=dtype)
