"""Squeeze-and-excitation across two modalities. Shapes: B batch, C_m channels, o bottleneck.

Source: Joze et al. 2020, MMTM: Multimodal Transfer Module for CNN Fusion, arXiv:1911.08670; in the
form that Su et al. 2020, arXiv:2012.07175, use as a baseline.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.msaf import (
    Masks,
    mean_over_positions,
    scale_channels,
    zero_invalid,
)


class MMTM(nn.Module):
    """Scale every channel of two modalities by a gain in (0, 1), computed from both means.

    `e = relu(W [mean x_1; mean x_2] + b)`, `x_m <- x_m sigmoid(W_m e + b_m)`, as in the authors'
    code; so zero weights halve everything.

    Shape: [(B, C_1, ...), (B, C_2, ...)] -> the same; the axes after the channels may differ.
    """

    def __init__(self, channels: tuple[int, int], *, reduction: float) -> None:
        """Create the layers.

        Args:
            channels: C_1 and C_2.
            reduction: r; o = int(2 (C_1 + C_2) / r) must be at least 1.
        """
        super().__init__()
        squeezed = squeezed_width(channels, reduction)
        assert squeezed, "the bottleneck has a width"
        self.squeeze = nn.Linear(sum(channels), squeezed)
        self.excite = nn.ModuleList(nn.Linear(squeezed, width) for width in channels)

    def forward(self, features: list[Tensor], valid: Masks | None = None) -> list[Tensor]:
        """Scale the channels.

        Args:
            features: (B, C_m, ...) of both modalities.
            valid: valid positions, (B, ...) each; the others are not read, and 0 in the result.
                None: all. A modality without valid positions has the mean 0.
        """
        masks = [None, None] if valid is None else valid
        features = [zero_invalid(x, mask) for x, mask in zip(features, masks, strict=True)]
        means = [mean_over_positions(x, mask) for x, mask in zip(features, masks, strict=True)]
        squeezed = F.relu(self.squeeze(torch.cat(means, dim=1)))
        pairs = zip(features, self.excite, strict=True)
        return [scale_channels(x, excite(squeezed).sigmoid()) for x, excite in pairs]


# --------------------------------------------------------------- closed forms


def squeezed_width(channels: tuple[int, int], reduction: float) -> int:
    """Return o = int(2 (C_1 + C_2) / r)."""
    return int(2 * sum(channels) / reduction)


def mmtm_parameters(channels: tuple[int, int], squeezed: int) -> int:
    """Return the parameters of an MMTM: (C_1 + C_2 + 1) o + (o + 1) (C_1 + C_2)."""
    both = sum(channels)
    return (both + 1) * squeezed + (squeezed + 1) * both


def mmtm_macs(channels: tuple[int, int], squeezed: int) -> int:
    """Return the multiply-adds of an MMTM's products for one sample: 2 o (C_1 + C_2)."""
    return 2 * squeezed * sum(channels)
