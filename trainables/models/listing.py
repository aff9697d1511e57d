"""List the models of this folder. To add a model, add its file and a line in `FILES`."""

from __future__ import annotations

import functools
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.trainables.models.fusion import ModelEntry

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
    "linear",
    "mlp",
    "minirocket",
)
"""Files with a dict `MODELS` of models by name."""


@functools.cache
def listed_models() -> Mapping[str, ModelEntry]:
    """Import the files and return all models by name; also used by models built from others."""
    modules = [import_module(f"{__package__}.{name}") for name in FILES]
    found = {name: entry for module in modules for name, entry in module.MODELS.items()}
    return MappingProxyType(found)
