"""Run Optuna's samplers on a finite table, as baselines.

A table is given as its configurations, one mapping of names to values per row. If it has branches,
every row has a `branch`, and its names are `<branch>.<name>`. A number becomes its index among the
sorted values of its name; a string becomes a category. The objectives are to maximize accuracy and
to minimize the logarithm of the cost. The samplers have Optuna's defaults.

A proposal that repeats a row costs a trial: the caller trains another replicate. A proposal that is
not in the table (a partial grid) is reported as infeasible and drawn again; after `MAX_DRAWS` in
sequence, the trial is a random row that was not proposed yet. With `missing="nearest"` the nearest
row of the branch is trained instead and its values are reported for the proposal, which is fairer
for a table with a small part of its grid.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Kind = Literal["random", "tpe", "nsga2", "gp"]
    Missing = Literal["redraw", "nearest"]
    Levels = tuple[int, ...]

BRANCH = "branch"
MAX_DRAWS = 20

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Axis:
    """The values of one parameter, and how Optuna draws one."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        self.is_ordinal = all(isinstance(one, (int, float)) for one in values) and not any(
            isinstance(one, bool) for one in values
        )
        keys = {_key(one): one for one in values}
        order = sorted(keys, key=keys.__getitem__) if self.is_ordinal else sorted(keys)
        self.levels = {key: level for level, key in enumerate(order)}

    def suggest(self, trial: optuna.Trial) -> int:
        """Draw a level; a single value is not an Optuna parameter."""
        last = len(self.levels) - 1
        if last == 0:
            return 0
        if self.is_ordinal:
            return trial.suggest_int(self.name, 0, last)
        return self.levels[trial.suggest_categorical(self.name, list(self.levels))]

    def to_optuna(self, level: int) -> int | str:
        """Return Optuna's value of a level."""
        return level if self.is_ordinal else list(self.levels)[level]


class Table:
    """The rows of a table by branch and level."""

    def __init__(self, parameters: Sequence[Mapping[str, Any]]) -> None:
        self.size = len(parameters)
        values: dict[str, list[Any]] = defaultdict(list)
        for row in parameters:
            for name, value in row.items():
                values[name].append(value)
        self.branch = Axis(BRANCH, values.pop(BRANCH, [""]))
        axes = {name: Axis(name, of_name) for name, of_name in values.items()}
        self.axes: dict[int, list[Axis]] = {}
        self.rows: dict[int, dict[Levels, int]] = defaultdict(dict)
        self.levels: list[tuple[int, Levels]] = []
        for index, row in enumerate(parameters):
            branch = self.branch.levels[_key(row.get(BRANCH, ""))]
            own = self.axes.setdefault(branch, [axes[name] for name in row if name != BRANCH])
            if {axis.name for axis in own} != row.keys() - {BRANCH}:
                raise ValueError(f"Row {index} has other parameters than its branch: {row}.")
            levels = tuple(axis.levels[_key(row[axis.name])] for axis in own)
            if self.rows[branch].setdefault(levels, index) != index:
                raise ValueError(f"Row {index} repeats a configuration: {row}.")
            self.levels.append((branch, levels))
        self._grids = {b: np.array(list(rows)) for b, rows in self.rows.items()}

    def suggest(self, trial: optuna.Trial) -> tuple[int, Levels]:
        """Draw a branch and a level for each of its parameters."""
        branch = self.branch.suggest(trial)
        return branch, tuple(axis.suggest(trial) for axis in self.axes[branch])

    def nearest(self, branch: int, levels: Levels) -> int:
        """Return the nearest row of the branch, with each parameter scaled to [0, 1]."""
        grid, axes = self._grids[branch], self.axes[branch]
        steps = np.abs(grid - np.array(levels, dtype=int))
        spans = np.array([max(1, len(axis.levels) - 1) for axis in axes])
        is_ordinal = np.array([axis.is_ordinal for axis in axes], dtype=bool)
        distance = np.where(is_ordinal, steps / spans, steps > 0).sum(axis=1)
        return self.rows[branch][tuple(map(int, grid[int(np.argmin(distance))]))]

    def to_optuna(self, index: int) -> dict[str, Any]:
        """Return the parameters of a row as Optuna stores them."""
        branch, levels = self.levels[index]
        pairs = [(self.branch, branch), *zip(self.axes[branch], levels, strict=True)]
        return {axis.name: axis.to_optuna(level) for axis, level in pairs if len(axis.levels) > 1}


class Rival:
    """A search by one of Optuna's samplers, with an ask-and-tell interface."""

    def __init__(self, kind: Kind, table: Table, seed: int, missing: Missing) -> None:
        self._table = table
        self._random = np.random.default_rng(seed)
        self._missing = missing
        # NSGA-II and random use completed trials only.
        self._uses_infeasible = kind in ("tpe", "gp")
        self._study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=_build_sampler(kind, seed)
        )
        self._asked: set[int] = set()
        self._running: dict[int, list[optuna.Trial]] = defaultdict(list)
        self.num_refused = 0
        """Number of proposals that were not in the table."""

    def ask(self) -> int:
        """Return the row to train next; it may have been trained before."""
        for _ in range(MAX_DRAWS):
            trial = self._study.ask()
            branch, levels = self._table.suggest(trial)
            index = self._table.rows[branch].get(levels)
            if index is None and self._missing == "nearest":
                index = self._table.nearest(branch, levels)
            if index is not None:
                return self._enter(index, trial)
            self._refuse(trial)
        return self._ask_unseen()

    def tell(self, index: int, accuracy: float, cost: float) -> None:
        """Report the values of the earliest running trial of a row; the cost is positive."""
        self._study.tell(self._running[index].pop(0), [accuracy, math.log(cost)])

    def drop(self, index: int) -> None:
        """Report that the earliest running trial of a row was stopped, without a value."""
        self._study.tell(self._running[index].pop(0), state=TrialState.PRUNED)

    def _enter(self, index: int, trial: optuna.Trial) -> int:
        self._asked.add(index)
        self._running[index].append(trial)
        return index

    def _refuse(self, trial: optuna.Trial) -> None:
        self.num_refused += 1
        if not self._uses_infeasible:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.set_constraint("in_table", 1.0)
        self._study.tell(trial, state=TrialState.PRUNED)

    def _ask_unseen(self) -> int:
        unseen = sorted(set(range(self._table.size)) - self._asked) or range(self._table.size)
        index = int(self._random.choice(unseen))
        self._study.enqueue_trial(self._table.to_optuna(index))
        trial = self._study.ask()
        self._table.suggest(trial)
        return self._enter(index, trial)


def optuna_rival(
    kind: Kind,
    parameters: Sequence[Mapping[str, Any]] | Table,
    seed: int,
    *,
    missing: Missing = "redraw",
) -> Rival:
    """Return a search of a table by one of Optuna's samplers.

    Args:
        kind: `random`, `tpe`, `nsga2` or `gp`, with Optuna's defaults.
        parameters: the table's configurations, a mapping of names to values per row; or a `Table`
            of them, which many searches can share.
        seed: of the sampler; equal arguments and values give equal rows.
        missing: what to do with a proposal that is not in the table, `redraw` or `nearest`.

    Raises:
        ValueError: a row repeats another, or has other parameters than its branch.
    """
    table = parameters if isinstance(parameters, Table) else Table(parameters)
    return Rival(kind, table, seed, missing)


def _build_sampler(kind: Kind, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if kind == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    # In a space with branches it draws all but the branch at random, with a warning each time.
    return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)


def _key(value: Any) -> str:
    """Return a string key for a value: Optuna's categories cannot be lists, and 1 == True."""
    plain = isinstance(value, (str, int, float))  # hashable, and most common
    return _plain_key(value) if plain else json.dumps(value, sort_keys=True)


@functools.lru_cache(maxsize=None, typed=True)
def _plain_key(value: str | float) -> str:
    return json.dumps(value)
