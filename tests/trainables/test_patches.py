"""Patches, segments, and the features of tokens, against numpy and plain torch in float64.

Shapes: B batch, T samples, F features, N points, n tokens, P samples of a patch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import TransformerConfig
from sftsearch.trainables.layers.patches import (
    EPS,
    FEATURES,
    ConvolutionFeatures,
    TokenNorm,
    cut_patches,
    resample,
    statistics,
)
from sftsearch.trainables.layers.tokens import ModalityTokenizer
from sftsearch.trainables.token_windows import Cut

from shapes import dataset_spec


def samples(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


# ------------------------------------------------------------- segments


@pytest.mark.parametrize(("length", "points"), [(1, 4), (3, 8), (7, 8), (8, 8), (5, 7), (13, 16)])
def test_points_are_interpolated_at_the_centers_of_equal_parts(length: int, points: int) -> None:
    """numpy: sample i covers (i, i + 1), and beyond the first and last center values are kept."""
    x = samples(2, 20, 3)
    centers = (np.arange(points) + 0.5) * length / points
    expected = np.stack(
        [
            [np.interp(centers, np.arange(length) + 0.5, x[b, :length, f]) for f in range(3)]
            for b in range(2)
        ]
    ).transpose(0, 2, 1)
    found = resample(x, torch.full((2,), length), points)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(resample(x[:, :length], None, points), found)


def test_as_many_samples_as_points_are_copied() -> None:
    x = samples(2, 9, 3)
    x[:, 6:] = math.nan
    assert torch.equal(resample(x, torch.tensor([6, 6]), 6), x[:, :6])


def test_rate_and_length_do_not_change_the_tokens() -> None:
    """Two seconds of a line at 15 Hz and at 100 Hz; at the ends a rate has no samples."""
    cuts = [cut_patches(line(rate), None, Cut(4, 5, resampled=True)).x for rate in (15, 100)]
    assert cuts[0].shape == (1, 4, 5, 1)
    torch.testing.assert_close(cuts[0][:, 1:3], cuts[1][:, 1:3], rtol=1e-12, atol=1e-12)


def line(rate: int) -> torch.Tensor:
    return ((torch.arange(2 * rate, dtype=torch.float64) + 0.5) / rate).view(1, -1, 1)


def test_every_sample_has_all_segments_and_a_missing_modality_none() -> None:
    x = samples(4, 10, 2)
    x[3] = math.nan
    cut = Cut(3, 4, resampled=True)
    patches = cut_patches(x, torch.tensor([10, 1, 4, 0]), cut)
    assert patches.valid is not None
    assert patches.valid.tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert torch.equal(patches.x[3], torch.zeros(3, 4, 2, dtype=torch.float64))
    for row, length in enumerate((10, 1, 4)):
        alone = cut_patches(x[row : row + 1, :length], None, cut)
        assert alone.valid is None
        assert torch.equal(alone.x[0], patches.x[row])


# ------------------------------------------------------------- statistics


def of_patch(x: np.ndarray) -> np.ndarray:
    """Return the statistics of (P, F), as in `statistics`."""
    difference = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
    return np.concatenate([x.mean(axis=0), np.sqrt(x.var(axis=0) + EPS), difference])


def test_statistics_are_of_the_real_samples() -> None:
    x, length = samples(3, 10, 2), torch.tensor([10, 5, 1])
    patches = cut_patches(x, length, Cut(3, 4))
    found = statistics(patches)
    assert patches.valid is not None
    for row in range(3):
        for token in range(3):
            real = x[row, 4 * token : min(4 * token + 4, int(length[row]))].numpy()
            assert bool(patches.valid[row, token]) == (len(real) > 0)
            if len(real):
                np.testing.assert_allclose(found[row, token], of_patch(real), rtol=1e-12)


def test_the_last_patch_of_a_full_sample_has_no_statistics_of_its_padding() -> None:
    x = samples(2, 10, 2)
    for length in (None, torch.tensor([10, 10])):
        found = statistics(cut_patches(x, length, Cut(3, 4)))
        np.testing.assert_allclose(found[1, 2], of_patch(x[1, 8:].numpy()), rtol=1e-12)


# ------------------------------------------------------------- normalization


def test_tokens_are_normalized_by_their_valid_ones_alone() -> None:
    x, valid = samples(4, 3, 5), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]).bool()
    norm = TokenNorm(5).double()
    corrupted = x.masked_fill(~valid.unsqueeze(-1), 1e6)
    expected = F.batch_norm(x[valid], None, None, training=True, eps=EPS)
    torch.testing.assert_close(norm(corrupted, valid)[valid], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm.running_mean, x[valid].mean(dim=0))
    torch.testing.assert_close(norm.running_var, x[valid].var(dim=0))


def test_evaluation_takes_the_mean_of_the_first_ten_batches_then_a_moving_one() -> None:
    """With `momentum=None` torch takes the mean of all batches, by default a moving average."""
    norm, first = TokenNorm(2).double(), nn.BatchNorm1d(2, affine=False, momentum=None).double()
    for step in range(10):
        x = samples(6, 4, 2, seed=step)
        norm(x)
        first(x.flatten(0, 1))
    then = nn.BatchNorm1d(2, affine=False, momentum=0.1).double()
    then.load_state_dict(first.state_dict())
    for step in range(10, 13):
        x = samples(6, 4, 2, seed=step)
        norm(x)
        then(x.flatten(0, 1))
    x = samples(6, 4, 2, seed=99)
    expected = then.eval()(x.flatten(0, 1)).view(x.shape)
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(norm(x[:1]), norm(x)[:1])


def test_a_batch_without_valid_tokens_changes_no_statistic() -> None:
    norm = TokenNorm(2).double()
    norm(samples(6, 4, 2))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = norm(samples(2, 4, 2, seed=1), torch.zeros(2, 4, dtype=torch.bool))
    assert found.isfinite().all()
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])


def test_one_token_is_normalized_to_zero() -> None:
    """The last batch of an epoch may have one sample."""
    assert torch.equal(TokenNorm(2)(torch.ones(1, 1, 2)), torch.zeros(1, 1, 2))


# ------------------------------------------------------------- convolutions


def test_convolutions_are_those_of_each_sample_without_padding() -> None:
    features = ConvolutionFeatures(patch=4, num_features=2, dim=6).double()
    x, lengths = samples(3, 10, 2), [10, 7, 2]
    x[1, 7:] = x[2, 2:] = math.nan
    found = features(cut_patches(x, torch.tensor(lengths), Cut(3, 4)))
    for row, length in enumerate(lengths):
        z = x[row : row + 1, :length].transpose(1, 2)
        z = F.conv1d(z, features.first.weight, features.first.bias, padding=2).relu()
        z = F.conv1d(z, features.second.weight, features.second.bias, padding=1, groups=6).relu()
        for token in range(-(-length // 4)):
            expected = z[0, :, 4 * token : 4 * token + 4].mean(dim=1)
            torch.testing.assert_close(found[row, token], expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("cut", [Cut(4, 3), Cut(4, 3, resampled=True), Cut(11, 1)])
@pytest.mark.parametrize("kind", FEATURES)
def test_a_padded_sample_has_the_tokens_of_the_unpadded_one(kind: str, cut: Cut) -> None:
    torch.manual_seed(0)
    tokenize = ModalityTokenizer(cut=cut, num_features=2, dim=6, kind=kind).double()
    tokenize(samples(9, 11, 2))  # running statistics
    tokenize.eval()
    x, lengths = samples(3, 11, 2, seed=1), [11, 5, 1]
    padded = x.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = math.nan
    found = tokenize(padded, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = tokenize(x[row : row + 1, :length])
        real = cut.num_tokens if cut.resampled else -(-length // cut.patch)
        assert found.valid[row].tolist() == [i <= real for i in range(1 + cut.num_tokens)]
        difference = (found.z[row, : 1 + real] - alone.z[0, : 1 + real]).abs().max()
        assert difference < 1e-12


@pytest.mark.parametrize(
    ("kind", "multiply_adds", "parameters"),
    [
        # Four tokens of three samples of two features, width five; CLS and positions: 5 + 25.
        ("linear", 4 * 6 * 5, 6 * 5 + 5),
        ("statistics", 4 * 6 * 5, 6 * 5 + 5),
        ("linear_statistics", 4 * 12 * 5, 12 * 5 + 5),
        # Convolutions of five and three samples at twelve positions, then the projection.
        ("conv", 12 * (5 * 2 * 5 + 3 * 5) + 4 * 5 * 5, 5 * 2 * 5 + 5 + 3 * 5 + 5 + 5 * 5 + 5),
    ],
)
def test_the_cost_of_a_tokenizer(kind: Any, multiply_adds: int, parameters: int) -> None:
    config = TransformerConfig(dim=5, num_heads=1, patch=3, tokenizer=kind)
    part = cost.tokenizer(dataset_spec(2, x=(11, 2)), config)
    assert (part.flops, part.macs, part.parameters) == (0, multiply_adds, parameters + 5 + 25)
