"""Check the study file, links, commands and file names in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.binding import parameter_names
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.cli.main import main
from sftsearch.search_spaces.load import parse_study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

TREE = "orchestrator/" + PAGES[0].read_text().split("```text\norchestrator/")[1].split("```")[0]


def test_readme_study_file_is_well_formed() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGES[0].read_text(), flags=re.DOTALL)
    source = parse_study(text.encode(), parameter_names, name="README.md")
    check_names(source)
    admission = Admission(source, describe(source.study.dataset.kind))
    assert admission.table is not None
    assert len(admission.table) * source.study.search.replicates.min >= source.study.search.trials


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_broken_links(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_quick_start_uses_existing_commands() -> None:
    commands = re.findall(r"^sftsearch (\w+)", PAGES[0].read_text(), flags=re.MULTILINE)
    assert len(commands) >= 7
    assert set(commands) <= set(main.commands)


def test_readme_tree_lists_existing_files() -> None:
    named = re.findall(r"\b(\w+\.(?:py|md)|\w+(?=/))", TREE)
    assert len(named) > 30
    present = {path.name for pattern in ("*", "*/*", "*/*/*") for path in ROOT.glob(pattern)}
    assert [name for name in named if name not in present] == []


def test_readme_tree_lists_every_sub_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("orchestrator/*/__init__.py")}
    assert [name for name in sorted(packages) if f"\n  {name}/" not in TREE] == []
