"""Propose with Optuna's samplers that need only the point and the result of each proposal.

In an enumerated space, repeated or inadmissible draws are replaced by the nearest new admissible
configuration.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from sftsearch.orchestrator.samplers.base import Proposal, Sampler, nearest_free
from sftsearch.orchestrator.seeds import derive_seed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from sftsearch.orchestrator.samplers.base import History
    from sftsearch.search_spaces.search_plan import GP, TPE, QuasiRandom, RandomDraw


class UniformSampler(Sampler):
    """Draws uniformly from the admissible configurations that are not in the study."""

    def __init__(self, section: RandomDraw) -> None:
        self.seed = section.seed

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        return self.draw_uniform(history, branch)


class TPESampler(Sampler):
    """Draws the startup configurations uniformly, then with Optuna's TPE."""

    def __init__(self, section: TPE) -> None:
        self.seed = section.seed
        self._num_startup = section.startup_configurations

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        if history.admission.num_taken < self._num_startup:
            return self.draw_uniform(history, branch)
        seed = derive_seed(self.seed, history.study.num_proposals)
        # Optuna uses the independent TPE by default for several objectives and conditional spaces.
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=False)
        point = nearest_free(history.admission, history.study.draw(sampler, branch))
        return self.draw_uniform(history, branch) if point is None else Proposal(point)


class GPSampler(Sampler):
    """Draws the startup configurations uniformly, then with Optuna's GP sampler."""

    def __init__(self, section: GP) -> None:
        self.seed = section.seed
        self._num_startup = section.startup_configurations

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        past = history.study.flat(branch)
        num_valued = len(past.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if history.admission.num_taken < self._num_startup or num_valued < 2:
            return self.draw_uniform(history, branch)
        past.sampler = optuna.samplers.GPSampler(
            seed=derive_seed(self.seed, history.study.num_proposals), n_startup_trials=2
        )
        drawn = past.ask(history.study.space_of(branch)).params
        point = nearest_free(history.admission, history.study.point_of(drawn, branch))
        return self.draw_uniform(history, branch) if point is None else Proposal(point)


class QuasiRandomSampler(Sampler):
    """Draws the next point of a Sobol sequence over all branches, or of the branch's sequence."""

    def __init__(self, section: QuasiRandom) -> None:
        self.seed = section.seed

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        study = history.study
        sobol = _Sobol(len(study.trials(branch)), self.seed)
        drawn = study.point_of(study.draw_together(sobol, branch), branch)
        point = nearest_free(history.admission, drawn)
        return self.draw_uniform(history, branch) if point is None else Proposal(point)


class _Sobol(optuna.samplers.QMCSampler):
    """Draws one point of Optuna's Sobol sequence, at an index that we choose."""

    def __init__(self, index: int, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._index = index

    def _find_sample_id(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution]
    ) -> int:
        return self._index
