"""The contract of every listed model: it exports to ONNX and torch.export with equal results."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.deployment import predict
from sftsearch.orchestrator.deployment.export import describe_model, write_graphs
from sftsearch.orchestrator.deployment.graphs import graphs_of
from sftsearch.orchestrator.deployment.verify import open_programs, verify
from sftsearch.trainables.catalog import MODELS

from deployed import RAGGED, deployed, samples

if TYPE_CHECKING:
    from pathlib import Path

    from sftsearch.trainables.deployed_model import DeployedModel

pytestmark = pytest.mark.timeout(600)

FURTHER = (
    *("averaging", "multiplication", "concat_fc", "lmf", "mi_matrix", "msaf_lstm"),
    *("mult_original", "sft_po"),
)
"""Models with the layers of another model of their file; only `make test-all` exports them."""
GATED = {"dynmm": {"gate", "route_1", "route_2"}, "dynmm_fusion": {"gate", "route_1", "route_2"}}
ONE: dict[str, Any] = {"modalities": ("type",), "patch": 1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "strided, max, conv": ("sft", {"pooling": "max", "tokenizer": "conv", **ONE}),
    "fixed, attention": (
        "sft",
        {"pooling": "attention", "sparse_attention": "fixed", "summary": 1, **ONE},
    ),
    "dense, segments": (
        "sft",
        {"segments": 6, "sparse_attention": "dense", "tokenizer": "linear_statistics", **ONE},
    ),
    "transformer gate": ("dynmm", {"gate": "transformer", "gate_dim": 4}),
    "soft gate": ("dynmm", {"soft_inference": True}),
    "vanilla": ("mbt", {"strategy": "vanilla"}),
    "cross": ("mbt", {"strategy": "cross"}),
    "asymmetric": ("mbt", {"update": "asymmetric"}),
    "statistics": ("late_fusion", {"tokenizer": "statistics"}),
    "rich": ("mlp", {"statistics": "rich"}),
}  # fmt: skip


def check(model: DeployedModel, folder: Path) -> None:
    """Export to both formats, and compare with the model."""
    write_graphs(folder, ["onnx", "pt2"], model, {})
    given, facts = samples(model), describe_model(model)
    for run in (predict.open_graphs(folder), open_programs(folder, model)):
        found = verify(model, run, facts, given)
        assert found.num_samples == 7
        # Seven samples, alone and together, with and without each modality that may be missing.
        compared = 14 * (1 + len(model.variable_modalities))
        gates = sum(one.num_routes > 1 for one in model.members)
        routes = sum(one.num_routes for one in model.members) * bool(gates)
        decisions = (1 + routes + gates) * compared if model.spec.task == "classification" else 0
        assert decisions == 0 or found.num_decisions + found.num_close <= decisions
        assert found.num_decisions >= 0.8 * decisions
        assert np.isfinite(predict.predict(facts, run, given)).all()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in FURTHER else pytest.mark.medium)
        for name in sorted(MODELS)
    ],
)
def test_every_model_exports(name: str, tmp_path: Path) -> None:
    model = deployed(name)
    assert set(graphs_of(model)) == GATED.get(name, {"model"})
    assert set(FURTHER) < set(MODELS)
    check(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_exports(variant: str, tmp_path: Path) -> None:
    name, options = VARIANTS[variant]
    check(deployed(name, **options), tmp_path)


@pytest.mark.medium
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_every_task_exports(task: Any, tmp_path: Path) -> None:
    classes = () if task == "regression" else RAGGED.classes
    spec = replace(RAGGED, task=task, classes=classes)
    check(deployed("late_fusion", spec=spec), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["concat", "dynmm"])
def test_an_ensemble_exports(name: str, tmp_path: Path) -> None:
    """Without gates it is one graph; gated replicates have a gate and routes each."""
    model = deployed(name, replicates=2)
    gated = {f"replicate_{i}_{part}" for i in (1, 2) for part in ("gate", "route_1", "route_2")}
    assert set(graphs_of(model)) == (gated if name == "dynmm" else {"model"})
    check(model, tmp_path)
