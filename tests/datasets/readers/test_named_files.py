"""Names of files: Unicode forms, case, files of no sample, folders that cannot be read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.named_files import NamedFiles


def write(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / "audio" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def test_forms_of_unicode_and_case_of_suffixes_do_not_matter(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "clé")
    assert decomposed != "clé"
    write(tmp_path, f"{decomposed}.npy", "b.NPY", "deep/c.npy", "d.npz", "._b.npy")
    files = NamedFiles(tmp_path, "audio", ".npy")
    assert len(files) == 3
    found = [files.find(name) for name in ("clé", "b", "deep/c", "d")]
    assert [file and file.name for file in found] == [f"{decomposed}.npy", "b.NPY", "c.npy", None]
    assert files.check(["clé", "b", "deep/c", "d"]) is None


def test_files_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.npy", "B.npy", "Clé.npy")
    files = NamedFiles(tmp_path, "audio", ".npy")
    for name in ("a", "b", "clé"):
        files.find(name)
    with pytest.raises(
        DatasetError, match=r"2 files differ .* in case only: rename audio/B\.npy to b"
    ):
        files.check(["a", "b", "clé"])


def test_files_of_which_none_has_a_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a_feat.npy", "b_feat.npy")
    files = NamedFiles(tmp_path, "audio", ".npy")
    assert files.find("a") is None
    message = (
        r"none of its 2 files has the name of a sample: there are audio/a_feat\.npy, .* called a, b"
    )
    with pytest.raises(DatasetError, match=message):
        files.check(["a", "b"])


def test_other_files_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.npy", *(f"x{number}.npy" for number in range(5)))
    files = NamedFiles(tmp_path, "audio", ".npy")
    files.find("a")
    note = files.check(["a"])
    assert note == "Files of no sample: 5 (audio/x0.npy, audio/x1.npy, audio/x2.npy, ...)."


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.npy", "a.NPY")
    with pytest.raises(DatasetError, match="have the same name"):
        NamedFiles(tmp_path, "audio", ".npy")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a\0b"])
def test_names_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.npy")
    files = NamedFiles(tmp_path, "audio", ".npy")
    with pytest.raises(DatasetError, match="must be in"):
        files.find(name)


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from sftsearch.datasets.readers.named_files import NamedFiles

if os.geteuid() == 0:  # root may read every folder
    os.setuid(65534)
try:
    NamedFiles(Path(sys.argv[1]), "audio", ".npy")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.medium
def test_a_folder_that_cannot_be_read_is_named() -> None:
    """In a folder that other users can enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        write(Path(folder), "deep/a.npy")
        (Path(folder) / "audio").chmod(0o755)
        (Path(folder) / "audio" / "deep").chmod(0)
        command = [sys.executable, "-P", "-c", READ_AS_NOBODY, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (Path(folder) / "audio" / "deep").chmod(0o755)
    assert done.stdout.startswith("DatasetError Cannot read ")
    assert done.stdout.endswith("audio/deep: Permission denied.\n")
