"""Make output unable to end a command: streams that outlive their reader and any encoding."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


class _LastingFile(io.FileIO):
    """A file whose writes succeed even if its reader is gone, as with `nohup`."""

    def write(self, data: object) -> int:
        """Write bytes, or drop them if nobody can read them any more."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            return len(memoryview(data))  # type: ignore[arg-type]


def make_output_lasting() -> None:
    """Replace the standard streams of this process.

    A closed pipe (`| head`, a killed `tee`) no longer raises, so that a study goes on, and
    characters that the terminal's encoding lacks are replaced. Streams that a caller has replaced
    are kept as they are.
    """
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.__stdout__)
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.__stderr__, is_buffered=False)


def _lasting(stream: TextIO, *, is_buffered: bool = True) -> TextIO:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # closed
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(number, "wb", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=not is_buffered or stream.isatty(),
    )
