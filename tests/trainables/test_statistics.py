"""Test the statistics of segments against numpy in float64, and their normalization.

Shapes: B batch, T samples, F features, S segments.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.statistics import (
    EPS,
    FeatureTokenizer,
    Kind,
    SegmentStatistics,
    segment_statistics,
)

LENGTHS = (11, 8, 5, 2, 1, 0)


def samples(num_samples: int = 11, num_features: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    size = (len(LENGTHS), num_samples, num_features)
    return torch.randn(size, generator=random, dtype=torch.float64)


def expected_of(x_tF: np.ndarray, segments: int, kind: Kind) -> np.ndarray:
    """Return the statistics of the valid samples of one row, by their definitions."""
    found = []
    for s in range(segments):
        start, end = s * len(x_tF) // segments, -(-(s + 1) * len(x_tF) // segments)
        part = x_tF[start:end]
        found += [part.mean(axis=0), np.sqrt(part.var(axis=0) + EPS)]
        if kind == "rich":
            steps = np.abs(np.diff(part, axis=0))
            change = steps.mean(axis=0) if len(steps) else np.zeros(x_tF.shape[1])
            found += [part.min(axis=0), part.max(axis=0), change]
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["plain", "rich"])
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_statistics_of_valid_samples(segments: int, kind: Kind) -> None:
    x = samples()
    found = segment_statistics(x, torch.tensor(LENGTHS), segments=segments, kind=kind)
    for row, length in enumerate(LENGTHS[:-1]):
        expected = expected_of(x[row, :length].numpy(), segments, kind)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-12, atol=1e-12)
    assert not found[-1].any()  # missing


@pytest.mark.parametrize("kind", ["plain", "rich"])
@pytest.mark.parametrize("num_samples", [1, 3, 4, 11])
def test_statistics_without_padding(num_samples: int, kind: Kind) -> None:
    x = samples(num_samples)
    found = segment_statistics(x, segments=4, kind=kind)
    for row in range(len(x)):
        expected = expected_of(x[row].numpy(), 4, kind)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("segments", [1, 3, 4, 7])
def test_means_are_those_of_adaptive_pooling(segments: int) -> None:
    x = samples()
    found = segment_statistics(x, segments=segments, kind="plain").view(len(x), segments, 2, 3)
    pooled = F.adaptive_avg_pool1d(x.transpose(1, 2), segments).transpose(1, 2)
    torch.testing.assert_close(found[:, :, 0], pooled, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_constant_is_finite() -> None:
    x = torch.ones(2, 6, 1, requires_grad=True)
    segment_statistics(x, segments=2, kind="rich").sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_normalization_leaves_out_samples_without_the_modality() -> None:
    random = torch.Generator().manual_seed(1)
    x = 5 + 3 * torch.randn(50, 8, 2, generator=random)
    x[:, :, 1] = 4.0  # constant
    length = torch.full((50,), 8)
    length[::5] = 0
    tokenizer = FeatureTokenizer({"a": SegmentStatistics(num_features=2, segments=2, kind="plain")})
    batches = [({"a": x[i : i + 20]}, {"a": length[i : i + 20]}, x) for i in (0, 20, 40)]
    fitted = tokenizer.fit(batches)
    present = length > 0
    raw = segment_statistics(x[present], segments=2, kind="plain").double()
    normal = raw.std(dim=0, correction=0) > 1e-4
    expected = (raw - raw.mean(dim=0)) / raw.std(dim=0, correction=0)
    torch.testing.assert_close(
        fitted[present][:, normal].double(), expected[:, normal], rtol=0, atol=1e-4
    )
    assert normal.tolist() == [True, False] * 4
    assert fitted[present][:, ~normal].abs().max() < 1e-4  # not scaled up
    assert not fitted[~present].any()
    token = tokenizer({"a": x}, {"a": length})[FUSED]
    assert token.z.shape == (50, 1, 8)
    assert token.valid is None
    assert torch.equal(token.z[:, 0], fitted)
