"""Write a study's front in the formats of `FORMATS`, all from the same numbers.

To add a format, add its file and its line in `FORMATS`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.datasets.errors import UserError, look_up
from sftsearch.orchestrator.analysis.front import summarise
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.figure import to_png
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@dataclass(frozen=True, slots=True)
class Format:
    """Hold a way to write a front down."""

    file_name: str
    to_text: Callable[[Front], str | bytes]


FORMATS: dict[str, Format] = {
    "html": Format("report.html", to_html),
    "csv": Format("report.csv", to_csv),
    "json": Format("report.json", to_json),
    "markdown": Format("report.md", to_markdown),
    "png": Format("report.png", to_png),
}


def write(
    study: StudyRecord, formats: Sequence[str], folder: Path, *, x: str = "gflops", y: str = "top1"
) -> list[Path]:
    """Write the study's front of `y` against `x`; see `write_front`."""
    return write_front(summarise(study, x=x, y=y), formats, folder)


def write_front(front: Front, formats: Sequence[str], folder: Path) -> list[Path]:
    """Write a front in every format, and return the files' paths in that order.

    A file appears whole or not at all; one of an earlier report is replaced.

    Args:
        front: what to report.
        formats: names out of `FORMATS`.
        folder: where the files go; made if it is missing.

    Raises:
        UserError: a format is not known, or the folder cannot be written to.
    """
    chosen = [look_up(FORMATS, name, kind="report format") for name in formats]
    paths = []
    for style in chosen:
        text = style.to_text(front)
        content = text.encode() if isinstance(text, str) else text
        path = folder / style.file_name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(path, content)
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
