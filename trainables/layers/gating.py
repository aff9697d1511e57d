"""Gates: choose which of several experts or paths a sample takes.

A gate scores N routes. In training all routes run and a relaxed choice weights their outputs; in
evaluation each sample runs through its highest-scoring route only.

Source: Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102, sec. 3.

Shapes: B batch, N routes, T samples of a modality, F features, n patches, H width of a gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.layers.blocks import Block, Head
from sftsearch.trainables.layers.patches import cut_patches
from sftsearch.trainables.layers.pooling import join_masks
from sftsearch.trainables.layers.tokens import FUSED, Sequence, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig


# ------------------------------------------------------------- the choice


def gumbel(like: Tensor) -> Tensor:
    """Draw standard Gumbel noise, -log(-log u), of the shape of `like`, by torch's generator."""
    least = torch.finfo(like.dtype).tiny  # a draw of 0 would give infinite noise
    return -torch.empty_like(like).exponential_().clamp_min(least).log()


def relax(scores_BN: Tensor, tau: float | Tensor, *, noise: bool) -> Tensor:
    """Return weights of the routes (B, N), softmax((log G + b) / tau); each row sums to 1.

    G are the probabilities softmax(scores); a constant per row cancels, so scores replace log G.
    With Gumbel noise b, route i has the highest weight with probability G_i (the paper, eq. 3);
    without it, as in the authors' code, the route with the highest score has.

    Args:
        scores_BN: of the gate.
        tau: temperature. Weights become one-hot towards 0 and equal towards infinity.
        noise: draw b; otherwise b is 0.
    """
    perturbed = scores_BN + gumbel(scores_BN) if noise else scores_BN
    return F.softmax(perturbed / tau, dim=1)


def harden(weights_BN: Tensor) -> Tensor:
    """Make each row exactly one-hot at its highest weight, with the gradient of the weights."""
    choice = F.one_hot(weights_BN.argmax(dim=1), weights_BN.shape[1])
    # The second term is exactly 0; it only carries the gradient.
    return choice.to(weights_BN.dtype) + (weights_BN - weights_BN.detach())


def weighted_sum(weights_BN: Tensor, outputs: list[Tensor]) -> Tensor:
    """Return sum_i g_i E_i(x), (B, C), from weights (B, N) and N outputs (B, C)."""
    return (weights_BN.unsqueeze(-1) * torch.stack(outputs, dim=1)).sum(dim=1)


def temperature(epoch: float, num_epochs: int, *, start: float, end: float) -> float:
    """Return tau(e) = start (end / start)^(e / T): geometric from `start` to `end` at e = T."""
    return float(start * (end / start) ** (epoch / num_epochs))


def choose(
    routes_B: Tensor, num_routes: int, run: Callable[[int, Tensor | None], Tensor]
) -> Tensor:
    """Run every sample through its route only, (B, C).

    Traced models (compiled, exported) and the meta device cannot read the routes: there all routes
    run and each sample's outputs are selected, with equal results.

    Args:
        routes_B: route of each sample, from 0.
        num_routes: N.
        run: maps a route and the rows (b,) that take it (None: all) to their outputs (b, C).
    """
    if torch.compiler.is_compiling() or routes_B.is_meta:
        outputs_BNC = torch.stack([run(i, None) for i in range(num_routes)], dim=1)
        picked = F.one_hot(routes_B, num_routes).unsqueeze(-1).bool()
        return outputs_BNC.masked_fill(~picked, 0.0).sum(dim=1)
    rows = [(routes_B == i).nonzero().squeeze(1) for i in range(num_routes)]
    parts = [run(i, _or_all(one, len(routes_B))) for i, one in enumerate(rows) if len(one)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[torch.cat(rows).argsort()]


def _or_all(rows: Tensor, size: int) -> Tensor | None:
    return None if len(rows) == size else rows


# ------------------------------------------------------------- gates on samples


class MLPGate(nn.Module):
    """Two layers on the mean patch of every modality, `W2 relu(W1 [m_1; ...; m_M])`.

    The mean is over valid patches, and 0 if a modality has none. For modalities of one sample, as
    in MM-IMDB, it is that sample, which is the paper's gate there.

    Shape: {modality: (B, T, F)} -> (B, N).
    """

    def __init__(
        self, spec: DatasetSpec, config: TransformerConfig, *, hidden: int, num_routes: int
    ) -> None:
        """Create the layers; `config` gives modalities and patches, and `hidden` is H."""
        super().__init__()
        self.cuts = config.cuts(spec)
        self.expand = nn.Linear(sum(config.sample_widths(spec).values()), hidden)
        self.contract = nn.Linear(hidden, num_routes)

    def forward(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Score the routes."""
        known = lengths or {}
        patches = [cut_patches(inputs[m], known.get(m), cut) for m, cut in self.cuts.items()]
        means = [mean_of_valid(one.x.flatten(2), one.valid) for one in patches]
        scores: Tensor = self.contract(F.relu(self.expand(torch.cat(means, dim=1))))
        return scores


def mean_of_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    """Average (B, n, F) over the positions that are `valid` (B, n); 0 if there are none."""
    if valid is None:
        return x.mean(dim=1)
    total = x.masked_fill(~valid.unsqueeze(-1), 0.0).sum(dim=1)
    return total / valid.sum(dim=1, keepdim=True).clamp_min(1)


class TransformerGate(nn.Module):
    """A small transformer on the joined tokens of all modalities; the first CLS token is scored.

    Modalities need not be aligned in time, unlike in the paper's gate, which concatenates their
    features at each step (see `dynmm_paper`).

    Shape: {modality: (B, T, F)} -> (B, N).
    """

    def __init__(
        self, spec: DatasetSpec, config: TransformerConfig, *, num_layers: int, num_routes: int
    ) -> None:
        """Create the layers; `config` gives modalities, tokens, `dim` and `num_heads`."""
        super().__init__()
        self.tokenizer = Tokenizer(spec, config)
        self.blocks = nn.Sequential(
            *(
                Block(dim=config.dim, num_heads=config.num_heads, dropout=config.dropout)
                for _ in range(num_layers)
            )
        )
        self.head = Head([FUSED], dim=config.dim, num_outputs=num_routes)

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Score the routes."""
        sequences = self.tokenizer(inputs, lengths).values()
        parts = [sequence.z for sequence in sequences]
        valid = join_masks([sequence.valid for sequence in sequences], parts)
        fused = self.blocks(Sequence(torch.cat(parts, dim=1), valid))
        scores: Tensor = self.head({FUSED: fused})
        return scores


def mlp_gate_part(
    spec: DatasetSpec, config: TransformerConfig, *, hidden: int, num_routes: int
) -> cost.Part:
    """Return the cost of `MLPGate`; both `flops` and `macs` count all its products."""
    width = sum(config.sample_widths(spec).values())
    macs = hidden * (width + num_routes)
    return cost.Part(macs, macs, macs + hidden + num_routes)


def transformer_gate_part(
    spec: DatasetSpec, config: TransformerConfig, *, num_layers: int, num_routes: int
) -> cost.Part:
    """Return the cost of `TransformerGate`; `flops` and `macs` count all products, also tokens."""
    joined = sum(1 + n for n in config.num_tokens(spec).values())
    parts = [
        cost.tokenizer(spec, config),
        cost.block(joined, config.dim) * num_layers,
        cost.head(config.dim, num_routes),
    ]
    macs = sum(part.macs for part in parts)
    return cost.Part(macs, macs, sum(part.parameters for part in parts))
