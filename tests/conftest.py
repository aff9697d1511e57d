"""What holds for every test: the same draws in every run, and nothing of the user's.

A run of the tests has a home folder of its own, and so has every test: datasets are kept and
studies are recorded there, by child processes too. The shipped datasets, which take seconds to
write, are written once and linked into every test's cache. The current directory stays: Ray's
workers import what a test module defines from there.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_SETTINGS = ("AWS_", "MLFLOW_", "OPTUNA_", "RAY_", "SFTSEARCH_", "TUNE_", "XDG_")
"""How environment variables begin by which a user could tell the tested programs something."""

CACHE = Path(".cache", "sftsearch")
STORES = "[!.]*-v[0-9]*"
"""Shipped datasets in a cache, not those that are being written."""

_numbers = itertools.count(1)


def leave_the_user() -> Path:
    """Leave the user's folders and settings; return the folder of this run of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="sftsearch-tests-"))
    for name in [name for name in os.environ if name.startswith(USER_SETTINGS)]:
        del os.environ[name]
    home = folder / "session"
    (home / CACHE).mkdir(parents=True)
    (home / ".ray").mkdir()
    os.environ["HOME"] = str(home)
    # Workers of Ray and other child processes take classes from what several tests use.
    paths = [str(Path(__file__).parent / "support"), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["MPLCONFIGDIR"] = str(home / "matplotlib")  # one list of fonts for all tests
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background jobs ignore Ctrl-C, and so would every process that a test starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return folder


FOLDER = leave_the_user()  # before anything of the product is imported, which may add settings

# Without a deadline: the machines are shared, and every test has a time limit of its own.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one case of every fast test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the first case of each test, of those that are not marked as longer."""
    if not config.getoption("quick"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "service", "medium")):
            first.setdefault(item.nodeid.partition("[")[0], item)
    chosen = set(first.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = first.values()


def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(partial(shutil.rmtree, FOLDER, ignore_errors=True))


@pytest.fixture(scope="session")
def session_home() -> Path:
    """Return the home folder of what outlives a test, such as a server of a module's tests."""
    return Path.home()


@pytest.fixture(autouse=True)
def own_home(session_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a test a home folder, and within it a cache and a folder of studies."""
    home, shared = session_home.parent / f"{next(_numbers):05d}", session_home / CACHE
    cache = home / CACHE
    cache.mkdir(parents=True)
    for store in shared.glob(STORES):
        (cache / store.name).symlink_to(store)
    (home / ".ray").symlink_to(session_home / ".ray")  # one token for every Ray of a process
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SFTSEARCH_RUNS", str(home / "runs"))
    yield home
    for store in cache.glob(STORES):
        if not store.is_symlink() and not (shared / store.name).exists():
            store.rename(shared / store.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the state that libraries draw from
    torch.manual_seed(0)
