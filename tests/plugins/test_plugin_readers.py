"""Readers of plug-ins: from a file, from an installed distribution, and names that are taken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sftsearch.datasets.catalog import open_dataset
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.reader_catalog import reader_names
from sftsearch.orchestrator import plugins
from sftsearch.orchestrator.api.public import prepare_dataset
from sftsearch.orchestrator.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sftsearch.datasets.reader_catalog._plugin_readers", {})
    plugins.load_installed.cache_clear()


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """Write the page's reader, and files for it."""
    (code,) = [
        text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "READERS" in text
    ]
    file = tmp_path / "my_reader.py"
    file.write_text(code)
    folder = tmp_path / "my_folder"
    folder.mkdir()
    lines = ["name,label,split,person"]
    for number in range(45):
        split = ("train", "validation", "test")[number % 3]
        lines.append(f"r{number},{'ab'[number % 2]},{split},{split} {number % 2}")
        np.savetxt(folder / f"r{number}.txt", np.full((1 + number % 5, 3), number))
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return file


def preparing(reader: Path) -> tuple[str, ...]:
    """Return the command that prepares the folder beside a reader's file."""
    folder = str(reader.parent / "my_folder")
    return ("data", "prepare", "mine", "--reader", "my_format", "--plugin", str(reader),
            "--from", folder)  # fmt: skip


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


def test_the_page_s_reader_prepares_a_dataset_that_needs_no_plugin(
    reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader.parent)
    (command,) = re.findall(r"^sftsearch (data prepare mine --reader .*)$", PAGE, re.MULTILINE)
    done = call(*command.split(), "--option", "licence=mine")
    assert done.exit_code == 0, done.output
    monkeypatch.setattr("sftsearch.datasets.reader_catalog._plugin_readers", {})
    store = open_dataset("mine")
    assert store.spec.num_samples == dict.fromkeys(("train", "validation", "test"), 15)
    assert store.spec.licence == "mine"
    assert store.split("train").modalities["acc"][1][:4].tolist() == [[3.0] * 3] * 4


def test_readers_of_plugins_are_listed_with_their_options(reader: Path) -> None:
    listed = call("data", "list", "--readers", "--plugin", str(reader), "--json")
    assert '"reader": "my_format"' in listed.output
    assert '"options": "licence=not stated"' in listed.output
    assert '"what it reads": "List the samples of a folder of text files with' in listed.output


def test_python_takes_the_same_file(reader: Path) -> None:
    made = prepare_dataset(
        "mine", reader.parent / "my_folder", reader="my_format", plugins=[reader]
    )
    assert made.num_samples["train"] == 15


def test_a_damaged_file_is_a_bad_sample(reader: Path) -> None:
    (reader.parent / "my_folder" / "r7.txt").write_text("1 2\n")
    arguments = preparing(reader)
    done = call(*arguments)
    assert done.exit_code == 1
    assert "acc of sample 'r7' must be numbers (tokens, 3), but got float64 (1, 2)" in done.output
    assert call(*arguments, "--bad", "drop").exit_code == 0


def test_errors_of_a_reader_are_one_line(reader: Path) -> None:
    (reader.parent / "my_folder" / "r7.txt").write_text("one two three\n")
    arguments = preparing(reader)
    done = call(*arguments)
    assert done.exit_code == 1
    assert "Error: Cannot read r7: ValueError: could not convert string 'one'" in done.output
    (reader.parent / "my_folder" / "list.csv").unlink()
    done = call(*arguments)
    assert done.exit_code == 1
    assert "the reader 'my_format' failed: FileNotFoundError" in done.output


def test_names_of_shipped_readers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def read(path): ...\nREADERS = {'parquet': read}\n")
    with pytest.raises(UserError, match="'parquet' is the name of a shipped reader"):
        plugins.load_plugins([file])
    file.write_text("READERS = {'mine': 3}\n")
    with pytest.raises(UserError, match=r"`READERS` of mine\.py must be a dict of functions"):
        plugins.load_plugins([file])


def test_installed_readers_are_found_by_their_entry_points(
    tmp_path: Path, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "own_readers-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-readers\nVersion: 1.2\n")
    points = "[sftsearch.datasets]\nlab = own_readers:open_source\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "site" / "own_readers.py").write_text(reader.read_text())
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "own_readers", raising=False)
    done = call("data", "prepare", "mine", "--reader", "lab", "--from", str(tmp_path / "my_folder"))
    assert done.exit_code == 0, done.output
    assert "lab" in reader_names()
