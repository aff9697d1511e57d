"""Describe samples by statistics of their segments, the inputs of simple models.

Segment s of S equal ones has the samples from floor(s t / S) to ceil((s + 1) t / S) of the t valid
samples, as in torch's adaptive pooling: no segment is empty, and where S does not divide t,
neighbors share a sample. Padding is not read.

Shapes: B batch, N samples of a split, T samples of a modality, F features, S segments, K statistics
of a feature, P numbers of all modalities together, D of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from sftsearch.trainables.layers.tokens import FUSED, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sftsearch.trainables.layers.tokens import Tokens

    Batch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]

Kind = Literal["plain", "rich"]

STATISTICS: dict[Kind, tuple[str, ...]] = {
    "plain": ("mean", "deviation"),
    "rich": ("mean", "deviation", "minimum", "maximum", "difference"),
}
"""The statistics of each feature of a segment: mean, population standard deviation, minimum,
maximum, mean absolute difference of consecutive samples."""

OPERATIONS: dict[Kind, int] = {"plain": 3, "rich": 6}
"""Operations for each number read: one for the mean, two for the deviation, one for each other."""

EPS = 1e-8
"""Added to the variance, inside the root."""


def segment_statistics(
    x: Tensor, length: Tensor | None = None, *, segments: int, kind: Kind
) -> Tensor:
    """Compute the statistics of the segments of one modality, (B, S K F).

    Args:
        x: (B, T, F).
        length: (B,), number of valid samples of each row; None: all. 0: all statistics are 0.
        segments: S.
        kind: which statistics.
    """
    num_samples = x.shape[1]
    if length is None:  # cut, not masked: faster
        bounds = [
            (s * num_samples // segments, -(-(s + 1) * num_samples // segments))
            for s in range(segments)
        ]
        return torch.cat([_statistics(x[:, a:b], None, kind) for a, b in bounds], dim=1)
    steps_T, end_B1 = torch.arange(num_samples, device=x.device), length[:, None]
    x = x.masked_fill((steps_T >= end_B1).unsqueeze(-1), 0.0)
    found = []
    for s in range(segments):
        first, beyond = s * end_B1 // segments, -(-(s + 1) * end_B1 // segments)
        inside_BT = (steps_T >= first) & (steps_T < beyond)
        found.append(_statistics(x, inside_BT.unsqueeze(-1), kind))
    return torch.cat(found, dim=1).masked_fill(end_B1 == 0, 0.0)


def _statistics(x_BTF: Tensor, inside_BT1: Tensor | None, kind: Kind) -> Tensor:
    """Compute the statistics of the samples inside a segment, or of all samples, (B, K F)."""
    mean_BF = _mean(x_BTF, inside_BT1)
    variance_BF = _mean((x_BTF - mean_BF.unsqueeze(1)).square(), inside_BT1)
    found = [mean_BF, (variance_BF + EPS).sqrt()]
    if kind == "rich":
        low = high = x_BTF
        pairs_BT1 = None
        if inside_BT1 is not None:
            low = x_BTF.masked_fill(~inside_BT1, torch.inf)
            high = x_BTF.masked_fill(~inside_BT1, -torch.inf)
            pairs_BT1 = inside_BT1[:, 1:] & inside_BT1[:, :-1]
        differences = _mean((x_BTF[:, 1:] - x_BTF[:, :-1]).abs(), pairs_BT1)
        found += [low.amin(dim=1), high.amax(dim=1), differences]
    return torch.cat(found, dim=1)


def _mean(x_BTF: Tensor, inside_BT1: Tensor | None) -> Tensor:
    """Return the mean of the samples inside, (B, F); 0 if there is none."""
    if inside_BT1 is None:
        return x_BTF.sum(dim=1) / max(x_BTF.shape[1], 1)
    return (x_BTF * inside_BT1).sum(dim=1) / inside_BT1.sum(dim=1).clamp(min=1)


class NormalizedFeatures(nn.Module, ABC):
    """Features of one modality, normalized over the training samples that have it.

    Shape: (B, T, F) -> (B, D); 0 where the modality is missing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int) -> None:
        """Start without normalization; `num_features`: D."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    @abstractmethod
    def raw(self, x: Tensor, length: Tensor | None) -> Tensor:
        """Compute the features before normalization, (B, D); see `forward`."""

    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Fit what the features need besides the normalization; by default nothing.

        Args:
            batches: x (B, T, F) and length (B,) of the training split; can be iterated repeatedly.
        """

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Compute the features.

        Args:
            x: (B, T, F).
            length: (B,), number of valid samples of each row; None: all. 0: missing.
        """
        present_B = None if length is None else length > 0
        return self.normalized(self.raw(x, length), present_B)

    def normalized(self, raw_BD: Tensor, present_B: Tensor | None) -> Tensor:
        """Normalize features (B, D); rows that are not present become 0."""
        z = (raw_BD - self.mean) / self.std
        return z if present_B is None else z.masked_fill(~present_B[:, None], 0.0)

    @torch.no_grad()
    def normalize(self, raw_ND: Tensor, present_N: Tensor) -> None:
        """Set mean and standard deviation to those of the present rows, in float64.

        A constant feature has standard deviation 1.
        """
        rows = raw_ND[present_N].double()
        if len(rows):
            deviation_D = rows.std(dim=0, correction=0)
            # A constant's deviation is rounding, which must not be scaled up.
            least = 1e-6 * rows.abs().amax(dim=0).clamp(min=1e-6)
            self.mean.copy_(rows.mean(dim=0))
            self.std.copy_(deviation_D.where(deviation_D > least, 1.0))


class SegmentStatistics(NormalizedFeatures):
    """The statistics of equal segments of one modality."""

    def __init__(self, *, num_features: int, segments: int, kind: Kind) -> None:
        super().__init__(segments * len(STATISTICS[kind]) * num_features)
        self.segments, self.kind = segments, kind

    def raw(self, x: Tensor, length: Tensor | None) -> Tensor:
        """Compute the statistics, (B, D)."""
        return segment_statistics(x, length, segments=self.segments, kind=self.kind)


class FeatureTokenizer(nn.Module):
    """Turn a sample into a single token, the features of all modalities used.

    Shape: {modality: (B, T, F)} -> {FUSED: (B, 1, P)}.
    """

    def __init__(self, modalities: Mapping[str, NormalizedFeatures]) -> None:
        super().__init__()
        self.names = tuple(modalities)
        self.modalities = nn.ModuleList(modalities.values())

    @property
    def num_features(self) -> int:
        """Numbers of a token, P."""
        return sum(len(features.mean) for features in self._features())

    def forward(
        self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tokens:
        """Compute the token; a modality without `lengths` has no padding."""
        known = lengths or {}
        pairs = zip(self.names, self.modalities, strict=True)
        found = [features(inputs[name], known.get(name)) for name, features in pairs]
        return {FUSED: Sequence(torch.cat(found, dim=1).unsqueeze(1))}

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> Tensor:
        """Fit the features to the training split, modality by modality, and normalize them.

        Args:
            batches: of the training split; can be iterated repeatedly.

        Returns:
            the normalized features of the split, (N, P), on the CPU.
        """
        found = []
        for name, features in zip(self.names, self._features(), strict=True):
            own = _OneModality(batches, name)
            features.prepare(own)
            raw, present = [], []
            for x, length in own:
                raw.append(features.raw(x, length))
                here = torch.ones(len(x), dtype=torch.bool, device=x.device)
                present.append(here if length is None else length > 0)
            raw_ND, present_N = torch.cat(raw), torch.cat(present)
            features.normalize(raw_ND, present_N)
            found.append(features.normalized(raw_ND, present_N).cpu())
        return torch.cat(found, dim=1)

    def _features(self) -> list[NormalizedFeatures]:
        return list(self.modalities)  # type: ignore[arg-type]


class _OneModality:
    """The inputs and lengths of one modality; every loop starts from the first batch."""

    def __init__(self, batches: Iterable[Batch], name: str) -> None:
        self._batches, self._name = batches, name

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for inputs, lengths, _ in self._batches:
            yield inputs[self._name], lengths.get(self._name)
