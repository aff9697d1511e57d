"""Write a report in GitHub Markdown: headline, table, notes, sections and facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.report.columns import columns
from sftsearch.orchestrator.report.sections import sections
from sftsearch.orchestrator.report.text import displayed_facts, headline, notes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sftsearch.orchestrator.analysis.analyse import Analysis
    from sftsearch.orchestrator.report.sections import Section


def to_markdown(analysis: Analysis) -> str:
    """Return the report."""
    front = analysis.front
    study = front.study
    shown = columns(front)
    lines = [f"# {_escape(study.name)}", "", _escape(headline(front)), ""]
    if study.description:
        lines += [_escape(study.description), ""]
    lines.append(_row(column.header for column in shown))
    lines.append(_row("---:" if column.is_number else "---" for column in shown))
    lines += [_row(_escape(column.format(c)) for column in shown) for c in front.table]
    lines += ["", *(f"- {_escape(note)}" for note in notes(front))]
    for section in sections(analysis):
        lines += _section(section)
    lines += _list("Refused before training", study.refused)
    lines += _list("Facts", displayed_facts(study))
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    """Return a section: its sentences, its table, and the notes below it."""
    lines = ["", f"## {section.title}", ""]
    if section.sentences:
        lines += [*(f"- {_escape(sentence)}" for sentence in section.sentences), ""]
    if section.table.rows:
        heads = [_escape(head) for head in section.table.headers]
        rows = [[_escape(cell) for cell in cells] for cells in section.table.rows]
        ruler = ["---", *("---:" for _ in heads[1:])]
        lines += [*map(_row, [heads, ruler, *rows]), ""]
        return lines + [f"- {_escape(note)}" for note in section.table.notes]
    return [*lines, _escape(" ".join(section.table.notes))]


def _list(title: str, entries: Mapping[str, object]) -> list[str]:
    rows = [f"- {_escape(name)}: {_escape(str(value))}" for name, value in entries.items()]
    return ["", f"## {title}", "", *rows] if rows else []


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_MARKDOWN = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]|"}
    | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "}
)


def _escape(text: str) -> str:
    """Escape text, so that Markdown shows it literally and on one line."""
    return text.translate(_MARKDOWN)
