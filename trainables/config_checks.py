"""Check the values of configurations; errors name the parameters to blame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError, nearest

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


class ConfigError(UserError):
    """A configuration is invalid or does not fit the dataset."""

    def __init__(self, message: str, *parameters: str) -> None:
        """Take the message and the parameters to blame, the most likely one first."""
        super().__init__(message)
        self.parameters = parameters


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    """Raise ConfigError unless `value` is an int (not a bool) of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(
            f"`{name}` must be a whole number from {at_least}, but got {value!r}.", name
        )


def check_number(name: str, value: Any, *, least: float, below: float, open_: bool = False) -> None:
    """Raise ConfigError unless `value` is finite and in [least, below), or (least, below)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value < below and math.isfinite(value)) or (
        open_ and value == least
    ):
        left = "(" if open_ else "["
        raise ConfigError(f"`{name}` must lie in {left}{least}, {below}), but got {value!r}.", name)


def check_names(name: str, value: Any) -> tuple[str, ...]:
    """Return the names in a list as a tuple; raise ConfigError unless they are distinct."""
    good = isinstance(value, tuple | list) and all(isinstance(one, str) for one in value)
    if not good or not value or len(set(value)) < len(value):
        raise ConfigError(
            f"`{name}` must be a non-empty list of distinct names, but got {value!r}.", name
        )
    return tuple(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(choices)}, but got {value!r}.", name)


def check_by_modality(name: str, value: Any) -> int | dict[str, int]:
    """Check a whole number from 1, or a mapping of them by modality, and return it as plain value.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, Mapping):
        check_integer(name, value, at_least=1)
        return int(value)
    for modality, one in value.items():
        check_integer(f"{name}.{modality}", one, at_least=1)
    return dict(value)


def by_modality(
    name: str, value: int | Mapping[str, int] | None, known: Iterable[str], spec: DatasetSpec
) -> dict[str, int]:
    """Return the value of each of the `known` sequences; none if there is no value at all.

    Raises:
        ConfigError: a sequence has no value, or a value has an unknown modality.
    """
    if not isinstance(value, Mapping):
        return {} if value is None else dict.fromkeys(known, value)
    known = tuple(known)
    for modality in value:
        if modality not in known:
            check_modality(spec, modality)
    for modality in known:
        if modality not in value:
            raise ConfigError(f"`{name}` has no value for '{modality}', which is used.", name)
    return {modality: value[modality] for modality in known}


def check_modality(spec: DatasetSpec, name: str, parameter: str = "modalities") -> None:
    """Raise ConfigError, to blame on `parameter`, unless the dataset has a modality `name`."""
    if name not in spec.modalities:
        near = nearest(name, spec.modalities)
        hint = f" Did you mean '{near}'?" if near else ""
        known = ", ".join(spec.modalities)
        raise ConfigError(
            f"Dataset '{spec.name}' has no modality '{name}'.{hint} Known: {known}.", parameter
        )
