"""Test folders of exports: written whole or not at all, and checked by checksums."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.deployment.folder import (
    CHECKSUMS,
    ExportError,
    check_folder,
    new_folder,
)

if TYPE_CHECKING:
    from pathlib import Path


def write(out: Path) -> None:
    with new_folder(out) as folder:
        (folder / "model.onnx").write_bytes(b"weights")
        (folder / "part").mkdir()
        (folder / "part" / "card.md").write_text("card")


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    write(tmp_path / "m")
    lines = (tmp_path / "m" / CHECKSUMS).read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(b'weights').hexdigest()}  model.onnx"
    assert lines[1].endswith("  part/card.md")
    subprocess.run(["sha256sum", "--check", CHECKSUMS], cwd=tmp_path / "m", check=True)
    check_folder(tmp_path / "m")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "m") as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "own.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"'.*m' exists already. Name a new folder"):
        write(tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        write(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "m", "own.txt"]


def test_an_empty_folder_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write(tmp_path / "m")
    check_folder(tmp_path / "m")


@pytest.mark.parametrize("change", ["changed", "added", "removed", "linked"])
def test_a_changed_export_is_refused(change: str, tmp_path: Path) -> None:
    write(tmp_path / "m")
    file = tmp_path / "m" / "model.onnx"
    if change == "changed":
        file.write_bytes(b"Weights")
    elif change == "added":
        (tmp_path / "m" / "part" / "more.py").write_text("")
    elif change == "linked":
        (tmp_path / "m" / "more.py").symlink_to("model.onnx")
    else:
        file.unlink()
    with pytest.raises(ExportError, match="has been changed") as error:
        check_folder(tmp_path / "m")
    assert ("model.onnx" if change in ("changed", "removed") else "more.py") in str(error.value)


def test_another_folder_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not an export"):
        check_folder(tmp_path)
