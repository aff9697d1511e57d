"""Write the folder of an export, whole or not at all, and check its files by their checksums.

The checksums find damage and changes by mistake. They are no signature: who can write to the folder
can write new checksums, too.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.checksums import file_sha256
from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKSUMS = "SHA256SUMS"
"""File with the checksums of all others, as `sha256sum` writes them."""


class ExportError(UserError):
    """A model that cannot be exported, or an export that cannot be used."""


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Provide a folder that becomes `out`, with checksums, when the block ends without an error.

    Raises:
        ExportError: `out` exists and is not empty, or cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"'{out}' exists already. Name a new folder, or delete this one.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ExportError(f"Cannot write to '{out.parent}': {error.strerror}.") from error
    try:
        folder = scratch / out.name  # with the user's permissions, unlike `scratch`
        folder.mkdir()
        yield folder
        write_checksums(folder)
        folder.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a folder."""
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / CHECKSUMS).write_text("".join(lines))


def check_folder(folder: Path) -> None:
    """Compare the files of an export with its checksums.

    Raises:
        ExportError: it is no export, or a file was changed, added or removed.
    """
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise ExportError(f"'{folder}' is not an export: it has no {CHECKSUMS}.") from None
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = _files(folder)
    differing = sorted(set(expected) ^ set(present)) or [
        name for name in present if file_sha256(folder / name) != expected[name]
    ]
    if differing:
        raise ExportError(
            f"The export '{folder}' has been changed: {', '.join(differing[:3])} is not as it was "
            "written (its checksum differs, or it was added or removed). Export the model again."
        )


def _files(folder: Path) -> list[str]:
    """Return the names of all files but the checksums, with their sub-folders."""
    files = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    return [name for name in names if name != CHECKSUMS]
