"""Compare the costs printed in a paper's table with those of our models at the same sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec
from sftsearch.search_spaces.papers import paper_tables
from sftsearch.trainables.catalog import MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Group

    from sftsearch.search_spaces.papers import PaperTable, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Priced:
    """A row of a paper's table with the cost of our model."""

    row: Row
    gflops: Mapping[str, float]
    """Our cost by shape."""

    def difference(self, shape: str) -> float | None:
        """Return ours / printed - 1, or None where the paper prints no cost."""
        printed = self.row.printed.get(cost_column(shape))
        return None if printed is None else self.gflops[shape] / mean_of(printed) - 1


def price_table(name: str) -> list[Priced]:
    """Compute our cost for every row of a paper's table, at the paper's sizes."""
    table = paper_tables()[name]
    specs = {shape: spec_of(table, shape) for shape in table.shapes}
    return [
        Priced(row=row, gflops={shape: _gflops(row, shape, specs[shape]) for shape in specs})
        for row in table.rows
    ]


def spec_of(table: PaperTable, shape: str, *, num_samples: int = 1) -> DatasetSpec:
    """Return a dataset specification of the paper's sizes; costs do not depend on its classes.

    `num_samples` is the size of each split.
    """
    return DatasetSpec(
        name=shape.lower(),
        modalities={
            name: ModalitySpec(num_tokens=tokens, num_features=features)
            for name, (tokens, features) in table.shapes[shape].items()
        },
        classes=("first", "second"),
        num_samples=dict.fromkeys(SPLITS, num_samples),
        subjects=dict.fromkeys(SPLITS, ()),
        licence="none",
        attribution=table.source,
        source=table.source,
        description=f"The sizes of {shape} in the paper.",
        fingerprint="0" * 64,
    )


def _gflops(row: Row, shape: str, spec: DatasetSpec) -> float:
    model = MODELS[row.model]
    return model.cost(spec, model.config(**row.parameters[shape])).gflops


def cost_column(shape: str) -> str:
    """Return the name of the paper's cost column for a shape."""
    return f"{shape} GFLOPs"


def mean_of(printed: float | Mapping[str, float]) -> float:
    """Return a printed number, or its mean if it has a deviation."""
    return float(printed) if isinstance(printed, int | float) else printed["mean"]


def as_json(name: str) -> dict[str, object]:
    """Return the table with our costs, for scripts."""
    table = paper_tables()[name]
    return {
        "name": name,
        "about": table.about,
        "source": table.source,
        "rows": [
            {
                "name": priced.row.name,
                "model": priced.row.model,
                "parameters": priced.row.parameters,
                "printed": priced.row.printed,
                "gflops": priced.gflops,
                "difference": {shape: priced.difference(shape) for shape in table.shapes},
            }
            for priced in price_table(name)
        ],
    }


def rich_table(name: str) -> Group:
    """Return the table for a terminal: the paper's numbers, then our costs at its sizes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    paper, rows = paper_tables()[name], price_table(name)
    costs = {cost_column(shape) for shape in paper.shapes}
    printed = [column for column in rows[0].row.printed if column not in costs]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in [*printed, *(head for shape in paper.shapes for head in _heads(shape, rows))]:
        table.add_column(Text(head), justify="right")
    for priced in rows:
        shown = [f"{mean_of(priced.row.printed[column]):.2f}" for column in printed]
        for shape in paper.shapes:
            shown += _cells(priced, shape)
        table.add_row(Text(priced.row.name), *map(Text, shown))
    title = Text(f"{name}, and our GFLOPs at its sizes. {paper.about}.")
    return Group(title, table)


def _heads(shape: str, rows: list[Priced]) -> list[str]:
    if rows[0].difference(shape) is None:
        return [f"{shape} GFLOPs"]
    return [f"{shape} GFLOPs", "ours", "difference"]


def _cells(priced: Priced, shape: str) -> list[str]:
    ours, change = f"{priced.gflops[shape]:.4f}", priced.difference(shape)
    if change is None:
        return [ours]
    return [f"{mean_of(priced.row.printed[cost_column(shape)]):.2f}", ours, f"{change:+.1%}"]
