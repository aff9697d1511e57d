"""The tunable synthetic dataset: best accuracies and the effect of pooling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.readers.synthetic_tunable import best_accuracy, open_source
from sftsearch.datasets.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.datasets.source import Source


def bayes_accuracy(
    source: Source, kind: str, *, alternating: bool = False, stride: int = 1
) -> float:
    """Return the accuracy of the best predictions from tokens averaged over `stride`.

    Every informative number adds its value times its amplitude to the log-odds of a bit; amplitudes
    within a modality are equal, so the signs of sums decide. For c both modalities have equal ones.
    """
    num_correct = 0
    for sample in source.samples:
        signs = {}
        common = 0.0
        for name, x in sample.read().items():
            assert x is not None
            x_TF = x.astype(np.float64)
            if stride > 1:
                x_TF = x_TF.reshape(-1, stride, 3).mean(axis=1)
                weights = x_TF[:, 2] * stride
            else:
                weights = x_TF[:, 2] * ((-1.0) ** np.arange(len(x)) if alternating else 1.0)
            signs[name] = int((weights * x_TF[:, 0]).sum() > 0)
            common += (weights * x_TF[:, 1]).sum()
        c = int(common > 0)
        left, other = signs["left"], signs["right"]
        prediction = {"synergy": 2 * (left ^ other) + c, "unique": 2 * left + other, "redundant": c}
        num_correct += prediction[kind] == sample.label
    return num_correct / len(source.samples)


OPTIONS = {"left": 120, "right": 80, "shared": 70, "samples": 6000}


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["synergy", "unique", "redundant"])
@pytest.mark.parametrize(
    ("telling", "pattern"), [(8, "constant"), (1, "constant"), (8, "alternating")]
)
def test_best_accuracy_equals_that_of_the_best_predictions(
    kind: str, telling: int, pattern: str
) -> None:
    source = open_source(kind=kind, tokens=8, telling=telling, pattern=pattern, **OPTIONS)
    best = source.best_accuracy
    assert best is not None
    assert best == best_accuracy(kind, {"left": 1.2, "right": 0.8, "shared": 0.7})
    found = bayes_accuracy(source, kind, alternating=pattern == "alternating")
    assert found == pytest.approx(best, abs=4 * math.sqrt(best * (1 - best) / 6000))


@pytest.mark.medium
def test_pooling_loses_single_and_alternating_tokens_only() -> None:
    def reached(stride: int, **options: Any) -> float:
        source = open_source(kind="redundant", tokens=16, shared=175, samples=1500, **options)
        return bayes_accuracy(source, "redundant", stride=stride)

    assert reached(8, telling=16) == pytest.approx(reached(1, telling=16), abs=0.01)
    # One of 8 tokens is informative: the standard deviation of the sum grows by the root of 8.
    single_token = 0.5 * (1 + math.erf(1.75 / math.sqrt(8)))
    assert reached(8, telling=1) == pytest.approx(single_token, abs=0.03)
    assert reached(2, telling=16, pattern="alternating") == pytest.approx(0.5, abs=0.05)


def test_the_dataset_is_prepared_without_files(tmp_path: Path) -> None:
    source = open_source(samples=150)
    store = open_store(prepare("mine", source, tmp_path / "mine").path)
    assert store.spec.num_samples == {"train": 80, "validation": 20, "test": 50}
    assert store.spec.best_accuracy == source.best_accuracy
    again = open_store(prepare("mine", open_source(samples=150), tmp_path / "again").path)
    assert again.spec.fingerprint == store.spec.fingerprint
    other = open_store(prepare("mine", open_source(samples=150, seed=1), tmp_path / "o").path)
    assert other.spec.fingerprint != store.spec.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, "`kind` must be synergy, unique, redundant"),
        ({"pattern": "spiral"}, "`pattern` constant or alternating"),
        ({"left": -1}, "must be 0 to 10000 hundredths"),
        ({"telling": 17}, "`telling` must be 1 to `tokens`"),
        ({"telling": 0}, "`telling` must be 1 to `tokens`"),
        ({"samples": 10}, "`samples` must be 60 to"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_source(**options)
