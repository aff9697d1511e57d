"""Closed forms of the best results, compared with Bayes' rule on every sample."""

from __future__ import annotations

import hashlib
import itertools
import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets import synthetic
from sftsearch.trainables.metrics import score

if TYPE_CHECKING:
    from sftsearch.datasets.samples import Split


def gaussian_log_likelihood(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the log density of (N, T, F) tokens under N(mean, 1), up to a constant, (N,)."""
    return -0.5 * ((x.astype(np.float64) - mean) ** 2).sum(axis=(1, 2))


def shown(name: str, private: int, common: int) -> np.ndarray:
    """Return the mean of the tokens of a modality, (T, F), as the module docstring defines it."""
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
    """Return 100,000 samples: the standard error of an accuracy is below 0.0016."""
    return synthetic.generate("train", 100_000, np.random.default_rng(7))


def test_best_accuracy_equals_that_of_bayes_rule(many: Split) -> None:
    accuracy = (bayes_predictions(many, ("left", "right")) == many.labels).mean()
    deviation = math.sqrt(synthetic.best_accuracy() * (1 - synthetic.best_accuracy()) / len(many))
    assert accuracy == pytest.approx(synthetic.best_accuracy(), abs=4 * deviation)


@pytest.mark.parametrize("name", ["left", "right"])
def test_unimodal_accuracy_has_the_known_value(many: Split, name: str) -> None:
    expected = NormalDist().cdf(synthetic.SHARED) / 2  # the bit that both show, half of the class
    # The four likelihoods are equal in pairs; how ties are broken does not change the expectation.
    accuracy = (bayes_predictions(many, (name,)) == many.labels).mean()
    assert accuracy == pytest.approx(expected, abs=4 * math.sqrt(expected / 2 / len(many)))


def test_best_accuracy_has_the_known_value() -> None:
    assert synthetic.best_accuracy() == pytest.approx(0.98743366, abs=1e-8)


def test_bayes_rule_on_the_shipped_splits_is_near_its_expectation() -> None:
    for split in synthetic.load().values():
        accuracy = (bayes_predictions(split, ("left", "right")) == split.labels).mean()
        best = synthetic.best_accuracy()
        assert accuracy == pytest.approx(best, abs=3 * math.sqrt(best * (1 - best) / len(split)))


def test_samples_are_the_same_on_every_machine() -> None:
    """The fingerprint covers only the parameters; this digest detects changed random numbers."""
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


# Variable lengths: tags and ratings


@pytest.fixture(scope="module")
def many_tags() -> Split:
    return synthetic.generate_tags("train", 100_000, np.random.default_rng(7))


@pytest.fixture(scope="module")
def many_ratings() -> Split:
    return synthetic.generate_rating("train", 100_000, np.random.default_rng(7))


def valid_tokens(split: Split, name: str) -> np.ndarray:
    """Return 1 for valid tokens and else 0, (N, T, 1)."""
    num_tokens = split.modalities[name].shape[1]
    lengths = split.lengths.get(name, np.full(len(split), num_tokens))
    return (np.arange(num_tokens) < lengths[:, None]).astype(np.float64)[:, :, None]


def bayes_log_odds(split: Split) -> np.ndarray:
    """Return the log-odds of tags by Bayes' rule over all eight states, (N, C)."""
    likelihood = np.zeros((2, len(split), 3))
    for tags in itertools.product((0, 1), repeat=3):
        log = np.zeros(len(split))
        for name, tokens in split.modalities.items():
            mean = (2 * np.array(tags) - 1) * np.array(synthetic.TAG_AMPLITUDES[name])
            squares = (tokens.astype(np.float64) - mean) ** 2 * valid_tokens(split, name)
            log -= 0.5 * squares.sum(axis=(1, 2))
        for tag, value in enumerate(tags):
            likelihood[value, :, tag] += np.exp(log)
    return np.log(likelihood[1]) - np.log(likelihood[0])


@pytest.mark.medium
def test_best_tag_accuracies_equal_those_of_bayes_rule(many_tags: Split) -> None:
    log_odds = bayes_log_odds(many_tags)
    best = synthetic.best_tag_accuracies()
    for tag, expected in enumerate(best):
        accuracy = ((log_odds[:, tag] >= 0) == many_tags.labels[:, tag]).mean()
        deviation = math.sqrt(expected * (1 - expected) / len(many_tags))
        assert accuracy == pytest.approx(expected, abs=4 * deviation)
    metrics = score("multilabel", log_odds, many_tags.labels)
    for name in ("micro_f1", "macro_f1"):  # the module docstring: both equal the best accuracy
        assert metrics[name] == pytest.approx(np.mean(best), abs=0.002)
    assert synthetic.tags_spec().best_accuracy == np.mean(best)


def bayes_ratings(split: Split) -> np.ndarray:
    """Return the posterior means of u + v, computed on a grid for each, (N,)."""
    grid = np.linspace(-6, 6, 601)
    total = np.zeros(len(split))
    for name, tokens in split.modalities.items():
        x_NT, valid_NT = tokens[:, :, 0].astype(np.float64), valid_tokens(split, name)[:, :, 0]
        # The squares of x - a g, without the terms that do not depend on g.
        along = synthetic.RATING_AMPLITUDE * grid
        log_NG = (x_NT * valid_NT).sum(axis=1)[:, None] * along
        log_NG -= 0.5 * valid_NT.sum(axis=1)[:, None] * along**2 + 0.5 * grid**2
        weights_NG = np.exp(log_NG - log_NG.max(axis=1, keepdims=True))
        total += weights_NG @ grid / weights_NG.sum(axis=1)
    return total


@pytest.mark.medium
def test_best_mae_and_pearson_equal_those_of_bayes_rule() -> None:
    split = synthetic.generate_rating("train", 20_000, np.random.default_rng(7))
    metrics = score("regression", bayes_ratings(split)[:, None], split.labels)
    # The absolute value of a normal variable has standard deviation sqrt(pi / 2 - 1) of its mean.
    deviation = synthetic.best_mae() * math.sqrt((math.pi / 2 - 1) / len(split))
    assert metrics["mae"] == pytest.approx(synthetic.best_mae(), abs=4 * deviation)
    assert metrics["pearson"] == pytest.approx(synthetic.best_pearson(), abs=0.01)


def test_least_squares_is_not_better_than_best_mae(many_ratings: Split) -> None:
    """Fit least squares for each length to the same samples, without knowledge of the generator."""
    errors = []
    for length in range(9):
        rows = many_ratings.lengths["right"] == length
        means = [
            many_ratings.modalities[name][rows, :, 0].sum(axis=1, dtype=np.float64)
            for name in ("left", "right")
        ]
        inputs, truths = np.stack(means, axis=1), many_ratings.labels[rows].astype(np.float64)
        weights = np.linalg.lstsq(inputs, truths, rcond=None)[0]
        errors.append(np.abs(inputs @ weights - truths))
    mae = np.concatenate(errors).mean()
    assert mae == pytest.approx(synthetic.best_mae(), abs=0.005)


def test_best_results_without_the_right_modality(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare with a manual calculation: only the six tokens on the left exist."""
    assert sum(synthetic.length_odds().values()) == pytest.approx(1.0)
    monkeypatch.setattr(synthetic, "MISSING", 1.0)
    expected = [0.98625683, 0.76878364, 0.83640656]  # Phi of 0.9, 0.3 and 0.4 times sqrt(6)
    assert synthetic.best_tag_accuracies() == pytest.approx(expected, abs=1e-8)
    variance = 1 / (1 + 6 * 1.5**2) + 1  # of u, observed six times, and of v, never observed
    assert synthetic.best_mae() == pytest.approx(math.sqrt(2 / math.pi * (variance + 0.25)))
    assert synthetic.best_pearson() == pytest.approx(math.sqrt((2 - variance) / 2.25))
    assert f"{synthetic.best_mae():.4f}" in synthetic.rating_spec().description
    assert synthetic.rating_spec().best_accuracy is None


def test_lengths_have_the_stated_probabilities(many_tags: Split, many_ratings: Split) -> None:
    """Compare counts of 0 to 8 tokens within four standard deviations; padding must be zero."""
    for split in (many_tags, many_ratings):
        counts = np.bincount(split.lengths["right"], minlength=9)
        for length, odds in synthetic.length_odds().items():
            deviation = math.sqrt(len(split) * odds * (1 - odds))
            assert counts[length] == pytest.approx(len(split) * odds, abs=4 * deviation)
        padding = split.modalities["right"] * (1 - valid_tokens(split, "right"))
        assert not padding.any()
        assert list(split.lengths) == ["right"]


@pytest.mark.parametrize("name", ["tags", "rating"])
def test_shipped_splits_are_near_the_best(name: str) -> None:
    load = {"tags": synthetic.load_tags, "rating": synthetic.load_rating}[name]
    for split in load().values():
        if name == "tags":
            right = (bayes_log_odds(split) >= 0) == split.labels
            best = synthetic.tags_spec().best_accuracy
            assert right.mean() == pytest.approx(best, abs=3 * math.sqrt(0.05 / len(split)))
        else:
            mae = np.abs(bayes_ratings(split) - split.labels).mean()
            assert mae == pytest.approx(synthetic.best_mae(), abs=3 * 0.45 / math.sqrt(len(split)))


@pytest.mark.parametrize(
    ("load", "expected"),
    [(synthetic.load_tags, "8b2b8a2048dd8240"), (synthetic.load_rating, "ca690ce9a5460d14")],
)
def test_variable_samples_are_the_same_on_every_machine(load: Any, expected: str) -> None:
    digest = hashlib.sha256()
    for split in load().values():
        for array in (split.labels, *split.lengths.values(), *split.modalities.values()):
            digest.update(array.round(3).tobytes())
    assert digest.hexdigest()[:16] == expected


def test_fingerprints_of_variable_datasets_follow_their_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs = (synthetic.spec, synthetic.tags_spec, synthetic.rating_spec)
    before = [spec().fingerprint for spec in specs]
    assert len(set(before)) == 3
    monkeypatch.setattr(synthetic, "MISSING", 0.2)
    after = [spec().fingerprint for spec in specs]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]
    monkeypatch.setattr(synthetic, "RATING_NOISE", 1.0)
    assert synthetic.tags_spec().fingerprint == after[1]
    assert synthetic.rating_spec().fingerprint != after[2]
