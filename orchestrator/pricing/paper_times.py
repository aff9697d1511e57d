"""Compare the times printed in a paper's table with those of our models on this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.pricing.paper_tables import spec_of
from sftsearch.search_spaces.papers import paper_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces.papers import Measured, Row

BATCH_SIZE = 4
"""Smaller than the paper's, so that the table takes about a minute; times are per sample."""
REPEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """A model at the sizes of a shape: the paper's times, and ours."""

    name: str
    shape: str
    measured: Measured
    evaluation_ms: float
    """Processor time of a forward pass, per sample."""
    training_ms: float
    """Processor time of a training step, per sample."""


def time_table(name: str, progress: Callable[[int, int], None] = lambda *_: None) -> list[Timed]:
    """Time every row and shape of a paper's table that prints times, on one thread.

    The time is that of the processor, which other work on the machine disturbs least.

    Args:
        name: of the table.
        progress: is called with the number timed and the number of all, after each one.
    """
    import torch

    table, threads = paper_tables()[name], torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    models = [(row, shape) for shape in table.shapes for row in table.rows]
    try:
        for row, shape in models:
            found.append(_time(row, shape, spec_of(table, shape)))
            progress(len(found), len(models))
    finally:
        torch.set_num_threads(threads)
    return found


def _time(row: Row, shape: str, spec: DatasetSpec) -> Timed:
    import torch
    import torch.nn.functional as F

    from sftsearch.trainables.catalog import MODELS, build_model

    model = build_model(row.model, spec, MODELS[row.model].config(**row.parameters[shape]), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs = {
        name: torch.randn(BATCH_SIZE, one.num_tokens, one.num_features)
        for name, one in spec.modalities.items()
    }
    labels = torch.zeros(BATCH_SIZE, dtype=torch.int64)

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            model(inputs)

    def train() -> None:
        model.train()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Timed(
        name=row.name,
        shape=shape,
        measured=row.measured[shape],
        evaluation_ms=_median_ms(evaluate),
        training_ms=_median_ms(train),
    )


def _median_ms(run: Callable[[], None]) -> float:
    """Return the median processor time of a sample in milliseconds, after one warm-up."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start) / BATCH_SIZE)
    return statistics.median(times[1:])


def as_json(timed: list[Timed]) -> list[dict[str, object]]:
    """Return our times for scripts: milliseconds per sample."""
    return [
        {
            "name": one.name,
            "shape": one.shape,
            "evaluation_ms": one.evaluation_ms,
            "training_ms": one.training_ms,
        }
        for one in timed
    ]


def rich_table(name: str, timed: list[Timed]) -> Group:
    """Return the comparison for a terminal; ratios are to the last model of each shape."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in ("paper eval ms", "our eval ms", "paper train ms", "our train ms"):
        table.add_column(head, justify="right")
        table.add_column("ratio", justify="right", no_wrap=True)
    bases = {one.shape: one for one in timed}
    for one in timed:
        paper, base = one.measured, bases[one.shape]
        pairs = (
            (paper.evaluation_ms, paper.evaluation_ratio),
            (one.evaluation_ms, one.evaluation_ms / base.evaluation_ms),
            (paper.training_ms, paper.training_ratio),
            (one.training_ms, one.training_ms / base.training_ms),
        )
        cells = [f"{number:.2f}" for pair in pairs for number in pair]
        table.add_row(Text(f"{one.shape} {one.name}"), *map(Text, cells))
    title = Text(
        f"{name}, and our times per sample at its sizes: batches of {BATCH_SIZE} on one thread of "
        f"this machine; the paper's are of an RTX 3090. Ratios are to {timed[-1].name}."
    )
    return Group(title, table)
