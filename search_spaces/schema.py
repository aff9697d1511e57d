"""The schema of study files: types, defaults and limits.

`load.read_study` fills these types from YAML. Names of models, datasets and parameters are checked
by `candidates.study_checks`.
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
from sftsearch.search_spaces.study_name import NAME_PATTERN

Literals = bool | int | float | str | None | list[Any] | dict[str, Any]
"""What a parameter may be set to: a YAML scalar, a list or a mapping."""


MAX_BRANCHES = 1000
MAX_WHOLE = 2**53
"""Limit of whole numbers, which floats represent exactly."""


class Study(Section):
    """Name and description of the study."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Lower-case letters, digits, `-` and `_`: it names a folder and an MLflow experiment."""
    description: str = Field(default="", max_length=4000)
    paper: PaperName | None = None
    """Table of a paper to reproduce; `sftsearch price` compares its costs with ours."""


class DatasetChoice(Section):
    """The dataset of the trials."""

    kind: str
    """A name of `sftsearch data list`, or of a store in `root`."""
    root: str | None = None
    """Folder or URI of the store, if it was not prepared on this machine: a folder that all nodes
    share, or `s3://BUCKET/PREFIX` (`gs://`, `hdfs://`), which each node downloads once."""
    folds: int | None = Field(default=None, ge=2, le=1000)
    """Number of grouped folds: training and validation subjects are divided into folds, and
    replicate r is validated on fold r modulo `folds` and trained on the others. None: all
    replicates use the dataset's own split, and all results are conditional on it."""


class Objective(Section):
    """One axis of the front."""

    metric: str
    direction: Literal["maximize", "minimize"]


KnownCost = Literal[
    "gflops",
    "gmacs",
    "parameters",
    "gflops_dense",
    "train_memory_mb",
    "inference_memory_mb",
    "weights_mb",
]
"""A cost that is known before a trial starts."""


class Constraint(Section):
    """A hard limit on a cost that is known before a trial starts."""

    metric: KnownCost
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
    """Other resources for configurations whose cost is above a limit."""

    metric: KnownCost
    """Memory is that of the workers that the other rules give."""
    above: float = Field(ge=0, allow_inf_nan=False)
    cpus: Cpus | None = None
    gpus: Gpus | None = None
    workers: NumWorkers | None = None
    memory_gb: Gigabytes | None = None


class Resources(Section):
    """Resources of a trial, and the number of concurrent trials."""

    cpus: Cpus = 1
    """CPUs per worker. A worker has as many threads, rounded down, at least one."""
    gpus: Gpus = 0
    """GPUs per worker; with a fraction, trials share a GPU."""
    workers: NumWorkers = 1
    """Processes that train one trial together, each on a part of every batch."""
    memory_gb: Gigabytes | None = None
    """Memory per worker (GB): limits the number of workers that Ray starts on a node."""
    custom: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={}, max_length=16
    )
    """Ray's custom resources per worker, as the nodes were started with: `{v100: 0.001}`."""
    overrides: list[Override] = Field(default=[], max_length=16)
    """Other resources for configurations above a cost; the last rule that applies counts."""
    concurrent_trials: ConcurrentTrials = "auto"
    """`auto`: as many as fit on all nodes, including those that join later."""
    max_trial_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Hours a trial may run, counted from zero when the study is resumed. A trial that runs longer
    or hangs fails, and the study continues. None: no limit."""
    max_weights_gb: float = Field(default=20, gt=0, allow_inf_nan=False)
    """Disk space for final weights (GB); beyond it, those farthest below the front are deleted."""

    @field_validator("custom")
    @classmethod
    def _check_custom_names(cls, custom: dict[str, float]) -> dict[str, float]:
        reserved = {"cpu", "gpu", "memory", "object_store_memory"}
        for name in custom:
            if name.lower() in reserved or not re.fullmatch(r"[A-Za-z0-9_:.-]{1,100}", name):
                raise ValueError(f"'{name}' cannot be the name of a custom resource.")
        return custom

    @model_validator(mode="after")
    def _possible(self) -> Resources:
        for given in self.variants():
            if given.workers > 1 and given.gpus not in (0, 1):
                raise ValueError(
                    "With several `workers`, each has one GPU or none, but got "
                    f"(workers={given.workers}, gpus={given.gpus:g})."
                )
        return self

    def variants(self) -> list[Resources]:
        """Return all possible resources of trials: below all limits, above each, above all."""
        return [
            self,
            *(self._given([rule]) for rule in self.overrides),
            self._given(self.overrides),
        ]

    def of(self, cost: Mapping[str, float]) -> Resources:
        """Return the resources of a configuration; rules on costs it lacks do not apply."""
        known = [rule for rule in self.overrides if rule.metric in cost]
        return self._given([rule for rule in known if cost[rule.metric] > rule.above])

    def _given(self, rules: list[Override]) -> Resources:
        given: dict[str, Any] = {}
        for rule in rules:
            given |= rule.model_dump(exclude={"metric", "above"}, exclude_none=True)
        return self.model_copy(update=given)


class WarmStart(Section):
    """Start from the results of another study of the same parameters."""

    study: str = Field(min_length=1, max_length=4096)
    """Name of the other study, if it is in the same runs folder, or the path of its folder. If
    dataset, folds, training and version of sftsearch are the same, the sampler `ehvi` uses its
    measurements; otherwise its front is tried first. Read once, before the first trial."""


class Choice(Section):
    """One of the listed values."""

    kind: Literal["choice"]
    values: list[Literals] = Field(min_length=1, max_length=10_000)

    @field_validator("values")
    @classmethod
    def _unique(cls, values: list[Literals]) -> list[Literals]:
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(texts)) < len(texts):
            repeated = next(text for i, text in enumerate(texts) if text in texts[:i])[:60]
            raise ValueError(f"`values` must be unique, but {repeated} is listed more than once.")
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
    """Numbers from `low` to `high`, both included; continuous without `step`."""

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
                f"step={self.step}): use a larger step, or none."
            )
        return self


def check_range(low: float, high: float, *, log: bool, stepped: bool) -> None:
    """Raise ValueError for a range that is empty or that Optuna does not support."""
    if low > high:
        raise ValueError(f"`low <= high` must hold, but got (low={low}, high={high}).")
    if log and low <= 0:
        raise ValueError(f"`log: true` needs `low > 0`, but got (low={low}).")
    if log and stepped:
        raise ValueError("`log: true` and `step` are mutually exclusive: remove one.")
    if not math.isfinite(high - low):
        raise ValueError(f"The range is too wide for a number (low={low}, high={high}).")


Distribution = Annotated[Choice | IntRange | FloatRange, Field(discriminator="kind")]
DISTRIBUTION: TypeAdapter[Choice | IntRange | FloatRange] = TypeAdapter(Distribution)


class Branch(BaseModel):
    """One model of the space; every other key is a parameter: a literal or a distribution.

    Parameters are fields of the model's or the training configuration; `sftsearch models` lists
    them. A parameter by modality may have a distribution for each modality:
    `tokens: {watch_acc: {kind: choice, values: [1, 4]}, phone_acc: 2}`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    kind: str
    """A name of `sftsearch models`."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name: a literal, or one of the distribution types.

        A mapping with distributions gives a parameter per key, such as `tokens.watch_acc`.
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
    """Return whether a value is a distribution: a mapping with a `kind`."""
    return isinstance(value, dict) and "kind" in value


def members(name: str, value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return a parameter with its name; for a mapping with distributions, every entry."""
    whole = not isinstance(value, dict) or is_distribution(value)
    if whole or not any(map(is_distribution, value.values())):
        return [((name,), value)]
    return [((name, str(key)), entry) for key, entry in value.items()]


class SharedSpace(Section):
    """The short form of a space: shared parameters, and models."""

    shared: dict[str, Literals] = Field(default={})
    """Parameters of every model that has them and does not set them itself."""
    models: Annotated[list[Branch], Field(min_length=1, max_length=MAX_BRANCHES)]


def _unchanged(value: object) -> object:
    return value  # `load` expands the short form; this type only documents it in the JSON schema


Branches = Annotated[list[Branch], Field(min_length=1, max_length=MAX_BRANCHES)]
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
    """An accuracy first, then a cost. Default: the metric of the dataset's task (`top1`; `map` for
    multi-label; `mae` for regression), and `gflops`."""
    constraints: list[Constraint] = Field(default=[], max_length=16)
    search: SearchPlan
    training: dict[str, Literals] = Field(default={})
    """Fields of the training configuration, for all branches."""
    resources: Resources = Resources()
    warm_start: WarmStart | None = None
    space: StudySpace
    """A list of models, or `{shared, models}`."""
