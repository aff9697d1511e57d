"""Propose with Optuna's genetic algorithms, whose generations follow from what proposals carry."""

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
    from sftsearch.search_spaces.search_plan import NSGA2, NSGA3
    from sftsearch.search_spaces.space import Point

GENERATION, PARENTS, UNUSED = "generation", "parents", "unused"
"""What a proposal of a genetic algorithm carries; see `Generations`."""


class GeneticSampler(Sampler):
    """Lets a genetic algorithm draw a child of the generation before; the first is uniform."""

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
        """Return a proposal of a point, with drawn genes where its branch leaves them unused."""
        study = history.study
        uniform = optuna.samplers.RandomSampler(seed=derive_seed(self.seed, study.num_proposals))
        drawn = study.draw_together(uniform, branch)
        return Proposal(point, self._generations(study, branch).carried(point, drawn))

    def _generations(self, study: OptunaStudy, branch: int | None) -> Generations:
        num_branches, population, rate = study.num_branches, self._population, None
        if branch is None:
            # One change a child on average among the branch and its parameters: Optuna's own rate
            # counts those of all branches.
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
    """Generations that follow from what the trials carry: a resumed study has the same ones.

    A trial carries its generation, what it inherited for the parameters of other branches, which
    its children may use, and, if it is the first of its generation, the numbers of their parents:
    these were chosen from what had ended by then. Where branches take turns, each has generations
    of its own.
    """

    def __init__(self, past: OptunaStudy, branch: int | None, **options: Any) -> None:
        """Find out which generation the next trial belongs to.

        Args:
            past: what was proposed so far.
            branch: the one whose turn it is; None: they take no turns.
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
        """Return the parents of a generation, with a value for every parameter of every branch."""
        if generation and generation not in self._parents:
            numbers = self._known_parents(generation)
            if numbers is None:
                parents = self.select_parent(study, generation)
            else:
                every = study.get_trials(deepcopy=False)
                parents = [every[number] for number in numbers]
            self._parents[generation] = [self._whole(parent) for parent in parents]
        return self._parents.get(generation, [])

    def carried(self, point: Point, drawn: Params) -> dict[str, object]:
        """Return what the next trial carries, a proposal of `point` drawn as `drawn`."""
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

    def _whole(self, trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
        """Return a trial that has what it inherited among its parameters.

        One from a time when branches took turns inherited nothing for the others.
        """
        whole = copy.copy(trial)
        whole.params = {**self._lowest, **trial.user_attrs[UNUSED], **trial.params}
        return whole


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
