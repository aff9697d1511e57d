"""The layers a transformer is stacked from. Shapes: B batch, T tokens with CLS, D width, C classes.

A layer of a model maps `Tokens` to `Tokens`; a block maps one sequence (B, T, D) to (B, T, D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.attention import SelfAttention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.trainables.layers.tokens import Tokens


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

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim=dim, num_heads=num_heads)
        self.dropout = dropout

    def forward(self, z: Tensor) -> Tensor:
        """Add to each token what it attends to."""
        update = self.attention(F.layer_norm(z, z.shape[-1:]))
        return z + dropout(update, self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block whose MLP is as wide as its tokens (SFT paper, appendix A.2)."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attend = AttentionBlock(dim=dim, num_heads=num_heads, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim)
        self.contract = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, z: Tensor) -> Tensor:
        """Attend, then transform each token on its own."""
        z = self.attend(z)
        hidden = dropout(self.expand(self.norm(z)), self.dropout, self.training)
        update = self.contract(F.relu(hidden))
        return z + dropout(update, self.dropout, self.training)


class Each(nn.Module):
    """One block for each sequence, each with weights of its own."""

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())  # no ModuleDict: it refuses some names

    def forward(self, tokens: Tokens) -> Tokens:
        """Apply each block to its sequence."""
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block(tokens[name]) for name, block in pairs}


class Head(nn.Module):
    """Class scores from the CLS tokens: `Linear(LN(.))`, summed over the sequences there are.

    Shape: {name: (B, T, D)} -> (B, C).
    """

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tokens) -> Tensor:
        """Score the classes."""
        scores = torch.stack([self.linear(self.norm(z[:, 0])) for z in tokens.values()])
        return scores.sum(dim=0)
