"""Warnings when the Ray head node stops responding; `test_kill.py` kills a real one."""

from __future__ import annotations

import queue
import socket

import pytest

from sftsearch.orchestrator.execution import head_watch


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_watch_address_reports_each_change_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "SECONDS", 0.05)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError as error:
        if family is socket.AF_INET:
            raise
        pytest.skip(f"no IPv6 on this machine: {error}")
    address = listener.getsockname()[:2]
    messages: queue.Queue[str] = queue.Queue()
    name = f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
    with head_watch.watch_address(name, messages.put):
        listener.close()
        assert "does not answer" in messages.get(timeout=20)
        with socket.create_server(address, family=family):
            assert messages.get(timeout=20) == "The Ray head node answers again."
    assert messages.empty()
