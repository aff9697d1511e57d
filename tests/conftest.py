"""What holds for every test: the same draws in every run, and Ctrl-C is heard."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

import ctrl_c

if TYPE_CHECKING:
    from collections.abc import Iterator

# Without a deadline: the machines are shared, and every test has a time limit of its own.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the state that libraries draw from
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    with ctrl_c.heard():
        yield
