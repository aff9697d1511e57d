"""Fixtures: a study of 20 configurations, 2 seeds and 3 subjects, with invented numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from report_studies import make_study

if TYPE_CHECKING:
    from sftsearch.orchestrator.storage.study_record import StudyRecord


@pytest.fixture
def study() -> StudyRecord:
    return make_study()


@pytest.fixture
def confirmed_study() -> StudyRecord:
    return make_study(confirmed=True)
