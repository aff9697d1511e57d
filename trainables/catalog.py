"""The fusion systems there are. To add one: its file in `models/`, and its line in `FILES`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch

from sftsearch.datasets.errors import look_up
from sftsearch.trainables.models.fusion import CATALOG

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig
    from sftsearch.trainables.models.fusion import FusionModel, System

FILES = (
    "sft",
    "concat",
    "late_fusion",
    "unimodal",
    "mult",
    "mbt",
    "dynmm",
    "dynmm_fusion",
    "msaf",
    "mmtm",
    "tensor_fusion",
    "decision_fusion",
    "gradient_blending",
)
"""Modules of `models/`; each has `SYSTEMS`, its systems by name."""


def _systems() -> dict[str, System]:
    modules = [import_module(f"sftsearch.trainables.models.{name}") for name in FILES]
    return {name: system for module in modules for name, system in module.SYSTEMS.items()}


MODELS = CATALOG
MODELS.update(_systems())
"""Every fusion system by its name in study files."""


def build_model(name: str, spec: DatasetSpec, config: TransformerConfig, seed: int) -> FusionModel:
    """Build a system with the weights of `seed`; the caller's random state is left as it was.

    Raises:
        UserError: no system has this name.
        ConfigError: the configuration does not fit the data set.
    """
    system = look_up(MODELS, name, kind="model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return system.build(spec, config)
