"""Gradient blending: one loss per modality, weighted by how well it generalizes.

Source: Wang, Tran, Feiszli 2020, What Makes Training Multi-modal Classification Networks Hard?,
arXiv:1905.12681, sec. 3. One head per modality and a fused head are trained together, on the sum of
their losses weighted by w_k ~ G_k / O_k^2. Over a super-epoch, G_k is the decrease of the
validation loss of head k, and O_k the growth of the gap between its validation and training loss.
In evaluation the model is `concat_fc`.

The paper measures G and O on copies of each branch trained separately; here they are measured on
the heads in joint training, which costs one pass over both splits per super-epoch.

Training uses the validation split to choose the weights, so a trial's validation metrics are
optimistic: M + 1 numbers per super-epoch are fitted to that split. Compare with other models on the
test split, which is never read in training.

Shapes: B batch, T tokens, M modalities, K = M + 1 heads, the fused one last, D width, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import check_integer, check_number
from sftsearch.trainables.layers.tensor_fusion import ClsVectors, ConcatFusion, FusedHead
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry
from sftsearch.trainables.models.tensor_fusion import (
    ConcatFCConfig,
    concat_part,
    encoders,
    fused_parts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Batch, Losses

GBLEND_PAPER = (
    "Wang et al. 2020, What Makes Training Multi-modal Classification Networks Hard?, "
    "arXiv:1905.12681"
)

LEAST_GROWTH = 0.01
"""Smallest growth of a gap that counts, as a share of the heads' mean validation loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientBlendingConfig(ConcatFCConfig):
    """Gradient blending; the hidden layer belongs to the fused head."""

    super_epoch: int = 5
    """Epochs from one measurement to the next."""
    equal_share: float = 0.2
    """Share of the weight that is divided equally among all heads. 0: the paper's weights, with
    which a head that did not generalize, even the fused one, is not trained until the next
    measurement."""

    def __post_init__(self) -> None:
        ConcatFCConfig.__post_init__(self)
        check_integer("super_epoch", self.super_epoch, at_least=1)
        check_number("equal_share", self.equal_share, least=0, below=1)


def blend(fell: Tensor, grew: Tensor, *, least: float | Tensor) -> Tensor:
    """Return the weights w_k ~ G_k / O_k^2, (K,), which sum to 1.

    A head that did not generalize, G <= 0, has weight 0. Gaps that grew by less than `least`, or
    shrank, count as `least`: this avoids division by 0, and the square would penalize shrinking. If
    no head generalized, or a loss is not finite, all weights are equal.

    Args:
        fell: G, (K,), the decrease of the validation loss.
        grew: O, (K,), the growth of the gap between validation and training loss.
        least: greater than 0.
    """
    shares = fell.clamp(min=0.0) / grew.clamp(min=least).square()
    total = shares.sum()
    if not (total.isfinite() and total > 0):
        return torch.full_like(shares, 1 / len(shares))
    return shares / total


class BlendedHead(FusedHead):
    """The fused head and a linear head for each modality.

    Shape: {m: (B, T, D)} -> (B, K, C) in training; (B, C) of the fused head in evaluation.
    """

    def __init__(self, vectors: ClsVectors, hidden: int, num_outputs: int, *, rate: float) -> None:
        """Create the heads; arguments as in `FusedHead`."""
        widths = [vectors.width for _ in vectors.names]
        super().__init__(vectors, ConcatFusion(widths, hidden), hidden, num_outputs, rate=rate)
        self.alone = nn.ModuleList(nn.Linear(width, num_outputs) for width in widths)

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs; all heads run in evaluation too, so that the cost is the same."""
        outputs = self.all_outputs(tokens)
        return outputs if self.training else outputs[:, -1]

    def all_outputs(self, tokens: Tokens) -> Tensor:
        """Compute the outputs of every head, (B, K, C)."""
        vectors = self.vectors(tokens)
        alone = [linear(z) for z, linear in zip(vectors, self.alone, strict=True)]
        return torch.stack([*alone, self.outputs(vectors)], dim=1)


class GradientBlending(FusionModel):
    """Separate layers for each modality; the fused head is evaluated.

    Losses are measured after the first epoch and after every epoch divisible by `super_epoch`; from
    the second measurement on, the difference to the previous one gives the weights. Until then all
    weights are equal. Weights and last losses are buffers, so that a resumed run continues bit by
    bit.
    """

    blend_weights: Tensor
    last_losses: Tensor
    head: BlendedHead

    def __init__(self, spec: DatasetSpec, config: GradientBlendingConfig) -> None:
        names = config.chosen(spec)
        head = BlendedHead(
            ClsVectors(names, config.dim),
            config.hidden_dim,
            spec.num_outputs,
            rate=config.dropout,
        )
        super().__init__(spec, config, encoders(spec, config), head=head)
        self.super_epoch, self.equal_share = config.super_epoch, config.equal_share
        count = len(names) + 1
        self.register_buffer("blend_weights", torch.full((count,), 1 / count))
        # (2, K): of the training and the validation split.
        self.register_buffer("last_losses", torch.zeros(2, count))

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of the heads' losses, (B,), from outputs (B, K, C)."""
        losses_BK = torch.stack([losses(one, labels) for one in outputs.unbind(dim=1)], dim=1)
        return (losses_BK * self.blend_weights).sum(dim=1)

    def end_epoch(
        self, epoch: int, losses: Losses, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> None:
        """Measure the heads at the end of a super-epoch and update their weights."""
        if epoch > 0 and (epoch + 1) % self.super_epoch:
            return
        now = torch.stack([self.mean_losses(losses, split) for split in (train, validation)])
        if epoch > 0:
            self.blend_weights.copy_(self.weigh(self.last_losses, now))
        self.last_losses.copy_(now)

    def weigh(self, before: Tensor, now: Tensor) -> Tensor:
        """Return the weights (K,) from training and validation losses (2, K) of two epochs."""
        fell = before[1] - now[1]
        grew = (now[1] - now[0]) - (before[1] - before[0])
        weights = blend(fell, grew, least=LEAST_GROWTH * before[1].mean())
        return torch.lerp(weights, torch.full_like(weights, 1 / len(weights)), self.equal_share)

    def mean_losses(self, losses: Losses, batches: Iterable[Batch]) -> Tensor:
        """Return the mean loss of each head over a split, (K,)."""
        total, count = torch.zeros_like(self.blend_weights), 0
        for inputs, lengths, labels in batches:
            tokens = self.tokenizer(inputs, lengths)
            for layer in self.layers:
                tokens = layer(tokens)
            by_head = self.head.all_outputs(tokens).unbind(dim=1)
            total += torch.stack([losses(outputs, labels).sum() for outputs in by_head])
            count += len(labels)
        return total / count


def gradient_blending_cost(spec: DatasetSpec, config: GradientBlendingConfig) -> cost.Cost:
    """Return the cost of Concat+FC and the other heads; `gflops`, as in the paper, has no heads."""
    widths = config.widths(spec)
    fused = fused_parts(spec, config, concat_part(widths, config.hidden_dim))
    return cost.total([*fused, cost.linear(config.dim, spec.num_outputs) * len(widths)])


MODELS = {
    "gradient_blending": ModelEntry(
        config=GradientBlendingConfig,
        build=GradientBlending,
        cost=gradient_blending_cost,
        paper=GBLEND_PAPER,
    ),
}
