"""Compare an export with the trained model on validation samples.

Shapes: B batch, C outputs, N routes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sftsearch.orchestrator.deployment.folder import ExportError
from sftsearch.orchestrator.deployment.graphs import LENGTH, as_inputs, graphs_of, members_of
from sftsearch.orchestrator.deployment.predict import predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.spec import Task
    from sftsearch.trainables.deployed_model import DeployedModel

    Array = npt.NDArray[np.float32]
    Arrays = dict[str, npt.NDArray[np.float32]]
    Run = Callable[[str, Arrays], Array]

ABSOLUTE, RELATIVE = 1e-5, 1e-4
"""A score may differ by `ABSOLUTE + RELATIVE |score|`."""
MARGIN = 1e-4
"""Decisions must be equal where the best score is this much above the second (or the threshold)."""
BATCHES = (1, 7)
"""Sizes of the batches that are compared."""
NUM_SAMPLES = 35


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was compared, and by how much it differs."""

    largest_error: float
    """Largest absolute difference of a score."""
    num_samples: int
    """Validation samples, each alone and in a batch of 7, and again without each modality that may
    be missing."""
    num_decisions: int
    """Decisions (and choices of a gate) that were compared; all of them are equal."""
    num_close: int
    """Decisions that were not compared, because their margin is below `MARGIN`."""


def take_samples(model: DeployedModel, split: Split, count: int) -> Arrays:
    """Return samples of a split, evenly spaced, as inputs by name: (B, T, F), and lengths (B,)."""
    rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(np.int64))
    found: Arrays = {name: split.modalities[name][rows] for name in model.modalities}
    for name in model.variable_modalities:
        found[f"{name}{LENGTH}"] = split.lengths[name][rows]  # type: ignore[assignment]
    return found


class _Comparison:
    """Counts and largest error of comparisons."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.largest, self.num_decisions, self.num_close = 0.0, 0, 0

    def compare(self, what: str, found: Array, expected: Array) -> None:
        """Compare scores (B, C).

        Raises:
            ExportError: they differ.
        """
        assert found.shape == expected.shape, what
        error = np.abs(found.astype(np.float64) - expected)
        worst = float(error.max())
        if not (error <= ABSOLUTE + RELATIVE * np.abs(expected)).all():
            raise ExportError(
                f"The export differs from the trained model ({what}: scores by {worst:.2g}), so "
                "nothing was written. Report this with the study file."
            )
        self.largest = max(self.largest, worst)
        if self._task == "classification":
            self.decide(what, found.argmax(axis=1), expected)
        elif self._task == "multilabel":
            margin = np.abs(expected - 0.5)
            self._count(what, (found >= 0.5) == (expected >= 0.5), margin)

    def decide(self, what: str, found: npt.NDArray[np.int64], expected: Array) -> None:
        """Compare choices (B,) with the highest of scores (B, C).

        Raises:
            ExportError: a choice differs whose margin is not small.
        """
        if expected.shape[1] < 2:
            return
        order = np.sort(expected, axis=1)
        self._count(what, found == expected.argmax(axis=1), order[:, -1] - order[:, -2])

    def _count(self, what: str, equal: npt.NDArray[np.bool_], margin: Array) -> None:
        clear = margin > MARGIN
        if not equal[clear].all():
            raise ExportError(
                f"The export decides differently from the trained model ({what}), so nothing was "
                "written. Report this with the study file."
            )
        self.num_decisions += int(clear.sum())
        self.num_close += int((~clear).sum())


def verify(
    model: DeployedModel, run: Run, facts: dict[str, object], samples: Arrays
) -> Verification:
    """Compare the graphs of an export, and the driver that joins them, with the model.

    Args:
        model: the trained model.
        run: runs a graph of the export, by name, on inputs by name.
        facts: the content of `model.json`.
        samples: from `take_samples`.

    Raises:
        ExportError: a score or a decision differs.
    """
    comparison = _Comparison(model.spec.task)
    for what, batch in _batches(model, samples):
        given = as_inputs(model, {name: torch.from_numpy(x) for name, x in batch.items()})
        with torch.inference_mode():
            _compare_graphs(comparison, what, model, run, batch)
            expected = model(*given)["scores"].numpy()
            rows = _clearly_routed(model, *given)
        found = predict(facts, run, batch)
        if rows.any():
            comparison.compare(what, found[rows], expected[rows])
    return Verification(
        largest_error=comparison.largest,
        num_samples=len(next(iter(samples.values()))),
        num_decisions=comparison.num_decisions,
        num_close=comparison.num_close,
    )


def _compare_graphs(
    comparison: _Comparison, what: str, model: DeployedModel, run: Run, batch: Arrays
) -> None:
    """Compare a gated model's gates and all its routes, also those that no sample takes."""
    if not model.is_gated:
        return
    given = as_inputs(model, {name: torch.from_numpy(x) for name, x in batch.items()})
    graphs = graphs_of(model)
    for member, replicate in zip(members_of(model), model.members, strict=True):
        assert member.gate is not None, "the model is gated"
        weights = replicate.choose(*given).softmax(dim=1).numpy()
        comparison.decide(f"{what}, {member.gate}", run(member.gate, batch), weights)  # type: ignore[arg-type]
        for name in member.routes:
            comparison.compare(f"{what}, {name}", run(name, batch), graphs[name](*given).numpy())


def _clearly_routed(
    model: DeployedModel, inputs: Mapping[str, torch.Tensor], lengths: Mapping[str, torch.Tensor]
) -> npt.NDArray[np.bool_]:
    """Return for which samples no gate has a close choice, (B,)."""
    rows: npt.NDArray[np.bool_] = np.ones(len(next(iter(inputs.values()))), dtype=bool)
    for replicate in model.members if model.is_gated else []:
        first, second = replicate.choose(inputs, lengths).softmax(dim=1).topk(2, dim=1)[0].T
        rows &= (first - second > MARGIN).numpy()
    return rows


def _batches(model: DeployedModel, samples: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yield batches of all samples, with their lengths and without each modality in turn.

    Padding after the longest sample of a batch is cut off, so the number of samples varies.
    """
    size = len(next(iter(samples.values())))
    for missing in (None, *model.variable_modalities):
        given = dict(samples)
        if missing is not None:
            given[f"{missing}{LENGTH}"] = np.zeros_like(samples[f"{missing}{LENGTH}"])
        for step in BATCHES:
            what = f"batch of {step}" + ("" if missing is None else f", without {missing}")
            for start in range(0, size, step):
                batch = {name: x[start : start + step] for name, x in given.items()}
                for name in model.variable_modalities:
                    longest = max(1, int(batch[f"{name}{LENGTH}"].max()))
                    batch[name] = batch[name][:, :longest]
                yield what, batch


def open_programs(folder: Path, model: DeployedModel) -> Run:
    """Return a function that runs a program of torch, by name, on inputs by name."""
    open_program = functools.cache(lambda name: torch.export.load(folder / f"{name}.pt2").module())

    def run(name: str, inputs: Arrays) -> Array:
        given = {key: torch.from_numpy(values) for key, values in inputs.items()}
        outputs: Array = open_program(name)(*as_inputs(model, given)).numpy()
        return outputs

    return run
