"""Compare the memory printed in a paper's table with that of our models at the same sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.orchestrator.pricing.paper_tables import spec_of
from sftsearch.search_spaces.papers import paper_tables
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.memory import Attention, count_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Group

    from sftsearch.search_spaces.papers import Measured, PaperTable, Row

ATTENTIONS: tuple[Attention, ...] = ("math", "fused")
MB_PER_GB = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """A model at the sizes of a shape: the paper's measurements, and our memory."""

    name: str
    shape: str
    measured: Measured
    gigabytes: Mapping[Attention, float]
    """Ours per sample, by form of attention: memory of a training step by its batch size."""


def has_memory(name: str) -> bool:
    """Return whether a paper's table prints memory."""
    return any(row.measured for row in paper_tables()[name].rows)


def count_table(
    name: str, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Remembered]:
    """Count our memory of every row and shape of a paper's table, at the paper's batch size.

    Args:
        name: a table for which `has_memory`; it takes about a second per row, shape and form.
        progress: is called with the number counted and the number of all, after each one.
    """
    table = paper_tables()[name]
    found = []
    models = [(row, shape) for shape in table.shapes for row in table.rows]
    for row, shape in models:
        found.append(_count(table, row, shape))
        progress(len(found), len(models))
    return found


def _count(table: PaperTable, row: Row, shape: str) -> Remembered:
    assert table.batch_size is not None, table.name
    spec = spec_of(table, shape, num_samples=table.batch_size)
    config = MODELS[row.model].config(**row.parameters[shape])
    training = TrainConfig(batch_size=table.batch_size)
    gigabytes = {}
    for attention in ATTENTIONS:
        counted = count_memory(row.model, spec, config, training, attention=attention)
        gigabytes[attention] = counted.train_memory_mb / MB_PER_GB / table.batch_size
    return Remembered(name=row.name, shape=shape, measured=row.measured[shape], gigabytes=gigabytes)


def as_json(counted: list[Remembered]) -> list[dict[str, object]]:
    """Return the comparison for scripts: GB and ms per sample."""
    return [
        {
            "name": one.name,
            "shape": one.shape,
            "printed": dataclasses.asdict(one.measured),
            "memory_gb": dict(one.gigabytes),
        }
        for one in counted
    ]


def rich_table(name: str, counted: list[Remembered]) -> Group:
    """Return the comparison for a terminal; ratios are to the last model of each shape."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in ("paper GB", *(f"{attention} GB" for attention in ATTENTIONS)):
        table.add_column(head, justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
    bases = {one.shape: one for one in counted}
    for one in counted:
        paper, ours, base = one.measured, one.gigabytes, bases[one.shape].gigabytes
        cells = [f"{paper.memory_gb:.2f}", f"{paper.memory_ratio:.2f}"]
        for attention in ATTENTIONS:
            gigabytes = ours[attention]
            cells += [f"{gigabytes:.4f}", f"{gigabytes / base[attention]:.2f}"]
        table.add_row(Text(f"{one.shape} {one.name}"), *map(Text, cells))
    size, last = paper_tables()[name].batch_size, counted[-1].name
    title = Text(
        f"{name}, and our memory of a training step at its sizes and batch size ({size}), per "
        f"sample; 1 GB is {MB_PER_GB} MB. Ratios are to {last}. `math` holds the attention "
        "weights, as the paper's code does; `fused` does not, as here."
    )
    return Group(title, table)
