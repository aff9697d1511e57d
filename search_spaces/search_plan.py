"""The section `search` of a study file: sampler, early stopping, replicates and limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from sftsearch.search_spaces.section import Section


class _Seeded(Section):
    seed: int = Field(default=0, ge=0, lt=2**31)


class EHVI(_Seeded):
    """Expected hypervolume improvement, with a Gaussian process of accuracy and exact costs."""

    kind: Literal["ehvi"]
    startup_configurations: int = Field(default=6, ge=1)
    """Configurations spread over the space before the Gaussian process is used."""


class TPE(_Seeded):
    """Tree-structured Parzen estimator for several objectives (Optuna's default)."""

    kind: Literal["tpe"]
    startup_configurations: int = Field(default=10, ge=1)
    """Configurations drawn at random before the estimator is used."""


class NSGA2(_Seeded):
    """Genetic algorithm that sorts by dominance and crowding (Deb et al. 2002; Optuna's)."""

    kind: Literal["nsga2"]
    population: int = Field(default=50, ge=2)


class NSGA3(_Seeded):
    """NSGA-II with reference points instead of crowding (Deb and Jain 2014; Optuna's)."""

    kind: Literal["nsga3"]
    population: int = Field(default=50, ge=2)


class GP(_Seeded):
    """Gaussian process of every objective (Optuna's); takes seconds per proposal."""

    kind: Literal["gp"]
    startup_configurations: int = Field(default=10, ge=1)


class QuasiRandom(_Seeded):
    """A scrambled Sobol sequence: random draws with smaller gaps (Optuna's)."""

    kind: Literal["quasi_random"]


class RandomDraw(_Seeded):
    """Uniform over the admitted configurations, without repeats."""

    kind: Literal["random"]


class Exhaustive(Section):
    """Every admitted configuration once, cheapest first. The space must be finite."""

    kind: Literal["exhaustive"]


def _worded(value: object) -> object:
    """Accept a word for a section of defaults: `sampler: tpe`."""
    return {"kind": value} if isinstance(value, str) else value


SamplerSection = Annotated[
    EHVI | TPE | NSGA2 | NSGA3 | GP | QuasiRandom | RandomDraw | Exhaustive,
    Field(discriminator="kind"),
]
SamplerWord = Literal["ehvi", "tpe", "nsga2", "nsga3", "gp", "quasi_random", "random", "exhaustive"]
Sampler = Annotated[
    SamplerSection,
    BeforeValidator(_worded, json_schema_input_type=SamplerSection | SamplerWord),
]


class DominatedStop(_Seeded):
    """Stop trials that are very unlikely to end on the front at their cost."""

    kind: Literal["dominated"]
    delta: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    """How far below the best affordable accuracy still counts as on the front."""
    min_probability: float = Field(default=0.05, gt=0, lt=1)
    """Stop a trial if its probability of ending above that is smaller."""
    audit_share: float = Field(default=0.1, ge=0, le=1)
    """Share of stops that are not carried out, to measure how many are wrong."""
    min_epochs: int = Field(default=2, ge=1)
    """First epoch of a decision, at least two after the warm-up of mixup."""
    reduction_factor: float = Field(default=2, gt=1, allow_inf_nan=False)
    """Ratio of the epochs of successive rungs."""


class MOASHA(_Seeded):
    """Asynchronous successive halving by dominance (Schmucker et al. 2021)."""

    kind: Literal["mo_asha"]
    audit_share: float = Field(default=0.1, ge=0, le=1)
    min_epochs: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2, gt=1, allow_inf_nan=False)


class MedianStop(_Seeded):
    """Stop trials below the median of their epoch; ignores cost (Golovin et al. 2017)."""

    kind: Literal["median"]
    audit_share: float = Field(default=0.1, ge=0, le=1)
    min_epochs: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2, gt=1, allow_inf_nan=False)


class NoStop(Section):
    """Every trial trains all its epochs."""

    kind: Literal["none"]


EarlyStoppingSection = Annotated[
    DominatedStop | MOASHA | MedianStop | NoStop, Field(discriminator="kind")
]
EarlyStoppingWord = Literal["dominated", "mo_asha", "median", "none"]
EarlyStopping = Annotated[
    EarlyStoppingSection,
    BeforeValidator(_worded, json_schema_input_type=EarlyStoppingSection | EarlyStoppingWord),
]


class Replicates(Section):
    """Trials per configuration. Replicate r has seed r and, with folds, fold r modulo `folds`."""

    min: int = Field(default=1, ge=1, le=1000)
    """Number of trials of every configuration."""
    max: int = Field(default=1, ge=1, le=1000)
    """Highest number; more are added one by one where the front is uncertain."""
    fresh: int = Field(default=0, ge=0, le=1000)
    """New trials of each reported configuration at the end, in addition to `trials`. Its reported
    mean is over these alone, so it has no selection bias."""

    @model_validator(mode="after")
    def _ordered(self) -> Replicates:
        if self.max < self.min:
            raise ValueError(
                f"`max` must be at least `min`, but got (min={self.min}, max={self.max})."
            )
        return self

    def __str__(self) -> str:
        """Return a text such as `2 replicates per configuration`."""
        number = f"{self.min}" if self.max == self.min else f"{self.min} to {self.max}"
        text = f"{number} replicate{'' if self.max == 1 else 's'} per configuration"
        return f"{text}, {self.fresh} fresh at the end" if self.fresh else text


def _counted(value: object) -> object:
    """Accept a number of replicates for `{min, max}`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"min": value, "max": value} if whole else value


class SearchPlan(Section):
    """Sampler, budget and replicates of the search."""

    sampler: Sampler = EHVI(kind="ehvi")
    trials: int = Field(ge=1, le=1_000_000)
    """Number of trials, including replicates."""
    max_epochs: int | None = Field(default=None, ge=1)
    """End after this number of epochs over all trials."""
    max_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """End after this number of hours, fresh replicates included; running trials are finished."""
    max_gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """End after this number of GPU hours over all trials."""
    until_converged: bool = False
    """End when the next 20 proposals are expected to gain less than 0.1 points of accuracy (mean
    over all budgets), twice in a row; needs the sampler `ehvi`."""
    replicates: Annotated[
        Replicates, BeforeValidator(_counted, json_schema_input_type=Replicates | int)
    ] = Replicates()
    """Trials per configuration: a number, or `{min, max, fresh}`."""
    early_stopping: EarlyStopping = NoStop(kind="none")
    """Rule that stops trials before their last epoch."""
    min_accuracy: Annotated[float, Field(allow_inf_nan=False)] | Literal["baseline"] | None = None
    """Worst value of the first objective that is of interest; `baseline`: that of the best
    baseline. Worse configurations are not on the front and get no more replicates, and the sampler
    `ehvi` does not look for them."""
    baselines: bool = True
    """Fit baselines (majority, linear models, MLPs) beside the trials, in about 20 seconds of one
    core, and compare the front with them."""
    deterministic: bool = False
    """Make proposals and early stopping independent of the order in which concurrent trials end:
    both use only results that are known in every order. A free worker may have to wait."""
    balance: Literal["none", "branches"] = "none"
    """`branches`: all branches get equally many configurations, give or take one, until exhausted;
    the sampler chooses within a branch."""

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
                f"`trials` must be at least `replicates.min`, but got (trials={self.trials}, "
                f"replicates.min={least})."
            )
        if self.deterministic and most > least:
            raise ValueError(
                f"`deterministic` needs a fixed number of replicates, but got (min={least}, "
                f"max={most}): additional ones depend on the order in which trials end."
            )
        if self.deterministic and self.early_stopping.kind != "none" and least > 1:
            raise ValueError(
                "`deterministic` with `early_stopping` needs a single replicate, besides fresh "
                f"ones, but got (min={least}): which others have started when the first one is "
                "stopped depends on the order in which trials end."
            )
        if self.min_accuracy == "baseline" and not self.baselines:
            raise ValueError("`min_accuracy: baseline` needs `baselines: true`.")
        if self.deterministic and self.min_accuracy == "baseline":
            raise ValueError(
                "`deterministic` needs a number for `min_accuracy`, but got (baseline): when the "
                "baselines are known differs from run to run."
            )
        if self.until_converged and self.sampler.kind != "ehvi":
            raise ValueError(
                f"`until_converged` needs the sampler `ehvi`, but got {self.sampler.kind}."
            )
        return self
