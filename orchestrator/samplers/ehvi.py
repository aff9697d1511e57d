"""Propose the configuration with the highest expected hypervolume improvement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sftsearch.orchestrator.samplers.base import Proposal, Sampler

if TYPE_CHECKING:
    from sftsearch.orchestrator.candidates.admission import Candidate
    from sftsearch.orchestrator.samplers.base import History
    from sftsearch.search_spaces.search_plan import EHVI

NUM_SPREAD_DRAWS = 256
"""Number of random configurations from which each startup configuration is chosen."""


class EHVISampler(Sampler):
    """Proposes by expected hypervolume improvement, computed by the surrogate.

    The startup configurations are spread over the space, starting with a cheap one. While no
    configuration is expected to reach the best baseline, every second proposal is the one that is
    expected to exceed it most, at whatever cost: hypervolume alone favors cheap ones.
    """

    def __init__(self, section: EHVI) -> None:
        self.seed = section.seed
        self._section = section

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`.

        Depends only on the proposal's number and the measurements.
        """
        surrogate = history.surrogate
        past, startup = surrogate.past, self._section.startup_configurations
        num_imported = len(past.imported)
        num_measured = len(past.measured().ids) + num_imported
        if len(past) + num_imported < startup or num_measured < min(2, startup):
            candidate = self._spread(history, branch)
        else:
            number = history.study.num_proposals
            comparison = surrogate.compare(number, branch)
            candidate = comparison.best
            if number % 2 and comparison.excesses is not None:
                candidate = comparison.most_accurate
        return None if candidate is None else Proposal(candidate.point)

    def _spread(self, history: History, branch: int | None) -> Candidate | None:
        """Return the random candidate that is farthest from the configurations of the study."""
        surrogate, number = history.surrogate, history.study.num_proposals
        candidates, free = surrogate.pool.candidates(number, branch)
        if not len(free):
            return None
        random_ = np.random.default_rng([self.seed, number])
        drawn = random_.choice(free, size=min(NUM_SPREAD_DRAWS, len(free)), replace=False)
        if not len(surrogate.past):
            return candidates.rows[int(drawn[candidates.u[drawn].sum(axis=1).argmin()])]
        taken, _ = surrogate.features.arrays()
        apart = ((candidates.x[drawn][:, None] - taken[None]) ** 2).sum(axis=2).min(axis=1)
        return candidates.rows[int(drawn[int(apart.argmax())])]
