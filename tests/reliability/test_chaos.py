"""A short chaos run with a fixed seed, and a short outage; see `chaos.py` and `outage.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import chaos
from servers import find_postgres

pytestmark = [
    pytest.mark.slow,
    pytest.mark.service,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(find_postgres() is None, reason="PostgreSQL is not installed"),
]


def test_chaos_of_twenty_faults_loses_and_duplicates_no_trial() -> None:
    figures = chaos.run(20, seed=1)
    assert figures["faults"] >= 20
    assert (figures["lost"], figures["twice"], figures["differing"]) == (0, 0, 0)
    assert len(figures["by_kind"]) >= len(chaos.FAULTS) - 1


def test_outage_of_a_minute_is_caught_up_by_the_mirror() -> None:
    command = [sys.executable, str(Path(__file__).with_name("outage.py"))]
    command += ["--seconds", "60", "--trials", "300"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    assert (figures["lost"], figures["twice"]) == (0, 0)
    assert figures["ended_while_away"] > 50
    assert figures["caught_up_seconds"] < 60
