"""Transformer blocks and heads. Shapes: B batch, T tokens with CLS, D width, C classes.

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
    """Zero numbers with probability `rate` and divide the others by 1 - rate, in training only.

    On a CPU, PyTorch's Bernoulli draws would take a third of a small model's step (105 µs for
    13,056 numbers); uniform draws (32 µs) give the same distribution.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    scales = torch.rand_like(x).ge_(rate).div_(1 - rate)
    return x * scales


class AttentionBlock(nn.Module):
    """`z + dropout(attention(LN(z)))`; this norm has no weights, as in the SFT authors' code."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        dropout: float,
        pattern: Pattern | None = None,
        report_received: bool = False,
        keep_cls: bool = False,
    ) -> None:
        """Create the layer.

        Args:
            dim: D.
            num_heads: of the attention.
            dropout: rate.
            pattern: which tokens attend to each other; None: all.
            report_received: return the attention that tokens receive; otherwise what the layer
                before returned is passed on.
            keep_cls: do not update the CLS token, which other tokens still attend to.
        """
        super().__init__()
        self.attention = SelfAttention(
            dim=dim, num_heads=num_heads, pattern=pattern, report_received=report_received
        )
        self.dropout, self.keep_cls = dropout, keep_cls

    def forward(self, sequence: Sequence) -> Sequence:
        """Attend and add the residual."""
        z, valid, before = sequence
        update, received = self.attention(F.layer_norm(z, z.shape[-1:]), valid)
        updated = z + dropout(update, self.dropout, self.training)
        if self.keep_cls:
            updated = torch.cat([z[:, :1], updated[:, 1:]], dim=1)
        return Sequence(updated, valid, before if received is None else received)


class Block(nn.Module):
    """Pre-norm transformer block with an MLP of the tokens' width (SFT paper, appendix A.2)."""

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
        """Attend, then apply the MLP to each token."""
        z, valid, received = self.attend(sequence._replace(received=None))
        hidden = dropout(self.expand(self.norm(z)), self.dropout, self.training)
        update = self.contract(F.relu(hidden))
        return Sequence(z + dropout(update, self.dropout, self.training), valid, received)


class Each(nn.Module):
    """One block per sequence, with separate weights."""

    def __init__(self, blocks: Mapping[str, nn.Module], *, mixing_point: bool = True) -> None:
        """Create the layer.

        Args:
            blocks: sequence -> its block.
            mixing_point: whether manifold mixup may mix after this layer.
        """
        super().__init__()
        self.names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())  # a ModuleDict rejects some names
        self.mixing_point = mixing_point

    def forward(self, tokens: Tokens) -> Tokens:
        """Apply each block to its sequence."""
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block(tokens[name]) for name, block in pairs}


class Head(nn.Module):
    """Compute outputs from the CLS tokens: `Linear(LN(.))`, summed or averaged over sequences.

    Shape: {name: (B, T, D)} -> (B, C), C classes, or one number for regression.
    """

    def __init__(
        self, names: Iterable[str], *, dim: int, num_outputs: int, average: bool = False
    ) -> None:
        """Create the head.

        Args:
            names: sequences whose CLS tokens are read, all with the same weights.
            dim: D.
            num_outputs: C.
            average: return the mean over the sequences instead of the sum.
        """
        super().__init__()
        self.names, self.average = tuple(names), average
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs."""
        scores = torch.stack([self.linear(self.norm(tokens[name].z[:, 0])) for name in self.names])
        return scores.mean(dim=0) if self.average else scores.sum(dim=0)
