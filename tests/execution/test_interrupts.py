"""Ctrl-C and SIGTERM as they are counted; what follows from them: `test_kill.py`."""

from __future__ import annotations

import signal
import threading

import pytest

from sftsearch.orchestrator.execution.interrupts import Interruption


def test_interruption_counts_two_signals_and_leaves_the_third_to_python() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.count == 1
        signal.raise_signal(signal.SIGINT)
        assert interruption.count == 2
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_interruption_counts_sigterm_as_two_and_restores_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.count == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_interruption_leaves_signals_alone_outside_the_main_thread() -> None:
    heard = []

    def enter() -> None:
        with Interruption():
            heard.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGINT)]
