"""Decision fusion: every modality has its own head, and their decisions are combined.

`averaging` takes the mean, `multiplication` the product of the probabilities, `multiplicative` a
product in which a modality counts less where the others are confident: Liu et al. 2018, Learn to
Combine Modalities in Multimodal Deep Learning, arXiv:1805.11730. Encoders are those of late fusion,
which has one shared head instead.

Shapes: B batch, M modalities, C outputs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, check_choice, check_number
from sftsearch.trainables.layers.blocks import Head
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry
from sftsearch.trainables.models.tensor_fusion import (
    MSAF_PAPER,
    EncodersConfig,
    encoder_parts,
    encoders,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Losses

MULTIPLICATIVE_PAPER = (
    "Liu et al. 2018, Learn to Combine Modalities in Multimodal Deep Learning, arXiv:1805.11730"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragingConfig(EncodersConfig):
    """The mean of the modalities' decisions, for any task."""

    of: Literal["logits", "probabilities"] = "logits"
    """What is averaged; a regression has no probabilities."""

    def __post_init__(self) -> None:
        EncodersConfig.__post_init__(self)
        check_choice("of", self.of, ("logits", "probabilities"))

    def averaged(self, spec: DatasetSpec) -> Literal["logits", "probabilities"]:
        """Return what is averaged in effect; with one modality both choices are equal.

        Raises:
            ConfigError: probabilities for a regression task.
        """
        names = self.num_tokens(spec)
        if self.of == "probabilities" and spec.task == "regression":
            raise ConfigError(
                f"`of` must be logits if the task is regression, which has no probabilities, "
                f"but got {self.of!r}.",
                "of",
            )
        return "logits" if len(names) == 1 else self.of

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`."""
        same = EncodersConfig.canonical(self, spec)
        return dataclasses.replace(same, of=self.averaged(spec))


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiplicationConfig(EncodersConfig):
    """The product of the modalities' probabilities, for classification."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiplicativeConfig(EncodersConfig):
    """The product with weights, for classification."""

    beta: float = 0.3
    """How strongly a modality is down-weighted where the others are confident; 0:
    `multiplication`. The default is from the MSAF paper's table."""

    def __post_init__(self) -> None:
        EncodersConfig.__post_init__(self)
        check_number("beta", self.beta, least=0, below=math.inf)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: with one modality `beta` has no effect."""
        same = EncodersConfig.canonical(self, spec)
        return dataclasses.replace(same, beta=0.3) if len(self.chosen(spec)) == 1 else same


def check_classes(spec: DatasetSpec, config: EncodersConfig, kind: str) -> None:
    """Raise ConfigError unless the task is classification."""
    config.num_tokens(spec)  # errors that apply to any task come first
    if spec.task != "classification":
        raise ConfigError(
            f"`kind: {kind}` supports only classification, but the task of dataset '{spec.name}' "
            f"is {spec.task}. Use `averaging`."
        )


def mean_of_logits(outputs: Tensor) -> Tensor:
    """Average over the modalities: (M, B, C) -> (B, C)."""
    return outputs.mean(dim=0)


def mean_of_probabilities(outputs: Tensor) -> Tensor:
    """Return the logarithms of the mean class probabilities, (M, B, C) -> (B, C)."""
    log_p = F.log_softmax(_at_least_float32(outputs), dim=-1)
    return log_p.logsumexp(dim=0) - math.log(len(outputs))


def mean_of_label_probabilities(outputs: Tensor) -> Tensor:
    """Return the logits of the mean probability of each label, (M, B, C) -> (B, C).

    The factor 1 / M of both means cancels.
    """
    outputs = _at_least_float32(outputs)
    return F.logsigmoid(outputs).logsumexp(dim=0) - F.logsigmoid(-outputs).logsumexp(dim=0)


def log_product(outputs: Tensor) -> Tensor:
    """Return s_y = sum_j log p_j^y from logits: (M, B, C) -> (B, C)."""
    return F.log_softmax(_at_least_float32(outputs), dim=-1).sum(dim=0)


def weighted_log_product(outputs: Tensor, beta: float) -> Tensor:
    """Return s_y = sum_j q_j^y log p_j^y from logits, (M, B, C) -> (B, C).

    The weights q_j^y = [prod_{i != j} (1 - p_i^y)]^(beta / (M - 1)) have no gradient; with one
    modality they are 1.
    """
    log_p = F.log_softmax(_at_least_float32(outputs), dim=-1)
    others = len(log_p) - 1
    if others == 0:
        return log_p[0]
    with torch.no_grad():
        log_rest = log_one_minus(log_p)
        # Mask the own term: subtracting it from the full sum would lose digits to cancellation.
        is_other = ~torch.eye(others + 1, dtype=torch.bool, device=log_p.device)[:, :, None, None]
        q = (log_rest.where(is_other, 0.0).sum(dim=1) * (beta / others)).exp()
    return (q * log_p).sum(dim=0)


def log_one_minus(log_p: Tensor) -> Tensor:
    """Return log(1 - p) from log-probabilities (..., C).

    For the most probable class, 1 - p is computed as the sum of the others, as rounding would lose
    it; it is finite if the logits are. All others have p <= 1/2, where log1p(-p) is accurate.
    """
    top = log_p.argmax(dim=-1, keepdim=True)
    is_top = torch.arange(log_p.shape[-1], device=log_p.device) == top
    least = torch.finfo(log_p.dtype).min
    of_top = log_p.masked_fill(is_top, least).logsumexp(dim=-1, keepdim=True)
    return torch.where(is_top, of_top, torch.log1p(-log_p.exp()))


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert all but float64 to float32: sums of logarithms need the precision."""
    return x if x.dtype == torch.float64 else x.float()


class Vote(nn.Module):
    """Combine the outputs of one head per modality. Shape: {m: (B, T, D)} -> (B, C)."""

    def __init__(
        self,
        names: Iterable[str],
        *,
        dim: int,
        num_outputs: int,
        combine: Callable[[Tensor], Tensor],
    ) -> None:
        """Create one head per name; `combine` maps (M, B, C) to (B, C)."""
        super().__init__()
        self.heads = nn.ModuleList(Head([name], dim=dim, num_outputs=num_outputs) for name in names)
        self.combine = combine

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute and combine the outputs of all heads."""
        return self.combine(torch.stack([head(tokens) for head in self.heads]))


class DecisionFusion(FusionModel):
    """Separate layers and a head for each modality; their outputs are combined."""

    def __init__(
        self, spec: DatasetSpec, config: EncodersConfig, combine: Callable[[Tensor], Tensor]
    ) -> None:
        names = config.chosen(spec)
        head = Vote(names, dim=config.dim, num_outputs=spec.num_outputs, combine=combine)
        super().__init__(spec, config, encoders(spec, config), head=head)


class Averaging(DecisionFusion):
    """The mean decision; the task's loss of the mean trains all modalities together.

    Outputs are mean logits, or the logits of the mean probabilities.
    """

    def __init__(self, spec: DatasetSpec, config: AveragingConfig) -> None:
        combine = mean_of_logits
        if config.averaged(spec) == "probabilities":
            multilabel = spec.task == "multilabel"
            combine = mean_of_label_probabilities if multilabel else mean_of_probabilities
        super().__init__(spec, config, combine)


class ProductFusion(DecisionFusion):
    """A product of probabilities: outputs s, prediction argmax s, training loss -s of the class.

    This loss is the sum of the modalities' (weighted) cross-entropies. In evaluation the task's
    loss uses s as logits, which normalizes the product.
    """

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return -s of the class of each sample, (B,); see `FusionModel.losses`."""
        return -outputs.gather(1, labels.unsqueeze(1)).squeeze(1)


class Multiplication(ProductFusion):
    """The product of the modalities' probabilities."""

    def __init__(self, spec: DatasetSpec, config: MultiplicationConfig) -> None:
        check_classes(spec, config, "multiplication")
        super().__init__(spec, config, log_product)


class Multiplicative(ProductFusion):
    """The product of probabilities, each weighted by the uncertainty of the other modalities."""

    def __init__(self, spec: DatasetSpec, config: MultiplicativeConfig) -> None:
        check_classes(spec, config, "multiplicative")
        super().__init__(spec, config, partial(weighted_log_product, beta=config.beta))


def decision_cost(spec: DatasetSpec, config: EncodersConfig) -> cost.Cost:
    """Return the cost of late fusion with one head per modality; the combination is not counted."""
    heads = cost.head(config.dim, spec.num_outputs) * len(config.chosen(spec))
    return cost.total([*encoder_parts(spec, config), heads])


def averaging_cost(spec: DatasetSpec, config: AveragingConfig) -> cost.Cost:
    """Return the cost of averaging."""
    config.averaged(spec)
    return decision_cost(spec, config)


def multiplication_cost(spec: DatasetSpec, config: MultiplicationConfig) -> cost.Cost:
    """Return the cost of the product."""
    check_classes(spec, config, "multiplication")
    return decision_cost(spec, config)


def multiplicative_cost(spec: DatasetSpec, config: MultiplicativeConfig) -> cost.Cost:
    """Return the cost of the weighted product."""
    check_classes(spec, config, "multiplicative")
    return decision_cost(spec, config)


MODELS = {
    "averaging": ModelEntry(
        config=AveragingConfig,
        build=Averaging,
        cost=averaging_cost,
        paper=MSAF_PAPER,
    ),
    "multiplication": ModelEntry(
        config=MultiplicationConfig,
        build=Multiplication,
        cost=multiplication_cost,
        paper=MULTIPLICATIVE_PAPER,
        own_loss=True,
    ),
    "multiplicative": ModelEntry(
        config=MultiplicativeConfig,
        build=Multiplicative,
        cost=multiplicative_cost,
        paper=MULTIPLICATIVE_PAPER,
        own_loss=True,
    ),
}
