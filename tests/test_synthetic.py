"""The closed form of the best accuracy, against Bayes' rule worked out sample by sample."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.datasets import synthetic

if TYPE_CHECKING:
    from sftsearch.datasets.store import Split


def gaussian_log_likelihood(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Log density of (N, T, F) tokens under N(mean, 1), up to a constant, (N,)."""
    return -0.5 * ((x.astype(np.float64) - mean) ** 2).sum(axis=(1, 2))


def shown(name: str, private: int, common: int) -> np.ndarray:
    """Return the mean of one modality's tokens, (T, F), as the module's docstring says."""
    shape = synthetic.MODALITIES[name]
    mean = np.zeros((shape.num_tokens, shape.num_features))
    mean[:, 0] = (2 * private - 1) * synthetic.PRIVATE / math.sqrt(shape.num_tokens)
    mean[:, 1] = (2 * common - 1) * synthetic.SHARED / math.sqrt(shape.num_tokens)
    return mean


def bayes_predictions(split: Split, names: tuple[str, ...]) -> np.ndarray:
    """Classify by Bayes' rule in float64: sum the likelihood over all eight states of the bits."""
    likelihood = np.zeros((len(split), 4))
    for left, right, common in itertools.product((0, 1), repeat=3):
        log = np.zeros(len(split))
        for name, private in (("left", left), ("right", right)):
            if name in names:
                log += gaussian_log_likelihood(split.modalities[name], shown(name, private, common))
        likelihood[:, 2 * (left ^ right) + common] += np.exp(log)
    return likelihood.argmax(axis=1)


@pytest.fixture(scope="module")
def many() -> Split:
    """A hundred thousand samples: the deviation of an accuracy is below 0.0016."""
    return synthetic._generate("train", 100_000, np.random.default_rng(7))


def test_closed_form_is_what_bayes_rule_reaches(many: Split) -> None:
    accuracy = (bayes_predictions(many, ("left", "right")) == many.labels).mean()
    deviation = math.sqrt(synthetic.best_accuracy() * (1 - synthetic.best_accuracy()) / len(many))
    assert accuracy == pytest.approx(synthetic.best_accuracy(), abs=4 * deviation)


@pytest.mark.parametrize("name", ["left", "right"])
def test_one_modality_alone_does_not_reach_half_of_it(many: Split, name: str) -> None:
    expected = synthetic.best_accuracy_alone()
    # Its four likelihoods are equal in pairs: ties of rounding are broken one way, which of two
    # equally likely classes it is does not change the expectation.
    accuracy = (bayes_predictions(many, (name,)) == many.labels).mean()
    assert accuracy == pytest.approx(expected, abs=4 * math.sqrt(expected / 2 / len(many)))


def test_closed_form_at_its_limits() -> None:
    assert synthetic.best_accuracy() == pytest.approx(0.98743366, abs=1e-8)
    assert synthetic.best_accuracy_alone() == pytest.approx(0.47997042, abs=1e-8)
    assert synthetic._phi(0.0) == 0.5
    assert synthetic._phi(1.959963984540054) == pytest.approx(0.975, abs=1e-12)


def test_bayes_rule_on_the_shipped_splits_is_near_its_expectation() -> None:
    for split in synthetic.load().values():
        accuracy = (bayes_predictions(split, ("left", "right")) == split.labels).mean()
        best = synthetic.best_accuracy()
        assert accuracy == pytest.approx(best, abs=3 * math.sqrt(best * (1 - best) / len(split)))


def test_samples_are_the_same_everywhere() -> None:
    """The fingerprint covers parameters alone; this digest notices another stream of numbers."""
    digest = hashlib.sha256()
    for split in synthetic.load().values():
        digest.update(split.labels.tobytes())
        for tokens in split.modalities.values():
            digest.update(tokens.round(3).tobytes())
    assert digest.hexdigest()[:16] == "f274c9ea49d3c7ee"


def test_splits_differ() -> None:
    splits = synthetic.load()
    first = {split.modalities["left"][0].tobytes() for split in splits.values()}
    assert len(first) == 3


def test_fingerprint_follows_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    before = synthetic.spec().fingerprint
    monkeypatch.setattr(synthetic, "SHARED", 1.0)
    after = synthetic.spec()
    assert after.fingerprint != before
    assert after.best_accuracy == synthetic.best_accuracy() < 0.95
