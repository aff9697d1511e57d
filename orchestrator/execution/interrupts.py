"""Ctrl-C and SIGTERM while trials run."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Interruption:
    """Ctrl-C while trials run: once, no new ones; twice, or SIGTERM, stop now.

    A signal is only counted: what follows from it is done between two steps of Tune. After the
    second, signals act as they did before. Python hears signals in its main thread alone; a study
    that runs in another one leaves them as they are.
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
