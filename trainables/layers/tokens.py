"""Turn the samples of a modality into tokens.

Shapes: B batch, T samples of a modality, F features of a sample, P samples of a patch, n tokens,
D width. The CLS token of a sequence is at position 0.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.patches import cut_patches, features_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig
    from sftsearch.trainables.token_windows import Cut


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


class ModalityTokenizer(nn.Module):
    """`[cls; x W + b] + p` for the features x of each patch of one modality (SFT paper, sec. 3).

    In the paper the features are the samples of the patch; see `patches` for others.

    Shape: (B, T, F) -> (B, 1 + n, D).
    """

    def __init__(self, *, cut: Cut, num_features: int, dim: int, kind: str = "linear") -> None:
        """Create the layers; `kind`: of the tokenizer."""
        super().__init__()
        self.cut = cut
        self.features = features_of(kind)(patch=cut.patch, num_features=num_features, dim=dim)
        self.projection = nn.Linear(self.features.width, dim)
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.positions = nn.Parameter(torch.randn(1 + cut.num_tokens, dim))

    def forward(self, x: Tensor, length: Tensor | None = None) -> Sequence:
        """Turn samples into tokens.

        Args:
            x: (B, T, F).
            length: (B,), number of real samples of each row; the others are not read. At 0 the
                modality is missing, and only its CLS token is valid.
        """
        patches = cut_patches(x, length, self.cut)
        valid = None if patches.valid is None else F.pad(patches.valid, (1, 0), value=True)
        cls_B1D = self.cls.expand(x.shape[0], 1, -1)
        z = torch.cat([cls_B1D, self.projection(self.features(patches))], dim=1) + self.positions
        return Sequence(z, valid)


class CutSamples(nn.Module):
    """Patches of a modality's samples, without projection or CLS: (B, T, F) -> (B, n, P F)."""

    def __init__(self, *, cut: Cut, num_features: int, dim: int) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: Tensor, length: Tensor | None = None) -> Sequence:
        """Cut samples into patches; samples after `length` (B,) are not read."""
        patches = cut_patches(x, length, self.cut)
        return Sequence(patches.x.flatten(2), patches.valid)


class Tokenizer(nn.Module):
    """Tokenize all modalities used; other inputs are not read."""

    def __init__(
        self,
        spec: DatasetSpec,
        config: TransformerConfig,
        *,
        of_modality: Callable[..., nn.Module] | None = None,
    ) -> None:
        """Create one tokenizer per modality; `of_modality` replaces `ModalityTokenizer`."""
        super().__init__()
        self.names = config.chosen(spec)
        create = of_modality or partial(ModalityTokenizer, kind=config.tokenizer)
        self.modalities = nn.ModuleList(
            [
                create(cut=cut, num_features=spec.modalities[name].num_features, dim=config.dim)
                for name, cut in config.cuts(spec).items()
            ]
        )

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tokens:
        """Tokenize the inputs; a modality without `lengths` has no padding."""
        known = lengths or {}
        pairs = zip(self.names, self.modalities, strict=True)
        return {name: tokenize(inputs[name], known.get(name)) for name, tokenize in pairs}
