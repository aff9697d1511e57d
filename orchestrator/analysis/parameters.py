"""Format the parameters of configurations, and find those that vary between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.orchestrator.metrics import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary


def varying_parameters(configurations: Iterable[ConfigurationSummary]) -> list[str]:
    """Return the parameters that differ between the configurations of models that have them.

    A configuration without the parameter counts if another one of its model has it.
    """
    found: dict[str, set[str]] = {}
    rows = list(configurations)
    for name in dict.fromkeys(name for c in rows for name in c.parameters):
        models = {c.model for c in rows if c.parameters.get(name) is not None}
        found[name] = {format_parameter(c, name) for c in rows if c.model in models}
    return [name for name, values in found.items() if len(values) > 1 and name != "model"]


def format_parameter(c: ConfigurationSummary, name: str) -> str:
    """Return a parameter's value as text; lists as `a+b`."""
    return format_value(used_parameters(c.parameters).get(name))


def format_value(value: object) -> str:
    """Return a value as text; lists as `a+b`, mappings as in a study file: `{a: 1, b: 2}`."""
    if value is None:
        return MISSING
    if isinstance(value, (list, tuple)):
        return "+".join(map(_format_entry, value))
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_value(one)}' for key, one in value.items())}}}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def used_parameters(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return parameters with those by modality restricted to the modalities used.

    A study file may list values of all modalities, whichever a configuration uses.
    """
    used = parameters.get("modalities")
    if not isinstance(used, (list, tuple)):
        return dict(parameters)
    return {
        name: {key: one for key, one in value.items() if key in used}
        if isinstance(value, dict) and any(key in used for key in value)
        else value
        for name, value in parameters.items()
    }


def abbreviate_parameter(
    c: ConfigurationSummary, name: str, configurations: Iterable[ConfigurationSummary]
) -> str:
    """Return `format_parameter`, or `all 4` for a list with all 4 entries of any configuration."""
    return abbreviate_value(used_parameters(c.parameters).get(name), name, configurations)


def abbreviate_value(
    value: object, name: str, configurations: Iterable[ConfigurationSummary]
) -> str:
    """Return a value of a parameter as text, as `abbreviate_parameter` does."""
    if isinstance(value, (list, tuple)) and len(value) > 1:
        lists = (other.parameters.get(name) for other in configurations)
        found = [other for other in lists if isinstance(other, (list, tuple))]
        every = {_format_entry(one) for other in found for one in other}
        if set(map(_format_entry, value)) == every:
            return f"all {len(value)}"
    return format_value(value)


def _format_entry(entry: object) -> str:
    """Return an entry of a list as text, for example `unimodal(modalities=[watch_acc])`."""
    if not isinstance(entry, dict):
        return str(entry)
    settings = ", ".join(
        f"{name}=[{', '.join(map(str, one))}]" if isinstance(one, list) else f"{name}={one}"
        for name, one in entry.items()
        if name != "kind"
    )
    return f"{entry.get('kind', '')}({settings})"
