"""Counting of Ctrl-C and SIGTERM; `test_kill.py` tests their effects."""

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


def test_interruption_leaves_handlers_unchanged_outside_the_main_thread() -> None:
    handlers = []

    def enter() -> None:
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
