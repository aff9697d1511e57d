"""Check labels and lengths of samples, both when they are read and when they are written.

Shapes: N samples, C classes or labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec


def variable(spec: DatasetSpec) -> list[str]:
    """Return the modalities of variable length."""
    return [name for name, shape in spec.modalities.items() if shape.variable_length]


def label_fault(spec: DatasetSpec, labels: npt.NDArray[Any]) -> str | None:
    """Return what is wrong with the values of labels, or None; their shape must be right."""
    if spec.task == "regression":
        return None if np.isfinite(labels).all() else "`labels` must be finite"
    if spec.task == "multilabel":
        return None if ((labels == 0) | (labels == 1)).all() else "`labels` must be 0 or 1"
    low, high = labels.min(), labels.max()
    if low >= 0 and high < spec.num_classes:
        return None
    return f"`labels` must be in [0, {spec.num_classes}), but got {low} to {high}"


def length_fault(spec: DatasetSpec, lengths: Mapping[str, npt.NDArray[np.int64]]) -> str | None:
    """Return what is wrong with lengths, or None; their shape must be right."""
    for name, length_N in lengths.items():
        low, high, most = length_N.min(), length_N.max(), spec.modalities[name].num_tokens
        if low < 0 or high > most:
            return f"lengths of {name} must be in [0, {most}], but got {low} to {high}"
    if len(lengths) < len(spec.modalities):
        return None  # the other modalities are never missing
    empty = np.logical_and.reduce([length_N == 0 for length_N in lengths.values()])
    if empty.any():
        return f"every sample must have a modality, but sample {empty.argmax()} has none"
    return None


def count_classes(spec: DatasetSpec, labels: npt.NDArray[Any]) -> tuple[int, ...]:
    """Count the samples of each class, or those with each label."""
    if spec.task == "regression":
        return ()
    if spec.task == "multilabel":
        return tuple(np.count_nonzero(labels, axis=0).tolist())
    return tuple(np.bincount(labels, minlength=spec.num_classes).tolist())
