"""Small untrained models as they are deployed, and raw samples for them.

Shapes: B batch, T samples of a modality, F features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.deployed_model import DeployedModel, TrainedNetwork
from sftsearch.trainables.layers.tensor_fusion import LowRankFusion

from small_models import SPEC, small

if TYPE_CHECKING:
    from torch import nn

    from sftsearch.datasets.spec import DatasetSpec

VARIABLE = ("type", "text")
"""Modalities of variable length; "audio" has a fixed one."""
RAGGED: DatasetSpec = replace(
    SPEC,
    modalities={
        name: replace(shape, variable_length=name in VARIABLE)
        for name, shape in SPEC.modalities.items()
    },
)
LENGTHS = {"type": [13, 7, 1, 0, 4, 12, 13], "text": [9, 0, 9, 2, 1, 8, 5]}
SHALLOW = dict.fromkeys(
    ("num_layers", "fused_layers", "crossmodal_layers", "memory_layers", "fusion_layer"), 1
)


def statistics(seed: int = 0) -> dict[str, tuple[Any, Any]]:
    """Return means and standard deviations that differ by feature, (F,) each."""
    random = np.random.default_rng(seed)
    return {
        name: (
            random.normal(size=shape.num_features).astype(np.float32),
            random.uniform(0.5, 2.0, size=shape.num_features).astype(np.float32),
        )
        for name, shape in RAGGED.modalities.items()
    }


def deployed(
    name: str, *, replicates: int = 1, spec: DatasetSpec = RAGGED, **options: Any
) -> DeployedModel:
    """Return a small model with one layer of each kind."""
    known = {key: n for key, n in SHALLOW.items() if hasattr(MODELS[name].config, key)}
    config = small(name, **known | options)
    networks = [
        TrainedNetwork(spec, build_model(name, spec, config, seed=seed), statistics(seed))
        for seed in range(replicates)
    ]
    for network in networks:
        _enlarge_factors(network)
    return DeployedModel(spec, networks)


def _enlarge_factors(network: nn.Module) -> None:
    """Enlarge the factors of `lmf`; untrained, their product is almost equal for all classes."""
    for layer in network.modules():
        if isinstance(layer, LowRankFusion):
            with torch.no_grad():
                for factor in layer.factors:
                    factor.mul_(5.0)


def samples(model: DeployedModel, size: int = 7, seed: int = 1) -> dict[str, Any]:
    """Return raw samples (B, T, F), with noise as padding, and their lengths (B,), by input."""
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name in model.modalities:
        shape = model.spec.modalities[name]
        values = random.normal(size=(size, shape.num_tokens, shape.num_features))
        found[name] = values.astype(np.float32)
    for name in model.variable_modalities:
        found[f"{name}_length"] = np.resize(LENGTHS[name], size).astype(np.int64)
    return found
