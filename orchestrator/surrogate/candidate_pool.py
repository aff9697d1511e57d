"""The configurations that may be proposed, with their features: those of the space, or drawn ones.

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

    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.search_spaces.space import Point

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

NUM_DRAWN = 2_000
"""Points drawn from a space too large to price whole, and drawn anew every so often."""
DRAWN_FOR = 50
"""Proposals that the same drawn points serve."""
MAX_TURNS = 5
"""How often points are drawn for them where none is left that is admissible and new."""
MIN_SCALED = 100
"""Admissible points that the encoding needs to see; else it sees those beyond the limits too."""


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
    """By configuration id."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSpace:
    """A space that is priced whole, as the surrogate sees it."""

    encoder: Encoder
    candidates: Candidates


@functools.lru_cache(maxsize=2)
def encode_space(admission: Admission, costs: tuple[str, ...]) -> EncodedSpace:
    """Encode a space that is priced whole: once for all studies that share its admission.

    Args:
        admission: of the space; its table never changes.
        costs: names of the costs that are features too.
    """
    assert admission.table is not None, "only a space that is priced whole is encoded whole"
    rows = list(admission.table.values())
    encoder = Encoder(rows, costs)
    return EncodedSpace(encoder, encode(rows, encoder))


def encode(rows: list[Candidate], encoder: Encoder) -> Candidates:
    """Return configurations as arrays."""
    x, u = encoder.encode(rows)
    branches = np.array([c.point.branch for c in rows], dtype=np.int64)
    return Candidates(rows, x, u, branches, {c.id: i for i, c in enumerate(rows)})


class _Offer:
    """Some candidates, and which of them are not in the study."""

    def __init__(self, candidates: Candidates, taken: Collection[str]) -> None:
        self.candidates = candidates
        self._is_free = np.array([c.id not in taken for c in candidates.rows], dtype=bool)

    def take(self, configuration_id: str) -> None:
        """Note that a configuration is in the study, if it is one of these."""
        row = self.candidates.row_of.get(configuration_id)
        if row is not None:
            self._is_free[row] = False

    def free(self, branch: int | None) -> Indices:
        """Return the rows that are not in the study, of a branch if one is given."""
        is_free = self._is_free
        return np.flatnonzero(
            is_free if branch is None else is_free & (self.candidates.branches == branch)
        )


class CandidatePool:
    """The candidates of one study: the whole space, or what is drawn of it for a few proposals."""

    def __init__(self, admission: Admission, costs: tuple[str, ...], *, seed: int = 0) -> None:
        """Begin with all of them free. They are priced and encoded when they are first needed.

        Args:
            admission: prices the space.
            costs: names of the costs that are features too.
            seed: of the points that are drawn.
        """
        self._admission, self._costs, self._seed = admission, costs, seed
        self._taken: set[str] = set()
        self._block = 0
        self._offers: list[_Offer] = []
        """Of the block of proposals that was asked for last, by turn."""

    def take(self, configuration_id: str) -> None:
        """Note that a configuration is in the study: it is not proposed again."""
        self._taken.add(configuration_id)
        for offer in self._offers:
            offer.take(configuration_id)

    def candidates(self, number: int, branch: int | None = None) -> tuple[Candidates, Indices]:
        """Return candidates for a proposal, and the rows of those that are free (of a branch).

        From a large space points are drawn again where none is left that is admissible and free.
        Every call begins with the first ones, so that what is returned does not depend on calls
        before.
        """
        is_listed = self._admission.table is not None
        block = 0 if is_listed else number // DRAWN_FOR
        if block != self._block:
            self._block, self._offers = block, []
        turn = 0
        free = self._offer(turn).free(branch)
        while not is_listed and not len(free) and turn < MAX_TURNS - 1:
            turn += 1
            free = self._offer(turn).free(branch)
        return self._offers[turn].candidates, free

    def _offer(self, turn: int) -> _Offer:
        """Return the candidates of a turn; the one before must have been asked for."""
        if turn == len(self._offers):
            self._offers.append(_Offer(self._encoded(self._block, turn), self._taken))
        return self._offers[turn]

    def _encoded(self, block: int, turn: int) -> Candidates:
        if self._admission.table is not None:
            return encode_space(self._admission, self._costs).candidates
        return encode(self._drawn(block, turn), self._encoder)

    # ------------------------------------------------------------ encoding

    def encode_taken(self, places: Sequence[tuple[str, Point]]) -> tuple[Floats, Floats]:
        """Return features and scaled costs of configurations that were admitted."""
        if self._admission.table is None:
            return self.encode_points(places)
        candidates = encode_space(self._admission, self._costs).candidates
        rows = [candidates.row_of[identity] for identity, _ in places]
        return candidates.x[rows], candidates.u[rows]

    def encode_points(self, places: Sequence[tuple[str, Point]]) -> tuple[Floats, Floats]:
        """Return features and scaled costs of points, admissible or not."""
        return self._encoder.encode([self._admission.price(point) for _, point in places])

    @functools.cached_property
    def _encoder(self) -> Encoder:
        if self._admission.table is not None:
            return encode_space(self._admission, self._costs).encoder
        within = self._drawn(0, 0)
        sample = within if len(within) >= MIN_SCALED else self._drawn(0, 0, within_limits=False)
        return Encoder(sample, self._costs)

    # ------------------------------------------------------------ drawing

    def _drawn(self, block: int, turn: int, *, within_limits: bool = True) -> list[Candidate]:
        """Return points drawn of a large space, each once, in the study or not."""
        random_ = random.Random(derive_seed(self._seed, MAX_TURNS * block + turn))
        drawn: dict[str, Candidate] = {}
        for _ in range(NUM_DRAWN):
            point = self._admission.space.draw(random_)
            candidate = self._priced(point, within_limits=within_limits)
            if candidate is not None:
                drawn[candidate.id] = candidate
        return list(drawn.values())

    def _priced(self, point: Point, *, within_limits: bool) -> Candidate | None:
        """Return the priced point; None where it cannot be built, or is refused by a limit."""
        if within_limits:
            return self._admission.within_limits(point)
        try:
            return self._admission.price(point)
        except ConfigError:
            return None
