"""Optuna's study of our configurations: in memory, rebuilt from the journal.

It holds one trial for each *configuration* (the mean over its first replicates) and one for each
refused proposal. What else a sampler needs of a proposal, the proposal carries.
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

from sftsearch.search_spaces.schema import Choice, FloatRange, IntRange
from sftsearch.search_spaces.space import Point, count, on_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.search_spaces.space import Axis, Space

Parameter = str | int | float
"""What Optuna holds of a value: a choice as its JSON text, as lists are no values to Optuna and 1
equals True; a number of a range as it is."""
Params = Mapping[str, Parameter]

BRANCH = "branch"
CONSTRAINT = "admission"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaStudy:
    """The points of a space as Optuna sees them: drawn, entered, told, refused."""

    def __init__(self, space: Space, directions: Sequence[Literal["maximize", "minimize"]]) -> None:
        self.study = optuna.create_study(directions=list(directions))
        self.num_proposals = 0
        """How many configurations were proposed so far: the next one's number."""
        self._labels = [f"{i}:{model}" for i, model in enumerate(space.models)]
        self._space = space
        self._axes = [
            {f"{label}.{name}": _distribution(axis) for name, axis in axes.items()}
            for label, axes in zip(self._labels, space.axes, strict=True)
        ]

    @property
    def num_branches(self) -> int:
        """How many branches the space has."""
        return len(self._axes)

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

    def draw_together(
        self, sampler: optuna.samplers.BaseSampler, branch: int | None
    ) -> dict[str, Parameter]:
        """Let `sampler` draw all of `space_of(branch)` at once, and leave the study as it is."""
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
        """Return the distributions of a branch's parameters; None: of all, and of the branch.

        All of them are a space without conditions: a point of it leaves the parameters of the
        other branches unused.
        """
        if branch is not None:
            return dict(self._axes[branch])
        every = (item for axes in self._axes for item in axes.items())
        return {BRANCH: CategoricalDistribution(self._labels), **dict(every)}

    def point_of(self, drawn: Params, branch: int | None) -> Point:
        """Return the point of parameters drawn together."""
        chosen = self._labels.index(str(drawn[BRANCH])) if branch is None else branch
        return self._point(chosen, {key: drawn[key] for key in self._axes[chosen]})

    def trials(self, branch: int | None) -> list[optuna.trial.FrozenTrial]:
        """Return all trials, of a branch, in order; they are not to be changed."""
        trials = self.study.get_trials(deepcopy=False)
        if branch is None:
            return trials
        return [trial for trial in trials if trial.params[BRANCH] == self._labels[branch]]

    def flat(self, branch: int | None) -> optuna.Study:
        """Return a study of the trials that have values or run, with all of `space_of(branch)`.

        What a trial left unused is at its lowest: a model sees that another branch is far.
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
        """Enter a proposal, as running, with what it carries; return its number."""
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
    """Return the first choice or the lower end: what stands for a parameter that is not used."""
    if isinstance(distribution, CategoricalDistribution):
        first = distribution.choices[0]
        assert isinstance(first, str)
        return first
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low
