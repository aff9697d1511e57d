"""Split attention between the channels of modalities; any axes may follow the channels.

Shapes: B batch, C_m channels of modality m, C channels of a block, n_m = ceil(C_m / C) blocks of a
modality, N = sum n_m, Z = C // r width of the bottleneck, S positions of a modality (all axes after
its channels), q segments.

Source: Su et al. 2020, MSAF: Multimodal Split Attention Fusion, arXiv:2012.07175.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

Masks = list[Tensor | None]
"""For each modality its valid positions: its features' shape without the channel axis."""


class MSAF(nn.Module):
    """Split, join (eq. 2), highlight: weight each channel against those of the other blocks.

    Split: C channels form a block; the last block of a modality is padded with zeros. Join: the
    blocks' means over all positions are summed over all blocks of all modalities, and squeezed to
    Z = relu(norm(W_Z G + b_Z)). Highlight: block i scores its channels by W_i Z + b_i, a softmax
    over all N blocks, channel by channel, turns the scores into weights A, and the block is
    multiplied by `suppression + (1 - suppression) A`.

    In training whole blocks of a sample are dropped with probability `block_dropout`, and the
    others divided by 1 - block_dropout once, before the join; this scales the output too. (The
    authors' code divides twice, so its training and evaluation differ in the mean.)

    A batch of one sample has no variance: the norm then uses its running statistics, as in
    evaluation, and does not update them.

    Shape: a list of (B, C_m, ...) -> the same.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        block_width: int,
        reduction: int,
        suppression: float = 0.0,
        block_dropout: float = 0.0,
    ) -> None:
        """Create the layers.

        Args:
            channels: C_m of each modality.
            block_width: C.
            reduction: r, at most C.
            suppression: smallest weight of a channel (lambda); at 1 the module is the identity.
            block_dropout: probability that a block is dropped in training.
        """
        super().__init__()
        assert block_width >= reduction, "the bottleneck has a width"
        self.channels, self.block_width = tuple(channels), block_width
        self.num_blocks = [num_blocks(width, block_width) for width in channels]
        self.suppression, self.block_dropout = suppression, block_dropout
        squeezed = block_width // reduction
        self.join = nn.Linear(block_width, squeezed)
        self.norm = nn.BatchNorm1d(squeezed)
        self.highlight = nn.Linear(squeezed, sum(self.num_blocks) * block_width)

    def forward(self, features: list[Tensor], valid: Masks | None = None) -> list[Tensor]:
        """Scale the channels.

        Args:
            features: (B, C_m, ...), of each modality.
            valid: valid positions; the others are not read, and 0 in the result. None: all. A
                modality without valid positions adds nothing to the join.
        """
        masks = [None] * len(features) if valid is None else valid
        features = [zero_invalid(x, mask) for x, mask in zip(features, masks, strict=True)]
        means = [mean_over_positions(x, mask) for x, mask in zip(features, masks, strict=True)]
        blocks_BNC = torch.cat([self._split(mean) for mean in means], dim=1)
        gains_BNC = self.gains(blocks_BNC)
        return [
            scale_channels(x, gains.flatten(1)[:, : x.shape[1]])
            for x, gains in zip(features, gains_BNC.split(self.num_blocks, dim=1), strict=True)
        ]

    def gains(self, blocks: Tensor) -> Tensor:
        """Return the factors of each block's channels, (B, N, C); 0 for dropped blocks.

        Args:
            blocks: means of the blocks over all positions, (B, N, C).
        """
        kept = None
        if self.training and self.block_dropout:
            draws = torch.rand(blocks.shape[:2], device=blocks.device).unsqueeze(-1)
            kept = draws.ge(self.block_dropout).to(blocks.dtype) / (1 - self.block_dropout)
            blocks = blocks * kept
        squeezed = F.relu(self._normed(self.join(blocks.sum(dim=1))))
        scores = self.highlight(squeezed).unflatten(1, (-1, self.block_width))
        gains: Tensor = self.suppression + (1 - self.suppression) * scores.softmax(dim=1)
        return gains if kept is None else gains * kept

    def _split(self, mean: Tensor) -> Tensor:
        """Cut (B, C_m) into blocks, (B, n_m, C)."""
        blocks: Tensor = F.pad(mean, (0, -mean.shape[1] % self.block_width)).unflatten(
            1, (-1, self.block_width)
        )
        return blocks

    def _normed(self, x: Tensor) -> Tensor:
        normed: Tensor
        if self.training and x.shape[0] == 1:
            norm = self.norm
            normed = F.batch_norm(
                x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        else:
            normed = self.norm(x)
        return normed


class SegmentedMSAF(nn.Module):
    """One MSAF, with its own weights, for each of q segments of time.

    Time is the first axis after the channels; every modality has its own number of steps T_m. A
    segment has T_m // q steps, and the last one also the remainder, as in the paper, which joins
    the last, incomplete piece to the previous one.

    Shape: a list of (B, C_m, T_m, ...) -> the same.
    """

    def __init__(self, segments: Sequence[MSAF], *, shared: int = 0) -> None:
        """Set the modules.

        Args:
            segments: q modules.
            shared: leading steps that belong to no segment, such as a CLS token: each segment
                reads them, and the result has the mean over segments.
        """
        super().__init__()
        self.segments, self.shared = nn.ModuleList(segments), shared

    def forward(self, features: list[Tensor], valid: Masks | None = None) -> list[Tensor]:
        """Scale the channels of each segment separately; arguments as in `MSAF`."""
        masks = [None] * len(features) if valid is None else valid
        if len(self.segments) == 1:
            whole: list[Tensor] = self.segments[0](features, masks)
            return whole
        pieces = [self._cut(x, dim=2) for x in features]
        parts = [
            [None] * len(self.segments) if mask is None else self._cut(mask, dim=1)
            for mask in masks
        ]
        results = [
            segment([piece[i] for piece in pieces], [part[i] for part in parts])
            for i, segment in enumerate(self.segments)
        ]
        return [self._join(by_segment) for by_segment in zip(*results, strict=True)]

    def _cut(self, x: Tensor, *, dim: int) -> list[Tensor]:
        """Cut the time axis `dim` into segments."""
        own = x.shape[dim] - self.shared
        shared, *pieces = x.split([self.shared, *segment_lengths(own, len(self.segments))], dim=dim)
        return [torch.cat([shared, piece], dim=dim) for piece in pieces]

    def _join(self, pieces: Sequence[Tensor]) -> Tensor:
        shared = torch.stack([piece[:, :, : self.shared] for piece in pieces]).mean(dim=0)
        return torch.cat([shared, *(piece[:, :, self.shared :] for piece in pieces)], dim=2)


def num_blocks(channels: int, block_width: int) -> int:
    """Return ceil(C_m / C)."""
    return -(-channels // block_width)


def segment_lengths(num_steps: int, num_segments: int) -> list[int]:
    """Return the number of steps in each of q segments; there must be at least q steps."""
    short = num_steps // num_segments
    assert short, "every segment has a step"
    return [short] * (num_segments - 1) + [num_steps - short * (num_segments - 1)]


def zero_invalid(x: Tensor, valid: Tensor | None) -> Tensor:
    """Set the positions that are not valid to zero, (B, C_m, ...)."""
    return x if valid is None else x.masked_fill(~valid.unsqueeze(1), 0.0)


def mean_over_positions(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean over valid positions, (B, C_m, ...) -> (B, C_m); 0 if there are none.

    `x` must be 0 at positions that are not valid, see `zero_invalid`.
    """
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    if valid is None:
        return flat.mean(dim=2)
    count = valid.reshape(x.shape[0], -1).sum(dim=1, keepdim=True).clamp(min=1)
    return flat.sum(dim=2) / count


def scale_channels(x: Tensor, gains: Tensor) -> Tensor:
    """Multiply each channel of (B, C_m, ...) by its gain, (B, C_m)."""
    return x * gains.reshape(gains.shape + (1,) * (x.dim() - 2))


# --------------------------------------------------------------- closed forms


def msaf_parameters(block_width: int, squeezed: int, num_blocks: int) -> int:
    """Return the parameters of an MSAF: C Z + Z + 2 Z + N (Z C + C)."""
    c, z = block_width, squeezed
    return c * z + z + 2 * z + num_blocks * (z * c + c)


def msaf_macs(block_width: int, squeezed: int, num_blocks: int) -> int:
    """Return the multiply-adds of an MSAF's products for one sample: (1 + N) C Z."""
    return (1 + num_blocks) * block_width * squeezed
