"""Ctrl-C as a terminal sends it, for tests that run where it is ignored.

A shell that starts a command in the background has it ignore SIGINT, and all that it starts.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Have this process, and those that it starts, hear Ctrl-C for the time of the block.

    A handler of Python's, other than that a signal is ignored, does not outlive `exec`: what is
    started begins with the system's default, and Python with its own.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
