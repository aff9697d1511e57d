"""Run the code of docs/deployment.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sftsearch.orchestrator.studies import read_record

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language, for the study of these tests instead of `stride`."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return [one.replace("stride", "toy") for one in found]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_code_of_the_page_runs(study: Path, tmp_path: Path) -> None:
    """One block after another in one folder, with the study's runs folder."""
    shutil.copytree(study.parent, tmp_path / "runs")
    program = "from sftsearch.orchestrator.cli.main import main; main()"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "SFTSEARCH_RUNS": "runs"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    exported, registered = (block.splitlines() for block in blocks("sh"))
    predicted, program_of_torch, loaded = blocks("python")
    (command, prediction) = exported
    run("-c", program, *command.split()[1:])
    assert len(run(*prediction.split()[1:]).splitlines()) == 5
    assert re.fullmatch(r"\[(\d ?)+\]\n", run("-c", predicted))
    assert run("-c", loaded).startswith("('left', 'right') ('same_off', 'same_on', ")
    trials = read_record(study).trials
    (identity,) = {t.configuration_id for t in trials if t.model == "concat"}
    run("-c", program, "export", "toy", identity, "--to", "pt2", "--out", "p")
    run("-c", program_of_torch)
    (command,) = registered
    assert "Registered as version 1 of 'activity'" in run("-c", program, *command.split()[1:])
