"""Fuse one vector per modality by concatenation, outer product, low rank or interaction.

Shapes: B batch, M modalities, d_m width of the vector z_m of modality m, H width of what is fused,
R rank, C outputs.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.blocks import dropout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sftsearch.trainables.layers.tokens import Tokens


class ClsVectors(nn.Module):
    """Read the CLS token of each modality through its own layer norm and optional projection.

    Shape: {name: (B, T, D)} -> M of (B, D), or of (B, width) if projected.
    """

    def __init__(self, names: Iterable[str], dim: int, *, width: int | None = None) -> None:
        """Create the norms and projections.

        Args:
            names: modalities, in order.
            dim: D.
            width: width that each vector is projected to; None: no projection.
        """
        super().__init__()
        self.names, self.width = tuple(names), width or dim
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.names)
        self.projections = nn.ModuleList(
            nn.Identity() if width is None else nn.Linear(dim, width) for _ in self.names
        )

    def forward(self, tokens: Tokens) -> list[Tensor]:
        """Read the first token of each modality."""
        parts = zip(self.names, self.norms, self.projections, strict=True)
        return [project(norm(tokens[name].z[:, 0])) for name, norm, project in parts]


def with_one(z: Tensor) -> Tensor:
    """Return [1; z], (..., d) -> (..., 1 + d): outer products then contain lower-order terms."""
    return F.pad(z, (1, 0), value=1.0)


def outer_product(vectors: Sequence[Tensor]) -> Tensor:
    """Return the flattened outer product of all [1; z_m]: M of (B, d_m) -> (B, prod(1 + d_m)).

    Entries (i_1, ..., i_M) are in row-major order; the first is always 1.
    """
    first, *others = (with_one(z) for z in vectors)
    product = first
    for other in others:
        product = (product.unsqueeze(2) * other.unsqueeze(1)).flatten(1)
    return product


class ConcatFusion(nn.Module):
    """`W [z_1; ...; z_M] + b`. Shape: M of (B, d_m) -> (B, H)."""

    def __init__(self, widths: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(widths), num_outputs)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Fuse the vectors."""
        fused: Tensor = self.linear(torch.cat(list(vectors), dim=1))
        return fused


class TensorFusion(nn.Module):
    """`W flat([1; z_1] x ... x [1; z_M]) + b` (Zadeh et al. 2017, sec. 3.2).

    Shape: M of (B, d_m) -> (B, H).
    """

    def __init__(self, widths: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(prod(1 + d for d in widths), num_outputs)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Fuse the vectors."""
        fused: Tensor = self.linear(outer_product(vectors))
        return fused


class LowRankFusion(nn.Module):
    """`sum_r w_r prod_m ([1; z_m]^T F_m^(r)) + b` (Liu et al. 2018, arXiv:1806.00064, sec. 3.2).

    It is `TensorFusion` with a weight of rank R, which is never materialized:
    W[h, i_1, ..., i_M] = sum_r w_r prod_m F_m[r, i_m, h].

    Shape: M of (B, d_m) -> (B, H).
    """

    def __init__(self, widths: Sequence[int], num_outputs: int, *, rank: int) -> None:
        super().__init__()
        self.factors = nn.ParameterList(torch.empty(rank, 1 + d, num_outputs) for d in widths)
        self.rank_weights = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        # Initialize whole factors, as the authors' code does, not each of their R matrices.
        for factor in (*self.factors, self.rank_weights):
            nn.init.xavier_normal_(factor)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Fuse the vectors."""
        pairs = zip(vectors, self.factors, strict=True)
        each_MRBH = torch.stack([with_one(z) @ factor for z, factor in pairs])
        weighted_RBH = self.rank_weights.view(-1, 1, 1) * each_MRBH.prod(dim=0)
        return weighted_RBH.sum(dim=0) + self.bias


class MatrixFusion(nn.Module):
    """`z_2^T (W x_1 z_1 + V) + z_1^T U + b` of two modalities (Jayakumar et al. 2020, eq. 2).

    Jayakumar et al. 2020, Multiplicative Interactions and Where to Find Them, ICLR. It is affine in
    each vector for a fixed other one.

    Shape: (B, d_1) and (B, d_2) -> (B, H).
    """

    def __init__(self, widths: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        first, second = widths
        self.interaction = nn.Parameter(torch.empty(first, second, num_outputs))
        self.of_first = nn.Parameter(torch.empty(first, num_outputs))
        self.of_second = nn.Parameter(torch.empty(second, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_outputs))
        for weights in (self.interaction, self.of_first, self.of_second):
            nn.init.xavier_normal_(weights)
        nn.init.normal_(self.bias)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Fuse the vectors."""
        first, second = vectors
        by_first = first @ self.interaction.flatten(1)
        map_BdH = by_first.unflatten(1, self.interaction.shape[1:]) + self.of_second
        bilinear = (second.unsqueeze(1) @ map_BdH).squeeze(1)
        fused: Tensor = bilinear + first @ self.of_first + self.bias
        return fused


class FusedHead(nn.Module):
    """Compute outputs from fused CLS tokens: `Linear(dropout(relu(fusion(z_1, ..., z_M))))`.

    Shape: {name: (B, T, D)} -> (B, C).
    """

    def __init__(
        self, vectors: ClsVectors, fusion: nn.Module, hidden: int, num_outputs: int, *, rate: float
    ) -> None:
        """Create the head.

        Args:
            vectors: reads one vector per modality.
            fusion: maps the vectors to (B, hidden).
            hidden: H.
            num_outputs: C.
            rate: of dropout.
        """
        super().__init__()
        self.vectors, self.fusion = vectors, fusion
        self.linear = nn.Linear(hidden, num_outputs)
        self.rate = rate

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs."""
        return self.outputs(self.vectors(tokens))

    def outputs(self, vectors: Sequence[Tensor]) -> Tensor:
        """Compute the outputs from the vectors, M of (B, d_m)."""
        hidden = F.relu(self.fusion(vectors))
        outputs: Tensor = self.linear(dropout(hidden, self.rate, self.training))
        return outputs
