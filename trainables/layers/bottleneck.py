"""Layers of MBT: fusion through a few shared tokens, or by attention to all modalities.

Shapes: B batch, T tokens of a modality, K bottleneck tokens, D width.

Source: Nagrani et al. 2021, Attention Bottlenecks for Multimodal Fusion, arXiv:2107.00135, sec. 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.blocks import Block, dropout
from sftsearch.trainables.layers.crossmodal import attend_to
from sftsearch.trainables.layers.pooling import join_masks
from sftsearch.trainables.layers.tokens import BOTTLENECK, Sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.trainables.layers.tokens import Tokens


class SkippedBlock(Block):
    """A transformer block with stochastic depth (Huang et al. 2016).

    In training each of its two updates is skipped for a sample with probability `skip`, and divided
    by 1 - skip otherwise. (The MBT authors' code does not divide.)
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float, skip: float) -> None:
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout)
        self.skip = skip

    def forward(self, sequence: Sequence, source: Sequence | None = None) -> Sequence:
        """Attend to itself or to a normed source, then apply the MLP to each token."""
        z, valid, _ = sequence
        x = F.layer_norm(z, z.shape[-1:])
        keys, valid_keys = (x, valid) if source is None else (source.z, source.valid)
        z = z + self._drop(attend_to(self.attend.attention, x, keys, valid_keys))
        hidden = dropout(self.expand(self.norm(z)), self.dropout, self.training)
        return Sequence(z + self._drop(self.contract(F.relu(hidden))), valid)

    def _drop(self, update: Tensor) -> Tensor:
        """Apply dropout, and skip the whole update of some samples."""
        update = dropout(update, self.dropout, self.training)
        if not self.training or self.skip == 0:
            return update
        return update * torch.rand_like(update[:, :1, :1]).ge(self.skip).div(1 - self.skip)


class AddBottleneck(nn.Module):
    """Add K learned tokens, initialized from N(0, 0.02^2)."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.02 * torch.randn(count, dim))

    def forward(self, tokens: Tokens) -> Tokens:
        """Add the same bottleneck to every sample."""
        batch = next(iter(tokens.values())).z.shape[0]
        return tokens | {BOTTLENECK: Sequence(self.tokens.expand(batch, -1, -1))}


class BottleneckLayer(nn.Module):
    """Run each modality's block on its tokens and the bottleneck: `[z_m; f]`.

    Symmetric (eq. 8-9): all modalities read the same f, and the next f is the mean of their
    outputs. Asymmetric (eq. 10-11): each modality reads the f that the previous modality returned.
    """

    mixing_point = True

    def __init__(self, blocks: Mapping[str, SkippedBlock], *, symmetric: bool) -> None:
        super().__init__()
        self.names, self.symmetric = tuple(blocks), symmetric
        self.blocks = nn.ModuleList(blocks.values())

    def forward(self, tokens: Tokens) -> Tokens:
        """Exchange information through the bottleneck."""
        f_BKD = tokens[BOTTLENECK].z
        updated, returned = {}, []
        for name, block in zip(self.names, self.blocks, strict=True):
            z, valid, _ = tokens[name]
            joined = Sequence(torch.cat([z, f_BKD], dim=1), join_masks([valid, None], [z, f_BKD]))
            z, f = block(joined).z.split([z.shape[1], f_BKD.shape[1]], dim=1)
            updated[name] = Sequence(z, valid)
            returned.append(f)
            if not self.symmetric:
                f_BKD = f
        if self.symmetric:
            f_BKD = torch.stack(returned).mean(dim=0)
        return updated | {BOTTLENECK: Sequence(f_BKD)}


class CrossLayer(nn.Module):
    """Attend from each modality's tokens to the tokens of all modalities."""

    mixing_point = True

    def __init__(self, blocks: Mapping[str, SkippedBlock]) -> None:
        super().__init__()
        self.names, self.blocks = tuple(blocks), nn.ModuleList(blocks.values())

    def forward(self, tokens: Tokens) -> Tokens:
        """Attend from every modality to all."""
        parts = [tokens[name].z for name in self.names]
        valid = join_masks([tokens[name].valid for name in self.names], parts)
        z = torch.cat(parts, dim=1)
        source = Sequence(F.layer_norm(z, z.shape[-1:]), valid)
        pairs = zip(self.names, self.blocks, strict=True)
        return {name: block(tokens[name], source) for name, block in pairs}


class SplitModalities(nn.Module):
    """Split a joined sequence into its modalities: (B, sum T, D) -> {m: (B, T_m, D)}."""

    def __init__(self, joined: str, lengths: Mapping[str, int]) -> None:
        """Set the name of the joined sequence, and T_m by modality, with CLS tokens."""
        super().__init__()
        self.joined, self.lengths = joined, dict(lengths)

    def forward(self, tokens: Tokens) -> Tokens:
        """Split the sequence."""
        z, valid, _ = tokens[self.joined]
        lengths = list(self.lengths.values())
        masks = [None] * len(lengths) if valid is None else valid.split(lengths, dim=1)
        parts = zip(self.lengths, z.split(lengths, dim=1), masks, strict=True)
        return {name: Sequence(part, mask) for name, part, mask in parts}
