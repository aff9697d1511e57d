"""Tables of papers that shipped studies reproduce.

In `paper_tables.json`, `shapes` are the papers' datasets (tokens and features by modality, without
samples) and `systems` their models. A row of a table has a system, changed parameters and the
printed numbers.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from sftsearch.datasets.errors import look_up

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Memory and times of a sample: those of a batch, divided by its size.

    Ratios are to the last row of the table; they are printed, with more digits than the numbers.
    """

    memory_gb: float
    memory_ratio: float
    evaluation_ms: float
    evaluation_ratio: float
    training_ms: float
    training_ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of a paper's table."""

    name: str
    model: str
    """A name of `sftsearch models`."""
    parameters: Mapping[str, Mapping[str, Any]]
    """By shape: the parameters of the model that are not defaults."""
    printed: Mapping[str, float | Mapping[str, float]]
    """Column -> number, or `mean` and `std`; empty for a figure without numbers."""
    measured: Mapping[str, Measured]
    """By shape: what the paper measured on its machine; empty if it did not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTable:
    """A table (or figure) of a paper."""

    name: str
    about: str
    source: str
    shapes: Mapping[str, Mapping[str, tuple[int, int]]]
    """Name -> modality -> (tokens, features)."""
    batch_size: int | None
    """Of the measured memory and times."""
    rows: tuple[Row, ...]


@functools.cache
def paper_tables() -> dict[str, PaperTable]:
    """Return the tables by name, such as `SFT table 2`."""
    file = resources.files("sftsearch.search_spaces") / "paper_tables.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    tables = {}
    for name, table in data["tables"].items():
        systems, shapes = data["systems"], table["shapes"]
        tables[name] = PaperTable(
            name=name,
            about=table["about"],
            source=data["source"][name.split()[0]],
            shapes={
                shape: {m: (n, f) for m, (n, f) in data["shapes"][shape].items()}
                for shape in shapes
            },
            batch_size=table.get("batch_size"),
            rows=tuple(_row(row, systems[row["system"]], shapes) for row in table["rows"]),
        )
    return tables


def _row(row: dict[str, Any], system: dict[str, Any], shapes: list[str]) -> Row:
    parameters = {
        shape: system.get("set", {}) | system.get("set at", {}).get(shape, {}) | row.get("set", {})
        for shape in shapes
    }
    return Row(
        name=row["name"],
        model=system["model"],
        parameters=parameters,
        printed=row.get("printed", {}),
        measured={shape: Measured(**values) for shape, values in row.get("measured", {}).items()},
    )


def _known(name: str) -> str:
    look_up(paper_tables(), name, kind="paper's table")
    return name


PaperName = Annotated[str, AfterValidator(_known)]
"""A name of `paper_tables`."""
