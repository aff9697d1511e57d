"""The layers a transformer is stacked from. Shapes: B batch, T tokens with CLS, D width, C classes.

A layer of a model maps `Tokens` to `Tokens`; a block maps one `Sequence` to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.layers.tokens import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.token_windows import Pattern


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero numbers with probability `rate` and divide the others by 1 - rate, in training alone.

    On a CPU a third of a small model's step would go into PyTorch's Bernoulli draws (105 µs for
    13,056 numbers); uniform ones (32 µs) give the same distribution.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    scales = torch.rand_like(x).ge_(rate).div_(1 - rate)
    return x * scales


class AttentionBlock(nn.Module):
    """`z + dropout(attention(LN(z)))`; this norm has no weights (as in the authors' code)."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        dropout: float,
        pattern: Pattern | None = None,
        report_received: bool = False,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(
            dim=dim, num_heads=num_heads, pattern=pattern, report_received=report_received
        )
        self.dropout = dropout

    def forward(self, sequence: Sequence) -> Sequence:
        """Add to each token what it attends to."""
        z, valid, _ = sequence
        update, received = self.attention(F.layer_norm(z, z.shape[-1:]), valid)
        return Sequence(z + dropout(update, self.dropout, self.training), valid, received)


class Block(nn.Module):
    """Pre-norm transformer block whose MLP is as wide as its tokens (SFT paper, appendix A.2)."""

    def __init__(
        self, *, dim: int, num_heads: int, dropout: float, report_received: bool = False
    ) -> None:
        super().__init__()
        self.attend = AttentionBlock(
            dim=dim, num_heads=num_heads, dropout=dropout, report_received=report_received
        )
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim)
        self.contract = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, sequence: Sequence) -> Sequence:
        """Attend, then transform each token on its own."""
        z, valid, received = self.attend(sequence)
        hidden = dropout(self.expand(self.norm(z)), self.dropout, self.training)
        update = self.contract(F.relu(hidden))
        return Sequence(z + dropout(update, self.dropout, self.training), valid, received)


class Each(nn.Module):
    """One block for each sequence, each with weights of its own."""

    def __init__(self, blocks: Mapping[str, nn.Module], *, mixing_point: bool = True) -> None:
        """Take the blocks by the names of their sequences.

        Args:
            blocks: sequence -> its block.
            mixing_point: whether manifold mixup may mix behind this layer.
        """
        super().__init__()
        self.names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())  # no ModuleDict: it refuses some names
        self.mixing_point = mixing_point

    def forward(self, tokens: Tokens) -> Tokens:
        """Apply each block to its sequence."""
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block(tokens[name]) for name, block in pairs}


class Head(nn.Module):
    """Outputs from the CLS tokens: `Linear(LN(.))`, its results summed or averaged.

    Shape: {name: (B, T, D)} -> (B, C), C classes, or 1 number of a regression.
    """

    def __init__(
        self, names: Iterable[str], *, dim: int, num_outputs: int, average: bool = False
    ) -> None:
        """Take the names of the sequences that are read.

        Args:
            names: sequences whose CLS tokens are read, all by the same weights.
            dim: D.
            num_outputs: C.
            average: give the mean over the sequences, not the sum.
        """
        super().__init__()
        self.names, self.average = tuple(names), average
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        """Score the classes."""
        scores = torch.stack([self.linear(self.norm(tokens[name].z[:, 0])) for name in self.names])
        return scores.mean(dim=0) if self.average else scores.sum(dim=0)
