"""MiniRocket: fixed convolutions, their shares of positive values, and ridge regression.

84 kernels of length 9 have three weights 2 and six weights -1. Each is applied with many dilations;
a feature is the share of a sample's positions where the convolution exceeds a bias. The biases are
quantiles of the convolution of a random training sample. The penalty of the ridge regression is the
one with the lowest leave-one-out error.

The paper has series of one channel and equal length. As in the authors' code, a kernel adds up a
random subset of the channels, of 2^u channels with u uniform from 0 to log2(min(F, 9) + 1); of
samples with padding only the valid positions count. Here each modality has its own kernels, and an
equal share of the features.

Source: Dempster, Schmidt and Webb 2021, MiniRocket, arXiv:2012.08791, sec. 3.

Shapes: B batch, T samples of a modality, F features (channels), K kernels, D features (results).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sftsearch.trainables import cost
from sftsearch.trainables.config import ModelConfig, check_integer
from sftsearch.trainables.models.fusion import ModelEntry
from sftsearch.trainables.models.linear import SolvedModel, head_part
from sftsearch.trainables.solvers import calibrate, choose_ridge, rotate, solve_ridge
from sftsearch.trainables.statistics import FeatureTokenizer, NormalizedFeatures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec, Task
    from sftsearch.trainables.solvers import LinearMap

KERNEL = 9
"""Length of a kernel."""
POSITIONS = tuple(itertools.combinations(range(KERNEL), 3))
"""For each of the 84 kernels, the positions of the weights 2."""
NUM_KERNELS = len(POSITIONS)
MAX_DILATIONS = 32
"""Most dilations of a kernel."""
MAX_CHANNELS = 9
"""Most channels that a kernel adds up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniRocketConfig(ModelConfig):
    """Random convolutions of all modalities used."""

    num_features: int = 9996
    """Features in all; each modality has an equal share, rounded down to a multiple of 84. The time
    to solve grows with the third power of this or of the number of training samples, whichever is
    smaller."""

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_features", self.num_features, at_least=NUM_KERNELS)

    def biases(self, spec: DatasetSpec) -> int:
        """Return the number of features of a kernel of one modality, at least one."""
        return max(1, self.num_features // len(self.chosen(spec)) // NUM_KERNELS)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `ModelConfig.canonical`: the number of features is the one used."""
        names = self.chosen(spec)
        used = NUM_KERNELS * self.biases(spec) * len(names)
        return dataclasses.replace(self, modalities=names, num_features=used)


class Dilation(NamedTuple):
    """A dilation, and the number of features of each kernel with it."""

    step: int
    biases: int


def dilations_of(num_samples: int, biases: int) -> list[Dilation]:
    """Return the dilations, in rising order, for samples of a length.

    Exponents are spaced equally from 0 to log2((T - 1) / 8), where a kernel is as long as a sample.
    The features are shared out in proportion to the number of exponents that round down to the same
    dilation, the rest one by one from the smallest dilation.

    Args:
        num_samples: T.
        biases: features of each kernel with all dilations together.
    """
    count = min(biases, MAX_DILATIONS)
    top = math.log2(max((num_samples - 1) / (KERNEL - 1), 1.0))
    exponents = [top * i / max(count - 1, 1) for i in range(count)]
    # Rounded first: 2 ** log2(3) is less than 3.
    steps = [math.floor(round(2.0**exponent, 9)) for exponent in exponents]
    found = [[step, steps.count(step) * biases // count] for step in sorted(set(steps))]
    for i in range(biases - sum(number for _, number in found)):
        found[i % len(found)][1] += 1
    return [Dilation(step, number) for step, number in found]


class RandomConvolutions(NormalizedFeatures):
    """Shares of positive values of the convolutions of one modality.

    Every other kernel, and with the next dilation the others, only counts positions where it lies
    within the sample; in samples shorter than the kernel all positions count.
    """

    kernels: Tensor
    biases: Tensor
    examples: Tensor

    def __init__(self, num_samples: int, num_channels: int, biases: int) -> None:
        """Draw the channels and the training samples whose quantiles become biases.

        Args:
            num_samples: T.
            num_channels: F.
            biases: features of each kernel.
        """
        super().__init__(NUM_KERNELS * biases)
        self.dilations = dilations_of(num_samples, biases)
        weights = torch.full((NUM_KERNELS, KERNEL), -1.0)
        for kernel, positions in enumerate(POSITIONS):
            weights[kernel, list(positions)] = 2.0
        count = len(self.dilations)
        channels = _draw_channels(count * NUM_KERNELS, num_channels).view(count, NUM_KERNELS, -1)
        self.register_buffer("kernels", channels.unsqueeze(-1) * weights.unsqueeze(1))  # (.,K,F,9)
        self.register_buffer("biases", torch.randn(NUM_KERNELS, biases))
        self.register_buffer("examples", torch.rand(count, NUM_KERNELS))

    def raw(self, x: Tensor, length: Tensor | None) -> Tensor:
        """Compute the shares of positive values, (B, D), by dilation, kernel and bias."""
        found, first = [], 0
        x_BFT = _by_channel(x, length)
        for i, dilation in enumerate(self.dilations):
            c_BKT, inside = self.convolve(x_BFT, length, i)
            c_BKT = c_BKT.masked_fill(~inside, -torch.inf)
            number = inside.sum(dim=-1)
            biases = self.biases[:, first : first + dilation.biases]
            shares = [
                (c_BKT > bias_K.unsqueeze(-1)).sum(dim=-1, dtype=torch.int32).to(x.dtype) / number
                for bias_K in biases.unbind(dim=1)
            ]
            found.append(torch.stack(shares, dim=-1).flatten(1))
            first += dilation.biases
        return torch.cat(found, dim=1)

    def convolve(self, x: Tensor, length: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
        """Return the convolutions with one dilation, and the positions that count.

        Args:
            x: (B, F, T), with zeros as padding.
            length: (B,), see `NormalizedFeatures.forward`.
            number: of the dilation.

        Returns:
            (B, K, T), and (B or 1, K, T).
        """
        step, num_samples = self.dilations[number].step, x.shape[2]
        steps_T, margin = torch.arange(num_samples, device=x.device), KERNEL // 2 * step
        end = steps_T.new_full((1,), num_samples) if length is None else length
        end_B11 = end[:, None, None]
        # Not in half precision: a share must not depend on rounding. `meta` has no autocast.
        device = "cpu" if x.device.type == "meta" else x.device.type
        with torch.autocast(device, enabled=False):
            kernels = self.kernels[number].to(x.dtype)
            if x.dtype == torch.float64:
                c_BKT = _convolve_by_product(x, kernels, step)
            else:
                c_BKT = F.conv1d(x, kernels, padding=margin, dilation=step)
        is_within = (torch.arange(NUM_KERNELS, device=x.device) + number) % 2 == 1
        cut = is_within[None, :, None] & (end_B11 > 2 * margin)
        inside = (steps_T >= margin * cut) & (steps_T < end_B11 - margin * cut)
        # A missing modality has one position, whose share is not read.
        return c_BKT, inside | ((end_B11 == 0) & (steps_T == 0))

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Set the biases to quantiles of the convolutions of training samples.

        The quantiles of all features are the multiples of the golden ratio modulo 1, a sequence of
        low discrepancy.
        """
        present = [_present(x, length) for x, length in batches]
        rows = torch.cat(present).nonzero().flatten()
        if not len(rows):
            return
        examples = rows[(self.examples * len(rows)).long().clamp(max=len(rows) - 1)]
        ratio = (math.sqrt(5) + 1) / 2
        order = torch.arange(1, self.biases.numel() + 1, dtype=torch.float64, device=rows.device)
        quantiles = (order * ratio % 1).to(self.biases.dtype)
        start = 0
        for x, length in batches:
            first, used = 0, 0
            for i, dilation in enumerate(self.dilations):
                own = quantiles[used : used + NUM_KERNELS * dilation.biases]
                columns = slice(first, first + dilation.biases)
                self._set_biases(
                    x, length, i, examples[i] - start, own.view(NUM_KERNELS, -1), columns
                )
                first, used = columns.stop, used + NUM_KERNELS * dilation.biases
            start += len(x)

    def _set_biases(
        self,
        x: Tensor,
        length: Tensor | None,
        number: int,
        examples_K: Tensor,
        quantiles: Tensor,
        columns: slice,
    ) -> None:
        """Set the biases of one dilation for the kernels whose example is in this batch.

        Args:
            x: (B, T, F).
            length: (B,), see `NormalizedFeatures.forward`.
            number: of the dilation.
            examples_K: row of each kernel's example; below 0 or from B on: not in this batch.
            quantiles: (K, biases).
            columns: of the dilation in `biases`.
        """
        here = (examples_K >= 0) & (examples_K < len(x))
        if not here.any():
            return
        rows, places = examples_K[here].unique(return_inverse=True)
        lengths = None if length is None else length[rows]
        c_BKT, _ = self.convolve(_by_channel(x[rows], lengths), lengths, number)
        for kernel, place in zip(here.nonzero().flatten().tolist(), places.tolist(), strict=True):
            end = x.shape[1] if length is None else int(length[rows[place]])
            values = c_BKT[place, kernel, :end]
            self.biases[kernel, columns] = values.quantile(quantiles[kernel])


def _convolve_by_product(x: Tensor, kernels: Tensor, step: int) -> Tensor:
    """Convolve (B, F, T) with (K, F, 9) by one matrix product, (B, K, T).

    ONNX Runtime has no convolution in float64 for CPUs.
    """
    num_samples, margin = x.shape[2], KERNEL // 2 * step
    x = F.pad(x, (margin, margin))
    taps_BFkT = torch.stack(
        [x[:, :, i * step : i * step + num_samples] for i in range(KERNEL)], dim=2
    )
    return kernels.flatten(1) @ taps_BFkT.flatten(1, 2)


def _by_channel(x: Tensor, length: Tensor | None) -> Tensor:
    """Return samples (B, T, F) as (B, F, T), with zeros as padding."""
    if length is not None:
        steps_T = torch.arange(x.shape[1], device=x.device)
        x = x.masked_fill((steps_T >= length[:, None]).unsqueeze(-1), 0.0)
    return x.transpose(1, 2).contiguous()


def _present(x: Tensor, length: Tensor | None) -> Tensor:
    if length is None:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    return length > 0


def _draw_channels(count: int, num_channels: int) -> Tensor:
    """Return which channels each of `count` kernels adds up, as 0 and 1, (count, F)."""
    most = math.log2(min(num_channels, MAX_CHANNELS) + 1)
    sizes = (2 ** (torch.rand(count) * most)).long().clamp(max=num_channels)
    ranks = torch.rand(count, num_channels).argsort(dim=1).argsort(dim=1)
    return (ranks < sizes[:, None]).float()


class MiniRocket(SolvedModel):
    """Random convolutions of each modality and ridge regression on their features."""

    deployed_dtype = torch.float64
    """A count of positive values must not depend on the rounding of another runtime."""

    def __init__(self, spec: DatasetSpec, config: MiniRocketConfig) -> None:
        biases = config.biases(spec)
        shapes = {name: spec.modalities[name] for name in config.chosen(spec)}
        tokenizer = FeatureTokenizer(
            {
                name: RandomConvolutions(one.num_tokens, one.num_features, biases)
                for name, one in shapes.items()
            }
        )
        super().__init__(spec, config, tokenizer)

    def solve(self, features: Tensor, labels: Tensor, task: Task) -> LinearMap:
        """Solve one ridge regression per output; see `SolvedModel.solve`.

        Classes are targets of -1 and 1. The outputs are multiplied by the factor that makes them
        the best logits for the samples left out.
        """
        x = rotate(features)
        targets = labels[:, None].double()
        if task == "classification":
            targets = 2.0 * F.one_hot(labels, self.head.linear.out_features) - 1
        elif task == "multilabel":
            targets = 2.0 * labels - 1
        penalty, left_out = choose_ridge(x, targets)
        found = solve_ridge(x, targets, l2=penalty / len(features))
        factor = 1.0 if task == "regression" else calibrate(left_out, labels, task)
        return found._replace(weight=factor * found.weight, bias=factor * found.bias)


def minirocket_cost(spec: DatasetSpec, config: MiniRocketConfig) -> cost.Cost:
    """Return the cost: 84 x 9 T F multiply-adds for each dilation, and one linear layer.

    `gflops` also count a comparison for each feature and position.
    """
    biases, parts = config.biases(spec), []
    shapes = [spec.modalities[name] for name in config.chosen(spec)]
    for one in shapes:
        n, count = one.num_tokens, len(dilations_of(one.num_tokens, biases))
        macs = count * NUM_KERNELS * KERNEL * one.num_features * n
        parts.append(cost.Part(macs + NUM_KERNELS * biases * n, macs, 0))
    head = head_part(NUM_KERNELS * biases * len(shapes), spec.num_outputs)
    return cost.total([*parts, head])


MODELS = {
    "minirocket": ModelEntry(
        config=MiniRocketConfig,
        build=MiniRocket,
        cost=minirocket_cost,
        paper="Dempster et al. 2021, MiniRocket, arXiv:2012.08791",
        mixes_latents=False,
        is_solved=True,
    ),
}
