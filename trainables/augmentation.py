"""Augment the batches of a training run: crop, rotate, scale, add noise, mask, leave out.

All numbers are drawn from the generator of the epoch, or from torch's, which is seeded by it; so
they depend on the seed and the number of the epoch alone. Inputs are z-scored by feature, so 0 is
the mean over the training split. Padding stays 0.

- time crop: the part kept of a sample of length L is (o L, (o + s) L), where s is uniform in
  (1 - `time_crop`, 1) and o in (0, 1 - s). Its values at the centers of L equal parts are
  interpolated linearly.
- rotation: x' = R x in the units of the sensor, for each triple of features x.
- masks: SpecAugment (Park et al. 2019, arXiv:1904.08779, sec. 2), one mask of each kind.

Shapes: B batch, M modalities, T samples of a modality, F features, n tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from sftsearch.datasets.store import Store
    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.token_windows import Cut

    Array = npt.NDArray[np.float64]
    Inputs = dict[str, Tensor]
    Lengths = dict[str, Tensor]


class Augmentation:
    """Augment batches as a training configuration states."""

    def __init__(self, config: TrainConfig, store: Store, cuts: Mapping[str, Cut]) -> None:
        """Prepare the augmentation of the modalities in `cuts`, which says what their tokens are.

        Args:
            config: the training configuration.
            store: of the dataset; its statistics are those of the z-scores.
            cuts: of each modality used.
        """
        self._config, self._cuts = config, dict(cuts)
        self._statistics = {name: store.statistics[name] for name in cuts}
        rotated = config.rotated(store.spec) if config.rotation else ()
        self._rotated = [name for name in cuts if name in rotated]
        masked = config.masked(store.spec)
        self._masked = [name for name in cuts if name in masked]
        self.is_active = config.augments

    def __call__(
        self, inputs: Inputs, lengths: Lengths, random: np.random.Generator
    ) -> tuple[Inputs, Lengths]:
        """Return the augmented inputs {modality: (B, T, F)} and lengths {modality: (B,)}.

        With `modality_dropout` every modality has lengths.
        """
        if not self.is_active:
            return inputs, lengths
        whole = {
            name: lengths.get(name, torch.full((len(x),), x.shape[1], device=x.device))
            for name, x in inputs.items()
        }
        changed = self._crop(inputs, whole, random) if self._config.time_crop else dict(inputs)
        for name in self._rotated:
            rotations = draw_rotations(len(whole[name]), self._config.rotation, random)
            changed[name] = self._rotate(name, changed[name], rotations)
        for name, x in changed.items():
            changed[name] = self._change_values(name, x, whole[name], random)
        if self._config.modality_dropout and len(inputs) > 1:
            lengths = self._drop(whole, random)
        for name, length in lengths.items():
            x = changed[name]
            padded = torch.arange(x.shape[1], device=x.device) >= length[:, None]
            changed[name] = x.masked_fill(padded.unsqueeze(-1), 0.0)
        return changed, lengths

    def _crop(self, inputs: Inputs, lengths: Lengths, random: np.random.Generator) -> Inputs:
        """Crop every modality of a sample to the same part of its time, and stretch it."""
        size = len(next(iter(inputs.values())))
        share = 1 - self._config.time_crop * random.random(size)
        start = (1 - share) * random.random(size)
        return {
            name: crop(x, lengths[name], _like(x, share), _like(x, start))
            for name, x in inputs.items()
        }

    def _rotate(self, name: str, x: Tensor, rotations: Array) -> Tensor:
        """Rotate every triple of features of z-scored samples as if they were not z-scored."""
        mean, std = (values.astype(np.float64) for values in self._statistics[name])
        blocks = np.zeros((len(x), len(mean), len(mean)))
        for first in range(0, len(mean), 3):
            blocks[:, first : first + 3, first : first + 3] = rotations
        matrix = blocks * (std / std[:, None])
        offset = (blocks @ mean - mean) / std
        return torch.baddbmm(_like(x, offset).unsqueeze(1), x, _like(x, matrix).transpose(1, 2))

    def _change_values(
        self, name: str, x: Tensor, length: Tensor, random: np.random.Generator
    ) -> Tensor:
        """Scale, add noise, and mask."""
        config, size = self._config, len(x)
        if config.scaling:
            factor = np.exp(config.scaling * random.standard_normal(size))
            x = x * _like(x, factor)[:, None, None]
        if config.jitter:
            x = x + config.jitter * torch.randn_like(x)
        if config.token_dropout:
            cut = self._cuts[name]
            kept = random.random((size, cut.num_tokens)) >= config.token_dropout
            x = x * _like(x, kept).gather(1, tokens_of(x, length, cut)).unsqueeze(-1)
        if name in self._masked and config.time_mask:
            end = length.double()
            x = x.masked_fill(_mask(end, config.time_mask, x.shape[1], random).unsqueeze(2), 0.0)
        if name in self._masked and config.frequency_mask:
            end = torch.full_like(length, x.shape[2]).double()
            x = x.masked_fill(_mask(end, config.frequency_mask, x.shape[2], random)[:, None], 0.0)
        return x

    def _drop(self, lengths: Lengths, random: np.random.Generator) -> Lengths:
        """Return the lengths after dropping modalities; one that a sample has always stays.

        The modality with the largest draw among those that a sample has is dropped only if another
        one stays; so all of them are equally likely to be the last.
        """
        length_MB = torch.stack([*lengths.values()])
        draws = torch.from_numpy(random.random(length_MB.shape)).to(length_MB.device)
        order = draws.masked_fill(length_MB == 0, -1.0)
        stays = (draws >= self._config.modality_dropout) | (order == order.amax(dim=0))
        return dict(zip(lengths, length_MB * stays, strict=True))


def crop(x: Tensor, length: Tensor, share: Tensor, start: Tensor) -> Tensor:
    """Stretch a part of each row's real samples to all of them, (B, T, F) -> (B, T, F).

    Args:
        x: the samples; padding is 0.
        length: (B,), number of real samples, L.
        share: (B,), length of the part, as a share of L.
        start: (B,), its start.
    """
    steps = torch.arange(x.shape[1], device=x.device)
    final = (length - 1).clamp(min=0).unsqueeze(1)
    position = (start * length).unsqueeze(1) + share.unsqueeze(1) * (steps + 0.5) - 0.5
    position = position.clamp(min=0).minimum(final.to(x.dtype))
    left = position.floor().long()
    weight = (position - left).unsqueeze(-1)
    before, after = _take(x, left), _take(x, (left + 1).minimum(final))
    padded = (steps >= length.unsqueeze(1)).unsqueeze(-1)
    return torch.lerp(before, after, weight).masked_fill(padded, 0.0)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Take samples of each row, (B, T, F) and (B, T) -> (B, T, F); as rows of one long matrix."""
    rows = x.shape[1] * torch.arange(len(x), device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, (rows + index).flatten()).view(x.shape)


def tokens_of(x: Tensor, length: Tensor, cut: Cut) -> Tensor:
    """Return the token that each sample belongs to, (B, T)."""
    steps = torch.arange(x.shape[1], device=x.device)
    if not cut.resampled:
        return (steps // cut.patch).expand(len(x), -1)
    return (steps * cut.num_tokens // length.clamp(min=1)[:, None]).clamp(max=cut.num_tokens - 1)


def draw_rotations(size: int, degrees: float, random: np.random.Generator) -> Array:
    """Draw rotation matrices (B, 3, 3): uniform axes, normal angles of this deviation."""
    axes = random.standard_normal((size, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.radians(degrees) * random.standard_normal(size)
    cross = np.zeros((size, 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = axes
    cross -= cross.transpose(0, 2, 1)
    sin, cos = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    rotations: Array = np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)  # Rodrigues
    return rotations


def _mask(end: Tensor, most: float, size: int, random: np.random.Generator) -> Tensor:
    """Draw a mask of up to a share `most` of the first `end` (B,) of `size` positions, (B, size).

    All whole widths are equally likely, and all positions of a width.
    """
    width, start = (torch.from_numpy(random.random(len(end))).to(end.device) for _ in range(2))
    width = (width * ((most * end).floor() + 1)).floor()
    start = (start * (end - width + 1)).floor()
    steps = torch.arange(size, device=end.device)
    return (steps >= start.unsqueeze(1)) & (steps < (start + width).unsqueeze(1))


def _like(x: Tensor, values: npt.NDArray[np.generic]) -> Tensor:
    """Copy numbers to the device and type of x."""
    return torch.from_numpy(values).to(x.device, x.dtype)
