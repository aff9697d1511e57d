"""Shared test setup: fixed random seeds, and isolation from the user's files and settings.

The test run and every test have their own home folder, which child processes use too, for datasets
and studies. The shipped datasets take seconds to write, so they are written once and linked into
every test's cache. Ray's workers find test modules by PYTHONPATH.
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
"""Prefixes of environment variables that configure the tested programs."""

CACHE = Path(".cache", "sftsearch")
STORES = "[!.]*-v[0-9]*"
"""Pattern of complete shipped datasets in a cache."""

_numbers = itertools.count(1)


def isolate_from_user() -> Path:
    """Replace the user's home and settings; return the folder of this test run."""
    folder = Path(tempfile.mkdtemp(prefix="sftsearch-tests-"))
    for name in [name for name in os.environ if name.startswith(USER_SETTINGS)]:
        del os.environ[name]
    home = folder / "session"
    (home / CACHE).mkdir(parents=True)
    (home / ".ray").mkdir()
    os.environ["HOME"] = str(home)
    # Ray workers and other child processes import test modules and what tests share.
    own = [Path(__file__).parent / "support", Path(__file__).parents[1]]
    paths = [*map(str, own), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["MPLCONFIGDIR"] = str(home / "matplotlib")  # one font cache for all tests
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Background jobs of a shell ignore Ctrl-C, and child processes would inherit this.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return folder


FOLDER = isolate_from_user()  # before the product is imported, which may add settings

# No deadline, because machines are shared and every test has its own time limit.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="first case of every fast test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --quick, keep the first case of each test that is not marked as slower."""
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
    """Return the home folder for module and session fixtures, such as servers."""
    return Path.home()


@pytest.fixture(autouse=True)
def own_home(session_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a test its own home folder with a dataset cache and a folder for studies."""
    home, shared = session_home.parent / f"{next(_numbers):05d}", session_home / CACHE
    cache = home / CACHE
    cache.mkdir(parents=True)
    for store in shared.glob(STORES):
        (cache / store.name).symlink_to(store)
    (home / ".ray").symlink_to(session_home / ".ray")  # one token for all Rays of a process
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SFTSEARCH_RUNS", str(home / "runs"))
    yield home
    for store in cache.glob(STORES):
        if not store.is_symlink() and not (shared / store.name).exists():
            store.rename(shared / store.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state that libraries use
    torch.manual_seed(0)
