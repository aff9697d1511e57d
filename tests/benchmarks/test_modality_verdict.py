"""Verdicts on modalities after real studies of small sets with a known truth."""

from __future__ import annotations

import pytest
from bench_modality_verdict import JUDGED, TRUTH, judge


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [*TRUTH])
def test_verdict_on_a_known_modality_is_right(name: str) -> None:
    """Two of the 40 seeds of `bench_modality_verdict.py`."""
    for seed in (0, 1):
        verdicts, record = judge(name, seed)
        assert len(record.trials) == 28
        assert verdicts[JUDGED].advice == TRUTH[name]
