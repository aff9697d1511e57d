"""The study file as types: what may stand in it, with which defaults.

`load.read_study` fills these types from YAML and reports every mistake with its line. What only the
catalogues know (models, data sets, their parameters) is checked by `candidates.study_checks`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping  # noqa: TC003 - pydantic evaluates annotations
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    field_validator,
    model_validator,
)

from sftsearch.search_spaces.papers import PaperName  # noqa: TC001 - pydantic evaluates it
from sftsearch.search_spaces.search_plan import SearchPlan  # noqa: TC001 - pydantic evaluates it
from sftsearch.search_spaces.section import Section

Literals = bool | int | float | str | None | list[Any] | dict[str, Any]
"""What a parameter may be set to: a YAML scalar, a list or a mapping."""


MAX_WHOLE = 2**53
"""Whole numbers of a range are within this: floats hold them exactly."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class Study(Section):
    """What the study is called and what it asks."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Lower-case letters, digits, `-` and `_`: it names a folder and an MLflow experiment."""
    description: str = Field(default="", max_length=4000)
    paper: PaperName | None = None
    """The paper's table that the study redoes; `sftsearch price` shows it beside our costs."""


class DatasetChoice(Section):
    """Which data set the trials train on."""

    kind: str
    """A name of `sftsearch data list`, or of a store in `root`."""
    root: str | None = None
    """Where the store is, if it was not prepared on this machine: a folder that every node sees, or
    `s3://BUCKET/PREFIX` (`gs://`, `hdfs://`), from which each node fetches it once."""
    folds: int | None = Field(default=None, ge=2, le=1000)
    """Grouped folds: training and validation subjects are dealt into so many parts, and replicate
    r trains on all but part r modulo `folds`, which it is validated on. None: every replicate has
    the data set's own split, and the study's figures hold for that split."""


class Objective(Section):
    """One axis of the front."""

    metric: str
    direction: Literal["maximize", "minimize"]


class Constraint(Section):
    """A hard limit on a cost that is known before training."""

    metric: Literal["gflops", "gmacs", "parameters"]
    max: float = Field(gt=0, allow_inf_nan=False)


def _concurrent_trials(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000:
        return value
    raise ValueError(f"It must be `auto` or a whole number from 1 to 100000, but got {value!r}.")


ConcurrentTrials = Annotated[
    int | Literal["auto"],
    PlainValidator(_concurrent_trials, json_schema_input_type=int | Literal["auto"]),
]


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"`gpus` above 1 must be a whole number, but got {gpus}.")
    return gpus


Gpus = Annotated[float, Field(ge=0, le=64), AfterValidator(_whole_above_one)]
Cpus = Annotated[float, Field(gt=0, le=1024)]
NumWorkers = Annotated[int, Field(ge=1, le=1024)]
Gigabytes = Annotated[float, Field(gt=0, le=100_000)]


class Override(Section):
    """Other resources for the configurations whose cost is above a limit."""

    metric: Literal["gflops", "gmacs", "parameters"]
    above: float = Field(ge=0, allow_inf_nan=False)
    cpus: Cpus | None = None
    gpus: Gpus | None = None
    workers: NumWorkers | None = None
    memory_gb: Gigabytes | None = None


class Resources(Section):
    """What one trial is given, and how many run at a time."""

    cpus: Cpus = 1
    """CPUs a worker; its threads are this number, rounded down, at least one."""
    gpus: Gpus = 0
    """GPUs a worker; fractions share one."""
    workers: NumWorkers = 1
    """Processes that train one trial together, each on its part of every batch."""
    memory_gb: Gigabytes | None = None
    """Memory a worker (GB): Ray starts no more of them on a node than its memory holds."""
    custom: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={}, max_length=16
    )
    """Ray's custom resources a worker, as nodes were started with: `{v100: 0.001}`."""
    overrides: list[Override] = Field(default=[], max_length=16)
    """What configurations above a cost are given instead; of several that apply the last counts."""
    concurrent_trials: ConcurrentTrials = "auto"
    """`auto`: as many as CPUs, GPUs and memory hold, also of nodes that come later."""
    max_trial_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Hours a trial may run, counted anew when the study is resumed: one that runs for longer, or
    whose process hangs, fails, and the study goes on. None: as long as it takes."""
    max_weights_gb: float = Field(default=20, gt=0, allow_inf_nan=False)
    """Disk for final weights (GB): beyond it, those of the trials farthest below the front go."""

    @field_validator("custom")
    @classmethod
    def _not_ray_s_own(cls, custom: dict[str, float]) -> dict[str, float]:
        own = {"cpu", "gpu", "memory", "object_store_memory"}
        for name in custom:
            if name.lower() in own or not re.fullmatch(r"[A-Za-z0-9_:.-]{1,100}", name):
                raise ValueError(f"'{name}' cannot be the name of a custom resource.")
        return custom

    @model_validator(mode="after")
    def _possible(self) -> Resources:
        for given in self.variants():
            if given.workers > 1 and given.gpus not in (0, 1):
                raise ValueError(
                    "Every one of several `workers` has a GPU of its own, or none, but got "
                    f"(workers={given.workers}, gpus={given.gpus:g})."
                )
        return self

    def variants(self) -> list[Resources]:
        """Return what trials may be given: below all limits, above one of them, above all."""
        return [
            self,
            *(self._given([rule]) for rule in self.overrides),
            self._given(self.overrides),
        ]

    def of(self, cost: Mapping[str, float]) -> Resources:
        """Return what a configuration of this cost is given."""
        return self._given([rule for rule in self.overrides if cost[rule.metric] > rule.above])

    def _given(self, rules: list[Override]) -> Resources:
        given: dict[str, Any] = {}
        for rule in rules:
            given |= rule.model_dump(exclude={"metric", "above"}, exclude_none=True)
        return self.model_copy(update=given)


class WarmStart(Section):
    """Begin with what another study of the same parameters has found."""

    study: str = Field(min_length=1, max_length=4096)
    """The other study's name, where it is in the same folder of studies, or the path of its
    folder. Where data set, folds, training and version of sftsearch are the same, what it measured
    is known from the beginning (to the sampler `ehvi`); else its front is tried first. Read once,
    before the first trial."""


class Choice(Section):
    """One of the listed values."""

    kind: Literal["choice"]
    values: list[Literals] = Field(min_length=1, max_length=10_000)

    @field_validator("values")
    @classmethod
    def _different(cls, values: list[Literals]) -> list[Literals]:
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(texts)) < len(texts):
            twice = next(text for i, text in enumerate(texts) if text in texts[:i])
            raise ValueError(f"`values` must be different, but {twice[:60]} stands twice.")
        return values


class IntRange(Section):
    """Whole numbers from `low` to `high`, both included."""

    kind: Literal["int"]
    low: int = Field(ge=-MAX_WHOLE, le=MAX_WHOLE)
    high: int = Field(ge=-MAX_WHOLE, le=MAX_WHOLE)
    step: int = Field(default=1, ge=1, le=MAX_WHOLE)
    log: bool = False

    @model_validator(mode="after")
    def _possible(self) -> IntRange:
        check_range(self.low, self.high, log=self.log, stepped=self.step != 1)
        return self


class FloatRange(Section):
    """Numbers from `low` to `high`, both included; without `step`, any of them."""

    kind: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    step: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    log: bool = False

    @model_validator(mode="after")
    def _possible(self) -> FloatRange:
        check_range(self.low, self.high, log=self.log, stepped=self.step is not None)
        if self.step is not None and (self.high - self.low) / self.step > MAX_WHOLE:
            raise ValueError(
                f"The range has too many steps (low={self.low}, high={self.high}, "
                f"step={self.step}): take a longer step, or none."
            )
        return self


def check_range(low: float, high: float, *, log: bool, stepped: bool) -> None:
    """Raise ValueError for a range that holds nothing or that Optuna cannot draw from."""
    if low > high:
        raise ValueError(f"`low <= high` must hold, but got (low={low}, high={high}).")
    if log and low <= 0:
        raise ValueError(f"`log: true` needs `low > 0`, but got (low={low}).")
    if log and stepped:
        raise ValueError("`log: true` and `step` exclude each other: leave one out.")
    if not math.isfinite(high - low):
        raise ValueError(f"The range is too wide for a number (low={low}, high={high}).")


Distribution = Annotated[Choice | IntRange | FloatRange, Field(discriminator="kind")]
DISTRIBUTION: TypeAdapter[Choice | IntRange | FloatRange] = TypeAdapter(Distribution)


class Branch(BaseModel):
    """One model of the space; every other key is a parameter: a literal or a distribution.

    Parameters are fields of the model's configuration or of the training's; `sftsearch models`
    lists them. A parameter that is set by modality may have a distribution for each:
    `tokens: {watch_acc: {kind: choice, values: [1, 4]}, phone_acc: 2}`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    kind: str
    """A name of `sftsearch models`."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name: a literal, or one of the distribution types.

        A mapping that holds distributions is one parameter a key, `tokens.watch_acc`.
        """
        parts = [
            part
            for name, parameter in (self.model_extra or {}).items()
            for part in members(name, parameter)
        ]
        return {
            ".".join(keys): DISTRIBUTION.validate_python(part) if is_distribution(part) else part
            for keys, part in parts
        }


def is_distribution(value: object) -> TypeGuard[dict[str, Any]]:
    """Tell a distribution from a literal mapping: only a distribution has a `kind`."""
    return isinstance(value, dict) and "kind" in value


def members(name: str, value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return a parameter with its name; of a mapping that holds distributions, every entry."""
    whole = not isinstance(value, dict) or is_distribution(value)
    if whole or not any(map(is_distribution, value.values())):
        return [((name,), value)]
    return [((name, str(key)), entry) for key, entry in value.items()]


class SharedSpace(Section):
    """The short form of a space: parameters that models share, and the models."""

    shared: dict[str, Literals] = Field(default={})
    """Parameters that every model that has them takes, unless it sets them itself."""
    models: Annotated[list[Branch], Field(min_length=1, max_length=1000)]


def _unchanged(value: object) -> object:
    return value  # `load` expands the short form; this only describes it in the JSON schema


Branches = Annotated[list[Branch], Field(min_length=1, max_length=1000)]
StudySpace = Annotated[
    Branches, BeforeValidator(_unchanged, json_schema_input_type=Branches | SharedSpace)
]


class StudyFile(Section):
    """A whole study file."""

    study: Study
    dataset: DatasetChoice
    objectives: list[Objective] = Field(
        default=[
            Objective(metric="top1", direction="maximize"),
            Objective(metric="gflops", direction="minimize"),
        ],
        min_length=2,
        max_length=4,
    )
    """An accuracy first, then a cost. Where the file has none: what the data set's task is judged
    by (`top1`; `map` for several labels; `mae` for regression), and `gflops`."""
    constraints: list[Constraint] = Field(default=[], max_length=16)
    search: SearchPlan
    training: dict[str, Literals] = Field(default={})
    """Fields of the training configuration that all branches share."""
    resources: Resources = Resources()
    warm_start: WarmStart | None = None
    space: StudySpace
    """A list of models, or `{shared, models}`."""
