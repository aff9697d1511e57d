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

Literals = bool | int | float | str | None | list[Any] | dict[str, Any]
"""What a parameter may be set to: a YAML scalar, a list or a mapping."""


MAX_WHOLE = 2**53
"""Whole numbers of a range are within this: floats hold them exactly."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class Section(BaseModel):
    """A mapping of the study file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
    goal: Literal["maximize", "minimize"]


class Constraint(Section):
    """A hard limit on a cost that is known before training."""

    metric: Literal["gflops", "gmacs", "parameters"]
    max: float = Field(gt=0, allow_inf_nan=False)


class _Seeded(Section):
    seed: int = Field(default=0, ge=0, lt=2**31)


class Front(_Seeded):
    """Where the front is expected to gain most: a Gaussian process of accuracy, costs exact."""

    kind: Literal["front"]
    startup_configurations: int = Field(default=6, ge=1)
    """Admitted configurations spread over the space before the model of the past is used."""


class TPE(_Seeded):
    """Tree-structured Parzen estimator for several objectives (Optuna's default)."""

    kind: Literal["tpe"]
    startup_configurations: int = Field(default=10, ge=1)
    """Admitted configurations drawn at random before the model of the past is used."""


class NSGA2(_Seeded):
    """Genetic algorithm that sorts by dominance and crowding (Deb et al. 2002; Optuna's)."""

    kind: Literal["nsga2"]
    population: int = Field(default=50, ge=2)


class NSGA3(_Seeded):
    """NSGA-II with reference points instead of crowding (Deb and Jain 2014; Optuna's)."""

    kind: Literal["nsga3"]
    population: int = Field(default=50, ge=2)


class GP(_Seeded):
    """Gaussian process on every objective, hypervolume improvement (Optuna's); seconds a draw."""

    kind: Literal["gp"]
    startup_configurations: int = Field(default=10, ge=1)


class QuasiRandom(_Seeded):
    """A scrambled Sobol sequence: random draws that leave smaller gaps (Optuna's)."""

    kind: Literal["quasi_random"]


class RandomDraw(_Seeded):
    """Uniform over the admitted configurations, without repeats."""

    kind: Literal["random"]


class Exhaustive(Section):
    """Every admitted configuration once, cheapest first. The space must be finite."""

    kind: Literal["exhaustive"]


def _worded(value: object) -> object:
    """Take one word for a section of defaults: `sampler: tpe`."""
    return {"kind": value} if isinstance(value, str) else value


SamplerSection = Annotated[
    Front | TPE | NSGA2 | NSGA3 | GP | QuasiRandom | RandomDraw | Exhaustive,
    Field(discriminator="kind"),
]
SamplerWord = Literal[
    "front", "tpe", "nsga2", "nsga3", "gp", "quasi_random", "random", "exhaustive"
]
Sampler = Annotated[
    SamplerSection,
    BeforeValidator(_worded, json_schema_input_type=SamplerSection | SamplerWord),
]


class FrontStop(_Seeded):
    """Stop what is very unlikely to end on the front at its own cost."""

    kind: Literal["front"]
    delta: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    """How far below the best affordable accuracy still counts as on the front."""
    min_probability: float = Field(default=0.05, gt=0, lt=1)
    """Stop a trial whose probability to end above that is smaller."""
    audit_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the decided stops that run on, to measure how many were wrong."""
    min_epochs: int = Field(default=2, ge=1)
    """First epoch that is judged, two after mixup's warm-up at the least."""
    reduction_factor: float = Field(default=2, gt=1, allow_inf_nan=False)
    """Epochs of a rung over those of the rung before."""


class MOASHA(_Seeded):
    """Asynchronous successive halving by dominance (Schmucker et al. 2021)."""

    kind: Literal["mo_asha"]
    audit_share: float = Field(default=0.1, ge=0, le=1)
    min_epochs: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2, gt=1, allow_inf_nan=False)


class MedianStop(_Seeded):
    """Stop what is below the median of its epoch; blind to cost (Golovin et al. 2017)."""

    kind: Literal["median"]
    audit_share: float = Field(default=0.1, ge=0, le=1)
    min_epochs: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2, gt=1, allow_inf_nan=False)


class NoStop(Section):
    """Every trial trains all its epochs."""

    kind: Literal["none"]


StoppingSection = Annotated[FrontStop | MOASHA | MedianStop | NoStop, Field(discriminator="kind")]
StoppingWord = Literal["front", "mo_asha", "median", "none"]
Stopping = Annotated[
    StoppingSection,
    BeforeValidator(_worded, json_schema_input_type=StoppingSection | StoppingWord),
]


class Replicates(Section):
    """Trials of one configuration: replicate r has seed r, and fold r where there are folds."""

    min: int = Field(default=1, ge=1, le=1000)
    """Trials of every configuration."""
    max: int = Field(default=1, ge=1, le=1000)
    """More go one by one to where the front is uncertain, up to this number."""
    fresh: int = Field(default=0, ge=0, le=1000)
    """At the end, so many new trials of each reported configuration, beyond `trials`; its printed
    mean is of these alone, so that it is not the luck of the chosen."""

    @model_validator(mode="after")
    def _ordered(self) -> Replicates:
        if self.max < self.min:
            raise ValueError(
                f"`max` must be at least `min`, but got (min={self.min}, max={self.max})."
            )
        return self

    def __str__(self) -> str:
        """Return it in words: `2 replicates a configuration`."""
        number = f"{self.min}" if self.max == self.min else f"{self.min} to {self.max}"
        text = f"{number} replicate{'' if self.max == 1 else 's'} a configuration"
        return f"{text}, {self.fresh} fresh at the end" if self.fresh else text


def _counted(value: object) -> object:
    """Take a number for so many replicates of every configuration."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"min": value, "max": value} if whole else value


class SearchPlan(Section):
    """How configurations are proposed and how many trials there are."""

    sampler: Sampler = Front(kind="front")
    trials: int = Field(ge=1, le=1_000_000)
    """Trainings in all, replicates included."""
    max_epochs: int | None = Field(default=None, ge=1)
    """End when so many epochs were trained in all."""
    max_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """End after so many hours of running; trials that run then are finished."""
    max_gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """End when trials have had GPUs for so many hours in all."""
    until_converged: bool = False
    """End when the next 20 proposals are expected to gain less than 0.1 point of accuracy over the
    whole range of budgets, twice running; needs the sampler `front`."""
    replicates: Annotated[
        Replicates, BeforeValidator(_counted, json_schema_input_type=Replicates | int)
    ] = Replicates()
    """Trials of a configuration: a number, or `{min, max, fresh}`."""
    stopping: Stopping = NoStop(kind="none")
    """Which trials are stopped before their last epoch."""
    ordered: bool = False
    """Make proposals independent of the order in which concurrent trials end (some slots wait)."""
    balance: Literal["none", "branches"] = "none"
    """`branches`: every branch of the space gets as many configurations as any other, give or take
    one, until it has none left; the sampler chooses within the branch whose turn it is."""

    @model_validator(mode="after")
    def _consistent(self) -> SearchPlan:
        least, most = self.replicates.min, self.replicates.max
        if least == most and self.trials % least:
            nearest = max(1, round(self.trials / least)) * least
            raise ValueError(
                f"`trials` must be a multiple of `replicates`, but got (trials={self.trials}, "
                f"replicates={least}); the nearest is {nearest}."
            )
        if self.trials < least:
            raise ValueError(
                f"`trials` must hold one configuration, but got (trials={self.trials}, "
                f"replicates.min={least})."
            )
        if self.ordered and (most > least or self.stopping.kind != "none"):
            raise ValueError(
                "`ordered` needs a fixed number of replicates and no stopping: both look at "
                "trials in the order in which they end."
            )
        if self.until_converged and self.sampler.kind != "front":
            raise ValueError(
                f"`until_converged` needs the sampler `front`, but got {self.sampler.kind}."
            )
        return self


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


class LargerTrials(Section):
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
    larger: list[LargerTrials] = Field(default=[], max_length=16)
    """What configurations above a cost are given instead; of several that apply the last counts."""
    concurrent_trials: ConcurrentTrials = "auto"
    """`auto`: as many as CPUs, GPUs and memory hold, also of nodes that come later."""
    trial_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Hours a trial may run, counted anew when the study is resumed: one that runs for longer, or
    whose process hangs, fails, and the study goes on. None: as long as it takes."""
    keep_gb: float = Field(default=20, gt=0, allow_inf_nan=False)
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
        return [self, *(self._given([rule]) for rule in self.larger), self._given(self.larger)]

    def of(self, cost: Mapping[str, float]) -> Resources:
        """Return what a configuration of this cost is given."""
        return self._given([rule for rule in self.larger if cost[rule.metric] > rule.above])

    def _given(self, rules: list[LargerTrials]) -> Resources:
        given: dict[str, Any] = {}
        for rule in rules:
            given |= rule.model_dump(exclude={"metric", "above"}, exclude_none=True)
        return self.model_copy(update=given)


class WarmStart(Section):
    """Begin with what another study of the same parameters has found."""

    study: str = Field(min_length=1, max_length=4096)
    """The other study's name, where it is in the same folder of studies, or the path of its
    folder. Where data set, folds, training and version of sftsearch are the same, what it measured
    is known from the beginning (to the sampler `front`); else its front is tried first. Read once,
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


class StudyFile(Section):
    """A whole study file."""

    study: Study
    dataset: DatasetChoice
    objectives: list[Objective] = Field(
        default=[
            Objective(metric="top1", goal="maximize"),
            Objective(metric="gflops", goal="minimize"),
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
    space: list[Branch] = Field(min_length=1, max_length=1000)
