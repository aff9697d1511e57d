"""Draw a terminal table that fits the width: less important columns are shortened or left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderResult


UNLIMITED = 10_000
"""Characters of a line that no table needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittingColumn:
    """A column of text, and what to do with it on a narrow terminal."""

    header: str
    cells: Sequence[str]
    is_number: bool = False
    """Whether it is right-aligned."""
    rank: int = 0
    """Columns with the highest rank are shortened first, then left out; 0: always shown."""
    short: Sequence[str] | None = None
    """Shorter cells; None: the column is left out at once."""
    is_kept: bool = False
    """Whether it is shown in its short form at any width."""


class FittingTable:
    """A table whose cells stay whole while less important columns give way."""

    def __init__(self, columns: Sequence[FittingColumn], bold: Sequence[bool] = ()) -> None:
        """Describe the table; `bold` marks rows."""
        self._columns, self._bold = columns, bold

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the first form of the table that fits the width, and what it leaves out."""
        forms, unlimited = self._forms(), options.update(max_width=UNLIMITED)
        for columns in forms:
            table = self._table(columns)
            if Measurement.get(console, unlimited, table).maximum <= options.max_width:
                break
        else:
            columns = forms[-1]
            table = self._table(columns)
        yield table
        shown = {column.header for column in columns}
        lost = [column.header for column in self._columns if column.header not in shown]
        if lost:
            yield Text(f"Not shown at this width: {', '.join(lost)}.", style="dim")

    def _forms(self) -> list[list[FittingColumn]]:
        """Return the columns of each form, from complete to shortest."""
        forms = [list(self._columns)]
        for rank in sorted({column.rank for column in self._columns} - {0}, reverse=True):
            last = forms[-1]
            if any(column.rank == rank and column.short is not None for column in last):
                shortened = [_shorten(column) if column.rank == rank else column for column in last]
                forms.append([column for column in shortened if column is not None])
            if not all(column.is_kept for column in last if column.rank == rank):
                forms.append([one for one in forms[-1] if one.rank != rank or one.is_kept])
        return forms

    def _table(self, columns: Sequence[FittingColumn]) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in columns:
            justify: Literal["left", "right"] = "right" if column.is_number else "left"
            table.add_column(Text(column.header), justify=justify, no_wrap=True)
        for n, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            style = "bold" if n < len(self._bold) and self._bold[n] else None
            # Text, not str: brackets in a name are not markup.
            table.add_row(*(Text(cell) for cell in cells), style=style)
        return table


def _shorten(column: FittingColumn) -> FittingColumn | None:
    if column.short is None:
        return None
    return FittingColumn(
        header=column.header,
        cells=column.short,
        is_number=column.is_number,
        rank=column.rank,
        is_kept=column.is_kept,
    )
