"""Propose with Optuna's genetic algorithms; generations are stored with the proposals."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from sftsearch.orchestrator.samplers.base import Proposal, Sampler, nearest_free
from sftsearch.orchestrator.samplers.optuna_study import lowest_of
from sftsearch.orchestrator.seeds import derive_seed

if TYPE_CHECKING:
    from sftsearch.orchestrator.samplers.base import History
    from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy, Params
    from sftsearch.search_spaces.point import Point
    from sftsearch.search_spaces.search_plan import NSGA2, NSGA3

GENERATION, PARENTS, UNUSED = "generation", "parents", "unused"
"""Keys of the data stored with a proposal; see `Generations`."""


class GeneticSampler(Sampler):
    """Draws children of the previous generation; the first generation is uniform."""

    _algorithm: type[Generations]

    def __init__(self, section: NSGA2 | NSGA3) -> None:
        self.seed = section.seed
        self._population = section.population

    def propose(self, history: History, branch: int | None) -> Proposal | None:
        """Return the next proposal; see `Sampler`."""
        study = history.study
        generations = self._generations(study, branch)
        if generations.generation == 0:
            return self.draw_uniform(history, branch)
        drawn = study.draw_together(generations, branch)
        point = nearest_free(history.admission, study.point_of(drawn, branch))
        if point is None:
            return self.draw_uniform(history, branch)
        return Proposal(point, generations.carried(point, drawn))

    def given(self, history: History, point: Point, branch: int | None) -> Proposal:
        """Return a proposal of a point, with random values for the parameters it does not use."""
        study = history.study
        uniform = optuna.samplers.RandomSampler(seed=derive_seed(self.seed, study.num_proposals))
        drawn = study.draw_together(uniform, branch)
        return Proposal(point, self._generations(study, branch).carried(point, drawn))

    def _generations(self, study: OptunaStudy, branch: int | None) -> Generations:
        num_branches, population, rate = study.num_branches, self._population, None
        if branch is None:
            # On average one mutation per child among the branch and its parameters; Optuna's
            # default rate counts the parameters of all branches.
            rate = num_branches / (num_branches + len(study.space_of(None)) - 1)
        else:
            population = max(2, population // num_branches)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._algorithm(
                study,
                branch,
                population_size=population,
                mutation_prob=rate,
                seed=derive_seed(self.seed, study.num_proposals),
            )


class Generations(optuna.samplers.BaseGASampler):
    """Generations that are rebuilt from data stored with the trials, also in a resumed study.

    A trial stores its generation and the inherited values of other branches' parameters, which its
    children may use. The first trial of a generation also stores the numbers of the generation's
    parents, as they depend on which trials had ended by then. If branches take turns, each has its
    own generations.
    """

    def __init__(self, past: OptunaStudy, branch: int | None, **options: Any) -> None:
        """Determine the generation of the next trial.

        Args:
            past: the proposals so far.
            branch: whose turn it is; None: branches do not take turns.
            options: of Optuna's sampler.
        """
        super().__init__(**options)
        self._past = past
        self._trials = [t for t in past.trials(branch) if GENERATION in t.user_attrs]
        self._parents: dict[int, list[optuna.trial.FrozenTrial]] = {}
        self._lowest = {key: lowest_of(one) for key, one in past.space_of(branch).items()}
        sizes = Counter(t.user_attrs[GENERATION] for t in self._trials if _has_values(t))
        last = max(sizes, default=0)
        self.generation: int = last + (sizes[last] >= (self.population_size or 0))

    def get_trial_generation(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> int:
        """Return the generation of the next trial."""
        return self.generation

    def get_population(
        self, study: optuna.Study, generation: int
    ) -> list[optuna.trial.FrozenTrial]:
        """Return the trials of a generation that have values."""
        return [t for t in self._of(generation) if _has_values(t)]

    def get_parent_population(
        self, study: optuna.Study, generation: int
    ) -> list[optuna.trial.FrozenTrial]:
        """Return the parents of a generation, with values for the parameters of all branches."""
        if generation and generation not in self._parents:
            numbers = self._known_parents(generation)
            if numbers is None:
                parents = self.select_parent(study, generation)
            else:
                every = study.get_trials(deepcopy=False)
                parents = [every[number] for number in numbers]
            self._parents[generation] = [self._completed(parent) for parent in parents]
        return self._parents.get(generation, [])

    def carried(self, point: Point, drawn: Params) -> dict[str, object]:
        """Return the data to store with a proposal of `point`, whose draw was `drawn`."""
        unused = drawn.keys() - self._past.params(point).keys()
        carried: dict[str, object] = {
            GENERATION: self.generation,
            UNUSED: {key: drawn[key] for key in sorted(unused)},
        }
        if self.generation and self._known_parents(self.generation) is None:
            parents = self.get_parent_population(self._past.study, self.generation)
            carried[PARENTS] = [parent.number for parent in parents]
        return carried

    def _of(self, generation: int) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self._trials if t.user_attrs[GENERATION] == generation]

    def _known_parents(self, generation: int) -> list[int] | None:
        first = (t.user_attrs[PARENTS] for t in self._of(generation) if PARENTS in t.user_attrs)
        return next(first, None)

    def _completed(self, trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
        """Return a trial with its inherited values among its parameters.

        A trial drawn while branches took turns has none for other branches: use the lowest values.
        """
        completed = copy.copy(trial)
        completed.params = {**self._lowest, **trial.user_attrs[UNUSED], **trial.params}
        return completed


class _NSGA2(Generations, optuna.samplers.NSGAIISampler):
    """Optuna's NSGA-II."""


class _NSGA3(Generations, optuna.samplers.NSGAIIISampler):
    """Optuna's NSGA-III."""


class NSGA2Sampler(GeneticSampler):
    """Optuna's NSGA-II."""

    _algorithm = _NSGA2


class NSGA3Sampler(GeneticSampler):
    """Optuna's NSGA-III."""

    _algorithm = _NSGA3


def _has_values(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE
