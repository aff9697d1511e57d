"""Compare decisions, resumed studies, records and reports with the golden files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import golden_study as golden

if TYPE_CHECKING:
    from pathlib import Path

CUTS = [(name, between) for name, cuts in golden.CUTS.items() for between in cuts]
KINDS = {
    *("recorded", "created", "imported", "opened", "proposed", "refused", "admitted", "fitted"),
    *("replicated", "expected", "started", "retried", "epoch", "judged", "stopped", "finished"),
    *("failed", "told", "frozen", "concluded", "ended", "confirmed"),
}
"""Every kind of event except `mirrored`, which the search does not write."""


def test_golden_journals_have_every_kind_of_event() -> None:
    journals = [golden.load(study.journal) for study in golden.STUDIES.values()]
    assert {kind for lines in journals for _, _, kind, _ in lines} == KINDS


@pytest.mark.parametrize("name", golden.STUDIES)
def test_search_has_the_same_journal(name: str, tmp_path: Path) -> None:
    expected = golden.load(golden.STUDIES[name].journal)
    assert golden.journal_differences(golden.play(name, tmp_path), expected) == []


@pytest.mark.parametrize(("name", "between"), CUTS)
def test_search_resumes_with_the_same_journal(name: str, between: str, tmp_path: Path) -> None:
    """A driver that resumes from the first events of a golden journal adds the golden events."""
    lines = golden.load(golden.STUDIES[name].journal)
    kept = lines[: golden.find_cut(lines, between)]
    expected = golden.load(golden.continuation(name, between))
    assert golden.journal_differences(golden.resume(name, kept, tmp_path), expected) == []


@pytest.mark.parametrize("name", golden.STUDIES)
def test_record_of_a_journal_is_the_same(name: str, tmp_path: Path) -> None:
    found = golden.record_of(golden.load(golden.STUDIES[name].journal), tmp_path)
    assert golden.differences(found, golden.load_json("record.json")[name]) == []


def test_state_after_some_events_is_the_same(tmp_path: Path) -> None:
    assert golden.states(tmp_path) == golden.load_json("states.json")


def test_report_of_a_journal_is_the_same(tmp_path: Path) -> None:
    found = golden.report_of(golden.load(golden.STUDIES["rich"].journal), tmp_path)
    assert golden.differences(found, golden.load_json("report.json")) == []
