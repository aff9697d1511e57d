"""A fixed sample of the chaos run; `python tests/chaos.py` is the whole of it."""

from __future__ import annotations

import chaos
import pytest
from servers import find_postgres


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(1500)
@pytest.mark.skipif(find_postgres() is None, reason="PostgreSQL is not installed")
def test_twenty_faults_lose_nothing_and_double_nothing() -> None:
    figures = chaos.run(20, seed=1)
    assert figures["faults"] >= 20
    assert (figures["lost"], figures["twice"], figures["differing"]) == (0, 0, 0)
    assert len(figures["by_kind"]) >= len(chaos.FAULTS) - 1
