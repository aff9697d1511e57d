"""Several workers train the same as one, except for batch normalization and random draws."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from drive_parallel import build, histories

from sftsearch.datasets.catalog import open_dataset
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.distributed import Workers, normalizes_batches
from sftsearch.trainables.fit import Fit

DRIVER = Path(__file__).parents[1] / "support" / "drive_parallel.py"
BOUNDS = {"float64": 1e-10, "float32": 1e-4}
BATCH_NORM = ("msaf", "msaf_lstm")
"""Models with batch normalization: workers take its statistics from their own parts."""
RANDOM = ("dynmm", "dynmm_fusion")
"""Models whose gates add noise in training: each worker draws its own."""
EQUAL = sorted(set(MODELS) - {*BATCH_NORM, *RANDOM})


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


class Pair(NamedTuple):
    """The histories by model of two workers."""

    dtype: str
    workers: list[dict[str, Any]]


@pytest.fixture(scope="module", params=sorted(BOUNDS))
def by_two(request: pytest.FixtureRequest, stores: Path) -> Pair:
    names = sorted(MODELS)

    def start(rank: int, port: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(DRIVER), str(rank), "2", port, request.param, str(stores)]
        return subprocess.Popen([*command, *names], stdout=subprocess.PIPE, text=True)

    histories(names[:1], torch.float32, stores)  # builds the store
    first = start(0, "0")
    assert first.stdout is not None
    second = start(1, first.stdout.readline().strip())
    outputs = [process.communicate(timeout=150)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    return Pair(request.param, [json.loads(out.strip().splitlines()[-1]) for out in outputs])


@pytest.mark.medium
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_workers_report_equal_metrics(name: str, by_two: Pair) -> None:
    first, second = by_two.workers
    for one, other in zip(first[name], second[name], strict=True):
        assert one.keys() == other.keys()
        assert {k for k in one if one[k] != other[k]} <= {"seconds"}


@pytest.mark.medium
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", EQUAL)
def test_two_workers_train_the_same_as_one(name: str, by_two: Pair, stores: Path) -> None:
    alone = histories([name], getattr(torch, by_two.dtype), stores)[name]
    for one, both in zip(alone, by_two.workers[0][name], strict=True):
        for key in ("train_loss", "loss"):
            assert math.isclose(one[key], both[key], rel_tol=BOUNDS[by_two.dtype])


def test_normalizes_batches_finds_the_models_with_batch_norm(stores: Path) -> None:
    store = open_dataset("synthetic", cache=stores)
    found = {n for n in MODELS if normalizes_batches(build(n, store, torch.float32))}
    assert found == set(BATCH_NORM)
    statistics = MODELS["sft"].config(tokenizer="statistics")
    assert normalizes_batches(build_model("sft", store.spec, statistics, seed=0))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_parts_cover_the_batch_and_their_weighted_means_average_to_its_mean(
    count: int, size: int
) -> None:
    rows, losses = np.arange(size), np.random.default_rng(0).normal(size=size)
    workers = [Workers(rank, count) for rank in range(count)]
    parts = [one.part(rows) for one in workers]
    weights = [one.weight(size) for one in workers]
    counted = [part for part, weight in zip(parts, weights, strict=True) if weight]
    assert sorted(np.concatenate(counted)) == list(rows)
    means = [weight * losses[part].mean() for part, weight in zip(parts, weights, strict=True)]
    assert math.isclose(np.mean(means), losses.mean(), rel_tol=1e-12)


def test_compiled_models_are_refused(stores: Path) -> None:
    store = open_dataset("synthetic", cache=stores)
    config = TrainConfig(epochs=2, compile=True)
    with pytest.raises(ConfigError, match=r"single worker, but got \(compile=True, workers=2\)"):
        Fit(build("sft", store, torch.float32), store, config, seed=0, workers=Workers(0, 2))
