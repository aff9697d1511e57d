"""Write an analysis in the formats of `FORMATS`, all with the same numbers.

To add a format, add its module and a line in `FORMATS`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.figure import to_png
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sftsearch.orchestrator.analysis.analyse import Analysis


@dataclass(frozen=True, slots=True)
class Format:
    """A report format: file name and renderer."""

    file_name: str
    render: Callable[[Analysis], str | bytes]


FORMATS: dict[str, Format] = {
    "html": Format("report.html", to_html),
    "csv": Format("report.csv", to_csv),
    "json": Format("report.json", to_json),
    "markdown": Format("report.md", to_markdown),
    "png": Format("report.png", to_png),
}


def write_report(analysis: Analysis, formats: Sequence[str], folder: Path) -> list[Path]:
    """Write an analysis in several formats and return the paths of the files, in that order.

    Files are written atomically; existing reports are replaced.

    Args:
        analysis: to report.
        formats: names in `FORMATS`.
        folder: of the files; created if it is missing.

    Raises:
        UserError: a format is unknown, or the folder is not writable.
    """
    chosen = [look_up(FORMATS, name, kind="report format") for name in formats]
    paths = []
    for style in chosen:
        content = style.render(analysis)
        path = folder / style.file_name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise UserError(f"Cannot write the report {path}: {error.strerror}.") from error
        paths.append(path)
    return paths


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
