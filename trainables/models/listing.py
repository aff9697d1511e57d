"""List the models of this folder, and those of plug-ins.

To add a model, add its file and a line in `FILES`.
"""

from __future__ import annotations

import functools
from collections import ChainMap
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


_added: dict[str, ModelEntry] = {}
"""The models of plug-ins that this process loaded."""


@functools.cache
def shipped_models() -> Mapping[str, ModelEntry]:
    """Import the files and return their models by name."""
    modules = [import_module(f"{__package__}.{name}") for name in FILES]
    found = {name: entry for module in modules for name, entry in module.MODELS.items()}
    return MappingProxyType(found)


@functools.cache
def listed_models() -> Mapping[str, ModelEntry]:
    """Return all models by name, also those added later; used by models built from others."""
    return MappingProxyType(ChainMap(dict(shipped_models()), _added))


def added_models() -> Mapping[str, ModelEntry]:
    """Return the models of plug-ins by name."""
    return MappingProxyType(_added)


def add_models(entries: Mapping[str, ModelEntry]) -> None:
    """Add models of plug-ins; one replaces an earlier one of its name, but none of this folder."""
    assert not set(entries) & set(shipped_models()), entries
    _added.update(entries)
