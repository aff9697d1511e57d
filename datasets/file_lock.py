"""Hold a lock on a file between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def locked(file: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file lock, which is released if the process is killed.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
        OSError: the file cannot be written, or its file system has no locks.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        take_lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, operation: int) -> None:
    """Call `flock`, and say what is missing where a file system (Lustre, some NFS) has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: any other failure.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        text = "this file system has no file locks (flock); use a folder on another one"
        raise OSError(error.errno, text) from error
