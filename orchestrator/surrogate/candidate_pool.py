"""Candidates for proposals, with their features: the enumerated space or points drawn from it.

Shapes: N candidates, D features.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.orchestrator.surrogate.features import Encoder
from sftsearch.trainables.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.search_spaces.point import Point

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

NUM_DRAWN = 2_000
"""Points in one draw from a space that is too large to enumerate."""
PROPOSALS_PER_DRAW = 50
"""Proposals that share the same drawn points."""
MAX_ROUNDS = 5
"""Maximum number of draws for the same proposals; each follows one without a free point left."""
MIN_SCALED = 100
"""With fewer admissible points, the encoder is also built on points beyond the limits."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Configurations that may be proposed, as arrays."""

    rows: list[Candidate]
    x: Floats
    """Features, (N, D)."""
    u: Floats
    """Scaled costs, (N, costs)."""
    branches: Indices
    row_of: dict[str, int]
    """Row by configuration id."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSpace:
    """An enumerated space, encoded for the surrogate."""

    encoder: Encoder
    candidates: Candidates


@functools.lru_cache(maxsize=2)
def encode_space(admission: Admission, costs: tuple[str, ...]) -> EncodedSpace:
    """Encode an enumerated space; cached, because studies that share an admission share it.

    Args:
        admission: of the space; its table never changes.
        costs: names of the costs that are also features.
    """
    assert admission.table is not None, "only an enumerated space can be encoded"
    rows = list(admission.table.values())
    encoder = Encoder(rows, costs)
    return EncodedSpace(encoder, encode(rows, encoder))


def encode(rows: list[Candidate], encoder: Encoder) -> Candidates:
    """Return candidates as arrays."""
    x, u = encoder.encode(rows)
    branches = np.array([c.point.branch for c in rows], dtype=np.int64)
    return Candidates(rows, x, u, branches, {c.id: i for i, c in enumerate(rows)})


class _Offer:
    """Candidates, and which of them are not in the study."""

    def __init__(self, candidates: Candidates, taken: Collection[str]) -> None:
        self.candidates = candidates
        self._is_free = np.array([c.id not in taken for c in candidates.rows], dtype=bool)

    def take(self, configuration_id: str) -> None:
        """Mark a configuration as part of the study, if it is among these."""
        row = self.candidates.row_of.get(configuration_id)
        if row is not None:
            self._is_free[row] = False

    def free(self, branch: int | None) -> Indices:
        """Return the rows that are not in the study, of one branch if given."""
        is_free = self._is_free
        return np.flatnonzero(
            is_free if branch is None else is_free & (self.candidates.branches == branch)
        )


class CandidatePool:
    """The candidates of one study: the whole space, or a draw that a few proposals share."""

    def __init__(self, admission: Admission, costs: tuple[str, ...], *, seed: int = 0) -> None:
        """Start with all candidates free. They are priced and encoded on first use.

        Args:
            admission: prices the space.
            costs: names of the costs that are also features.
            seed: of the draws.
        """
        self._admission, self._costs, self._seed = admission, costs, seed
        self._taken: set[str] = set()
        self._block = 0
        self._offers: list[_Offer] = []
        """Of the last requested block of proposals, by round."""

    def take(self, configuration_id: str) -> None:
        """Mark a configuration as part of the study, so that it is not proposed again."""
        self._taken.add(configuration_id)
        for offer in self._offers:
            offer.take(configuration_id)

    def candidates(self, number: int, branch: int | None = None) -> tuple[Candidates, Indices]:
        """Return candidates for a proposal, and the rows of the free ones (of one branch if given).

        In a large space, points are drawn again if no admissible free point is left. Every call
        starts with the first draw, so the result does not depend on earlier calls.
        """
        is_listed = self._admission.table is not None
        block = 0 if is_listed else number // PROPOSALS_PER_DRAW
        if block != self._block:
            self._block, self._offers = block, []
        round_ = 0
        free = self._offer(round_).free(branch)
        while not is_listed and not len(free) and round_ < MAX_ROUNDS - 1:
            round_ += 1
            free = self._offer(round_).free(branch)
        return self._offers[round_].candidates, free

    def _offer(self, round_: int) -> _Offer:
        """Return the candidates of a round; earlier rounds must have been requested before."""
        if round_ == len(self._offers):
            self._offers.append(_Offer(self._encoded(self._block, round_), self._taken))
        return self._offers[round_]

    def _encoded(self, block: int, round_: int) -> Candidates:
        if self._admission.table is not None:
            return encode_space(self._admission, self._costs).candidates
        return encode(self._drawn(block, round_), self._encoder)

    # ------------------------------------------------------------ encoding

    def encode_taken(self, points: Sequence[tuple[str, Point]]) -> tuple[Floats, Floats]:
        """Return features and scaled costs of admitted configurations, given as (id, point)."""
        if self._admission.table is None:
            return self.encode_points(points)
        candidates = encode_space(self._admission, self._costs).candidates
        rows = [candidates.row_of[identity] for identity, _ in points]
        return candidates.x[rows], candidates.u[rows]

    def encode_points(self, points: Sequence[tuple[str, Point]]) -> tuple[Floats, Floats]:
        """Return features and scaled costs of points, admissible or not."""
        return self._encoder.encode([self._admission.price(point) for _, point in points])

    def scale(self, costs_NC: ArrayLike) -> Floats:
        """Return costs on the scale of the acquisition function; see `Encoder.scale`."""
        return self._encoder.scale(costs_NC)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        if self._admission.table is not None:
            return encode_space(self._admission, self._costs).encoder
        within = self._drawn(0, 0)
        sample = within if len(within) >= MIN_SCALED else self._drawn(0, 0, within_limits=False)
        return Encoder(sample, self._costs)

    # ------------------------------------------------------------ drawing

    def _drawn(self, block: int, round_: int, *, within_limits: bool = True) -> list[Candidate]:
        """Draw distinct points from a large space, whether they are in the study or not."""
        random_ = random.Random(derive_seed(self._seed, MAX_ROUNDS * block + round_))
        drawn: dict[str, Candidate] = {}
        for _ in range(NUM_DRAWN):
            point = self._admission.space.draw(random_)
            candidate = self._priced(point, within_limits=within_limits)
            if candidate is not None:
                drawn[candidate.id] = candidate
        return list(drawn.values())

    def _priced(self, point: Point, *, within_limits: bool) -> Candidate | None:
        """Return the priced point; None if it cannot be built or breaks a limit."""
        if within_limits:
            return self._admission.within_limits(point)
        try:
            return self._admission.price(point)
        except ConfigError:
            return None
