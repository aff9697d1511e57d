"""Compute the metrics of each task. Shapes: N samples, C outputs per sample.

`docs/metrics.md` has the definitions and their sources; scikit-learn computes the metrics that it
has. Means over classes (or labels) leave out those without samples, which scikit-learn would count
as 0: see `num_absent_classes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    recall_score,
    top_k_accuracy_score,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from sftsearch.datasets.spec import Task

TOP_K = 5

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("top1", "top5", "map", "balanced_accuracy", "macro_f1"),
    "multilabel": ("map", "micro_f1", "macro_f1"),
    "regression": ("mae", "pearson", "acc2", "acc2_nonzero", "f1", "f1_nonzero", "acc7"),
}
"""The metrics that `score` returns; `top5` only with more than five classes."""


def score(
    task: Task,
    outputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32],
) -> dict[str, float]:
    """Compute the metrics of a split: fractions from 0 to 1, except `mae` and `pearson`.

    Args:
        task: the task.
        outputs: (N, C), finite: logits, or predictions (N, 1) for regression.
        labels: classes (N,) in [0, C), or 0 and 1 (N, C), or numbers (N,), as in a `Split`.
    """
    return _SCORES[task](outputs, labels)


def num_absent_classes(
    task: Task, labels: npt.NDArray[np.int64] | npt.NDArray[np.float32], num_outputs: int
) -> int:
    """Return the number of classes (or labels) without samples, which `score` leaves out."""
    if task == "regression":
        return 0
    present = np.unique(labels) if task == "classification" else np.flatnonzero(labels.any(axis=0))
    return num_outputs - len(present)


def _score_classes(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Score a classification; among equal logits the first class is predicted."""
    present = np.unique(labels)
    guesses = logits.argmax(axis=1)
    metrics = {"top1": float(accuracy_score(labels, guesses))}
    if logits.shape[1] > TOP_K:
        classes = np.arange(logits.shape[1])
        # There are at least six classes: for two, scikit-learn would expect one column.
        metrics["top5"] = float(top_k_accuracy_score(labels, logits, k=TOP_K, labels=classes))
    precisions = [average_precision_score(labels == c, logits[:, c]) for c in present]
    metrics["map"] = float(np.mean(precisions))
    means = {"labels": present, "average": "macro", "zero_division": 0.0}
    metrics["balanced_accuracy"] = float(recall_score(labels, guesses, **means))
    metrics["macro_f1"] = float(f1_score(labels, guesses, **means))
    return metrics


def _score_labels(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Score a multi-label task; a label is predicted if its logit is at least 0 (sigmoid 0.5)."""
    truths, guesses = labels > 0, logits >= 0
    present = np.flatnonzero(truths.any(axis=0))
    precisions = [average_precision_score(truths[:, c], logits[:, c]) for c in present]
    # Column by column: scikit-learn would read a single label as a binary classification.
    f1s = [f1_score(truths[:, c], guesses[:, c]) for c in present]
    return {
        "map": float(np.mean(precisions)) if precisions else 0.0,
        "micro_f1": float(f1_score(truths.ravel(), guesses.ravel(), zero_division=0.0)),
        "macro_f1": float(np.mean(f1s)) if f1s else 0.0,
    }


def _score_numbers(
    outputs: npt.NDArray[np.floating], labels: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Score a regression; acc2 and f1 use the sign, with and without neutral labels."""
    predictions_N, truths_N = outputs[:, 0].astype(np.float64), labels.astype(np.float64)
    signed = truths_N != 0
    acc2, f1 = _score_signs(predictions_N >= 0, truths_N >= 0)
    acc2_nonzero, f1_nonzero = _score_signs(predictions_N[signed] > 0, truths_N[signed] > 0)
    return {
        "mae": float(np.abs(predictions_N - truths_N).mean()),
        "pearson": _pearson(predictions_N, truths_N),
        "acc2": acc2,
        "acc2_nonzero": acc2_nonzero,
        "f1": f1,
        "f1_nonzero": f1_nonzero,
        "acc7": float((_seventh(predictions_N) == _seventh(truths_N)).mean()),
    }


def _score_signs(
    guesses: npt.NDArray[np.bool_], truths: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Return accuracy and weighted F1 of two classes; 0 without samples."""
    if not len(truths):
        return 0.0, 0.0
    f1 = f1_score(truths, guesses, average="weighted", zero_division=0.0)
    return float(accuracy_score(truths, guesses)), float(f1)


def _pearson(x_N: npt.NDArray[np.float64], y_N: npt.NDArray[np.float64]) -> float:
    """Return the correlation of two series; 0 if one is constant."""
    if not (np.ptp(x_N) and np.ptp(y_N)):
        return 0.0
    return float(np.clip(np.corrcoef(x_N, y_N)[0, 1], -1.0, 1.0))


def _seventh(y_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to the seven degrees from -3 to 3, halves to even."""
    return np.rint(y_N).clip(-3.0, 3.0)


_SCORES: dict[Task, Callable[..., dict[str, float]]] = {
    "classification": _score_classes,
    "multilabel": _score_labels,
    "regression": _score_numbers,
}
