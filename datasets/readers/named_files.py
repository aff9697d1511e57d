"""Find the files of samples by name, and tell files that belong to no sample from missing ones."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.source import unreadable, within

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NAMES = 3
"""Files that a message names."""


class NamedFiles:
    """The files below a folder with one suffix, by their relative path without it.

    Names are compared in Unicode's composed form (NFC), because macOS may store another one, and
    suffixes without regard to case. Hidden files and folders (`._x`, `.ipynb_checkpoints`) are left
    out.
    """

    def __init__(self, root: Path, folder: str, suffix: str) -> None:
        """List the files.

        Args:
            root: the folder of the dataset.
            folder: a folder in it; "." for the root itself.
            suffix: such as `.npy`.

        Raises:
            DatasetError: a folder cannot be read, or two files have the same name.
        """
        self._root, self._where = root, root / folder
        self._files: dict[str, str] = {}
        self._found: set[str] = set()
        for file in _walk(self._where):
            if file.suffix.lower() != suffix:
                continue
            name = _composed(file.relative_to(self._where).with_suffix("").as_posix())
            relative = file.relative_to(root).as_posix()
            if self._files.setdefault(name, relative) != relative:
                raise unreadable(root, f"{relative} and {self._files[name]} have the same name")

    def __len__(self) -> int:
        return len(self._files)

    def find(self, name: str) -> Path | None:
        """Return the file of a sample, or None.

        Raises:
            DatasetError: the name or a link leads out of the folder.
        """
        key = _composed(name)
        if key not in self._files:
            within(self._where, name)  # refuses names such as ../x
            return None
        self._found.add(key)
        return within(self._root, self._files[key])

    def check(self, names: Sequence[str]) -> str | None:
        """Check the names that were looked up; return a note on files that no sample has.

        Args:
            names: those of all samples.

        Raises:
            DatasetError: no file has a name of a sample, or some differ in case only.
        """
        others = sorted(self._files.keys() - self._found)
        if not others:
            return None
        shown = ", ".join(self._files[name] for name in others[:MAX_NAMES])
        if not self._found:
            raise unreadable(
                self._where,
                f"none of its {len(others)} files has the name of a sample: there are {shown}, "
                f"but samples called {', '.join(names[:MAX_NAMES])}",
            )
        folded = {_composed(name).casefold(): name for name in names}
        similar = [name for name in others if name.casefold() in folded]
        if similar:
            raise unreadable(
                self._where,
                f"{len(similar)} files differ from names of samples in case only: rename "
                f"{self._files[similar[0]]} to {folded[similar[0].casefold()]}, and so on",
            )
        more = ", ..." if len(others) > MAX_NAMES else ""
        return f"Files of no sample: {len(others)} ({shown}{more})."


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _walk(folder: Path) -> list[Path]:
    """Return the files below a folder that are not hidden, sorted.

    Raises:
        DatasetError: a folder cannot be read.
    """
    errors: list[OSError] = []
    files = []
    for where, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(where, name) for name in names if not name.startswith(".")]
    denied = [error for error in errors if not isinstance(error, FileNotFoundError)]
    if denied:
        raise unreadable(denied[0].filename or folder, denied[0].strerror)
    return sorted(files)
