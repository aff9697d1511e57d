"""Look up and build fusion models by name; `models/listing.py` lists their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sftsearch.datasets.errors import look_up
from sftsearch.trainables.models.listing import listed_models

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import ModelConfig
    from sftsearch.trainables.models.fusion import FusionModel

MODELS = listed_models()
"""Every fusion model, by its name in study files."""


def build_model(name: str, spec: DatasetSpec, config: ModelConfig, seed: int) -> FusionModel:
    """Build a model with weights drawn from `seed`; the caller's random state does not change.

    Raises:
        UserError: no model has this name.
        ConfigError: the configuration does not fit the dataset.
    """
    entry = look_up(MODELS, name, kind="model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return entry.build(spec, config)
