"""Count Ctrl-C and SIGTERM while trials run."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Interruption:
    """Counts interrupts: the first Ctrl-C starts no new trials, the second or SIGTERM stops now.

    The handler only counts; the scheduler acts on the count between two steps of Tune. After a
    count of two, the previous handlers are restored. Python delivers signals to the main thread
    only, so a study that runs in another thread leaves the handlers unchanged.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[
            signal.Signals, Callable[[int, FrameType | None], object] | int | None
        ] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count = 2 if number == signal.SIGTERM else self.count + 1
        if self.count >= 2:
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
