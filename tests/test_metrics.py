"""Metrics against slow definitions in float64, and at their edges. Shapes: N samples, C classes."""

from __future__ import annotations

import numpy as np
import pytest

from sftsearch.trainables.metrics import num_absent_classes, score


def average_precision(scores: list[float], positive: list[bool]) -> float:
    """Return the mean over the positive samples of the precision at their place."""
    order = sorted(range(len(scores)), key=lambda sample: -scores[sample])
    ranked = [positive[sample] for sample in order]
    precisions = [sum(ranked[: place + 1]) / (place + 1) for place in range(len(ranked))]
    return sum(p for p, hit in zip(precisions, ranked, strict=True) if hit) / sum(ranked)


def reference(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    rows = [[float(value) for value in row] for row in logits]
    present = sorted(set(labels.tolist()))
    ranks = [sum(v > row[y] for v in row) for row, y in zip(rows, labels, strict=True)]
    precisions = [
        average_precision([row[c] for row in rows], [y == c for y in labels]) for c in present
    ]
    recalls = [
        np.mean([rank == 0 for rank, y in zip(ranks, labels, strict=True) if y == c])
        for c in present
    ]
    return {
        "top1": float(np.mean([rank < 1 for rank in ranks])),
        "top5": float(np.mean([rank < 5 for rank in ranks])),
        "map": float(np.mean(precisions)),
        "balanced_accuracy": float(np.mean(recalls)),
    }


@pytest.mark.parametrize(("num_classes", "num_samples"), [(5, 40), (6, 40), (30, 25), (100, 200)])
def test_metrics_are_their_definitions(num_classes: int, num_samples: int) -> None:
    """With 30 classes and 25 samples at least five classes are absent."""
    random = np.random.default_rng(num_classes)
    labels_N = random.integers(0, num_classes, num_samples)
    logits_NC = random.normal(size=(num_samples, num_classes)).astype(np.float32)
    logits_NC[np.arange(num_samples), labels_N] += 1
    expected = reference(logits_NC.astype(np.float64), labels_N)
    if num_classes <= 5:
        del expected["top5"]
    assert score(logits_NC, labels_N) == pytest.approx(expected, abs=1e-12)
    assert num_absent_classes(labels_N, num_classes) == num_classes - len(set(labels_N.tolist()))


def test_a_perfect_model_has_one_everywhere_though_a_class_is_absent() -> None:
    labels_N = np.array([0, 1, 1, 3])
    logits_NC = np.eye(6, dtype=np.float32)[labels_N]
    metrics = {"top1": 1.0, "top5": 1.0, "map": 1.0, "balanced_accuracy": 1.0}
    assert score(logits_NC, labels_N) == metrics
    assert num_absent_classes(labels_N, 6) == 3


def test_balanced_accuracy_weighs_classes_alike() -> None:
    """Always the first class: 9 of 10 right, but recalls of 1 and 0."""
    logits_NC = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (10, 1))
    labels_N = np.array([0] * 9 + [1])
    metrics = score(logits_NC, labels_N)
    assert metrics["top1"] == 0.9
    assert metrics["balanced_accuracy"] == 0.5
    assert metrics["map"] == pytest.approx((0.9 + 0.1) / 2)  # all scores equal: base rates
    assert "top5" not in metrics


def test_a_guess_of_an_absent_class_is_wrong_and_nothing_else() -> None:
    logits_NC = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]], dtype=np.float32)
    metrics = score(logits_NC, np.array([1, 1]))
    assert metrics["top1"] == 0.5
    assert metrics["balanced_accuracy"] == 0.5
