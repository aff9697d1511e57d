"""A point of a search space: a branch and a value for each of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a space."""

    branch: int
    values: Mapping[str, Any]
    """Parameter -> value, including literals. Mappings with distributions have a key per entry
    (`tokens.watch_acc`)."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The values as in a study file, with mappings rebuilt."""
        whole: dict[str, Any] = {}
        for name, value in self.values.items():
            parameter, _, key = name.partition(".")
            if key:
                whole.setdefault(parameter, {})[key] = value
            else:
                whole[name] = value
        return whole
