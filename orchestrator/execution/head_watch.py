"""Watch the Ray head node and warn when it stops responding.

When the head node is gone, the driver's next Ray call blocks for a minute and then kills the
process without an exception, so only another thread can warn the user.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 2.0
"""Time between two checks, and timeout of one."""


def watch_head_node(notice: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Watch the head node of the connected Ray for the duration of a block.

    See `watch_address`.
    """
    return watch_address(ray.get_runtime_context().gcs_address, notice)


@contextlib.contextmanager
def watch_address(address: str, notice: Callable[[str], None]) -> Iterator[None]:
    """Warn, for the duration of the block, when a head node stops or starts responding.

    Args:
        address: of the head node, HOST:PORT.
        notice: called with a message, in another thread.
    """
    ended = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(address, notice, ended), name="head", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(address: str, notice: Callable[[str], None], ended: threading.Event) -> None:
    was_up = True
    while not ended.wait(SECONDS):
        is_up = _answers(address)
        if was_up and not is_up:
            notice(
                f"The Ray head node at {address} does not answer. Unless it is back within a "
                "minute, Ray ends this process. Finished work is kept; continue with --resume."
            )
        elif is_up and not was_up:
            notice("The Ray head node answers again.")
        was_up = is_up


def _answers(address: str) -> bool:
    try:
        reach(address, timeout=SECONDS)
    except OSError:
        return False
    return True


def reach(address: str, *, timeout: float) -> None:
    """Connect to HOST:PORT and close the connection.

    Args:
        address: HOST:PORT; an IPv6 host is in brackets.
        timeout: in seconds.

    Raises:
        OSError: nothing answers.
        OverflowError: the port is out of range.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout).close()
