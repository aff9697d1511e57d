"""Price proposals before they run, and refuse those that break a limit or repeat another.

A space of up to `MAX_TABLE` points is enumerated when the study opens. Draws then come from the
admissible points only, and the study knows when it has used all of them. A larger or continuous
space is priced point by point.

Memory takes up to a second to count. It is counted only for proposals within all other limits, if
the study has a limit, an objective or a rule for resources on it.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.candidates.binding import Configuration, bind
from sftsearch.orchestrator.candidates.neighbors import Nearest
from sftsearch.orchestrator.candidates.value_checks import ValueChecker
from sftsearch.orchestrator.metrics import MEMORY_COSTS
from sftsearch.search_spaces.mistakes import Mistake, StudyFileError
from sftsearch.search_spaces.point import Point
from sftsearch.search_spaces.space import Space, count, values
from sftsearch.trainables import catalog as models
from sftsearch.trainables.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces.load import StudySource
    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.memory import Memory

OVER_LIMIT = "over limit"
"""The reason of a refusal by a constraint."""
MAX_TABLE = 50_000
MAX_DRAWS = 2_000
"""Draws from a space too large to enumerate without a result, after which it counts as used up."""
MAX_TRIES = 200
"""Points tried with a value, in such a space, before the value counts as impossible."""
MAX_CHECKED = 1_000
"""Maximum number of values of an axis, in such a space, for checking them one by one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration with its cost."""

    point: Point
    configuration: Configuration
    cost: Cost
    memory: Memory | None = None
    """None: not counted."""

    @property
    def id(self) -> str:
        """The configuration's id."""
        return self.configuration.id

    def costs(self) -> dict[str, float]:
        """Return all known costs by name."""
        return self.cost.as_dict() | (self.memory.as_dict() if self.memory else {})


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a proposal does not run."""

    reason: str
    """`impossible`, `over limit` or `repeat`."""
    detail: str
    excess: float
    """Relative excess over the limit; 1 for other reasons."""


class Admission:
    """Prices and admits the points of a study's space, and tracks the admitted ones."""

    def __init__(
        self,
        source: StudySource,
        spec: DatasetSpec,
        *,
        price: Callable[[Point], Candidate] | None = None,
    ) -> None:
        """Price the space if it is small enough.

        Args:
            source: the checked study file.
            spec: the specification of its dataset.
            price: prices a point or raises ConfigError; None for the model's closed form.

        Raises:
            StudyFileError: no point of the space, or of one of its branches, can be built, or no
                point can be built with some value of a parameter.
        """
        self.space = Space(source.study.space)
        self.spec = spec
        self._source = source
        self._price = price or self._price_model
        limits: dict[str, float] = {limit.metric: limit.max for limit in source.study.constraints}
        self._limits = {name: limits[name] for name in limits if name not in MEMORY_COSTS}
        self._memory_limits = {name: limits[name] for name in limits if name in MEMORY_COSTS}
        self._counts_memory = _uses_memory(source)
        self._taken: set[str] = set()
        self._excluded: set[str] = set()
        self.num_points = self.space.size()
        self.table: dict[str, Candidate] | None = None
        """Every admissible configuration by id; None if the space is too large."""
        self.num_refused: dict[str, int] = {}
        """Points of the table that were refused, by reason."""
        if self.num_points <= MAX_TABLE:
            self.table = self._price_all()
            free = ((identity, candidate.point) for identity, candidate in self.table.items())
            self._nearest = Nearest(self.space, free)
        else:
            self._check_enumerable()
            self._check_values()

    def price(self, point: Point) -> Candidate:
        """Price a point.

        Raises:
            ConfigError: the point cannot be built for this dataset.
        """
        return self._price(point)

    def _price_model(self, point: Point) -> Candidate:
        model = self.space.models[point.branch]
        configuration = bind(model, point.parameters, self._source.study.training, self.spec)
        cost = models.MODELS[model].cost(self.spec, configuration.model_config)
        return Candidate(point, configuration, cost)

    def decide(self, point: Point) -> Candidate | Refusal:
        """Return the priced point or the reason to refuse it; `take` then admits it.

        Memory is counted here only, if the study uses it.
        """
        decided = self._decide_by_price(point)
        if isinstance(decided, Refusal) or not self._counts_memory:
            return decided
        candidate = dataclasses.replace(
            decided, memory=_count_memory(decided, self._source, self.spec)
        )
        return _refused(candidate.costs(), self._memory_limits) or candidate

    def _decide_by_price(self, point: Point) -> Candidate | Refusal:
        try:
            candidate = self.price(point)
        except ConfigError as error:
            return Refusal("impossible", str(error), 1.0)
        refusal = self._over_limit(candidate)
        if refusal is None and candidate.id in self._taken:
            refusal = Refusal("repeat", f"configuration {candidate.id} is in the study", 1.0)
        return refusal or candidate

    def within_limits(self, point: Point) -> Candidate | None:
        """Return the priced point if it is within the limits on prices, in the study or not."""
        try:
            candidate = self.price(point)
        except ConfigError:
            return None
        return None if self._over_limit(candidate) else candidate

    def take(self, candidate_id: str) -> None:
        """Mark a configuration as part of the study."""
        self._taken.add(candidate_id)
        if self.table is not None:
            self._nearest.take(candidate_id)

    def exclude(self, point: Point) -> str | None:
        """Exclude a point that its memory refuses from draws; return its id if it can be built."""
        try:
            candidate = self.price(point)
        except ConfigError:
            return None
        if self.table is not None and candidate.id in self.table:
            self._excluded.add(candidate.id)
            self._nearest.take(candidate.id)
        return candidate.id

    def release(self) -> None:
        """Forget all taken configurations, so that another study can use the space."""
        self._taken.clear()
        self._excluded.clear()
        if self.table is not None:
            self._nearest.release()

    @property
    def num_taken(self) -> int:
        """Number of configurations in the study."""
        return len(self._taken)

    def left(self) -> int | None:
        """Return the number of admissible configurations not in the study; None if unknown."""
        if self.table is None:
            return None
        return len(self.table.keys() - self._taken - self._excluded)

    def draw(self, random_: random.Random, branch: int | None = None) -> Candidate | None:
        """Draw uniformly from the admissible configurations (of a branch) not in the study.

        None if nothing is left, or, in a space too large to enumerate, after `MAX_DRAWS` draws.
        """
        if self.table is not None:
            free = self._free(branch)
            return random_.choice(free) if free else None
        for _ in range(MAX_DRAWS):
            decided = self._decide_by_price(self.space.draw(random_, branch))
            if isinstance(decided, Candidate):
                return decided
        return None

    def nearest(self, point: Point) -> Candidate | None:
        """Return the admissible configuration nearest to `point` that is not in the study.

        It has the same branch; None if that branch has none left. Requires an enumerated space.
        """
        assert self.table is not None, "only an enumerated space has neighbors"
        identity = self._nearest.find(point)
        return None if identity is None else self.table[identity]

    def cheapest(self, branch: int | None = None) -> Candidate | None:
        """Return the cheapest admissible configuration (of a branch) not in the study."""
        key = operator.attrgetter("cost.gflops", "id")
        return min(self._free(branch), key=key, default=None)

    def _free(self, branch: int | None) -> list[Candidate]:
        """Return the configurations of the table (of a branch) that are not in the study."""
        return [
            candidate
            for identity, candidate in (self.table or {}).items()
            if identity not in self._taken
            and identity not in self._excluded
            and branch in (None, candidate.point.branch)
        ]

    def _over_limit(self, candidate: Candidate) -> Refusal | None:
        # Refuse only what exceeds the limit for all samples.
        return _refused({name: candidate.cost.low(name) for name in self._limits}, self._limits)

    def _price_all(self) -> dict[str, Candidate]:
        table: dict[str, Candidate] = {}
        least: dict[str, float] = dict.fromkeys(self._limits, math.inf)
        checker = ValueChecker(self._source, self.space)
        for point in self.space.points():
            try:
                candidate = self.price(point)
            except ConfigError as error:
                checker.impossible(point, self.space.axes[point.branch], error)
                self._count("impossible")
                continue
            checker.possible(point, self.space.axes[point.branch])
            least = {name: min(known, candidate.cost.low(name)) for name, known in least.items()}
            if self._over_limit(candidate):
                self._count(OVER_LIMIT)
            elif candidate.id in table:
                self._count("repeat")
            else:
                table[candidate.id] = candidate
        checker.raise_mistakes()
        if not table:
            raise StudyFileError(self._source.name, [self._all_refused(least)])
        return table

    def _all_refused(self, least: dict[str, float]) -> Mistake:
        limits = ", ".join(f"{metric} <= {limit:g}" for metric, limit in self._limits.items())
        costs = ", ".join(f"{metric} {cost:.3g}" for metric, cost in least.items())
        message = (
            f"All {self.num_points:.0f} configurations are refused by the constraints ({limits}); "
            f"the lowest costs are: {costs}. Raise a limit or add smaller values."
        )
        return self._source.mistake(("constraints",), message)

    def _check_enumerable(self) -> None:
        sampler = self._source.study.search.sampler.kind
        if sampler == "exhaustive":
            finite = math.isfinite(self.num_points)
            size = f"{self.num_points:,.0f}" if finite else "infinitely many"
            message = (
                f"`exhaustive` supports at most {MAX_TABLE:,} points, but the space has {size}: "
                "give its ranges a `step` or fewer values, or use the sampler `random` or `tpe`."
            )
            path = ("search", "sampler", "kind")
            raise StudyFileError(self._source.name, [self._source.mistake(path, message)])

    def _check_values(self) -> None:
        """Check that each branch, and each value of its short axes, has a buildable point."""
        checker = ValueChecker(self._source, self.space)
        random_ = random.Random(0)
        for branch, axes in enumerate(self.space.axes):
            if not self._try_values(checker, branch, {}, random_):
                continue
            for name, axis in axes.items():
                for value in values(axis) if count(axis) <= MAX_CHECKED else []:
                    self._try_values(checker, branch, {name: value}, random_)
        checker.raise_mistakes()

    def _try_values(
        self, checker: ValueChecker, branch: int, fixed: dict[str, object], random_: random.Random
    ) -> bool:
        for _ in range(MAX_TRIES):
            drawn = self.space.draw(random_, branch)
            point = Point(branch, {**drawn.values, **fixed})
            try:
                self.price(point)
            except ConfigError as error:
                checker.impossible(point, fixed, error)
            else:
                checker.possible(point, fixed)
                return True
        return False

    def _count(self, reason: str) -> None:
        self.num_refused[reason] = self.num_refused.get(reason, 0) + 1


def _uses_memory(source: StudySource) -> bool:
    """Return whether a study decides anything by memory before a trial starts."""
    study = source.study
    names = [
        *(limit.metric for limit in study.constraints),
        *(objective.metric for objective in study.objectives),
        *(rule.metric for rule in study.resources.overrides),
    ]
    return any(name in MEMORY_COSTS for name in names)


def _count_memory(candidate: Candidate, source: StudySource, spec: DatasetSpec) -> Memory:
    """Count the memory of a worker of the trial; its workers follow the rules on other costs."""
    from sftsearch.trainables.memory import count_memory

    bound = candidate.configuration
    workers = source.study.resources.of(candidate.cost.as_dict()).workers
    return count_memory(bound.model, spec, bound.model_config, bound.train_config, workers=workers)


def _refused(costs: Mapping[str, float], limits: Mapping[str, float]) -> Refusal | None:
    """Return the refusal by the first limit that a cost exceeds."""
    for metric, limit in limits.items():
        if costs[metric] > limit:
            detail = f"{metric} {costs[metric]:.6g} is over the limit of {limit:.6g}"
            return Refusal(OVER_LIMIT, detail, costs[metric] / limit - 1)
    return None
