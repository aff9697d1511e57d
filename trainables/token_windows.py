"""Compute the windows of pooling and the patterns of sparse attention, in integers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

Whole = TypeVar("Whole", bound=Any)
"""An int, or a tensor of ints."""


class Cut(NamedTuple):
    """How the samples of one modality are cut into tokens."""

    num_tokens: int
    """n, without CLS."""
    patch: int
    """Samples per token."""
    resampled: bool = False
    """Whether each sample of the dataset, whatever its length, is resampled to n `patch` samples;
    otherwise the last patch is padded, and shorter ones have fewer tokens."""

    def is_exact(self, length: int, *, varies: bool) -> bool:
        """Return whether `length` samples, which may be fewer if it `varies`, are not resampled."""
        return not self.resampled or (not varies and length == self.num_tokens * self.patch)


@dataclass(frozen=True, slots=True)
class Windows:
    """Adjacent windows that pool n tokens to k."""

    num_tokens: int
    """n, without CLS."""
    count: int
    """k."""
    stride: int | None = None
    """Tokens per window, the rest is dropped; None: n tokens are divided evenly."""

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return self.stride or -(-self.num_tokens // self.count)

    def bounds(self) -> list[tuple[int, int]]:
        """Return the start and end of each window."""
        if self.stride is not None:
            return [(i * self.stride, (i + 1) * self.stride) for i in range(self.count)]
        edges = [i * self.num_tokens // self.count for i in range(self.count + 1)]
        return list(itertools.pairwise(edges))

    def index(self) -> tuple[list[int], list[bool]]:
        """Return the indices of `longest` tokens per window, and whether each is in it."""
        entries = [
            (start + i, start + i < stop)
            for start, stop in self.bounds()
            for i in range(self.longest)
        ]
        last = self.num_tokens - 1
        return [min(index, last) for index, _ in entries], [inside for _, inside in entries]


def windows_of_stride(num_tokens: int, stride: int) -> Windows:
    """Return floor(n / s) windows of s tokens, at least one."""
    stride = min(stride, num_tokens)
    count = num_tokens // stride
    return Windows(num_tokens, count, None if count * stride == num_tokens else stride)


def pools(windows: Iterable[Windows]) -> bool:
    """Return whether any sequence becomes shorter."""
    return any(one.count < one.num_tokens for one in windows)


SHORTEST_IN_BLOCKS = 256
"""Tokens from which a sparse pattern is faster in blocks than as dense attention with a mask."""

QUERY_BLOCK = 32
"""Queries that are computed together with their neighbors: what torch's kernel takes at a time."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which pairs of n tokens attend to each other, in both directions; token 0 is CLS.

    strided (Child et al. 2019, arXiv:1904.10509, sec. 4.2): i and j attend to each other if they
    are closer than `window`, or a multiple of it apart.

    fixed (the SFT authors' code, through fairseq): token i > 0 is in window ceil(i / w) - 1, and
    CLS in the first. A token attends to its window from k w to (k + 1) w, both included, and to all
    summary tokens.
    """

    kind: Literal["strided", "fixed"]
    window: int
    summary: int
    """Tokens before the last of each window that all tokens attend to, besides that one, in the
    fixed pattern; less than `window`."""

    def is_dense(self, n: int) -> bool:
        """Return whether all pairs of n tokens attend to each other."""
        return n <= self.window + 1

    def runs_in_blocks(self, n: int) -> bool:
        """Return whether n tokens are computed in blocks; otherwise all pairs are, masked."""
        return n >= SHORTEST_IN_BLOCKS and not self.is_dense(n)

    def window_of(self, i: Whole) -> Whole:
        """Return the window of a token, or of a tensor of tokens, in the fixed pattern."""
        window: Whole = (i - 1 + (i == 0)) // self.window
        return window

    def summary_tokens(self, n: int) -> list[int]:
        """Return the tokens that all tokens attend to in the fixed pattern.

        They are the last `summary` + 1 of each window.
        """
        kept = self.window - self.summary
        return [i for i in range(1, n) if i % self.window >= kept or i % self.window == 0]

    def num_summary_tokens(self, n: int) -> int:
        """Return the number of `summary_tokens`."""
        whole, rest = divmod(n - 1, self.window)
        return whole * (self.summary + 1) + self._num_in_rest(rest)

    def num_pairs(self, n: int) -> int:
        """Return the number of attended pairs (query, key), including each token with itself."""
        if self.is_dense(n):
            return n * n
        w = self.window
        if self.kind == "strided":
            steps = (n - 1) // w
            return n + (w - 1) * (2 * n - w) + steps * (2 * n - w * (steps + 1))
        whole, rest = divmod(n - 1, w)
        summary = self.num_summary_tokens(n)
        in_window = w + summary - (self.summary + 1)
        in_rest = rest + summary - self._num_in_rest(rest)
        return (w + 1) * (1 + in_window) + (whole - 1) * w * in_window + rest * in_rest

    def num_scores(self, n: int) -> int:
        """Return the number of scores that are computed for n tokens."""
        if not self.runs_in_blocks(n):
            return n * n
        w = self.window
        if self.kind == "strided":
            blocks, rows = -(-n // QUERY_BLOCK), -(-n // w)
            return blocks * QUERY_BLOCK * (QUERY_BLOCK + 2 * w - 2) + w * rows**2
        return (1 - (1 - n) // w) * w * w + n * (1 + self.num_summary_tokens(n))

    def _num_in_rest(self, rest: int) -> int:
        """Return the summary tokens of a last window of `rest` tokens."""
        return max(0, rest - (self.window - self.summary) + 1)
