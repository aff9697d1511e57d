"""Encoders, losses and training functions of plug-ins, by the names that study files use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULTS = {"tokenizer": "linear", "trainer": "default", "training_loss": "task"}
"""Parameters that can name a function or an encoder of a plug-in, and their values without one."""
MODULE_PREFIX = "sftsearch_plugin_"
"""Start of the name under which a plug-in's file is imported."""


class PluginError(UserError):
    """A plug-in cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class PluginFunction:
    """A function or the class of an encoder of a plug-in."""

    call: Callable[..., Any]
    source_hash: str
    """SHA-256 of its source."""


FUNCTIONS: dict[str, dict[str, PluginFunction]] = {field: {} for field in DEFAULTS}
"""What this process loaded: by the parameter that names it, and by name."""


def function_of(field: str, name: str) -> Callable[..., Any]:
    """Return the function or class that a parameter of a checked configuration names."""
    return FUNCTIONS[field][name].call


def named_in(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return which parameters of a trial can name a function, with its name; experts included."""
    found = [(name, str(parameters[name])) for name in DEFAULTS if name in parameters]
    for expert in parameters.get("experts") or ():
        found += named_in(expert) if isinstance(expert, Mapping) else []
    return found


def source_hashes(parameters: Mapping[str, Any]) -> list[str]:
    """Return the source hashes of the functions that the parameters of a trial name, in order."""
    return [
        FUNCTIONS[parameter][name].source_hash
        for parameter, name in named_in(parameters)
        if name in FUNCTIONS[parameter]
    ]


def describe_error(error: BaseException) -> str:
    """Return the type and the first line of an error's message, and the place in the plug-in."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    where, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith(MODULE_PREFIX):
            where = f" (line {trace.tb_lineno})"
        trace = trace.tb_next
    return text.rstrip(".") + where + "."
