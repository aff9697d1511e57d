"""Follow CONTRIBUTING.md and add its example model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACT = ROOT / "tests" / "contracts" / "test_every_model.py"


def code_blocks() -> list[str]:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.split("## To add a fusion model")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_adds_a_model_with_one_file_and_one_line(tmp_path: Path) -> None:
    """In a copy of the sources; the model is listed, can be searched, and passes every contract."""
    file, line = code_blocks()
    assert file.startswith("# trainables/models/averaged_fusion.py\n")
    assert sum(bool(text.strip()) for text in file.splitlines()) <= 24
    package = tmp_path / "sftsearch"
    package.mkdir()
    shutil.copytree(ROOT / "trainables", package / "trainables")
    for folder in ("datasets", "orchestrator", "search_spaces"):
        (package / folder).symlink_to(ROOT / folder)
    (package / "trainables" / "models" / "averaged_fusion.py").write_text(file)
    listing = package / "trainables" / "models" / "listing.py"
    listed = line.splitlines()[-1]
    listing.write_text(listing.read_text().replace("FILES = (\n", f"FILES = (\n{listed}\n"))
    assert run(tmp_path, "-c", "import sftsearch.trainables as t; print(t.__path__[0])").startswith(
        str(package)
    )
    models = "from sftsearch.trainables.catalog import MODELS; print(*MODELS)"
    assert "averaged_fusion" in run(tmp_path, "-c", models).split()
    study = (ROOT / "search_spaces" / "stride.yaml").read_text().split("\nspace:")[0]
    study += (
        "\nspace:\n  - {kind: averaged_fusion, patch: 8, num_heads: 2, dim: 8, num_layers: 2}\n"
    )
    (tmp_path / "study.yaml").write_text(study)
    command = "from sftsearch.orchestrator.cli.main import main; main()"
    assert "averaged_fusion" in run(tmp_path, "-c", command, "price", str(tmp_path / "study.yaml"))
    assert "averaged_fusion" in run(tmp_path, "-c", command, "models")
    output = run(tmp_path, "-m", "pytest", "-q", str(CONTRACT), "-k", "averaged_fusion")
    assert re.search(r"\b(\d\d) passed", output), output


def run(folder: Path, *arguments: str) -> str:
    """Run Python with the copied package first on the path, and return its output."""
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
