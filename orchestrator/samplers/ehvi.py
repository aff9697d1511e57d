"""Propose the configuration from which the front is expected to gain most hypervolume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import optuna

from sftsearch.orchestrator.samplers.base import Proposal, Sampler

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from sftsearch.orchestrator.candidates.admission import Candidate
    from sftsearch.orchestrator.samplers.base import History
    from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
    from sftsearch.orchestrator.surrogate.model import SurrogateModel
    from sftsearch.search_spaces.search_plan import Front

SPREAD_OVER = 256
"""Configurations drawn at random of which a first one is the farthest from the others."""


class FrontSampler(optuna.samplers.BaseSampler):
    """The configuration from which the front is expected to gain most (see `surrogate`).

    The first ones are spread over the space, beginning with the cheapest. A trial's parameters are
    those of one configuration, so none is drawn apart from the others.
    """

    def __init__(self, plan: Front, study: OptunaStudy, surrogate: SurrogateModel) -> None:
        self._plan, self._study, self._surrogate = plan, study, surrogate
        self._chosen: tuple[int, Candidate] | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return none: `sample_independent` gives every parameter of one configuration."""
        return {}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, object]:
        """Return nothing; see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> object:
        """Return the parameter that the trial's configuration has.

        Raises:
            LookupError: every admitted configuration is in the study.
        """
        if self._chosen is None or self._chosen[0] != trial.number:
            candidate = self.choose(trial.number, None)
            if candidate is None:
                raise LookupError("Every admitted configuration is in the study.")
            self._chosen = trial.number, candidate
        return self._study.params(self._chosen[1].point)[param_name]

    def choose(self, number: int, branch: int | None) -> Candidate | None:
        """Return the configuration to try next, of a branch if one is given; None: none is left.

        It follows from the number and from what was measured.
        """
        past = self._surrogate.past
        few = min(2, self._plan.startup_configurations)
        known = len(past.imported)  # by another study
        num_valued = len(past.measured().ids) + known
        if len(past) + known < self._plan.startup_configurations or num_valued < few:
            return self._spread(number, branch)
        return self._surrogate.compare(number, branch).best

    def _spread(self, number: int, branch: int | None) -> Candidate | None:
        """Return the candidate farthest from all that are in the study, of some drawn ones."""
        candidates, free = self._surrogate.pool.candidates(number, branch)
        if not len(free):
            return None
        random_ = np.random.default_rng([self._plan.seed, number])
        drawn = random_.choice(free, size=min(SPREAD_OVER, len(free)), replace=False)
        if not len(self._surrogate.past):
            return candidates.rows[int(drawn[candidates.u[drawn].sum(axis=1).argmin()])]
        taken, _ = self._surrogate.features.arrays()
        apart = ((candidates.x[drawn][:, None] - taken[None]) ** 2).sum(axis=2).min(axis=1)
        return candidates.rows[int(drawn[int(apart.argmax())])]


class EHVISampler(Sampler):
    """Proposes what a `FrontSampler` chooses from what the surrogate expects by now."""

    def __init__(self, section: Front) -> None:
        self.seed = section.seed
        self._section = section

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        sampler = FrontSampler(self._section, history.study, history.surrogate)
        candidate = sampler.choose(history.study.num_proposals, branch)
        return None if candidate is None else Proposal(candidate.point)
