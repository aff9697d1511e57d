"""Sections of families and routes in every format."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.analysis.families import FamilyComparison, families_of
from sftsearch.orchestrator.metrics import MISSING
from sftsearch.orchestrator.report.csv_report import to_csv
from sftsearch.orchestrator.report.figure import to_png
from sftsearch.orchestrator.report.html import to_html
from sftsearch.orchestrator.report.json_report import to_json
from sftsearch.orchestrator.report.markdown import to_markdown
from sftsearch.orchestrator.report.sections import families_section, routes_section
from sftsearch.orchestrator.report.table import front_table

from report_studies import gated, routes_front, small_study, summarize, sweep, two_models

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.storage.study_record import StudyRecord

HOSTILE = "<b>|a`\n"


def compared(front: Front) -> FamilyComparison:
    found = families_of(front)
    assert found is not None
    return found


def test_families_section_is_omitted_with_one_model(study: StudyRecord) -> None:
    alone = replace(study, trials=tuple(t for t in study.trials if t.model == "sft"))
    front = summarize(alone)
    assert families_of(front) is None
    assert "Families compared" not in to_markdown(Analysis.of(front)) + to_html(Analysis.of(front))
    assert json.loads(to_json(Analysis.of(front)))["families"] is None
    assert families_of(summarize(small_study())) is None


def test_families_section_is_in_every_format(study: StudyRecord) -> None:
    front = summarize(study)
    found = compared(front)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(front_table(replace(Analysis.of(front), standings=None)))
    terminal = console.export_text()
    page, markdown = to_html(Analysis.of(front)), to_markdown(Analysis.of(front))
    document = json.loads(to_json(Analysis.of(front)))["families"]
    assert [tuned["family"] for tuned in document["tuned"]] == list(found.names)
    for text in (terminal, page, markdown):
        assert f"expected best of {found.num_drawn}" in " ".join(text.split())
    for name, tuned in zip(found.names, found.tuned, strict=True):
        assert any(line.startswith(name) for line in terminal.splitlines())
        assert f"<td>{name}</td>" in page
        mark = "*" if tuned.difference is None else "~" if tuned.difference.within_noise else ""
        shown = f"{tuned.value:.3f}{mark} ["
        assert shown in page
        assert shown.replace("[", "\\[").replace("*", "\\*") in markdown
    section = families_section(Analysis.of(front), intervals=False)
    assert section is not None
    rows = section.table.rows
    for column in range(1, len(rows[0])):
        assert sum(row[column].endswith("*") for row in rows) == 1


def test_families_section_has_a_dash_for_a_missing_value() -> None:
    front = summarize(two_models())
    section = families_section(Analysis.of(front), intervals=False)
    assert section is not None
    table, heads = section.table.rows, section.table.headers
    assert table[0] == ["a", "0.500*", "0.700*", "0.700", "0.700", "0.700", "0.700"]
    assert table[1][1:3] == ["\N{EN DASH}", "0.600"]
    assert heads[1] == "\N{LESS-THAN OR EQUAL TO} 1 G multiply-adds (paper)"
    assert heads[-1] == "expected best of 3"
    assert table[1][-1] == "0.890*"  # of four draws of three, three have 0.9 and one has 0.86


def test_routes_section_has_shares_and_the_last_route_by_class() -> None:
    section = routes_section(Analysis.of(sweep()))
    assert section is not None
    cells = [dict(zip(section.table.headers, row, strict=True)) for row in section.table.rows]
    assert [row["configuration"] for row in cells] == ["c", "b", "a"]
    assert cells[2]["route 1"] == "0.90"
    assert cells[2]["route 2"] == "0.10"
    assert cells[2]["by class"] == "walk 0.00, turn 0.40"
    assert cells[0]["by class"] == MISSING


def test_routes_section_is_in_every_format() -> None:
    front = sweep()
    markdown = to_markdown(Analysis.of(front))
    assert "## Routes" in markdown
    assert (
        "0.1: 1.8 G multiply-adds, 0.20 / 0.80; 0.5: 1.1 G multiply-adds, 0.90 / 0.10" in markdown
    )
    page = to_html(Analysis.of(front))
    assert 'id="routes-chart"' in page
    levels = json.loads(to_json(Analysis.of(front)))["routes"]
    assert [level["weight"] for level in levels] == [0.1, 0.5]
    assert "route_2/walk" in to_csv(Analysis.of(front)).splitlines()[0]
    picture = to_png(Analysis.of(front))
    assert picture[16:24] == (2400).to_bytes(4) + (960).to_bytes(4)  # IHDR: width, height


def test_routes_section_is_omitted_without_gates(study: Any) -> None:
    front = summarize(study)
    assert "Routes" not in to_markdown(Analysis.of(front))
    assert "routes-chart" not in to_html(Analysis.of(front)).split("<script", 1)[0]
    assert json.loads(to_json(Analysis.of(front)))["routes"] == []


def test_routes_section_escapes_class_names() -> None:
    front = routes_front(gated("a", 0.1, 0.5, **{f"route_2/{HOSTILE}": 0.5}), gated("b", 0.2, 0.5))
    assert HOSTILE not in to_html(Analysis.of(replace(front))).split("<script", 1)[0]
    assert "<b>" not in to_markdown(Analysis.of(front))
