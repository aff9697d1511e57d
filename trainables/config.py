"""Model and training configuration: frozen dataclasses; `asdict` gives their canonical JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from sftsearch.trainables.augmentation_config import AugmentationConfig
from sftsearch.trainables.config_checks import (
    ConfigError,
    by_modality,
    check_by_modality,
    check_choice,
    check_integer,
    check_modality,
    check_names,
    check_number,
)
from sftsearch.trainables.plugin_functions import DEFAULTS, FUNCTIONS
from sftsearch.trainables.token_windows import Cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.datasets.spec import DatasetSpec


__all__ = [
    "CONV_KERNELS",
    "TOKENIZERS",
    "ConfigError",
    "ModelConfig",
    "TrainConfig",
    "TransformerConfig",
    "by_modality",
    "check_by_modality",
    "check_choice",
    "check_integer",
    "check_modality",
    "check_names",
    "check_number",
]

TOKENIZERS = ("linear", "statistics", "linear_statistics", "conv")
CONV_KERNELS = (5, 3)
"""Samples that each of the two convolutions of `tokenizer: conv` reads."""


def check_own_tokens(model: str, tokenizer: str) -> None:
    """Raise ConfigError unless the tokenizer of a model with its own tokens is linear."""
    if tokenizer != "linear":
        raise ConfigError(
            f"`tokenizer` must be linear for `{model}`, whose tokens are its paper's, but got "
            f"{tokenizer!r}. All models except mult_original and msaf_lstm have the others.",
            "tokenizer",
        )


def _segments(length: int, count: int) -> Cut:
    count = min(count, length)
    return Cut(count, -(-length // count), resampled=True)


def _one_or_each(values: dict[str, int]) -> int | dict[str, int]:
    """Return the one number that all modalities have, or the numbers by modality."""
    numbers = set(values.values())
    return numbers.pop() if len(numbers) == 1 else values


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(AugmentationConfig):
    """How a model is trained; the defaults are those of the SFT paper's code."""

    epochs: int = 20
    batch_size: int = 24
    """Samples per step; the last, incomplete batch of an epoch is used too."""
    accumulate: int = 1
    """Batches per optimizer step: their gradients add up to that of one large batch."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw decays weights apart from the gradient; adam and sgd add the decay to the gradient."""
    momentum: float = 0.9
    """Momentum of `sgd`, without Nesterov's correction."""
    learning_rate: float = 1e-3
    """Initial learning rate; with a warm-up, the one it reaches."""
    weight_decay: float = 0.0
    clip_norm: float | None = 0.8
    """Largest norm of all gradients together; None: gradients are not clipped."""
    schedule: Literal["plateau", "cosine", "step", "constant"] = "plateau"
    """How the learning rate falls: when the validation loss stops falling, as half a cosine to 0 at
    the end of the last epoch, every `step_epochs` epochs, or not at all."""
    warmup_epochs: float = 0.0
    """Epochs, or parts of one, in which the learning rate rises linearly at the start."""
    plateau_patience: int = 10
    """Epochs without a lower validation loss before `plateau` reduces the learning rate."""
    plateau_factor: float = 0.1
    """Factor by which `plateau` and `step` multiply the learning rate."""
    step_epochs: int = 10
    """Epochs between two reductions by `step`, from the first epoch on."""
    patience: int | None = None
    """Epochs in a row without a lower validation loss that end a trial; None: it trains on."""
    average_weights: float | None = None
    """Decay per step of an exponential moving average of the weights, which is then evaluated and
    saved instead of the last weights; None: no average."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes, in the training loss of a
    classification. The validation loss stays plain."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in the training loss of a classification, samples weigh inversely to the number of
    training samples of their class. The validation loss stays plain."""
    score_epoch: Literal["last", "best"] = "last"
    """How a trial is scored: by the mean of its last three epochs, or by its best epoch in the
    first metric of the task (top1, map or mae)."""
    mixup: Literal["none", "manifold", "input", "modality"] = "none"
    """What is mixed: latents after a random layer (SFT paper, sec. 3.4), the inputs by one weight,
    or the inputs by one weight per modality (MBT paper)."""
    mixup_alpha: float = 0.3
    """Weights are drawn from Beta(alpha, alpha)."""
    mixup_warmup: int = 5
    """Epochs without mixup at the start."""
    mixup_weights: Literal["batch", "sample"] = "batch"
    """Draw weights once per batch (the paper) or once per sample (its code)."""
    regression_loss: Literal["l1", "l2"] = "l1"
    """Absolute or squared error; used by regression only."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast matrix products; weights and moments stay float32. For GPUs: CPUs without
    bfloat16 instructions take twice as long."""
    training_loss: str = "task"
    """task: the loss of the task. Otherwise the name of a loss of a plug-in, which replaces it in
    training; the validation loss stays that of the task."""
    trainer: str = "default"
    """default: the training that all other fields describe. Otherwise the name of a training
    function of a plug-in, which reads the fields that it needs."""
    compile: bool = False
    """Use torch.compile in training and evaluation. It takes minutes at the start of each trial,
    so it pays only in long training runs."""

    def __post_init__(self) -> None:
        AugmentationConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("epochs", self.epochs, at_least=1)
        check_integer("batch_size", self.batch_size, at_least=1)
        self._check_optimization()
        check_choice("score_epoch", self.score_epoch, ("last", "best"))
        check_choice("mixup", self.mixup, ("none", "manifold", "input", "modality"))
        check_number("mixup_alpha", self.mixup_alpha, least=0, below=math.inf, open_=True)
        check_integer("mixup_warmup", self.mixup_warmup, at_least=0)
        if self.mixup != "none" and self.mixup_warmup >= self.epochs:
            got = f"mixup_warmup={self.mixup_warmup}, epochs={self.epochs}"
            raise ConfigError(
                f"`mixup_warmup` must be less than `epochs`, or nothing is mixed, but got ({got}).",
                "mixup_warmup",
                "epochs",
            )
        check_choice("mixup_weights", self.mixup_weights, ("batch", "sample"))
        check_choice("regression_loss", self.regression_loss, ("l1", "l2"))
        check_choice("precision", self.precision, ("float32", "bfloat16"))
        for name in ("trainer", "training_loss"):
            check_choice(name, getattr(self, name), (DEFAULTS[name], *FUNCTIONS[name]))
        if not isinstance(self.compile, bool):
            raise ConfigError(
                f"`compile` must be true or false, but got {self.compile!r}.", "compile"
            )

    def _check_optimization(self) -> None:
        """Check the fields of optimizer, schedule and training loss."""
        check_integer("accumulate", self.accumulate, at_least=1)
        check_choice("optimizer", self.optimizer, ("adamw", "adam", "sgd"))
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("learning_rate", self.learning_rate, least=0, below=math.inf, open_=True)
        check_number("weight_decay", self.weight_decay, least=0, below=math.inf)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, least=0, below=math.inf, open_=True)
        check_choice("schedule", self.schedule, ("plateau", "cosine", "step", "constant"))
        check_number("warmup_epochs", self.warmup_epochs, least=0, below=math.inf)
        if self.warmup_epochs >= self.epochs:
            got = f"warmup_epochs={self.warmup_epochs}, epochs={self.epochs}"
            raise ConfigError(
                f"`warmup_epochs` must be less than `epochs`, but got ({got}).",
                "warmup_epochs",
                "epochs",
            )
        check_integer("plateau_patience", self.plateau_patience, at_least=0)
        check_number("plateau_factor", self.plateau_factor, least=0, below=1, open_=True)
        check_integer("step_epochs", self.step_epochs, at_least=1)
        if self.patience is not None:
            check_integer("patience", self.patience, at_least=1)
        if self.average_weights is not None:
            check_number("average_weights", self.average_weights, least=0, below=1, open_=True)
        check_number("label_smoothing", self.label_smoothing, least=0, below=1)
        check_choice("class_weights", self.class_weights, ("none", "balanced"))

    def canonical(self, spec: DatasetSpec) -> TrainConfig:
        """Return the canonical form of equivalent configurations: unused fields are default.

        Raises:
            ConfigError: an augmentation does not fit the dataset.
        """
        unused: dict[str, Any] = {
            "rotate": self.rotated(spec) if self.rotation else None,
            "spectrograms": self.masked(spec) if self.time_mask or self.frequency_mask else None,
        }
        if spec.task != "regression":
            unused |= {"regression_loss": "l1"}
        if self.mixup == "none":
            unused |= {"mixup_alpha": 0.3, "mixup_warmup": 5, "mixup_weights": "batch"}
        if self.optimizer != "sgd":
            unused |= {"momentum": 0.9}
        if self.schedule != "plateau":
            unused |= {"plateau_patience": 10}
        if self.schedule not in ("plateau", "step"):
            unused |= {"plateau_factor": 0.1}
        if self.schedule != "step":
            unused |= {"step_epochs": 10}
        if self.patience is not None and self.patience >= self.epochs - 1:
            unused |= {"patience": None}  # the last epoch ends the trial at the same time or before
        return dataclasses.replace(self, **unused)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The field that all models share."""

    modalities: tuple[str, ...] | None = None
    """The modalities to use; None: all. Their order is the dataset's."""

    def __post_init__(self) -> None:
        if self.modalities is not None:  # JSON has lists
            object.__setattr__(self, "modalities", check_names("modalities", self.modalities))

    def chosen(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Return the names of the modalities used, in the dataset's order.

        Raises:
            ConfigError: a name is not a modality of the dataset.
        """
        if self.modalities is None:
            return tuple(spec.modalities)
        for name in self.modalities:
            check_modality(spec, name)
        return tuple(name for name in spec.modalities if name in self.modalities)

    def canonical(self, spec: DatasetSpec) -> Self:
        """Return the canonical form of all configurations that give the same model.

        Raises:
            ConfigError: the configuration does not fit the dataset.
        """
        return dataclasses.replace(self, modalities=self.chosen(spec))

    def cuts(self, spec: DatasetSpec) -> dict[str, Cut]:
        """Return how the samples of each modality used are cut into tokens.

        Models without tokens: into up to sixteen equal segments, for `token_dropout`.

        Raises:
            ConfigError: the configuration does not fit the dataset.
        """
        lengths = {name: spec.modalities[name].num_tokens for name in self.chosen(spec)}
        return {name: _segments(length, 16) for name, length in lengths.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig(ModelConfig):
    """Fields that all token transformers share."""

    patch: int | Mapping[str, int] = 1
    """Consecutive samples of a modality per token. One value for all modalities, or one per
    modality."""
    segments: int | Mapping[str, int] | None = None
    """Tokens of each modality, in place of `patch`: every sample, whatever its length, is resampled
    to so many equal segments. A modality with fewer samples has one token for each. One value for
    all modalities, or one per modality."""
    tokenizer: str = "linear"
    """What a token is made of: a linear map of its samples (`linear`, the papers), of their mean,
    deviation and mean absolute difference (`statistics`), or of both (`linear_statistics`); the
    mean of two convolutions over its samples (`conv`); or the encoder of a plug-in."""
    dim: int = 40
    """Width of every token."""
    num_heads: int = 5
    """Attention heads; must divide `dim`."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)  # super() does not work in a class with slots
        object.__setattr__(self, "patch", check_by_modality("patch", self.patch))
        if self.num_segments is not None:
            object.__setattr__(self, "segments", check_by_modality("segments", self.segments))
            if self.patch != 1:
                got = f"patch={self.patch}, segments={self.segments}"
                raise ConfigError(
                    f"Only one of `patch` and `segments` may be set, but got ({got}).",
                    "segments",
                    "patch",
                )
        check_choice("tokenizer", self.tokenizer, (*TOKENIZERS, *FUNCTIONS["tokenizer"]))
        check_integer("dim", self.dim, at_least=1)
        check_integer("num_heads", self.num_heads, at_least=1)
        check_number("dropout", self.dropout, least=0, below=1)
        if self.dim % self.num_heads:
            got = f"num_heads={self.num_heads}, dim={self.dim}"
            raise ConfigError(
                f"`num_heads` must divide `dim`, but got ({got}).", "num_heads", "dim"
            )

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `ModelConfig.canonical`."""
        cuts, shapes = self.cuts(spec), spec.modalities
        patches: int | dict[str, int] = 1
        segments = self.segments
        if self.num_segments is not None:
            segments = _one_or_each({name: cut.num_tokens for name, cut in cuts.items()})
        exact = all(
            cut.is_exact(shapes[name].num_tokens, varies=shapes[name].variable_length)
            for name, cut in cuts.items()
        )
        if exact:
            patches = _one_or_each({name: cut.patch for name, cut in cuts.items()})
            segments = self.segments if self.num_segments is None else None
        return dataclasses.replace(
            self, modalities=self.chosen(spec), patch=patches, segments=segments
        )

    @property
    def num_segments(self) -> int | Mapping[str, int] | None:
        """`segments`, where it is the number of tokens; see `SplitConfig` for models of MSAF."""
        return self.segments

    def cuts(self, spec: DatasetSpec) -> dict[str, Cut]:
        """See `ModelConfig.cuts`."""
        lengths = {name: spec.modalities[name].num_tokens for name in self.chosen(spec)}
        if self.num_segments is not None:
            counts = by_modality("segments", self.num_segments, lengths, spec)
            return {name: _segments(length, counts[name]) for name, length in lengths.items()}
        patches = by_modality("patch", self.patch, lengths, spec)
        for name, length in lengths.items():
            if patches[name] > length:
                raise ConfigError(
                    f"`patch` must not be longer than a modality, but got (patch={patches[name]}, "
                    f"{name} has {length} samples). Choose a smaller patch.",
                    "patch",
                )
        return {name: Cut(-(-n // patches[name]), patches[name]) for name, n in lengths.items()}

    def sample_widths(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the numbers in the samples of one token, of each modality used."""
        shapes = spec.modalities
        return {
            name: cut.patch * shapes[name].num_features for name, cut in self.cuts(spec).items()
        }

    def num_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the tokens of each modality used, without CLS.

        Raises:
            ConfigError: see `cuts`.
        """
        return {name: cut.num_tokens for name, cut in self.cuts(spec).items()}
