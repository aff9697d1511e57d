"""Compute the windows of pooling and the patterns of sparse attention, in integers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable


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


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which pairs of n tokens attend to each other; the CLS token is the first."""

    kind: Literal["strided", "fixed"]
    window: int
    summary: int
    """Tokens at the end of each window that all tokens attend to, in the fixed pattern; less than
    `window`."""

    def summary_tokens(self, n: int) -> list[int]:
        """Return the tokens that all tokens attend to in the fixed pattern.

        They are the last `summary` of each window, and the first of each window except the first.
        """
        kept = self.window - self.summary
        return [i for i in range(1, n) if i % self.window >= kept or i % self.window == 0]

    def num_summary_tokens(self, n: int) -> int:
        """Return the number of `summary_tokens`."""
        whole, rest = divmod(n, self.window)
        return whole * self.summary + max(0, whole - 1) + self._num_in_rest(whole, rest)

    def num_pairs(self, n: int) -> int:
        """Return the number of attended pairs (query, key), including each token with itself."""
        whole, rest = divmod(n, self.window)
        near = whole * self.window**2 + rest**2
        if self.kind == "strided":
            far = rest * (whole + 1) ** 2 + (self.window - rest) * whole**2
            return near + far - n  # each token with itself is in both
        in_both = self.window * (whole * self.summary + max(0, whole - 1))
        in_both += rest * self._num_in_rest(whole, rest)
        return near + n * self.num_summary_tokens(n) - in_both

    def num_scores(self, n: int) -> int:
        """Return the number of scores computed for n tokens, with the padded last window."""
        windows = -(-n // self.window)
        far = windows if self.kind == "strided" else self.num_summary_tokens(n)
        return windows * self.window * (self.window + far)

    def _num_in_rest(self, whole: int, rest: int) -> int:
        return max(0, rest - (self.window - self.summary)) + (rest > 0 and whole > 0)
