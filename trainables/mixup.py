"""Mixup: train on a blend of a batch with a permutation of itself.

- `manifold`: multimodal manifold mixup (SFT paper, sec. 3.4). Latents are mixed after a layer drawn
  uniformly: before fusion each modality has its own weight, after fusion all tokens share one. The
  bottleneck of MBT, which all modalities share, has the mean of their weights.
- `input`: the inputs of all modalities are mixed by one weight (Zhang et al. 2018).
- `modality`: the inputs of each modality are mixed by their own weight (MBT paper, sec. 4).

Every weight is drawn from Beta(alpha, alpha), once per batch or once per sample (`mixup_weights`).
The weight of the labels is the mean of the modalities' weights, or the one weight of the tokens.
The SFT authors' code differs for fused layers: the tokens take the first modality's weight, the
labels the mean. This module follows the paper.

Shapes: B batch, T tokens (or samples, for inputs), D width (or features), C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sftsearch.trainables.layers.tokens import BOTTLENECK, FUSED, Sequence, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.models.fusion import FusionModel

    Inputs = dict[str, Tensor]
    Lengths = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """The random choices for one batch; mixes its inputs or latents, and its loss."""

    partner: Tensor
    """(B,): the row that each row is mixed with, a permutation."""
    weights: dict[str, Tensor]
    """(B,) or (1,): the weight of each row itself, by modality and for `FUSED`."""
    label_weight: Tensor
    """(B,) or (1,): the weight of each row's own label."""
    layer: int | None
    """Index of the layer after which the latents are mixed; None: the inputs are mixed."""
    layer_on_device: Tensor
    """(): `layer` for compiled models; -1 for None."""

    def inputs(self, inputs: Inputs, lengths: Lengths) -> tuple[Inputs, Lengths]:
        """Mix the inputs {modality: (B, T, F)}, unless latents are mixed.

        Padding must be zero. A mixed sample has the longer of the two lengths (B,).
        """
        if self.layer is not None:
            return inputs, lengths
        mixed = {name: self._blend(x_BTF, self.weights[name]) for name, x_BTF in inputs.items()}
        return mixed, {
            name: torch.maximum(*self._own_and_partner(length, self.weights[name]))
            for name, length in lengths.items()
        }

    def after_layer(self, index: int, tokens: Tokens) -> Tokens:
        """Mix the latents after layer `index` if it is the layer drawn; for `forward`."""
        return self._blend_tokens(tokens, self.weights) if index == self.layer else tokens

    def after_every_layer(self, index: int, tokens: Tokens) -> Tokens:
        """Do the same as `after_layer` without a branch in Python.

        A branch would recompile the model for each layer drawn; here the other layers are mixed
        with weight 1.
        """
        is_drawn = self.layer_on_device == index
        weights = {k: w.where(is_drawn, 1.0) for k, w in self.weights.items()}
        return self._blend_tokens(tokens, weights)

    def loss(
        self, losses: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the mean of w l(p, y_i) + (1 - w) l(p, y_j).

        p are the outputs of row i, and j is its partner. If the loss is affine in the label, as
        cross-entropies are, this is the loss of the mixed labels.

        Args:
            losses: outputs (B, C) and labels of B samples -> (B,).
            outputs: of the mixed batch.
            labels: of the batch before mixing.
        """
        own, other = losses(outputs, labels), losses(outputs, labels[self.partner])
        return torch.lerp(other, own, self.label_weight).mean()

    def _blend_tokens(self, tokens: Tokens, weights: dict[str, Tensor]) -> Tokens:
        """Mix all sequences, each by its weight.

        Without the bottleneck, a row with weight 0 would not be its partner: it would keep what its
        own modalities wrote there.
        """
        mixed = {}
        for name, sequence in tokens.items():
            if name == BOTTLENECK:
                apart = [w for source, w in weights.items() if source != FUSED]
                weight = sum(apart[1:], apart[0]) / len(apart)
            else:
                # "a<b" is what modality a has read from b (MulT): it belongs to a.
                weight = weights[FUSED if FUSED in tokens else name.partition("<")[0]]
            mixed[name] = self._blend_sequence(sequence, weight)
        return mixed

    def _blend_sequence(self, sequence: Sequence, weight: Tensor) -> Sequence:
        z, valid, received = sequence
        if valid is not None:
            z = z.where(valid.unsqueeze(-1), 0.0)
            valid = torch.logical_or(*self._own_and_partner(valid, weight))
        if received is not None:
            received = self._blend(received, weight)
        return Sequence(self._blend(z, weight), valid, received)

    def _blend(self, x: Tensor, weight: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 1)
        # lerp is exact at both ends: weight 1 gives x, weight 0 the partner.
        return torch.lerp(x[self.partner], x, weight.to(x.dtype).view(shape))

    def _own_and_partner(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return own and partner's masks or lengths, zeroed where their weight is 0."""
        shape = (-1,) + (1,) * (x.dim() - 1)
        return x * (weight > 0).view(shape), x[self.partner] * (weight < 1).view(shape)


class Mixup:
    """Draw a `Mix` for each batch of a training run."""

    def __init__(
        self, config: TrainConfig, model: FusionModel, inputs: Inputs, lengths: Lengths
    ) -> None:
        """Run the model on `inputs` to find the layers after which tokens are fused."""
        self._config, self._device = config, next(iter(inputs.values())).device
        self._modalities = model.modalities
        self._is_fused: dict[int, bool] = {}

        def note_fused(index: int, tokens: Tokens) -> Tokens:
            self._is_fused[index] = FUSED in tokens
            return tokens

        if config.mixup == "manifold":
            model.eval()
            with torch.no_grad():
                model(inputs, lengths, note_fused)

    def draw(self, size: int, random: np.random.Generator) -> Mix:
        """Draw for a batch of `size`; numpy draws, so CPU and GPU runs mix equally."""
        partner = random.permutation(size)
        layer = None
        if self._config.mixup == "manifold":
            layer = int(random.choice(list(self._is_fused)))
        count = size if self._config.mixup_weights == "sample" else 1
        names = (*self._modalities, FUSED)
        weights = random.beta(
            self._config.mixup_alpha, self._config.mixup_alpha, size=(len(names), count)
        )
        if self._config.mixup == "input":
            weights[:] = weights[-1]
        is_fused = layer is not None and self._is_fused[layer]
        label_weight = weights[-1] if is_fused else weights[:-1].mean(axis=0)
        return Mix(
            torch.from_numpy(partner).to(self._device),
            dict(zip(names, self._to_device(weights), strict=True)),
            self._to_device(label_weight),
            layer,
            torch.tensor(-1 if layer is None else layer, device=self._device),
        )

    def _to_device(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights.astype(np.float32)).to(self._device)
