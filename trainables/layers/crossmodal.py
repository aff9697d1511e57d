"""Layers of MulT: one modality attends to another.

Shapes: B batch, T tokens of the target, S of the source, D width, M modalities. The sequence "a<b"
is the stack in which target a attends to source b.

Source: Tsai et al. 2019, Multimodal Transformer for Unaligned Multimodal Language Sequences,
arXiv:1906.00295, sec. 3.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.attention import SelfAttention, attend
from sftsearch.trainables.layers.blocks import dropout
from sftsearch.trainables.layers.fused_attention import attend_fused
from sftsearch.trainables.layers.patches import cut_patches
from sftsearch.trainables.layers.sparse_attention import lowest_score
from sftsearch.trainables.layers.tokens import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.token_windows import Cut


def attend_to(
    attention: SelfAttention,
    x: Tensor,
    source: Tensor,
    valid: Tensor | None = None,
    *,
    hide_future: bool = False,
) -> Tensor:
    """Attend from x to the source, with the weights of a self-attention.

    Args:
        attention: the weights.
        x: (B, T, D), the queries.
        source: (B, S, D), the keys and values; if it is x, one product computes all three.
        valid: (B, S), the valid tokens of the source; None: all.
        hide_future: see `future`.

    Returns: (B, T, D).
    """
    batch, tokens, dim = x.shape
    project = attention.in_projection
    if source is x:
        q, k, v = project(x).chunk(3, dim=-1)
    else:
        q = F.linear(x, project.weight[:dim], project.bias[:dim])
        k, v = F.linear(source, project.weight[dim:], project.bias[dim:]).chunk(2, dim=-1)
    q, k, v = (part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    if not hide_future:
        y_BHTd = attend(q, k, v, valid)
    elif valid is None and tokens == source.shape[1]:
        y_BHTd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        hidden = future(tokens, source.shape[1], x.device)
        if valid is not None:
            hidden = hidden | ~valid[:, None, None]
        mask = torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, lowest_score(q))
        y_BHTd = attend_fused(q, k, v, mask)
    out: Tensor = attention.out_projection(y_BHTd.transpose(1, 2).reshape(batch, tokens, dim))
    return out


def future(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """Return the mask (T, S) of keys hidden from a query, as in the MulT authors' code.

    They begin `1 + |S - T|` positions after the query.
    """
    every = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return every.triu(1 + abs(num_keys - num_queries))


class CrossmodalBlock(nn.Module):
    """Pre-norm block with an MLP of four times the width; it attends to itself or to a source."""

    def __init__(
        self, *, dim: int, num_heads: int, dropout: float, hide_future: bool = False
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim=dim, num_heads=num_heads)
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout, self.hide_future = dropout, hide_future
        for linear in (self.attention.out_projection, self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, sequence: Sequence, source: Sequence | None = None) -> Sequence:
        """Attend to the source or to itself; without valid keys the update is zero."""
        z, valid = sequence.z, (source or sequence).valid
        x = self.attention_norm(z)
        keys = x if source is None else self.attention_norm(source.z)
        update = attend_to(self.attention, x, keys, valid, hide_future=self.hide_future)
        if valid is not None:
            update = update.where(valid.any(dim=1)[:, None, None], 0.0)
        z = z + dropout(update, self.dropout, self.training)
        inner = dropout(F.relu(self.expand(self.norm(z))), self.dropout, self.training)
        z = z + dropout(self.contract(inner), self.dropout, self.training)
        return Sequence(z, sequence.valid)


class Crossmodal(nn.Module):
    """One layer of every stack "a<b", which starts as a's tokens and attends to b's tokens."""

    mixing_point = True

    def __init__(
        self,
        modalities: Iterable[str],
        *,
        dim: int,
        num_heads: int,
        dropout: float,
        hide_future: bool = False,
    ) -> None:
        super().__init__()
        self.pairs = tuple(permutations(modalities, 2))
        self.blocks = nn.ModuleList(
            CrossmodalBlock(dim=dim, num_heads=num_heads, dropout=dropout, hide_future=hide_future)
            for _ in self.pairs
        )

    def forward(self, tokens: Tokens) -> Tokens:
        """Apply one layer to every stack; the modalities' own tokens do not change."""
        stacks = {
            f"{a}<{b}": block(tokens.get(f"{a}<{b}", tokens[a]), tokens[b])
            for (a, b), block in zip(self.pairs, self.blocks, strict=True)
        }
        return tokens | stacks


class JoinStacks(nn.Module):
    """Concatenate the normed stacks of a target: {"a<b": (B, T, D)} -> {a: (B, T, (M - 1) D)}."""

    def __init__(self, modalities: Iterable[str], dim: int, *, shared: bool) -> None:
        """Create the norms.

        Args:
            modalities: the targets and sources.
            dim: D.
            shared: one norm for all stacks (SFT authors' code), or one per stack (MulT's code).
        """
        super().__init__()
        self.modalities = tuple(modalities)
        self.pairs = tuple(permutations(self.modalities, 2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.pairs[: 1 if shared else None])

    def forward(self, tokens: Tokens) -> Tokens:
        """Norm and concatenate the stacks."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        for i, (a, b) in enumerate(self.pairs):
            parts[a].append(self.norms[i % len(self.norms)](tokens[f"{a}<{b}"].z))
        return {a: Sequence(torch.cat(zs, dim=-1), tokens[a].valid) for a, zs in parts.items()}


class ProjectionTokenizer(nn.Module):
    """`x W` of one modality, a convolution of width `patch` without bias; adds no CLS token.

    Shape: (B, T, F) -> (B, n, D), n tokens of P samples. Same interface as `ModalityTokenizer`.
    """

    def __init__(self, *, cut: Cut, num_features: int, dim: int) -> None:
        super().__init__()
        self.cut = cut
        self.projection = nn.Linear(cut.patch * num_features, dim, bias=False)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Sequence:
        """Turn samples into tokens; samples after `length` (B,) are not read."""
        patches = cut_patches(x, length, self.cut)
        return Sequence(self.projection(patches.x.flatten(2)), patches.valid)


class Sinusoids(nn.Module):
    """`sqrt(D) z + p` for all sequences; p are the sinusoidal positions of the authors' code.

    Its padding rule: a token whose first channel is exactly 0 has no position (p = 0), and the
    others keep the position of their index. A step of zeros, such as padding at the front, is
    projected to zeros because the projection has no bias; so is a step masked by its length.
    """

    positions: Tensor

    def __init__(self, num_tokens: int, dim: int) -> None:
        """Compute positions for up to `num_tokens` tokens."""
        super().__init__()
        self.scale = dim**0.5
        self.register_buffer("positions", sinusoids(num_tokens, dim), persistent=False)

    def forward(self, tokens: Tokens) -> Tokens:
        """Scale every sequence and add the positions."""
        return {
            name: Sequence(self.scale * z + self._positions(z), valid)
            for name, (z, valid, _) in tokens.items()
        }

    def _positions(self, z: Tensor) -> Tensor:
        """Return the positions of (B, T, D), 0 for padding."""
        return self.positions[: z.shape[1]].where(z[:, :, :1] != 0, 0.0)


def sinusoids(num_tokens: int, dim: int) -> Tensor:
    """Return (T, D): sines, then cosines, of wavelengths from 2 pi to 20,000 pi.

    Positions start at 1, as in the authors' code; an odd width is padded with a zero.
    """
    half = dim // 2
    rates = 10_000.0 ** -(torch.arange(half) / max(half - 1, 1))
    angles = torch.arange(1, 1 + num_tokens)[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
