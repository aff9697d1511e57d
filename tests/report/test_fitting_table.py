"""Fit tables to the width of a terminal: cells stay whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sftsearch.orchestrator.report.fitting_table import FittingColumn, FittingTable

COLUMNS = [
    FittingColumn(header="name", cells=["alpha", "beta"]),  # 5 wide
    FittingColumn(header="value", cells=["1.0 [0.9, 1.1]", "2.0"], is_number=True, rank=1,
                  short=["1.0", "2.0"], is_kept=True),  # 14 wide, or 5
    FittingColumn(header="gain", cells=["+1 [0, 2]", "+2"], rank=2, short=["+1", "+2"]),  # 9 or 4
    FittingColumn(header="seeds", cells=["3", "10"], is_number=True, rank=3),  # 5
]  # fmt: skip


def shown(width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(FittingTable(COLUMNS))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("width", "first"),
    [
        (39, "alpha  1.0 [0.9, 1.1]  +1 [0, 2]      3"),
        (38, "alpha  1.0 [0.9, 1.1]  +1 [0, 2]"),
        (31, "alpha  1.0 [0.9, 1.1]  +1"),
        (26, "alpha  1.0 [0.9, 1.1]"),
        (20, "alpha    1.0"),
    ],
)
def test_columns_give_way_by_rank_and_cells_stay_whole(width: int, first: str) -> None:
    lines = shown(width)
    assert lines[1] == first
    assert not any("…" in line for line in lines)


def test_columns_left_out_are_named() -> None:
    assert shown(39)[3:] == []
    assert " ".join(shown(26)[3:]) == "Not shown at this width: gain, seeds."


def test_brackets_in_a_cell_are_not_markup() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(FittingTable([FittingColumn(header="[b]x[/b]", cells=["[red]y[/red]"])]))
    assert console.export_text().split() == ["[b]x[/b]", "[red]y[/red]"]
