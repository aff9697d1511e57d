"""Which tokens pooling and sparse attention put together, in whole numbers; no tensor here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Windows:
    """How n tokens become k: windows side by side, each of which pooling makes one token."""

    num_tokens: int
    """n, CLS not counted."""
    count: int
    """k."""
    stride: int | None = None
    """Tokens of every window, the rest left out; None: n tokens shared out evenly."""

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return self.stride or -(-self.num_tokens // self.count)

    def bounds(self) -> list[tuple[int, int]]:
        """Return where each window starts and ends."""
        if self.stride is not None:
            return [(i * self.stride, (i + 1) * self.stride) for i in range(self.count)]
        edges = [i * self.num_tokens // self.count for i in range(self.count + 1)]
        return list(itertools.pairwise(edges))

    def index(self) -> tuple[list[int], list[bool]]:
        """Return `longest` tokens for each window, and which of them are in it."""
        places = [
            (start + i, start + i < stop)
            for start, stop in self.bounds()
            for i in range(self.longest)
        ]
        return [min(place, self.num_tokens - 1) for place, _ in places], [in_ for _, in_ in places]


def windows_of_stride(num_tokens: int, stride: int) -> Windows:
    """Return floor(n / s) windows of s tokens, at least one."""
    stride = min(stride, num_tokens)
    count = num_tokens // stride
    return Windows(num_tokens, count, None if count * stride == num_tokens else stride)


def pools(windows: Iterable[Windows]) -> bool:
    """Say whether any of the sequences becomes shorter."""
    return any(one.count < one.num_tokens for one in windows)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which pairs of n tokens attend to each other; the CLS token counts as the first of them."""

    kind: Literal["strided", "fixed"]
    window: int
    summary: int
    """Tokens at the end of each window that all tokens see in the fixed pattern; below `window`."""

    def summary_tokens(self, n: int) -> list[int]:
        """Return the tokens that all see in the fixed pattern.

        They are the last `summary` of each window, and the first of all but the first window.
        """
        kept = self.window - self.summary
        return [i for i in range(1, n) if i % self.window >= kept or i % self.window == 0]

    def num_summary_tokens(self, n: int) -> int:
        """Return how many `summary_tokens` there are."""
        whole, rest = divmod(n, self.window)
        return whole * self.summary + max(0, whole - 1) + self._num_in_rest(whole, rest)

    def num_pairs(self, n: int) -> int:
        """Return how many pairs (query, key) attend, each token with itself included."""
        whole, rest = divmod(n, self.window)
        near = whole * self.window**2 + rest**2
        if self.kind == "strided":
            of_residues = rest * (whole + 1) ** 2 + (self.window - rest) * whole**2
            return near + of_residues - n  # the token itself is in both
        seen_twice = self.window * (whole * self.summary + max(0, whole - 1))
        seen_twice += rest * self._num_in_rest(whole, rest)
        return near + n * self.num_summary_tokens(n) - seen_twice

    def num_scores(self, n: int) -> int:
        """Return how many scores are computed for n tokens: those of whole windows."""
        windows = -(-n // self.window)
        far = windows if self.kind == "strided" else self.num_summary_tokens(n)
        return windows * self.window * (self.window + far)

    def _num_in_rest(self, whole: int, rest: int) -> int:
        return max(0, rest - (self.window - self.summary)) + (rest > 0 and whole > 0)
