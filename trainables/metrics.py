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
    from collections.abc import Callable, Collection

    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec, Task

TOP_K = 5

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": (
        "top1", "top5", "map", "balanced_accuracy", "macro_f1", "acc2_sft", "f1_sft",
    ),
    "multilabel": ("map", "micro_f1", "macro_f1"),
    "regression": (
        "mae", "pearson", "acc2", "acc2_nonzero", "acc2_msaf", "f1", "f1_nonzero", "f1_mult",
        "f1_msaf", "acc5", "acc7",
    ),
}  # fmt: skip
"""The metrics of each task; see `metrics_of_dataset` for those that some datasets lack."""

DEGREES = ("-3", "-2", "-1", "0", "1", "2", "3")
"""Class names of a sentiment in seven degrees; a plus sign in front is allowed."""
NEUTRAL = DEGREES.index("0")


def metrics_of_dataset(spec: DatasetSpec) -> tuple[str, ...]:
    """Return the metrics that `score` returns for a dataset.

    `top5` needs more than five classes, and `acc2_sft` and `f1_sft` classes that are `DEGREES`.
    """
    absent: Collection[str] = ()
    if spec.task == "classification":
        absent = [
            *(["top5"] if len(spec.classes) <= TOP_K else []),
            *([] if are_degrees(spec.classes) else ["acc2_sft", "f1_sft"]),
        ]
    return tuple(name for name in METRICS[spec.task] if name not in absent)


def are_degrees(classes: Collection[str]) -> bool:
    """Return whether the classes are the seven degrees from -3 to 3, in this order."""
    return tuple(name.removeprefix("+") for name in classes) == DEGREES


def score(
    task: Task,
    outputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32],
    classes: Collection[str] = (),
) -> dict[str, float]:
    """Compute the metrics of a split: fractions from 0 to 1, except `mae` and `pearson`.

    Args:
        task: the task.
        outputs: (N, C), finite: logits, or predictions (N, 1) for regression.
        labels: classes (N,) in [0, C), or 0 and 1 (N, C), or numbers (N,), as in a `Split`.
        classes: names of the classes; if they are `DEGREES`, the sign is scored, too.
    """
    metrics = _SCORES[task](outputs, labels)
    if task == "classification" and are_degrees(classes):
        metrics |= _score_degrees(outputs, labels)
    return metrics


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


def _score_degrees(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
) -> dict[str, float]:
    """Score the sign of seven degrees as the SFT authors' code does.

    Neutral labels are left out, and a neutral prediction counts as positive. The code passes
    predictions for labels to F1, so the classes are weighted by their numbers of predictions.
    """
    signed = labels != NEUTRAL
    guesses, truths = logits.argmax(axis=1)[signed] >= NEUTRAL, labels[signed] > NEUTRAL
    accuracy, _ = _score_signs(guesses, truths)
    _, f1 = _score_signs(truths, guesses)
    return {"acc2_sft": accuracy, "f1_sft": f1}


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
    """Score a regression; acc2 and f1 use the sign, as the papers that docs/metrics.md names."""
    predictions_N, truths_N = outputs[:, 0].astype(np.float64), labels.astype(np.float64)
    signed = truths_N != 0
    positive, truly_positive = predictions_N[signed] > 0, truths_N[signed] > 0
    acc2, f1 = _score_signs(predictions_N >= 0, truths_N >= 0)
    acc2_nonzero, f1_nonzero = _score_signs(positive, truly_positive)
    # MulT's code passes predictions for labels to F1, so predictions weight the two classes.
    _, f1_mult = _score_signs(truly_positive, positive)
    decided = predictions_N[signed] != 0
    acc2_msaf, _ = _score_signs(positive[decided], truly_positive[decided])
    return {
        "mae": float(np.abs(predictions_N - truths_N).mean()),
        "pearson": _pearson(predictions_N, truths_N),
        "acc2": acc2,
        "acc2_nonzero": acc2_nonzero,
        "acc2_msaf": acc2_msaf,
        "f1": f1,
        "f1_nonzero": f1_nonzero,
        "f1_mult": f1_mult,
        "f1_msaf": _f1_of_signs(np.sign(predictions_N[signed]), np.sign(truths_N[signed])),
        "acc5": _agreement(predictions_N, truths_N, most=2.0),
        "acc7": _agreement(predictions_N, truths_N, most=3.0),
    }


def _score_signs(
    guesses: npt.NDArray[np.bool_], truths: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Return accuracy and weighted F1 of two classes; 0 without samples."""
    if not len(truths):
        return 0.0, 0.0
    f1 = f1_score(truths, guesses, average="weighted", zero_division=0.0)
    return float(accuracy_score(truths, guesses)), float(f1)


def _f1_of_signs(guesses: npt.NDArray[np.float64], truths: npt.NDArray[np.float64]) -> float:
    """Return the weighted F1 of -1 and 1; a predicted 0 misses its class; 0 without samples."""
    if not len(truths):
        return 0.0
    signs = {"labels": [-1.0, 1.0], "average": "weighted", "zero_division": 0.0}
    return float(f1_score(truths, guesses, **signs))


def _pearson(x_N: npt.NDArray[np.float64], y_N: npt.NDArray[np.float64]) -> float:
    """Return the correlation of two series; 0 if one is constant."""
    if not (np.ptp(x_N) and np.ptp(y_N)):
        return 0.0
    return float(np.clip(np.corrcoef(x_N, y_N)[0, 1], -1.0, 1.0))


def _agreement(x_N: npt.NDArray[np.float64], y_N: npt.NDArray[np.float64], *, most: float) -> float:
    """Return the share that is equal after rounding, halves to even, and clipping to +-most."""
    return float((np.rint(x_N).clip(-most, most) == np.rint(y_N).clip(-most, most)).mean())


_SCORES: dict[Task, Callable[..., dict[str, float]]] = {
    "classification": _score_classes,
    "multilabel": _score_labels,
    "regression": _score_numbers,
}
