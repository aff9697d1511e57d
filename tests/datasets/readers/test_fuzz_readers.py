"""Mutated files of every reader; `benchmarks/fuzz_readers.py` runs thousands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_readers.py"


@pytest.mark.timeout(500)
@pytest.mark.medium
@pytest.mark.parametrize(
    ("first", "cases"), [(0, 72), pytest.param(100_000, 600, marks=pytest.mark.slow)]
)
def test_mutated_files_are_refused_in_one_line_or_read(first: int, cases: int) -> None:
    command = [sys.executable, "-P", str(SCRIPT), "--first", str(first), "--cases", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["refused"] + counts["prepared"] == cases
    assert min(counts["refused"], counts["prepared"]) > cases / 20
