"""Mixup: a batch is trained on as a blend of itself and of another order of itself.

- `manifold`: multimodal manifold mixup (SFT paper, sec. 3.4). The latents are mixed after a layer
  drawn uniformly: each modality by a weight of its own while the modalities are apart, all tokens
  by one weight once they are fused.
- `input`: the inputs of all modalities are mixed by one weight (Zhang et al. 2018).
- `modality`: each modality's inputs are mixed by a weight of their own (MBT paper, sec. 4).

Every weight is drawn from Beta(alpha, alpha). The labels' weight is the mean of the modalities'
weights, or the one weight that the tokens were mixed by. The authors' SFT code differs for fused
layers: there the tokens take the first modality's weight, the labels the mean; the paper is
followed here. Weights are one a batch, or one a sample (as in that code), as `mixup_weights` says.

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
    """What was drawn for one batch: it mixes inputs, or latents, and the loss."""

    partner: Tensor
    """(B,): the row that each row is mixed with, a permutation."""
    weights: dict[str, Tensor]
    """(B,) or (1,): what each row keeps of itself, by modality and for `FUSED`."""
    label_weight: Tensor
    """(B,) or (1,): what each row keeps of its own label."""
    layer: int | None
    """Index of the layer after which the latents are mixed; None: the inputs are mixed."""
    layer_on_device: Tensor
    """(): the same for compiled models; -1 for None."""

    def inputs(self, inputs: Inputs, lengths: Lengths) -> tuple[Inputs, Lengths]:
        """Mix the inputs {modality: (B, T, F)}, where inputs are what is to be mixed.

        Padding must be zeros. Of two lengths (B,) the longer one counts.
        """
        if self.layer is not None:
            return inputs, lengths
        mixed = {name: self._blend(x_BTF, self.weights[name]) for name, x_BTF in inputs.items()}
        return mixed, {
            name: torch.maximum(*self._of_both(length, self.weights[name]))
            for name, length in lengths.items()
        }

    def after_layer(self, index: int, tokens: Tokens) -> Tokens:
        """Mix the state after layer `index`, if that is the layer drawn; for `forward`."""
        return self._blend_tokens(tokens, self.weights) if index == self.layer else tokens

    def after_every_layer(self, index: int, tokens: Tokens) -> Tokens:
        """Do as `after_layer` does, without a choice in Python.

        A compiled model would be compiled anew for each layer drawn; other layers than that one
        are mixed by the weight 1 instead.
        """
        here = self.layer_on_device == index
        return self._blend_tokens(tokens, {k: w.where(here, 1.0) for k, w in self.weights.items()})

    def loss(
        self, losses: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, labels: Tensor
    ) -> Tensor:
        """Average the losses of both labels, by their weights: w l(p, y_i) + (1 - w) l(p, y_j).

        p are the outputs of a row, i is that row and j its partner.

        For losses that are affine in the label, as cross-entropies are, it is the loss of mixed
        labels.

        Args:
            losses: outputs (B, C) and labels of B samples -> (B,).
            outputs: of the mixed batch.
            labels: of the batch as it was.
        """
        own, other = losses(outputs, labels), losses(outputs, labels[self.partner])
        return torch.lerp(other, own, self.label_weight).mean()

    def _blend_tokens(self, tokens: Tokens, weights: dict[str, Tensor]) -> Tokens:
        """Mix all sequences but the bottleneck's, which belong to no sample's modality."""
        mixed = {}
        for name, sequence in tokens.items():
            if name == BOTTLENECK:
                mixed[name] = sequence
                continue
            # "a<b" is what modality a took from b (MulT): it is a's.
            source = FUSED if FUSED in tokens else name.partition("<")[0]
            mixed[name] = self._blend_sequence(sequence, weights[source])
        return mixed

    def _blend_sequence(self, sequence: Sequence, weight: Tensor) -> Sequence:
        z, valid, received = sequence
        if valid is not None:
            z = z.where(valid.unsqueeze(-1), 0.0)
            valid = torch.logical_or(*self._of_both(valid, weight))
        if received is not None:
            received = self._blend(received, weight)
        return Sequence(self._blend(z, weight), valid, received)

    def _blend(self, x: Tensor, weight: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 1)
        # lerp is exact at both ends: the weight 1 keeps x, the weight 0 gives the partner's.
        return torch.lerp(x[self.partner], x, weight.to(x.dtype).view(shape))

    def _of_both(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return masks or lengths, own and partner's, as far as each has a share in the mix."""
        shape = (-1,) + (1,) * (x.dim() - 1)
        return x * (weight > 0).view(shape), x[self.partner] * (weight < 1).view(shape)


class Mixup:
    """Draws a `Mix` for each batch of a training run."""

    def __init__(
        self, config: TrainConfig, model: FusionModel, inputs: Inputs, lengths: Lengths
    ) -> None:
        """Find out, from any inputs of the model, after which of its layers tokens are fused."""
        self._config, self._device = config, next(iter(inputs.values())).device
        self._modalities = model.modalities
        self._is_fused: dict[int, bool] = {}

        def look(index: int, tokens: Tokens) -> Tokens:
            self._is_fused[index] = FUSED in tokens
            return tokens

        if config.mixup == "manifold":
            model.eval()
            with torch.no_grad():
                model(inputs, lengths, look)

    def draw(self, size: int, random: np.random.Generator) -> Mix:
        """Draw for a batch of `size`: as all draws are numpy's, a GPU mixes what a CPU does."""
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
        whole = layer is not None and self._is_fused[layer]
        label_weight = weights[-1] if whole else weights[:-1].mean(axis=0)
        return Mix(
            torch.from_numpy(partner).to(self._device),
            dict(zip(names, self._to_device(weights), strict=True)),
            self._to_device(label_weight),
            layer,
            torch.tensor(-1 if layer is None else layer, device=self._device),
        )

    def _to_device(self, weights: np.ndarray) -> Tensor:
        return torch.from_numpy(weights.astype(np.float32)).to(self._device)
