"""Whether Ray's head node is there, and a line when it is gone.

Ray waits for it within whatever call the driver makes next, a minute long, and then ends the
process: no exception is raised, and only another thread can still say something.
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
"""Between two looks."""


def watch_head_node(notice: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Watch the head node of the connected Ray for the time of a block; see `watch_address`."""
    return watch_address(ray.get_runtime_context().gcs_address, notice)


@contextlib.contextmanager
def watch_address(address: str, notice: Callable[[str], None]) -> Iterator[None]:
    """Tell `notice`, for the time of the block, when a head node goes and comes.

    Args:
        address: of the head node, HOST:PORT.
        notice: called with a line, in another thread.
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
    was_there = True
    while not ended.wait(SECONDS):
        is_there = _answers(address)
        if was_there and not is_there:
            notice(
                f"Ray's head, {address}, does not answer. Unless it is back within a minute, Ray "
                "ends this process; what ran is kept, and --resume goes on."
            )
        elif is_there and not was_there:
            notice("Ray's head answers again.")
        was_there = is_there


def _answers(address: str) -> bool:
    try:
        reach(address, timeout=SECONDS)
    except OSError:
        return False
    return True


def reach(address: str, *, timeout: float) -> None:
    """Connect to HOST:PORT, and leave.

    Args:
        address: an IPv6 host stands in brackets.
        timeout: in seconds.

    Raises:
        OSError: nobody answers there.
        OverflowError: that is no port.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout).close()
