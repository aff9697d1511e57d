"""Locks on file systems that have none: one line says so, wherever a lock is taken."""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING

import pytest

from sftsearch.datasets.file_lock import locked
from sftsearch.orchestrator.storage.journal import Journal, JournalError
from sftsearch.orchestrator.tracking.client import TrackingError, default_uri, open_client

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def _no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(request.param, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("_no_locks")
def test_file_system_without_locks_is_named_as_the_cause(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no file locks"), locked(tmp_path / "lock", wait=True):
        pass
    with pytest.raises(JournalError, match="no file locks") as caught:
        Journal(tmp_path / "study")
    assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match="no file locks"):
        open_client(default_uri(tmp_path), tmp_path)


def test_lock_that_another_holds_is_still_told_apart(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", wait=True),
        pytest.raises(BlockingIOError),
        locked(tmp_path / "lock", wait=False),
    ):
        pass
