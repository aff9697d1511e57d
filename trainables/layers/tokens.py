"""Turn the samples of a modality into tokens.

Shapes: B batch, T samples of a modality, F features of a sample, P samples of a patch,
n = ceil(T / P) tokens, D width. The CLS token of a sequence is at position 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig


class Sequence(NamedTuple):
    """The tokens of one sequence, their mask, and the attention they received."""

    z: Tensor
    """(B, 1 + n, D); the CLS token first."""
    valid: Tensor | None = None
    """(B, 1 + n): whether a token has a real sample; None: all do. CLS is always valid."""
    received: Tensor | None = None
    """(B, n): attention that each token received in the previous layer; for attention pooling."""


Tokens = dict[str, Sequence]
"""The state between layers, by name: a modality, or one of the names below."""

FUSED = "fused"
"""The single sequence after fusion."""
BOTTLENECK = "bottleneck"
"""The shared tokens of MBT; this sequence has no CLS token."""


def cut_patches(
    x: Tensor, length: Tensor | None, *, num_tokens: int, patch: int
) -> tuple[Tensor, Tensor | None]:
    """Return the zero-padded patches (B, n, P F), and whether each has a real sample (B, n).

    Args:
        x: (B, T, F).
        length: (B,), number of real samples of each row; None: all.
        num_tokens: n.
        patch: P.
    """
    valid = None
    if length is not None:
        padded = torch.arange(x.shape[1], device=x.device) >= length[:, None]
        x = x.masked_fill(padded.unsqueeze(-1), 0.0)
        starts = patch * torch.arange(num_tokens, device=x.device)
        valid = starts < length[:, None]
    missing = num_tokens * patch - x.shape[1]
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.reshape(x.shape[0], num_tokens, -1), valid


class ModalityTokenizer(nn.Module):
    """`[cls; x W + b] + p` for the patches x of one modality (SFT paper, sec. 3).

    Shape: (B, T, F) -> (B, 1 + n, D). The last patch is padded with zeros.
    """

    def __init__(self, *, num_tokens: int, patch: int, num_features: int, dim: int) -> None:
        super().__init__()
        self.num_tokens, self.patch = num_tokens, patch
        self.projection = nn.Linear(patch * num_features, dim)
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.positions = nn.Parameter(torch.randn(1 + num_tokens, dim))

    def forward(self, x: Tensor, length: Tensor | None = None) -> Sequence:
        """Turn samples into tokens.

        Args:
            x: (B, T, F).
            length: (B,), number of real samples of each row; the others are not read. At 0 the
                modality is missing, and only its CLS token is valid.
        """
        patches, valid = cut_patches(x, length, num_tokens=self.num_tokens, patch=self.patch)
        if valid is not None:
            valid = F.pad(valid, (1, 0), value=True)
        cls_B1D = self.cls.expand(x.shape[0], 1, -1)
        z = torch.cat([cls_B1D, self.projection(patches)], dim=1) + self.positions
        return Sequence(z, valid)


class Tokenizer(nn.Module):
    """Tokenize all modalities used; other inputs are not read."""

    def __init__(
        self,
        spec: DatasetSpec,
        config: TransformerConfig,
        *,
        kind: Callable[..., nn.Module] = ModalityTokenizer,
    ) -> None:
        """Create one tokenizer per modality; `kind`: its class, as `ModalityTokenizer`."""
        super().__init__()
        self.names = config.chosen(spec)
        self.modalities = nn.ModuleList(
            [
                kind(
                    num_tokens=num_tokens,
                    patch=config.patch,
                    num_features=spec.modalities[name].num_features,
                    dim=config.dim,
                )
                for name, num_tokens in config.num_tokens(spec).items()
            ]
        )

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tokens:
        """Tokenize the inputs; a modality without `lengths` has no padding."""
        known = lengths or {}
        pairs = zip(self.names, self.modalities, strict=True)
        return {name: tokenize(inputs[name], known.get(name)) for name, tokenize in pairs}
