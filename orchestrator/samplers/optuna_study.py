"""Maintain an in-memory Optuna study of the proposals, rebuilt from the journal.

It has one trial for each *configuration* (the mean over its first replicates) and one for each
refused proposal. Other data that a sampler needs is stored in the trials' user attributes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from sftsearch.search_spaces.point import Point
from sftsearch.search_spaces.schema import Choice, FloatRange, IntRange
from sftsearch.search_spaces.space import count, on_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.search_spaces.space import Axis, Space

Parameter = str | int | float
"""A value as Optuna stores it: a number of a range as is, a choice as its JSON text, because Optuna
does not allow lists and treats 1 and True as equal."""
Params = Mapping[str, Parameter]

BRANCH = "branch"
CONSTRAINT = "admission"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaStudy:
    """Converts points of a space to Optuna's trials and back, and records their results."""

    def __init__(self, space: Space, directions: Sequence[Literal["maximize", "minimize"]]) -> None:
        self.study = optuna.create_study(directions=list(directions))
        self.num_proposals = 0
        """Number of proposals so far, which is the number of the next one."""
        self._labels = [f"{i}:{model}" for i, model in enumerate(space.models)]
        self._space = space
        self._axes = [
            {f"{label}.{name}": _distribution(axis) for name, axis in axes.items()}
            for label, axes in zip(self._labels, space.axes, strict=True)
        ]

    @property
    def num_branches(self) -> int:
        """Number of branches of the space."""
        return len(self._axes)

    def draw(self, sampler: optuna.samplers.BaseSampler, branch: int | None) -> Point:
        """Draw a point with `sampler`, from a branch or any, without changing the study."""
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

    def draw_together(
        self, sampler: optuna.samplers.BaseSampler, branch: int | None
    ) -> dict[str, Parameter]:
        """Draw all of `space_of(branch)` jointly with `sampler`, without changing the study."""
        trial = optuna.create_trial(state=TrialState.RUNNING)
        trial.number = self.num_proposals
        space = self.space_of(branch)
        several = {key: one for key, one in space.items() if not one.single()}
        drawn = sampler.sample_relative(self.study, trial, several)
        for key, one in space.items():
            if key not in drawn:
                drawn[key] = sampler.sample_independent(self.study, trial, key, one)
        return drawn

    def space_of(self, branch: int | None) -> dict[str, BaseDistribution]:
        """Return the distributions of a branch's parameters; None: of all branches' parameters.

        The latter include the branch itself and form a space without conditions, in which a point
        does not use the parameters of the other branches.
        """
        if branch is not None:
            return dict(self._axes[branch])
        every = (item for axes in self._axes for item in axes.items())
        return {BRANCH: CategoricalDistribution(self._labels), **dict(every)}

    def point_of(self, drawn: Params, branch: int | None) -> Point:
        """Return the point of jointly drawn parameters."""
        chosen = self._labels.index(str(drawn[BRANCH])) if branch is None else branch
        return self._point(chosen, {key: drawn[key] for key in self._axes[chosen]})

    def trials(self, branch: int | None) -> list[optuna.trial.FrozenTrial]:
        """Return the trials of a branch (None: all) in order; do not modify them."""
        trials = self.study.get_trials(deepcopy=False)
        if branch is None:
            return trials
        return [trial for trial in trials if trial.params[BRANCH] == self._labels[branch]]

    def flat(self, branch: int | None) -> optuna.Study:
        """Return a study of the complete and running trials over all of `space_of(branch)`.

        Unused parameters have their lowest values, so that a model sees branches as distant.
        """
        space = self.space_of(branch)
        lowest = {key: lowest_of(one) for key, one in space.items()}
        flat = optuna.create_study(directions=self.study.directions)
        for trial in self.trials(branch):
            if trial.state in (TrialState.COMPLETE, TrialState.RUNNING):
                params = lowest | {key: trial.params[key] for key in space.keys() & trial.params}
                one = optuna.create_trial(
                    state=trial.state, params=params, distributions=space, values=trial.values
                )
                flat.add_trial(one)
        return flat

    def enter(self, point: Point, carried: Mapping[str, object] | None = None) -> int:
        """Add a proposal as a running trial with its data; return its number."""
        number = self.num_proposals
        trial = optuna.create_trial(
            state=TrialState.RUNNING,
            params=self.params(point),
            distributions={
                BRANCH: CategoricalDistribution(self._labels),
                **self._axes[point.branch],
            },
            user_attrs=dict(carried or {}),
        )
        self.study.add_trial(trial)
        self.num_proposals += 1
        return number

    def tell(self, number: int, values: Sequence[float]) -> None:
        """Record the mean values of a configuration, in the order of the objectives."""
        self.study.tell(number, list(values))

    def fail(self, number: int) -> None:
        """Record that a configuration failed."""
        self.study.tell(number, state=TrialState.FAIL)

    def prune(self, number: int) -> None:
        """Record that a configuration was stopped early."""
        self.study.tell(number, state=TrialState.PRUNED)

    def refuse(self, number: int, excess: float) -> None:
        """Record a refused proposal as infeasible by `excess`, not as failed.

        TPE ignores failed trials and would propose the same point again and again.
        """
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.Trial(self.study, trial_id).set_constraint(CONSTRAINT, max(excess, 1e-9))
        self.study.tell(number, state=TrialState.PRUNED)

    def params(self, point: Point) -> dict[str, Parameter]:
        """Return a point as Optuna's parameters."""
        axes = self._space.axes[point.branch]
        keys = self._axes[point.branch]
        values = [_to_optuna(axis, point.values[name]) for name, axis in axes.items()]
        return {BRANCH: self._labels[point.branch], **dict(zip(keys, values, strict=True))}

    def _point(self, branch: int, drawn: Params) -> Point:
        axes = self._space.axes[branch]
        values = {
            name: _from_optuna(axes[name], value)
            for name, value in zip(axes, drawn.values(), strict=True)
        }
        return Point(branch, {**self._space.literals[branch], **values})


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution([_to_optuna(axis, value) for value in axis.values])
    if isinstance(axis, IntRange):
        high = axis.low + (axis.high - axis.low) // axis.step * axis.step
        return IntDistribution(axis.low, high, log=axis.log, step=axis.step)
    if axis.step is None:
        return FloatDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, on_grid(axis, int(count(axis)) - 1), step=axis.step)


def _to_optuna(axis: Axis, value: object) -> Parameter:
    if isinstance(axis, Choice):
        return json.dumps(value, sort_keys=True)
    assert isinstance(value, int | float)
    return value


def _from_optuna(axis: Axis, value: Parameter) -> object:
    if isinstance(axis, Choice):
        return next(one for one in axis.values if _to_optuna(axis, one) == value)
    assert isinstance(value, int | float)
    if isinstance(axis, FloatRange) and axis.step is not None:
        return on_grid(axis, round((value - axis.low) / axis.step))
    return value


def lowest_of(distribution: BaseDistribution) -> Parameter:
    """Return the first choice or the lower end, used as the value of an unused parameter."""
    if isinstance(distribution, CategoricalDistribution):
        first = distribution.choices[0]
        assert isinstance(first, str)
        return first
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low
