"""From samples of a modality to tokens.

Shapes: B batch, T samples of a modality, F features of a sample, P samples of a patch,
n = ceil(T / P) tokens, D width. Every sequence carries its CLS token at position 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig

Tokens = dict[str, Tensor]
"""The state between layers: sequence -> (B, 1 + n, D). A sequence is a modality, or `FUSED`."""

FUSED = "fused"
"""Name of the one sequence that is left when the modalities have been fused."""


class ModalityTokenizer(nn.Module):
    """`[cls; x W + b] + p` of one modality (SFT paper, sec. 3), with patches of samples.

    Shape: (B, T, F) -> (B, 1 + n, D). The last patch is filled up with zeros.
    """

    def __init__(self, *, num_tokens: int, patch: int, num_features: int, dim: int) -> None:
        super().__init__()
        self.num_tokens, self.patch = num_tokens, patch
        self.projection = nn.Linear(patch * num_features, dim)
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.positions = nn.Parameter(torch.randn(1 + num_tokens, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Turn samples into tokens."""
        missing = self.num_tokens * self.patch - x.shape[1]
        if missing:
            x = F.pad(x, (0, 0, 0, missing))
        patches = x.reshape(x.shape[0], self.num_tokens, -1)
        cls_B1D = self.cls.expand(x.shape[0], 1, -1)
        return torch.cat([cls_B1D, self.projection(patches)], dim=1) + self.positions


class Tokenizer(nn.Module):
    """The tokenizers of all chosen modalities; reads no other input."""

    def __init__(self, spec: DatasetSpec, config: TransformerConfig) -> None:
        super().__init__()
        self.names = config.chosen(spec)
        self.modalities = nn.ModuleList(
            [
                ModalityTokenizer(
                    num_tokens=num_tokens,
                    patch=config.patch,
                    num_features=spec.modalities[name].num_features,
                    dim=config.dim,
                )
                for name, num_tokens in config.num_tokens(spec).items()
            ]
        )

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        """Tokenize every chosen modality of the inputs."""
        pairs = zip(self.names, self.modalities, strict=True)
        return {name: tokenize(inputs[name]) for name, tokenize in pairs}
