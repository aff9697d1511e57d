"""SAMPLERS: who proposes the next configuration, with Optuna behind it. The one place to add one.

Optuna's study lives in memory and holds one trial for each *configuration* (the mean over its
seeds) and one for each refused proposal; the journal is the record it is rebuilt from. Its random
numbers derive from the sampler's seed and the proposal's number alone, so the same history gives
the same proposal, also in a resumed study.
"""

from __future__ import annotations

import functools
import json
import random
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from sftsearch.orchestrator.seeds import derive_seed
from sftsearch.search_spaces.schema import Choice, FloatRange, IntRange
from sftsearch.search_spaces.space import Point, count, on_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.orchestrator.admission import Admission, Candidate
    from sftsearch.orchestrator.beliefs import Beliefs
    from sftsearch.search_spaces.space import Axis, Space

BRANCH = "branch"
CONSTRAINT = "admission"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaStudy:
    """The points of a space as Optuna sees them: drawn, entered, told, refused."""

    def __init__(self, space: Space, directions: Sequence[Literal["maximize", "minimize"]]) -> None:
        self.study = optuna.create_study(directions=list(directions))
        self._labels = [f"{i}:{model}" for i, model in enumerate(space.models)]
        self._space = space
        self._axes = [
            {f"{label}.{name}": _distribution(axis) for name, axis in axes.items()}
            for label, axes in zip(self._labels, space.axes, strict=True)
        ]

    @property
    def num_proposals(self) -> int:
        """How many configurations were proposed so far: the next one's number."""
        return len(self.study.get_trials(deepcopy=False))

    def draw(self, sampler: optuna.samplers.BaseSampler, branch: int | None) -> Point:
        """Let `sampler` draw a point, of a branch, and leave the study as it is."""
        trial = optuna.create_trial(state=TrialState.RUNNING)
        trial.number = self.num_proposals
        if branch is None:
            labels = CategoricalDistribution(self._labels)
            drawn = sampler.sample_independent(self.study, trial, BRANCH, labels)
            branch = self._labels.index(drawn)
        values = {
            key: sampler.sample_independent(self.study, trial, key, distribution)
            for key, distribution in self._axes[branch].items()
        }
        return self._point(branch, values)

    def enter(self, point: Point) -> int:
        """Enter a proposal, as running; return its number."""
        self._add(point, TrialState.RUNNING)
        return self.num_proposals - 1

    def tell(self, number: int, values: Sequence[float]) -> None:
        """Tell the mean values of a configuration, in the order of the objectives."""
        self.study.tell(number, list(values))

    def fail(self, number: int) -> None:
        """Tell that a configuration gave no value."""
        self.study.tell(number, state=TrialState.FAIL)

    def prune(self, number: int) -> None:
        """Tell that a configuration was stopped before it had a value."""
        self.study.tell(number, state=TrialState.PRUNED)

    def refuse(self, number: int, excess: float) -> None:
        """Tell that a proposal was refused: infeasible by `excess`, and not a failure.

        A failure would be forgotten by TPE, which would propose the same again and again.
        """
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.Trial(self.study, trial_id).set_constraint(CONSTRAINT, max(excess, 1e-9))
        self.study.tell(number, state=TrialState.PRUNED)

    def replay(
        self, point: Point, *, values: Sequence[float] | None, state: str, excess: float = 0.0
    ) -> None:
        """Enter a proposal of an earlier driver: `complete`, `failed`, `refused` or `running`."""
        constraints = {CONSTRAINT: max(excess, 1e-9)} if state == "refused" else None
        self._add(point, _STATES[state], values=values, constraints=constraints)

    def params(self, point: Point) -> dict[str, Any]:
        """Return a point as Optuna's parameters."""
        axes = self._space.axes[point.branch]
        keys = self._axes[point.branch]
        values = [_to_optuna(axis, point.values[name]) for name, axis in axes.items()]
        return {BRANCH: self._labels[point.branch], **dict(zip(keys, values, strict=True))}

    def _add(self, point: Point, state: TrialState, **more: Any) -> None:
        distributions: dict[str, BaseDistribution] = {
            BRANCH: CategoricalDistribution(self._labels),
            **self._axes[point.branch],
        }
        trial = optuna.create_trial(
            state=state, params=self.params(point), distributions=distributions, **more
        )
        self.study.add_trial(trial)

    def _point(self, branch: int, drawn: Mapping[str, Any]) -> Point:
        axes = self._space.axes[branch]
        values = {
            name: _from_optuna(axes[name], value)
            for name, value in zip(axes, drawn.values(), strict=True)
        }
        return Point(branch, {**self._space.literals[branch], **values})


_STATES = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "refused": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "running": TrialState.RUNNING,
}


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution([_to_optuna(axis, value) for value in axis.values])
    if isinstance(axis, IntRange):
        high = axis.low + (axis.high - axis.low) // axis.step * axis.step
        return IntDistribution(axis.low, high, log=axis.log, step=axis.step)
    if axis.step is None:
        return FloatDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, on_grid(axis, int(count(axis)) - 1), step=axis.step)


def _to_optuna(axis: Axis, value: Any) -> Any:
    """Choices travel as their JSON text: lists are not values to Optuna, and 1 equals True."""
    return json.dumps(value, sort_keys=True) if isinstance(axis, Choice) else value


def _from_optuna(axis: Axis, value: Any) -> Any:
    if isinstance(axis, Choice):
        return next(one for one in axis.values if _to_optuna(axis, one) == value)
    if isinstance(axis, FloatRange) and axis.step is not None:
        return on_grid(axis, round((value - axis.low) / axis.step))
    return value


# ------------------------------------------------------------------ samplers

Proposal = tuple[int, Point]


def propose_tpe(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: Beliefs, branch: int | None
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
    point = study.draw(sampler, branch)
    if admission.table is not None:
        candidate = admission.nearest(point)
        if candidate is None:
            return propose_uniform(plan, study, admission, beliefs, branch)
        point = candidate.point
    return study.enter(point), point


def propose_uniform(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: Beliefs, branch: int | None
) -> Proposal | None:
    """Draw uniformly from the admitted configurations that are not in the study."""
    random_ = random.Random(derive_seed(getattr(plan, "seed", 0), study.num_proposals))
    candidate = admission.draw(random_, branch)
    return None if candidate is None else (study.enter(candidate.point), candidate.point)


def propose_next(
    plan: Any, study: OptunaStudy, admission: Admission, beliefs: Beliefs, branch: int | None
) -> Proposal | None:
    """Take the cheapest admitted configuration that is not in the study."""
    candidate = admission.cheapest(branch)
    return None if candidate is None else (study.enter(candidate.point), candidate.point)


class FrontSampler(optuna.samplers.BaseSampler):
    """The configuration from which the front is expected to gain most (see `beliefs`).

    The first ones are spread over the space, beginning with the cheapest. A trial's parameters are
    those of one configuration, so none is drawn apart from the others.
    """

    def __init__(self, plan: Any, study: OptunaStudy, beliefs: Beliefs) -> None:
        self._plan, self._study, self._beliefs = plan, study, beliefs
        self._branch: int | None = None
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

        It follows from the number and from what is believed.
        """
        past = self._beliefs.past
        few = min(2, self._plan.startup_configurations)
        if len(past) < self._plan.startup_configurations or len(past.measured().ids) < few:
            return self._spread(number, branch)
        gain, candidates = self._beliefs.gains(number, branch)
        return candidates[int(gain.argmax())] if candidates else None

    def _spread(self, number: int, branch: int | None) -> Candidate | None:
        """Return the candidate farthest from all that are in the study, of some drawn ones."""
        pool = self._beliefs.candidates(number)
        free = self._beliefs.free(pool, branch)
        if not len(free):
            return None
        random_ = np.random.default_rng([self._plan.seed, number])
        drawn = random_.choice(free, size=min(256, len(free)), replace=False)
        if not len(self._beliefs.past):
            return pool.rows[int(drawn[pool.u[drawn].sum(axis=1).argmin()])]
        taken = self._beliefs.places_of_study()
        apart = ((pool.x[drawn][:, None] - taken[None]) ** 2).sum(axis=2).min(axis=1)
        return pool.rows[int(drawn[int(apart.argmax())])]


class ProposeFront:
    """Proposals of a `FrontSampler`, made when its study is known."""

    def __init__(self, plan: Any) -> None:
        self._plan = plan
        self._sampler: FrontSampler | None = None

    def __call__(
        self, study: OptunaStudy, admission: Admission, beliefs: Beliefs, branch: int | None
    ) -> Proposal | None:
        """Return the next proposal; see `SAMPLERS`."""
        if self._sampler is None:
            self._sampler = FrontSampler(self._plan, study, beliefs)
        candidate = self._sampler.choose(study.num_proposals, branch)
        return None if candidate is None else (study.enter(candidate.point), candidate.point)


Propose = Callable[["OptunaStudy", "Admission", "Beliefs", "int | None"], "Proposal | None"]

SAMPLERS: dict[str, Callable[[Any], Propose]] = {
    "front": ProposeFront,
    "tpe": functools.partial(functools.partial, propose_tpe),
    "random": functools.partial(functools.partial, propose_uniform),
    "exhaustive": functools.partial(functools.partial, propose_next),
}
"""The `kind` of `search.sampler` -> from its section of a study file, who proposes: the next
proposal, of a branch where one is given; None when nothing is left to propose."""


def sampler_of(plan: Any) -> Propose:
    """Return who proposes for a study file's sampler section."""
    return SAMPLERS[plan.kind](plan)
