"""Losses and training functions of plug-ins, by the names that study files use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULTS = {"trainer": "default", "training_loss": "task"}
"""Fields of `TrainConfig` that name a function, and their values without one."""


@dataclass(frozen=True, slots=True)
class PluginFunction:
    """A function of a plug-in."""

    call: Callable[..., Any]
    source_hash: str
    """SHA-256 of its source."""


FUNCTIONS: dict[str, dict[str, PluginFunction]] = {field: {} for field in DEFAULTS}
"""The functions that this process loaded: by field of `TrainConfig`, and by name."""


def function_of(field: str, name: str) -> Callable[..., Any]:
    """Return the function that a field of a checked training configuration names."""
    return FUNCTIONS[field][name].call


def source_hashes(values: Mapping[str, object]) -> list[str]:
    """Return the source hashes of the functions that a training configuration names, in order."""
    named = [(field, values.get(field, default)) for field, default in DEFAULTS.items()]
    return [
        FUNCTIONS[field][str(name)].source_hash
        for field, name in named
        if name != DEFAULTS[field] and str(name) in FUNCTIONS[field]
    ]
