"""Choose the epochs that count, and check the training record of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftsearch.trainables.checkpoint import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LAST_EPOCHS = 3
"""Epochs whose mean is the value of a trial; a single epoch is as noisy as its batch order."""

LOWER_IS_BETTER = ("loss", "mae")
"""Metrics whose best value is the lowest."""


def epochs_that_count(
    history: Sequence[Mapping[str, float]], score_epoch: str, metric: str
) -> list[int]:
    """Return the epochs, from 0, whose metrics count: the last three, or the best one.

    Args:
        history: the metrics of each epoch.
        score_epoch: last or best, from the training configuration.
        metric: chooses the best epoch.
    """
    if not history:
        raise RuntimeError("No epoch has finished yet.")
    if score_epoch == "best":
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return [max(range(len(history)), key=lambda epoch: sign * history[epoch][metric])]
    return list(range(max(0, len(history) - LAST_EPOCHS), len(history)))


def check_record(
    path: Path,
    record: Mapping[str, Any],
    *,
    identity: Mapping[str, object],
    metric_names: set[str],
    epochs: int,
    num_groups: int,
) -> None:
    """Check that a record is complete and was written by a run with this identity.

    Args:
        path: the checkpoint it was read from.
        record: the record.
        identity: of this run.
        metric_names: metrics that every epoch must have.
        epochs: of the whole training.
        num_groups: groups of validation samples that are counted separately.

    Raises:
        CheckpointError: the record belongs to another run or is damaged.
    """
    run = record.get("run")
    if not isinstance(run, dict):
        raise CheckpointError(path, "its record does not name its run")
    for key, value in identity.items():
        if run.get(key) != value:
            why = f"its {key} is {run.get(key)!r:.80}, but this run's is {value!r:.80}"
            raise CheckpointError(path, why)
    history, correct = record.get("history"), record.get("correct")
    if not _is_history(history, metric_names, epochs, num_groups, correct):
        raise CheckpointError(path, "its history is damaged")


def _is_history(
    history: object, names: set[str], epochs: int, num_groups: int, correct: object
) -> bool:
    """Return whether `history` and `correct` are valid and have at most `epochs` epochs."""
    if not isinstance(history, list) or not isinstance(correct, list):
        return False
    if not len(history) == len(correct) <= epochs:
        return False
    return all(
        isinstance(entry, dict)
        and entry.keys() >= names
        and entry.keys() == history[0].keys()
        and all(map(_is_number, entry.values()))
        and entry["epoch"] == number
        and isinstance(counts, list)
        and len(counts) == num_groups
        and all(map(_is_number, counts))
        for number, (entry, counts) in enumerate(zip(history, correct, strict=True), start=1)
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e300 < value < 1e300  # `isfinite` overflows on an integer of 400 digits
