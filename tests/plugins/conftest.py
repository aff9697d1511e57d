"""Forget the plug-ins of a test, which are those of a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sftsearch.datasets import reader_catalog
from sftsearch.orchestrator import plugins
from sftsearch.trainables.models import listing
from sftsearch.trainables.plugin_functions import FUNCTIONS, MODULE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parent / "examples"


def forget_plugins() -> None:
    """Make this process one that never loaded a plug-in."""
    listing._added.clear()
    for table in FUNCTIONS.values():
        table.clear()
    plugins._loaded.clear()
    reader_catalog._plugin_readers.clear()
    plugins.load_installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith(MODULE_PREFIX)]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def no_plugins() -> Iterator[Callable[[], None]]:
    """Return the function that forgets all plug-ins; it is also called at the end."""
    forget_plugins()
    yield forget_plugins
    forget_plugins()


@pytest.fixture
def mean_mlp(tmp_path: Path) -> Path:
    """Return a copy of the plain example, in a folder of its own."""
    path = tmp_path / "own" / "mean_mlp.py"
    path.parent.mkdir()
    path.write_text((EXAMPLES / "mean_mlp.py").read_text())
    return path
