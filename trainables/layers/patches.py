"""Cut the samples of a modality into patches, and compute the features that tokens are made of.

Shapes: B batch, T samples of a modality, F features of a sample, P samples of a patch, n tokens,
N = n P points, W features of a token, D width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.config import CONV_KERNELS
from sftsearch.trainables.encoders import build_encoder

if TYPE_CHECKING:
    from sftsearch.trainables.token_windows import Cut

EPS = 1e-5
"""Added to a variance before its root is taken."""


class Patches(NamedTuple):
    """The samples of one modality by token; zero where there is no real sample."""

    x: Tensor
    """(B, n, P, F)."""
    counts: Tensor | None = None
    """(B, n) or (n,): real samples of each patch, which come first; None: all are real."""
    valid: Tensor | None = None
    """(B, n): whether a patch has a real sample; None: all have."""

    def is_real(self) -> Tensor | None:
        """Return which samples are real, (B, n, P, 1) or (n, P, 1); None: all are."""
        if self.counts is None:
            return None
        steps = torch.arange(self.x.shape[2], device=self.x.device)
        return (steps < self.counts.unsqueeze(-1)).unsqueeze(-1)


def cut_patches(x: Tensor, length: Tensor | None, cut: Cut) -> Patches:
    """Cut (B, T, F) into n patches of P samples.

    Args:
        x: the samples.
        length: (B,), number of real samples of each row, the others are not read; None: all.
        cut: n, P, and whether the real samples are resampled to N points; otherwise the last patch
            is padded with zeros.
    """
    if cut.resampled:
        return _cut_segments(x, length, cut)
    valid = counts = None
    starts = cut.patch * torch.arange(cut.num_tokens, device=x.device)
    missing = cut.num_tokens * cut.patch - x.shape[1]
    if length is not None:
        padded = torch.arange(x.shape[1], device=x.device) >= length[:, None]
        x = x.masked_fill(padded.unsqueeze(-1), 0.0)
        valid = starts < length[:, None]
        counts = (length[:, None] - starts).clamp(0, cut.patch)
    elif missing:
        counts = (x.shape[1] - starts).clamp(0, cut.patch)
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return Patches(x.reshape(x.shape[0], cut.num_tokens, cut.patch, -1), counts, valid)


def _cut_segments(x: Tensor, length: Tensor | None, cut: Cut) -> Patches:
    points = resample(x, length, cut.num_tokens * cut.patch)
    counts = valid = None
    if length is not None:
        valid = (length > 0).unsqueeze(1).expand(-1, cut.num_tokens)
        points = points.masked_fill(~valid[:, :1, None], 0.0)
        counts = cut.patch * valid
    return Patches(points.reshape(x.shape[0], cut.num_tokens, cut.patch, -1), counts, valid)


def resample(x: Tensor, length: Tensor | None, num_points: int) -> Tensor:
    """Interpolate the real samples of each row linearly at N points, (B, T, F) -> (B, N, F).

    The span of the samples, each of which is one unit wide, is divided into N equal parts; the
    points are their centers. N samples are copied without change, and a row with padding gives the
    same as without. Without a real sample the points have no meaning.

    Args:
        x: the samples.
        length: (B,), number of real samples of each row, from the first on; None: all.
        num_points: N.
    """
    if length is None and x.shape[1] == num_points:
        return x
    # Positions in units of 1 / 2N of a sample are whole numbers, so no rounding moves a point.
    unit, odd = 2 * num_points, 2 * torch.arange(num_points, device=x.device) + 1
    if length is None:
        last = x.shape[1] - 1
        position = (odd * x.shape[1] - num_points).clamp(0, unit * last)
        left = position // unit
        before, after = x[:, left], x[:, (left + 1).clamp(max=last)]
    else:
        final = (length - 1).clamp(min=0).unsqueeze(1)
        position = (odd * length.unsqueeze(1) - num_points).clamp(min=0).minimum(unit * final)
        left = position // unit
        before, after = _rows(x, left), _rows(x, (left + 1).minimum(final))
    weight = (position - unit * left).to(x.dtype) / unit
    return torch.lerp(before, after, weight.unsqueeze(-1))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Take the samples of each row at `index`, (B, T, F) and (B, N) -> (B, N, F)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def statistics(patches: Patches) -> Tensor:
    """Return mean, deviation and mean absolute difference of each patch, (B, n, 3 F).

    All are over its real samples. The deviation is that of a population, with `EPS` inside the
    root. Differences are those of consecutive samples; a single sample has none, which counts as 0.
    """
    real = patches.is_real()
    x = patches.x.transpose(2, 3).contiguous()  # sums over the last axis are the fastest
    count: Tensor | int = x.shape[3]
    num_steps: Tensor | int = max(x.shape[3] - 1, 1)
    if patches.counts is not None:
        count = patches.counts.unsqueeze(-1).clamp(min=1)
        num_steps = (count - 1).clamp(min=1)
    mean = x.sum(dim=3) / count
    deviations, steps = x - mean.unsqueeze(3), x[..., 1:] - x[..., :-1]
    if real is not None:
        is_padded = ~real.transpose(-2, -1)
        deviations = deviations.masked_fill(is_padded, 0.0)
        steps = steps.masked_fill(is_padded[..., 1:], 0.0)
    variance = deviations.square().sum(dim=3) / count
    difference = steps.abs().sum(dim=3) / num_steps
    return torch.cat([mean, (variance + EPS).sqrt(), difference], dim=-1)


class TokenNorm(nn.BatchNorm1d):
    """Batch normalization over the valid tokens alone, without weights: (B, n, W) -> (B, n, W).

    The running statistics are those of evaluation. The first batches count equally in them, so they
    are right from the first step on; a batch without valid tokens does not count.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS, affine=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalize the features of tokens; those that are not `valid` (B, n) do not matter."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._of_batch(x.detach(), valid)
        return (x - mean) * (variance + self.eps).rsqrt()

    @torch.no_grad()
    def _of_batch(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance over the valid tokens, and add them to the running ones."""
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        x, weight = x.to(self.running_mean.dtype), valid.unsqueeze(-1).to(self.running_mean.dtype)
        count = weight.sum()
        divisor = count.clamp(min=1)
        mean = (x * weight).sum(dim=(0, 1)) / divisor
        variance = ((x - mean).square() * weight).sum(dim=(0, 1)) / divisor
        self.num_batches_tracked.add_(count > 0)
        share = (1 / self.num_batches_tracked.clamp(min=1).to(mean.dtype)).clamp(min=0.1)
        share = share * (count > 0)
        unbiased = variance * divisor / (divisor - 1).clamp(min=1)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)
        return mean, variance


class SampleFeatures(nn.Module):
    """The samples of a patch: W = P F."""

    def __init__(self, *, patch: int, num_features: int, dim: int) -> None:
        super().__init__()
        self.width = patch * num_features

    def forward(self, patches: Patches) -> Tensor:
        """Concatenate the samples of each patch."""
        return patches.x.flatten(2)


class StatisticFeatures(nn.Module):
    """The normalized statistics of a patch: W = 3 F."""

    def __init__(self, *, patch: int, num_features: int, dim: int) -> None:
        super().__init__()
        self.width = 3 * num_features
        self.norm = TokenNorm(3 * num_features)

    def forward(self, patches: Patches) -> Tensor:
        """Compute and normalize the statistics."""
        normalized: Tensor = self.norm(statistics(patches), patches.valid)
        return normalized


class SampleAndStatisticFeatures(StatisticFeatures):
    """The samples of a patch and its normalized statistics: W = P F + 3 F."""

    def __init__(self, *, patch: int, num_features: int, dim: int) -> None:
        super().__init__(patch=patch, num_features=num_features, dim=dim)
        self.width = (patch + 3) * num_features

    def forward(self, patches: Patches) -> Tensor:
        """Concatenate samples and statistics."""
        return torch.cat([patches.x.flatten(2), super().forward(patches)], dim=-1)


class ConvolutionFeatures(nn.Module):
    """The mean over a patch of two convolutions over all samples: W = D.

    The second one has a kernel for each channel (it is depthwise); the projection mixes them.
    Samples that are not real are zero for both convolutions, as beyond the ends of a sequence.
    """

    def __init__(self, *, patch: int, num_features: int, dim: int) -> None:
        super().__init__()
        self.width = dim
        first, second = CONV_KERNELS
        self.first = nn.Conv1d(num_features, dim, first, padding="same")
        self.second = nn.Conv1d(dim, dim, second, padding="same", groups=dim)

    def forward(self, patches: Patches) -> Tensor:
        """Convolve the sequence of all samples, and average over each patch."""
        x, real = patches.x, patches.is_real()
        x = self._convolve(self.first, x)
        x = self._convolve(self.second, x if real is None else x.masked_fill(~real, 0.0))
        if real is None or patches.counts is None:
            return x.mean(dim=2)
        total = x.masked_fill(~real, 0.0).sum(dim=2)
        return total / patches.counts.unsqueeze(-1).clamp(min=1)

    @staticmethod
    def _convolve(convolution: nn.Conv1d, x: Tensor) -> Tensor:
        convolved = F.relu(convolution(x.flatten(1, 2).transpose(1, 2)))
        apart: Tensor = convolved.transpose(1, 2).unflatten(1, x.shape[1:3])
        return apart


class EncodedFeatures(nn.Module):
    """What the encoder of a plug-in makes of a patch: W = D."""

    def __init__(self, *, patch: int, num_features: int, dim: int, encoder: str) -> None:
        super().__init__()
        self.width = dim
        self.encoder = build_encoder(encoder, patch, num_features, dim)

    def forward(self, patches: Patches) -> Tensor:
        """Encode each patch by itself."""
        tokens: Tensor = self.encoder(patches.x.flatten(0, 1)).unflatten(0, patches.x.shape[:2])
        return tokens


def features_of(tokenizer: str) -> Any:
    """Return the layer with the features of a kind of tokenizer, or of a plug-in's encoder."""
    return FEATURES.get(tokenizer) or partial(EncodedFeatures, encoder=tokenizer)


FEATURES: dict[str, Any] = {
    "linear": SampleFeatures,
    "statistics": StatisticFeatures,
    "linear_statistics": SampleAndStatisticFeatures,
    "conv": ConvolutionFeatures,
}
"""The features of each kind of tokenizer; `dim` is the width of a token."""
