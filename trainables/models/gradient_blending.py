"""Gradient blending: every modality has a loss, and those that generalise weigh more.

Source: Wang, Tran, Feiszli 2020, What Makes Training Multi-modal Classification Networks Hard?,
arXiv:1905.12681, sec. 3. A head for each modality and one on all of them are trained at once, on
the sum of their losses weighted by w_k ~ G_k / O_k^2. Over a super-epoch, G_k is how much the
validation loss of head k fell, and O_k how much the gap between its validation and training loss
grew. The model that is left for evaluation is `concat_fc`.

The paper measures G and O on copies of each branch that it trains alone; here they are those of the
heads in the joint training, which costs one pass over both splits a super-epoch.

Training reads the validation split: losses of its samples choose the weights. A trial's value is
measured on the same split, so it is optimistic, by as much as M + 1 numbers a super-epoch can be
fitted to it. The test split is never read: compare with other models there.

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
"""Least growth of a gap that is told from none, as a share of the heads' mean validation loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientBlendingConfig(ConcatFCConfig):
    """Gradient blending; the hidden layer is the fused head's."""

    super_epoch: int = 5
    """Epochs from one measurement to the next."""
    equal_share: float = 0.2
    """Part of the weight that all heads share alike. 0: the paper's weights alone, by which a head
    that did not generalise is not trained until the next measurement, the fused one included."""

    def __post_init__(self) -> None:
        ConcatFCConfig.__post_init__(self)
        check_integer("super_epoch", self.super_epoch, at_least=1)
        check_number("equal_share", self.equal_share, least=0, below=1)


def blend(fell: Tensor, grew: Tensor, *, least: float | Tensor) -> Tensor:
    """Return the weights w_k ~ G_k / O_k^2, (K,), which sum to 1.

    A head that did not generalise, G <= 0, weighs 0. A gap that grew by less than `least`, or
    shrank, counts as `least`: nothing divides by 0, and no gap is punished for shrinking, which
    the square alone would do. Where no head generalised, or a loss is not finite, all weigh alike.

    Args:
        fell: G, (K,), by how much the validation loss fell.
        grew: O, (K,), by how much the gap between validation and training loss grew.
        least: above 0.
    """
    shares = fell.clamp(min=0.0) / grew.clamp(min=least).square()
    total = shares.sum()
    if not (total.isfinite() and total > 0):
        return torch.full_like(shares, 1 / len(shares))
    return shares / total


class BlendedHead(FusedHead):
    """The fused head and a linear one for each modality.

    Shape: {m: (B, T, D)} -> (B, K, C) in training, in evaluation (B, C) of the fused head.
    """

    def __init__(self, vectors: ClsVectors, hidden: int, num_outputs: int, *, rate: float) -> None:
        """Args as of `FusedHead`."""
        widths = [vectors.width for _ in vectors.names]
        super().__init__(vectors, ConcatFusion(widths, hidden), hidden, num_outputs, rate=rate)
        self.alone = nn.ModuleList(nn.Linear(width, num_outputs) for width in widths)

    def forward(self, tokens: Tokens) -> Tensor:
        """Score the classes by all heads; all run in evaluation too, so that one price holds."""
        of_heads = self.of_heads(tokens)
        return of_heads if self.training else of_heads[:, -1]

    def of_heads(self, tokens: Tokens) -> Tensor:
        """Score the classes by every head, (B, K, C)."""
        vectors = self.vectors(tokens)
        alone = [linear(z) for z, linear in zip(vectors, self.alone, strict=True)]
        return torch.stack([*alone, self.outputs(vectors)], dim=1)


class GradientBlending(FusionModel):
    """Layers of each modality on its own; the fused head is what is evaluated.

    Losses are measured behind the first epoch and behind every epoch whose number `super_epoch`
    divides; from the second measurement on, the difference to the one before gives the weights.
    Until then all heads weigh alike. Weights and last losses are buffers, so that a resumed run
    goes on with them bit by bit.
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
        # (2, K), of the training and the validation split.
        self.register_buffer("last_losses", torch.zeros(2, count))

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of the heads' losses, (B,), of outputs (B, K, C)."""
        of_heads = torch.stack([losses(one, labels) for one in outputs.unbind(dim=1)], dim=1)
        return (of_heads * self.blend_weights).sum(dim=1)

    def end_epoch(
        self, epoch: int, losses: Losses, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> None:
        """Measure the heads where a super-epoch ends, and weigh them anew."""
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
            of_heads = self.head.of_heads(tokens).unbind(dim=1)
            total += torch.stack([losses(outputs, labels).sum() for outputs in of_heads])
            count += len(labels)
        return total / count


def gradient_blending_cost(spec: DatasetSpec, config: GradientBlendingConfig) -> cost.Cost:
    """Price Concat+FC and the other heads, which the paper's operations leave out as all heads."""
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
