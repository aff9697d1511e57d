"""Fixtures: a finished study with a gated and an ungated model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sftsearch.orchestrator.study import run_study

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """
study: {name: toy}
dataset: {kind: synthetic}
search:
  sampler: exhaustive
  trials: 4
  replicates: 2
training: {epochs: 2, batch_size: 256}
space:
  - {kind: concat, num_heads: 1, num_layers: 1, dim: 4}
  - kind: dynmm
    num_heads: 1
    dim: 4
    experts: [{kind: unimodal, modalities: [left], fused_layers: 1}, {kind: concat, num_layers: 1}]
"""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished study on `synthetic`; tests must not change it."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "toy.yaml").write_text(STUDY)
    return run_study(runs / "toy.yaml", runs=runs).folder
