"""Model and training configuration: frozen dataclasses; `asdict` gives their canonical JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from sftsearch.datasets.errors import UserError, nearest
from sftsearch.trainables.token_windows import Windows, pools, windows_of_stride

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


class ConfigError(UserError):
    """A configuration is invalid or does not fit the dataset."""

    def __init__(self, message: str, *parameters: str) -> None:
        """Take the message and the parameters to blame, the most likely one first."""
        super().__init__(message)
        self.parameters = parameters


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raise ConfigError unless `value` is an int (not a bool) of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(
            f"`{name}` must be a whole number from {at_least}, but got {value!r}.", name
        )


def check_number(name: str, value: Any, *, least: float, below: float, open_: bool = False) -> None:
    """Raise ConfigError unless `value` is finite and in [least, below), or (least, below)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value < below and math.isfinite(value)) or (
        open_ and value == least
    ):
        left = "(" if open_ else "["
        raise ConfigError(f"`{name}` must lie in {left}{least}, {below}), but got {value!r}.", name)


def check_names(name: str, value: Any) -> tuple[str, ...]:
    """Return the names in a list as a tuple; raise ConfigError unless they are distinct."""
    good = isinstance(value, tuple | list) and all(isinstance(one, str) for one in value)
    if not good or not value or len(set(value)) < len(value):
        raise ConfigError(
            f"`{name}` must be a non-empty list of distinct names, but got {value!r}.", name
        )
    return tuple(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(choices)}, but got {value!r}.", name)


def _check_modality(spec: DatasetSpec, name: str) -> None:
    if name not in spec.modalities:
        near = nearest(name, spec.modalities)
        hint = f" Did you mean '{near}'?" if near else ""
        known = ", ".join(spec.modalities)
        raise ConfigError(
            f"Dataset '{spec.name}' has no modality '{name}'.{hint} Known: {known}.", "modalities"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
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
    compile: bool = False
    """Use torch.compile in training and evaluation. It takes minutes at the start of each trial,
    so it pays only in long training runs."""

    def __post_init__(self) -> None:
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
        """Return the canonical form of equivalent configurations: unused fields are default."""
        unused: dict[str, Any] = {}
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
class TransformerConfig:
    """Fields that all token transformers share."""

    modalities: tuple[str, ...] | None = None
    """The modalities to use; None: all. Their order is the dataset's."""
    patch: int = 1
    """Consecutive samples of a modality per token."""
    dim: int = 40
    """Width of every token."""
    num_heads: int = 5
    """Attention heads; must divide `dim`."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_integer("patch", self.patch, at_least=1)
        check_integer("dim", self.dim, at_least=1)
        check_integer("num_heads", self.num_heads, at_least=1)
        check_number("dropout", self.dropout, least=0, below=1)
        if self.dim % self.num_heads:
            got = f"num_heads={self.num_heads}, dim={self.dim}"
            raise ConfigError(
                f"`num_heads` must divide `dim`, but got ({got}).", "num_heads", "dim"
            )
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
            _check_modality(spec, name)
        return tuple(name for name in spec.modalities if name in self.modalities)

    def canonical(self, spec: DatasetSpec) -> Self:
        """Return the canonical form of all configurations that give the same model.

        Raises:
            ConfigError: the configuration does not fit the dataset.
        """
        return dataclasses.replace(self, modalities=self.chosen(spec))

    def num_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the tokens of each modality used, without CLS: ceil(samples / patch).

        Raises:
            ConfigError: a modality is unknown, or shorter than one patch.
        """
        tokens = {}
        for name in self.chosen(spec):
            samples = spec.modalities[name].num_tokens
            if self.patch > samples:
                raise ConfigError(
                    f"`patch` must not be longer than a modality, but got (patch={self.patch}, "
                    f"{name} has {samples} samples). Choose a smaller patch.",
                    "patch",
                )
            tokens[name] = -(-samples // self.patch)
        return tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolingConfig(TransformerConfig):
    """Fields of transformers that pool tokens: by stride, by budget, or not at all (neither)."""

    stride: int | Mapping[str, int] | None = None
    """Consecutive tokens that are pooled to one; the last, incomplete window is dropped (as in the
    paper). One value for all modalities, or one per modality."""
    tokens: int | Mapping[str, int] | None = None
    """Token budget: tokens left of each modality, or all of them if it has fewer; windows differ
    by at most one token, and no token is dropped. One value for all, or one per modality."""
    pooling: Literal["average", "max", "attention"] = "average"
    """`attention` weights each token by the attention it received in the last unimodal layer."""
    pooling_eps: float = 0.0
    """Added to the mean weight of a window in `pooling: attention`, which makes the pooled token
    smaller. 0: the exact weighted mean (the paper); its code has 1e-5."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_choice("pooling", self.pooling, ("average", "max", "attention"))
        check_number("pooling_eps", self.pooling_eps, least=0, below=math.inf)
        if self.stride is not None and self.tokens is not None:
            got = f"stride={self.stride}, tokens={self.tokens}"
            raise ConfigError(
                f"Only one of `stride` and `tokens` may be set, but got ({got}).",
                "stride",
                "tokens",
            )
        for name in ("stride", "tokens"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                for modality, one in value.items():
                    check_integer(f"{name}.{modality}", one, at_least=1)
                object.__setattr__(self, name, dict(value))
            elif value is not None:
                check_integer(name, value, at_least=1)

    def num_pooled_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return the tokens of each pooled sequence, without CLS."""
        return self.num_tokens(spec)

    def windows(self, spec: DatasetSpec) -> dict[str, Windows]:
        """Return the pooling windows of each modality used.

        One stride for all may be longer than some modalities, which then keep a single token
        (SFT paper, Table 3, pools 38 tokens with stride 64), but not longer than all of them.

        Raises:
            ConfigError: a stride is longer than its sequence, a modality has no value, or a value
                has an unknown modality.
        """
        tokens = self.num_pooled_tokens(spec)
        if self.stride is None:
            budgets = self._by_modality("tokens", self.tokens, tokens, spec)
            return {m: Windows(n, min(budgets.get(m, n), n)) for m, n in tokens.items()}
        strides = self._by_modality("stride", self.stride, tokens, spec)
        for name, stride in strides.items():
            if isinstance(self.stride, Mapping):
                _check_stride(f"stride.{name}", stride, tokens[name])
            else:
                _check_stride("stride", stride, max(tokens.values()))
        return {m: windows_of_stride(n, strides[m]) for m, n in tokens.items()}

    @staticmethod
    def _by_modality(
        name: str,
        value: int | Mapping[str, int] | None,
        known: Mapping[str, int],
        spec: DatasetSpec,
    ) -> Mapping[str, int]:
        if not isinstance(value, Mapping):
            return {} if value is None else dict.fromkeys(known, value)
        for modality in value:
            if modality not in known:
                _check_modality(spec, modality)
        for modality in known:
            if modality not in value:
                raise ConfigError(f"`{name}` has no value for '{modality}', which is used.", name)
        return {modality: value[modality] for modality in known}

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: a stride that drops no token becomes a budget."""
        windows = self.windows(spec)
        exact = all(one.stride is None for one in windows.values())
        longest = {name: one.longest for name, one in windows.items()}
        pooling = self.pooling if pools(windows.values()) else "average"
        return dataclasses.replace(
            self,
            modalities=self.chosen(spec),
            tokens={name: one.count for name, one in windows.items()} if exact else None,
            stride=None if exact else longest,
            pooling=pooling,
            pooling_eps=self.pooling_eps if pooling == "attention" else 0.0,
        )


def _check_stride(name: str, stride: int, tokens: int) -> None:
    if stride > tokens:
        raise ConfigError(
            f"`{name}` must not be longer than the tokens it pools, but got (stride={stride}, "
            f"tokens={tokens}). Stride {tokens} already leaves one token.",
            name,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MidFusionConfig(PoolingConfig):
    """Fields of mid-fusion transformers: unimodal layers, pooling, fused layers."""

    unimodal_layers: int = 1
    """Layers of each modality before pooling."""
    fused_layers: int = 11
    """Layers on the pooled tokens."""

    def __post_init__(self) -> None:
        PoolingConfig.__post_init__(self)
        check_integer("unimodal_layers", self.unimodal_layers, at_least=0)
        check_integer("fused_layers", self.fused_layers, at_least=1)
