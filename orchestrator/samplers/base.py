"""SAMPLERS: who proposes the next configuration, with Optuna behind it. The one place to add one.

Random numbers derive from the sampler's seed and the proposal's number alone, so the same history
gives the same proposal, also in a resumed study.
"""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from sftsearch.orchestrator.samplers.optuna_study import lowest_of
from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.search_spaces.space import Point

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import BaseDistribution

    from sftsearch.orchestrator.candidates.admission import Admission, Candidate
    from sftsearch.orchestrator.samplers.optuna_study import OptunaStudy
    from sftsearch.orchestrator.surrogate.model import SurrogateModel

SPREAD_OVER = 256
"""Configurations drawn at random of which a first one is the farthest from the others."""
GENERATION, PARENTS, UNUSED = "generation", "parents", "unused"
"""What a trial of a genetic algorithm carries; see `Generations`."""

Proposal = tuple[int, Point]


def propose_tpe(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: SurrogateModel, branch: int | None
) -> Proposal | None:
    """Draw the first admitted configurations uniformly, then let Optuna's TPE draw.

    TPE itself draws the same again and again, and what is not admissible. In a space that is
    priced whole the nearest admissible new configuration is proposed instead.
    """
    if admission.num_taken < plan.startup_configurations:
        return propose_uniform(plan, study, admission, beliefs, branch)
    seed = derive_seed(plan.seed, study.num_proposals)
    # The independent TPE is Optuna's own choice for several objectives and conditional spaces.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=False)
    point = _admissible(admission, study.draw(sampler, branch))
    if point is None:
        return propose_uniform(plan, study, admission, beliefs, branch)
    return study.enter(point), point


def _admissible(admission: Admission, drawn: Point) -> Point | None:
    """Return what is proposed for a drawn point: in a space priced whole, the nearest that is new.

    None: its branch has none left.
    """
    if admission.table is None:
        return drawn
    candidate = admission.nearest(drawn)
    return None if candidate is None else candidate.point


def propose_given(plan: Any, study: OptunaStudy, point: Point, branch: int | None) -> Proposal:
    """Propose a point that somebody else has chosen, with what the sampler needs of it."""
    carried: dict[str, Any] = {}
    if getattr(plan, "kind", "") in _GENETIC:
        random_ = optuna.samplers.RandomSampler(seed=derive_seed(plan.seed, study.num_proposals))
        drawn = study.draw_together(random_, branch)
        carried = _generations_of(plan, study, branch).carried(point, drawn)
    return study.enter(point, carried), point


def propose_uniform(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: SurrogateModel, branch: int | None
) -> Proposal | None:
    """Draw uniformly from the admitted configurations that are not in the study.

    It also stands in for other samplers, and carries what they need.
    """
    seed = derive_seed(getattr(plan, "seed", 0), study.num_proposals)
    candidate = admission.draw(random.Random(seed), branch)
    if candidate is None:
        return None
    return propose_given(plan, study, candidate.point, branch)


def propose_next(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: SurrogateModel, branch: int | None
) -> Proposal | None:
    """Take the cheapest admitted configuration that is not in the study."""
    candidate = admission.cheapest(branch)
    return None if candidate is None else (study.enter(candidate.point), candidate.point)


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

    def carried(self, point: Point, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the next trial carries, a proposal of `point` drawn as `drawn`."""
        unused = drawn.keys() - self._past.params(point).keys()
        carried = {GENERATION: self.generation, UNUSED: {key: drawn[key] for key in sorted(unused)}}
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


_GENETIC: dict[str, type[Generations]] = {"nsga2": _NSGA2, "nsga3": _NSGA3}


def _generations_of(plan: Any, study: OptunaStudy, branch: int | None) -> Generations:
    num_branches, population, rate = study.num_branches, plan.population, None
    if branch is None:
        # One change a child on average among the branch and its parameters: Optuna's own rate
        # counts those of all branches.
        rate = num_branches / (num_branches + len(study.space_of(None)) - 1)
    else:
        population = max(2, population // num_branches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _GENETIC[plan.kind](
            study,
            branch,
            population_size=population,
            mutation_prob=rate,
            seed=derive_seed(plan.seed, study.num_proposals),
        )


def _has_values(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def propose_child(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: SurrogateModel, branch: int | None
) -> Proposal | None:
    """Let Optuna's NSGA draw a child of the generation before; the first one is drawn uniformly."""
    generations = _generations_of(plan, study, branch)
    if generations.generation == 0:
        return propose_uniform(plan, study, admission, beliefs, branch)
    drawn = study.draw_together(generations, branch)
    point = _admissible(admission, study.point_of(drawn, branch))
    if point is None:
        return propose_uniform(plan, study, admission, beliefs, branch)
    return study.enter(point, generations.carried(point, drawn)), point


class _Sobol(optuna.samplers.QMCSampler):
    """One point of Optuna's Sobol sequence: Optuna counts the draws in its study, we the trials."""

    def __init__(self, index: int, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._index = index

    def _find_sample_id(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution]
    ) -> int:
        return self._index


def propose_quasi_random(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: SurrogateModel, branch: int | None
) -> Proposal | None:
    """Take the next point of a Sobol sequence over all branches, or of a branch's own sequence."""
    sampler = _Sobol(len(study.trials(branch)), plan.seed)
    drawn = study.point_of(study.draw_together(sampler, branch), branch)
    point = _admissible(admission, drawn)
    if point is None:
        return propose_uniform(plan, study, admission, beliefs, branch)
    return study.enter(point), point


def propose_gp(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: SurrogateModel, branch: int | None
) -> Proposal | None:
    """Draw the first admitted configurations uniformly, then let Optuna's Gaussian process draw."""
    past = study.flat(branch)
    num_valued = len(past.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if admission.num_taken < plan.startup_configurations or num_valued < 2:
        return propose_uniform(plan, study, admission, beliefs, branch)
    past.sampler = optuna.samplers.GPSampler(
        seed=derive_seed(plan.seed, study.num_proposals), n_startup_trials=2
    )
    drawn = past.ask(study.space_of(branch)).params
    point = _admissible(admission, study.point_of(drawn, branch))
    if point is None:
        return propose_uniform(plan, study, admission, beliefs, branch)
    return study.enter(point), point


class FrontSampler(optuna.samplers.BaseSampler):
    """The configuration from which the front is expected to gain most (see `surrogate`).

    The first ones are spread over the space, beginning with the cheapest. A trial's parameters are
    those of one configuration, so none is drawn apart from the others.
    """

    def __init__(self, plan: Any, study: OptunaStudy, surrogate: SurrogateModel) -> None:
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
    ) -> dict[str, Any]:
        """Return nothing; see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
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


class ProposeFront:
    """Proposals of a `FrontSampler`, made when its study is known."""

    def __init__(self, plan: Any) -> None:
        self._plan = plan
        self._sampler: FrontSampler | None = None

    def __call__(
        self,
        study: OptunaStudy,
        admission: Admission,
        surrogate: SurrogateModel,
        branch: int | None,
    ) -> Proposal | None:
        """Return the next proposal; see `SAMPLERS`."""
        if self._sampler is None:
            self._sampler = FrontSampler(self._plan, study, surrogate)
        candidate = self._sampler.choose(study.num_proposals, branch)
        return None if candidate is None else (study.enter(candidate.point), candidate.point)


Propose = Callable[["OptunaStudy", "Admission", "SurrogateModel", "int | None"], "Proposal | None"]

SAMPLERS: dict[str, Callable[[Any], Propose]] = {
    "front": ProposeFront,
    "tpe": functools.partial(functools.partial, propose_tpe),
    "nsga2": functools.partial(functools.partial, propose_child),
    "nsga3": functools.partial(functools.partial, propose_child),
    "gp": functools.partial(functools.partial, propose_gp),
    "quasi_random": functools.partial(functools.partial, propose_quasi_random),
    "random": functools.partial(functools.partial, propose_uniform),
    "exhaustive": functools.partial(functools.partial, propose_next),
}
"""The `kind` of `search.sampler` -> from its section of a study file, who proposes: the next
proposal, of a branch where one is given; None when nothing is left to propose."""


def sampler_of(plan: Any) -> Propose:
    """Return who proposes for a study file's sampler section."""
    return SAMPLERS[plan.kind](plan)
