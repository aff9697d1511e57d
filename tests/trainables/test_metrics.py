"""Test metrics against slow definitions and in edge cases. Shapes: N samples, C outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.readers import mosei
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.evaluation import evaluate
from sftsearch.trainables.fit import Fit
from sftsearch.trainables.metrics import (
    METRICS,
    are_degrees,
    metrics_of_dataset,
    num_absent_classes,
    score,
)

from shapes import dataset_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def average_precision(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the mean precision at the rank of each positive sample."""
    order = sorted(range(len(scores)), key=lambda sample: -scores[sample])
    ranked = [positive[sample] for sample in order]
    precisions = [sum(ranked[: rank + 1]) / (rank + 1) for rank in range(len(ranked))]
    return sum(p for p, hit in zip(precisions, ranked, strict=True) if hit) / sum(ranked)


def f1(guesses: Sequence[bool], truths: Sequence[bool]) -> float:
    """Return the harmonic mean of precision and recall; 0 without a hit."""
    hits = sum(g and t for g, t in zip(guesses, truths, strict=True))
    if hits == 0:
        return 0.0
    precision, recall = hits / sum(guesses), hits / sum(truths)
    return 2 * precision * recall / (precision + recall)


def reference(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    rows = [[float(value) for value in row] for row in logits]
    present = sorted(set(labels.tolist()))
    ranks = [sum(v > row[y] for v in row) for row, y in zip(rows, labels, strict=True)]
    guesses = [row.index(max(row)) for row in rows]
    precisions = [
        average_precision([row[c] for row in rows], [y == c for y in labels]) for c in present
    ]
    recalls = [
        np.mean([rank == 0 for rank, y in zip(ranks, labels, strict=True) if y == c])
        for c in present
    ]
    f1s = [f1([g == c for g in guesses], [y == c for y in labels]) for c in present]
    return {
        "top1": float(np.mean([rank < 1 for rank in ranks])),
        "top5": float(np.mean([rank < 5 for rank in ranks])),
        "map": float(np.mean(precisions)),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(np.mean(f1s)),
    }


# Classification


@pytest.mark.parametrize(("num_classes", "num_samples"), [(5, 40), (6, 40), (30, 25), (100, 200)])
def test_metrics_match_their_definitions(num_classes: int, num_samples: int) -> None:
    """With 30 classes and 25 samples at least five classes are absent."""
    random = np.random.default_rng(num_classes)
    labels_N = random.integers(0, num_classes, num_samples)
    logits_NC = random.normal(size=(num_samples, num_classes)).astype(np.float32)
    logits_NC[np.arange(num_samples), labels_N] += 1
    expected = reference(logits_NC.astype(np.float64), labels_N)
    if num_classes <= 5:
        del expected["top5"]
    metrics = score("classification", logits_NC, labels_N)
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert [name for name in METRICS["classification"] if name in metrics] == list(metrics)
    absent = num_classes - len(set(labels_N.tolist()))
    assert num_absent_classes("classification", labels_N, num_classes) == absent


def test_perfect_model_scores_one_though_a_class_is_absent() -> None:
    labels_N = np.array([0, 1, 1, 3])
    logits_NC = np.eye(6, dtype=np.float32)[labels_N]
    names = metrics_of_dataset(dataset_spec(6, only=(1, 1)))
    assert score("classification", logits_NC, labels_N) == dict.fromkeys(names, 1.0)
    assert num_absent_classes("classification", labels_N, 6) == 3


def test_balanced_accuracy_weights_classes_equally() -> None:
    """Always predicting the first class is right 9 of 10 times, with recalls of 1 and 0."""
    logits_NC = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (10, 1))
    labels_N = np.array([0] * 9 + [1])
    metrics = score("classification", logits_NC, labels_N)
    assert metrics["top1"] == 0.9
    assert metrics["balanced_accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx(9 / 19)  # half of 2 * 0.9 * 1 / (0.9 + 1)
    assert metrics["map"] == pytest.approx((0.9 + 0.1) / 2)  # all scores equal: base rates
    assert "top5" not in metrics


def test_predicting_an_absent_class_is_only_one_error() -> None:
    logits_NC = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]], dtype=np.float32)
    metrics = score("classification", logits_NC, np.array([1, 1]))
    assert metrics["top1"] == 0.5
    assert metrics["balanced_accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx(2 / 3)  # precision 1, recall 1/2


DEGREES = ("-3", "-2", "-1", "0", "+1", "+2", "+3")


def test_the_sign_of_seven_degrees_is_scored_as_in_the_sft_code() -> None:
    """Class 3 is neutral: left out as a label, positive as a prediction.

    Left are six samples, of which three are positive and four predicted so, two rightly; the F1 are
    2 x 2 / (3 + 4) and 2 x 1 / (3 + 2), weighted by the four and two predictions.
    """
    labels_N = np.array([6, 4, 3, 0, 2, 5, 1])
    guesses_N = np.array([3, 2, 0, 1, 3, 6, 4])
    logits_NC = np.eye(7, dtype=np.float32)[guesses_N]
    metrics = score("classification", logits_NC, labels_N, DEGREES)
    assert metrics["acc2_sft"] == 3 / 6
    assert metrics["f1_sft"] == pytest.approx((4 * 4 / 7 + 2 * 2 / 5) / 6)
    neutral = score("classification", logits_NC[:1], np.array([3]), DEGREES)
    assert (neutral["acc2_sft"], neutral["f1_sft"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (mosei.CLASSES, True),
        (DEGREES, True),
        (("-3", "-2", "-1", "0", "1", "2", "3"), True),
        (tuple(reversed(DEGREES)), False),
        (DEGREES[1:], False),
        (tuple("abcdefg"), False),
        ((), False),
    ],
)
def test_only_class_names_say_that_classes_are_degrees(
    classes: tuple[str, ...], expected: bool
) -> None:
    assert are_degrees(classes) == expected
    metrics = score("classification", np.eye(7, dtype=np.float32), np.arange(7), classes)
    assert {"acc2_sft", "f1_sft"} <= set(metrics) if expected else "acc2_sft" not in metrics


@pytest.mark.medium
def test_trials_on_degrees_have_their_metrics(tmp_path: Path) -> None:
    store = open_dataset("synthetic", cache=tmp_path)  # four classes, here the first of seven
    counts = {split: (*found, 0, 0, 0) for split, found in store.class_counts.items()}
    degrees = replace(store, spec=replace(store.spec, classes=DEGREES), class_counts=counts)
    config = MODELS["late_fusion"].config(dim=8, num_heads=2, num_layers=1)
    for opened in (store, degrees):
        model = build_model("late_fusion", opened.spec, config, seed=0)
        fit = Fit(model, opened, TrainConfig(epochs=1), seed=0)
        fit.run_epoch()
        evaluated = evaluate(model, opened, opened.split("validation")).metrics
        for metrics in (fit.result(), evaluated):
            assert ("acc2_sft" in metrics, "f1_sft" in metrics) == (opened is degrees,) * 2


def test_metrics_of_a_dataset_are_those_that_are_scored() -> None:
    for num_classes in (5, 6, 7):
        for classes in ((), DEGREES if num_classes == 7 else ()):
            spec = dataset_spec(num_classes, only=(1, 1))
            spec = replace(spec, classes=classes or spec.classes)
            scored = score(
                "classification",
                np.eye(num_classes, dtype=np.float32),
                np.arange(num_classes),
                spec.classes,
            )
            assert metrics_of_dataset(spec) == tuple(scored)
    assert metrics_of_dataset(replace(spec, task="regression", classes=())) == METRICS["regression"]


# Multi-label


@pytest.mark.parametrize(("num_labels", "num_samples"), [(1, 30), (4, 50), (23, 40)])
def test_multilabel_metrics_match_their_definitions(num_labels: int, num_samples: int) -> None:
    random = np.random.default_rng(num_labels)
    labels_NC = (random.random((num_samples, num_labels)) < 0.2).astype(np.float32)
    labels_NC[0, 0], labels_NC[:, 3:4] = 1, 0  # where there is a fourth label, it is absent
    logits_NC = (random.normal(size=labels_NC.shape) + 2 * labels_NC - 1).astype(np.float32)
    present = [c for c in range(num_labels) if labels_NC[:, c].any()]
    guesses = (logits_NC >= 0).tolist()
    columns = list(zip(logits_NC.T.tolist(), labels_NC.T.astype(bool).tolist(), strict=True))
    expected = {
        "map": np.mean([average_precision(*columns[c]) for c in present]),
        "micro_f1": f1((logits_NC >= 0).ravel().tolist(), labels_NC.astype(bool).ravel().tolist()),
        "macro_f1": np.mean([f1([g[c] for g in guesses], columns[c][1]) for c in present]),
    }
    metrics = score("multilabel", logits_NC, labels_NC)
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert tuple(metrics) == METRICS["multilabel"]
    absent = num_labels - len(present)
    assert num_absent_classes("multilabel", labels_NC, num_labels) == absent


def test_multilabel_metrics_match_a_hand_computed_example() -> None:
    """True positives 2 and 0, false 0 and 1, misses 1 and 1: F1 of 4/5 and 0; micro F1 4/7."""
    labels_NC = np.array([[1, 0], [1, 1], [1, 0]], dtype=np.float32)
    logits_NC = np.array([[0.0, 1.0], [2.0, -1.0], [-1.0, -2.0]], dtype=np.float32)
    metrics = score("multilabel", logits_NC, labels_NC)
    assert metrics["micro_f1"] == pytest.approx(4 / 7)
    assert metrics["macro_f1"] == pytest.approx(4 / 5 / 2)
    assert metrics["map"] == pytest.approx((1 + 1 / 2) / 2)


def test_multilabel_without_a_positive_is_zero() -> None:
    labels_NC = np.zeros((3, 2), dtype=np.float32)
    for logits_NC in (np.ones((3, 2), np.float32), -np.ones((3, 2), np.float32)):
        metrics = score("multilabel", logits_NC, labels_NC)
        assert metrics == {"map": 0.0, "micro_f1": 0.0, "macro_f1": 0.0}
    assert num_absent_classes("multilabel", labels_NC, 2) == 2


# Regression


def weighted_f1(guesses: list[bool], truths: list[bool]) -> float:
    """Return the F1 of both classes, each weighted by its share of the truths."""
    share = sum(truths) / len(truths)
    negative = f1([not g for g in guesses], [not t for t in truths])
    return share * f1(guesses, truths) + (1 - share) * negative


def test_regression_metrics_match_their_definitions() -> None:
    random = np.random.default_rng(0)
    labels_N = (random.integers(-9, 10, 200) / 3).astype(np.float32)
    outputs_N1 = (0.8 * labels_N + random.normal(size=200)).astype(np.float32)[:, None]
    truths, guesses = labels_N.tolist(), outputs_N1[:, 0].tolist()
    pairs = list(zip(guesses, truths, strict=True))
    signed = [(g, t) for g, t in pairs if t != 0]
    assert 0 < len(signed) < len(pairs)
    positive = [g > 0 for g, _ in signed], [t > 0 for _, t in signed]
    mean_g, mean_t = np.mean(guesses), np.mean(truths)
    covariance = np.mean([(g - mean_g) * (t - mean_t) for g, t in pairs])
    metrics = score("regression", outputs_N1, labels_N)
    assert tuple(metrics) == METRICS["regression"]
    assert metrics == pytest.approx(
        {
            "mae": np.mean([abs(g - t) for g, t in pairs]),
            "pearson": covariance / np.std(guesses) / np.std(truths),
            "acc2": np.mean([(g >= 0) == (t >= 0) for g, t in pairs]),
            "acc2_nonzero": np.mean([(g > 0) == (t > 0) for g, t in signed]),
            "acc2_msaf": np.mean([(g > 0) == (t > 0) for g, t in signed]),  # no prediction is 0
            "f1": weighted_f1([g >= 0 for g in guesses], [t >= 0 for t in truths]),
            "f1_nonzero": weighted_f1(*positive),
            "f1_mult": weighted_f1(positive[1], positive[0]),
            "f1_msaf": weighted_f1(*positive),
            "acc5": np.mean(
                [round(max(-2, min(2, g))) == round(max(-2, min(2, t))) for g, t in pairs]
            ),
            "acc7": np.mean([round(max(-3, min(3, g))) == round(t) for g, t in pairs]),
        },
        abs=1e-12,
    )
    assert num_absent_classes("regression", labels_N, 1) == 0


def test_the_two_conventions_of_zero_differ() -> None:
    """A neutral label is positive in `acc2`, and `acc2_nonzero` leaves it out."""
    labels_N = np.array([0.0, 0.0, 1.0, -1.0], dtype=np.float32)
    outputs_N1 = np.array([[-0.1], [0.0], [0.0], [0.0]], dtype=np.float32)
    metrics = score("regression", outputs_N1, labels_N)
    assert metrics["acc2"] == 2 / 4  # right: 0 and 0, 1 and 0
    assert metrics["acc2_nonzero"] == 1 / 2  # right: -1 and 0, as 0 is not above 0
    assert metrics["f1"] == pytest.approx(3 / 4 * 2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert metrics["f1_nonzero"] == pytest.approx(1 / 2 * 2 * (1 / 2) / (3 / 2))


def test_a_prediction_of_zero_has_no_sign_for_msaf() -> None:
    """Its accuracy leaves such samples out; its F1 counts them as misses of their class.

    Of two negative labels one is found, and one more is predicted wrongly: F1 = 1/2. Of four
    positive ones two are found: F1 = 2/3. The weights are the numbers of labels.
    """
    labels_N = np.array([1, -1, 2, -2, 0, 1, 3], dtype=np.float32)
    outputs_N1 = np.array([[0.5], [0.0], [0.0], [-1], [3], [-0.2], [1]], dtype=np.float32)
    metrics = score("regression", outputs_N1, labels_N)
    assert metrics["acc2_msaf"] == 3 / 4
    assert metrics["acc2_nonzero"] == 4 / 6  # here 0 is not positive: right for -1, wrong for 2
    assert metrics["f1_msaf"] == pytest.approx((2 * 1 / 2 + 4 * 2 / 3) / 6)


def test_predictions_weight_the_f1_of_mult() -> None:
    """F1 of 2/3 with two labels and one prediction, and 6/7 with three and four."""
    labels_N = np.array([1, 1, -1, -1, -1, 0], dtype=np.float32)
    outputs_N1 = np.array([[1], [-1], [-1], [-1], [-1], [2]], dtype=np.float32)
    metrics = score("regression", outputs_N1, labels_N)
    assert metrics["f1_mult"] == pytest.approx((1 * 2 / 3 + 4 * 6 / 7) / 5)
    assert metrics["f1_nonzero"] == pytest.approx((2 * 2 / 3 + 3 * 6 / 7) / 5)


def test_five_degrees_end_at_two() -> None:
    outputs_N1 = np.array([[2.5], [-2.6], [1.5], [0.5], [3.0]], dtype=np.float32)
    metrics = score("regression", outputs_N1, np.array([3, -2, 2, 0, 1], dtype=np.float32))
    assert metrics["acc5"] == 4 / 5
    assert metrics["acc7"] == 2 / 5  # 1.5 is a 2 and 0.5 a 0


def test_seven_degrees_round_halves_to_even_and_end_at_three() -> None:
    outputs_N1 = np.array([[0.5], [1.5], [2.5], [-0.5], [-2.5], [9.0], [-3.6]], dtype=np.float32)
    degrees_N = np.array([0, 2, 2, 0, -2, 3, -3], dtype=np.float32)
    assert score("regression", outputs_N1, degrees_N)["acc7"] == 1.0
    assert score("regression", degrees_N[:, None], outputs_N1[:, 0])["acc7"] == 1.0
    assert score("regression", outputs_N1, degrees_N + 0.51)["acc7"] == 1 / 7  # 3.51 is a 3 too


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.0, 1e30])
def test_pearson_of_a_constant_is_zero(constant: float) -> None:
    labels_N = np.array([0.1, 0.2, -0.4], dtype=np.float32)
    constant_N = np.full(3, constant, dtype=np.float32)
    assert score("regression", constant_N[:, None], labels_N)["pearson"] == 0.0
    assert score("regression", labels_N[:, None], constant_N)["pearson"] == 0.0


def test_nonzero_metrics_are_zero_if_all_labels_are_neutral() -> None:
    metrics = score("regression", np.ones((2, 1), np.float32), np.zeros(2, np.float32))
    assert metrics["acc2"] == 1.0
    for name in ("acc2_nonzero", "acc2_msaf", "f1_nonzero", "f1_mult", "f1_msaf"):
        assert metrics[name] == 0.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e30])
def test_pearson_of_a_line_is_one(scale: float) -> None:
    labels_N = np.linspace(-3, 3, 50, dtype=np.float32)
    for sign in (1, -1):
        outputs_N1 = (sign * scale * labels_N)[:, None].astype(np.float32)
        pearson = score("regression", outputs_N1, labels_N)["pearson"]
        assert pearson == pytest.approx(sign, abs=1e-12)
        assert abs(pearson) <= 1.0
