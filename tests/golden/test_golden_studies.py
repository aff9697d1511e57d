"""Compare the configurations of shipped study files with the golden files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import golden_study as golden

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", golden.load_json("studies.json"))
def test_study_file_has_the_same_configurations(name: str, tmp_path: Path) -> None:
    found = golden.space_of(golden.study_files()[name], tmp_path)
    assert golden.differences(found, golden.load_json("studies.json")[name]) == []
