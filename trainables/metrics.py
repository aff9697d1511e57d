"""What a model's logits are worth. Shapes: N samples, C classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    recall_score,
    top_k_accuracy_score,
)

if TYPE_CHECKING:
    import numpy.typing as npt

TOP_K = 5


def score(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of a split, fractions from 0 to 1.

    - `top1`: right guesses; of equal logits the first class is the guess.
    - `top5`: labels among the five largest logits; only with more than five classes.
    - `map`: mean over the classes present of the average precision of ranking all samples by the
      logit of the class, as it is (SFT paper's code). scikit-learn would count a class without
      samples as 0: it is left out here, see `num_absent_classes`.
    - `balanced_accuracy`: mean recall of the classes present.

    Args:
        logits: (N, C), finite.
        labels: (N,), in [0, C).
    """
    num_classes = logits.shape[1]
    present = np.unique(labels)
    guesses = logits.argmax(axis=1)
    metrics = {"top1": float(accuracy_score(labels, guesses))}
    if num_classes > TOP_K:
        classes = np.arange(num_classes)
        # With two classes scikit-learn wants one column; here there are at least six.
        metrics["top5"] = float(top_k_accuracy_score(labels, logits, k=TOP_K, labels=classes))
    precisions = [average_precision_score(labels == c, logits[:, c]) for c in present]
    metrics["map"] = float(np.mean(precisions))
    recall = recall_score(labels, guesses, labels=present, average="macro", zero_division=0.0)
    metrics["balanced_accuracy"] = float(recall)
    return metrics


def num_absent_classes(labels: npt.NDArray[np.int64], num_classes: int) -> int:
    """Return how many classes no label names; the means over classes in `score` lack them."""
    return num_classes - len(np.unique(labels))
