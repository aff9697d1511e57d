"""Run the code of `docs/api.md`, and compare the page with what the module exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sftsearch import api
from sftsearch.api import Configuration, Dataset, Front, Prediction, Predictor, Records, Study

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = 24
"""Most lines of code from a Parquet file to a prediction: two dozen."""
FACTS = """
import json
print(json.dumps({
    "complete": study.is_complete,
    "folder": str(study.folder),
    "trials": [trial.status for trial in study.trials],
    "front": len(study.front),
    "baselines": len(study.baselines),
    "accuracy": float((model.predict(samples.inputs).labels == samples.labels).mean()),
    "recorded": [
        trial.values["top1"] for trial in study.trials
        if trial.configuration_id == model.configuration_id
    ],
    "probabilities": list(map(float, prediction.probabilities.sum(axis=1))),
    "classes": model.classes,
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_code_of_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join([*BLOCKS, FACTS]))
    found = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    facts = json.loads(found.stdout.splitlines()[-1])
    assert facts["complete"]
    assert "6 of 6 trials: " in found.stdout
    assert set(facts["trials"]) <= {"finished", "stopped"}
    assert facts["front"] >= 1
    assert facts["baselines"] == 3
    # The loaded weights predict as well as recorded: over the 48 samples a decision is 0.02, and
    # the record is a mean over the last epochs.
    assert min(abs(facts["accuracy"] - value) for value in facts["recorded"]) < 0.15
    assert facts["probabilities"] == pytest.approx([1, 1], abs=1e-5)
    assert facts["classes"] == ["rest", "run", "walk"]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (Path(facts["folder"]) / "report" / "report.html").is_file()


def test_a_parquet_file_becomes_a_prediction_in_two_dozen_lines() -> None:
    (example,) = (block for block in BLOCKS if "prepare_dataset(" in block)
    assert "predict(" in example
    assert len([line for line in example.splitlines() if line.strip()]) <= LINES


def test_reference_lists_every_exported_name() -> None:
    reference = PAGE.split("## Reference")[1]
    listed = set(re.findall(r"`(\w+)", reference))
    assert set(api.__all__) <= listed


@pytest.mark.parametrize(
    "owner", [Study, Front, Records, Configuration, Predictor, Prediction, Dataset]
)
def test_reference_lists_every_method_and_property(owner: type) -> None:
    """Fields of records are described in their docstrings."""
    reference = PAGE.split("## Reference")[1]
    own = {name for name in vars(owner) if not name.startswith("_")}
    if owner is Configuration:
        own = {"load"}
    assert own
    assert [name for name in sorted(own) if not re.search(rf"\b{name}\b", reference)] == []
