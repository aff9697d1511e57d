"""Test MiniRocket's features against a direct loop over the paper's rule.

Shapes: B batch, T samples, F channels.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.models.minirocket import (
    Dilation,
    RandomConvolutions,
    dilations_of,
)

from shapes import dataset_spec

KERNELS = list(itertools.combinations(range(9), 3))


def test_there_are_84_kernels_whose_weights_add_up_to_zero() -> None:
    kernels = RandomConvolutions(20, 1, 2).kernels
    assert kernels.shape[1:] == (84, 1, 9)
    assert not kernels.sum(dim=-1).any()
    assert kernels.unique().tolist() == [-1.0, 2.0]
    assert len({tuple(one) for one in kernels[0, :, 0].tolist()}) == 84


def test_dilations_grow_until_the_kernel_is_as_long_as_the_sample() -> None:
    """Exponents of base two at equal distances; equal dilations share their features."""
    assert dilations_of(65, 4) == [Dilation(1, 1), Dilation(2, 1), Dilation(4, 1), Dilation(8, 1)]
    # Exponents 0, 1/2, 1, 3/2 and 2 round down to 1, 1, 2, 2 and 4.
    assert dilations_of(33, 5) == [Dilation(1, 2), Dilation(2, 2), Dilation(4, 1)]
    # Twice 32 exponents; what rounding leaves is given to the smallest dilations.
    many = dilations_of(33, 65)
    assert sum(one.biases for one in many) == 65
    assert [one.step for one in many] == [1, 2, 3, 4]
    assert many[0].biases == 2 * 16 + 1  # exponents 2 i / 31 below 1
    assert dilations_of(5, 3) == [Dilation(1, 3)]  # shorter than the kernel


def by_hand(module: RandomConvolutions, x_TF: np.ndarray, length: int) -> list[float]:
    """Return the features of one sample, position by position."""
    found, column = [], 0
    for i, dilation in enumerate(module.dilations):
        for k, twos in enumerate(KERNELS):
            channels = (module.kernels[i, k] != 0).any(dim=-1).numpy()
            series = x_TF[:length, channels].sum(axis=1)
            reach = 4 * dilation.step
            outputs = []
            for t in range(length):
                total = 0.0
                for j in range(9):
                    at = t + (j - 4) * dilation.step
                    if 0 <= at < length:
                        total += (2.0 if j in twos else -1.0) * series[at]
                outputs.append(total)
            if (i + k) % 2 == 1 and length > 2 * reach:
                outputs = outputs[reach : length - reach]
            biases = module.biases[k, column : column + dilation.biases].tolist()
            found += [sum(one > bias for one in outputs) / len(outputs) for bias in biases]
        column += dilation.biases
    return found


@pytest.mark.medium
def test_features_are_shares_of_positions_above_the_bias() -> None:
    torch.manual_seed(0)
    module = RandomConvolutions(21, 3, 3).double()
    x, length = torch.randn(4, 21, 3).double(), torch.tensor([21, 17, 5, 1])
    found = module.raw(x, length)
    for row in range(4):
        expected = by_hand(module, x[row].numpy(), int(length[row]))
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=0, atol=1e-12)
    whole = module.raw(x[:1], None)
    np.testing.assert_allclose(whole[0].numpy(), by_hand(module, x[0].numpy(), 21), atol=1e-12)


def test_biases_are_quantiles_of_convolutions_of_training_samples() -> None:
    """With one training sample, it is the example of every kernel."""
    torch.manual_seed(1)
    module = RandomConvolutions(30, 2, 2).double()
    x = torch.randn(1, 30, 2).double()
    missing = torch.zeros(3, 30, 2).double()
    length = torch.tensor([0, 25, 0, 0])
    x = torch.cat([missing[:1], x, missing[1:]])
    module.prepare([(x[:3], length[:3]), (x[3:], length[3:])])
    ratio, number = (1 + math.sqrt(5)) / 2, 0
    for i, dilation in enumerate(module.dilations):
        outputs, _ = module.convolve(x[1:2, :25].transpose(1, 2), None, i)
        for k in range(84):
            number += 1
            values = outputs[0, k, :25].numpy()
            assert dilation.biases == 1
            expected = np.quantile(values, number * ratio % 1)
            assert module.biases[k, i].item() == pytest.approx(expected, abs=1e-6)


def test_kernels_add_up_at_most_nine_channels() -> None:
    torch.manual_seed(2)
    counts = (RandomConvolutions(40, 30, 3).kernels != 0).any(dim=-1).sum(dim=-1)
    assert counts.min() == 1
    assert counts.max() == 9
    single = (RandomConvolutions(40, 1, 3).kernels != 0).any(dim=-1).sum(dim=-1)
    assert single.unique().tolist() == [1]


def test_features_are_shared_equally_among_modalities() -> None:
    spec = dataset_spec(3, sound=(40, 2), image=(12, 5))
    config = MODELS["minirocket"].config(num_features=1000)
    assert config.biases(spec) == 5
    assert config.canonical(spec).num_features == 2 * 5 * 84
    model = build_model("minirocket", spec, config, seed=0)
    inputs = {"sound": torch.randn(2, 40, 2), "image": torch.randn(2, 12, 5)}
    assert model.tokenizer(inputs)["fused"].z.shape == (2, 1, 840)
    assert MODELS["minirocket"].config(num_features=84).biases(spec) == 1


def test_operations_are_those_of_convolutions_comparisons_and_head() -> None:
    spec = dataset_spec(3, sound=(33, 2))
    config = MODELS["minirocket"].config(num_features=5 * 84)
    macs = 3 * 84 * 9 * 2 * 33 + 5 * 84 * 3
    cost = MODELS["minirocket"].cost(spec, config)
    assert cost.gmacs * 1e9 == pytest.approx(macs)
    assert cost.gflops * 1e9 == pytest.approx(macs + 5 * 84 * 33)
    assert cost.parameters == 5 * 84 * 3 + 3
