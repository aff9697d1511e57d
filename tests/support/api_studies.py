"""A finished study without Ray: a toy accuracy, and weights that training did not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.storage.journal import Journal, read_entries
from sftsearch.orchestrator.study import StudySession
from sftsearch.search_spaces.load import parse_study
from sftsearch.trainables.catalog import build_model

from toy_study import accuracy

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.trainables.models.fusion import FusionModel

DATASET = "synthetic_tags"
STUDY = """
study: {name: toy}
dataset: {kind: synthetic_tags}
objectives: [{metric: map, direction: maximize}, {metric: gflops, direction: minimize}]
search: {sampler: exhaustive, trials: 6, replicates: 2, early_stopping: none, baselines: false}
training: {epochs: 2}
space:
  - {kind: concat, num_heads: 2, num_layers: 1, dim: {kind: choice, values: [4, 8, 16]}}
"""


def network_of(model: str, parameters: dict[str, Any], seed: int) -> FusionModel:
    """Return a network whose weights are half as large again as at its start."""
    spec = describe(DATASET)
    config = bind(model, parameters, {"epochs": 2}, spec).model_config
    network = build_model(model, spec, config, seed).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
    return network


def write_study(runs: Path) -> Path:
    """Write a study of three configurations and two replicates; return its folder.

    Accuracy grows with cost, so all three are on the front.
    """
    session = StudySession(parse_study(STUDY.encode()), runs, StudyCallback(), {})
    folder, study = runs / "toy", session.study
    with Journal(folder) as journal:
        session.create_or_open(journal)
        search = Search(
            study,
            journal,
            session.admission,
            max_concurrent_trials=1,
            entries=list(read_entries(folder)),
        )
        while (assignment := search.propose()) is not None:
            for epoch in (1, 2):
                search.report(assignment.key, {"epoch": epoch, "map": accuracy(assignment) / 2})
            values = {"map": accuracy(assignment), **assignment.cost}
            search.finish(assignment.key, values, {})
            network = network_of(assignment.model, assignment.parameters, assignment.seed)
            where = folder / "trials" / str(assignment.key)
            where.mkdir(parents=True)
            save_file(network.state_dict(), where / "weights.safetensors")
        search.conclude()
        search.close()
    return folder
