"""Configurations as vectors: what the surrogate of accuracy sees of them.

Every feature is in [0, 1]. A number is scaled over the values met, by its logarithm where all are
positive and span a factor of four; a list (of modalities, say) has a feature for each entry; any
other value is one of several, a feature each. Parameters of the same name in several branches are
one feature: what is learned of a width in one model is believed of it in another, as far as the
features of the branches allow. A parameter that a configuration lacks is in the middle. The scaled
cost comes last: it is known, and accuracy grows with it.

Shapes: N configurations, D features, C costs.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from sftsearch.orchestrator.candidates.admission import Candidate

    Floats = NDArray[np.float64]
    Feature = Callable[[dict[str, Any]], float]

MIDDLE = 0.5
BRANCH = "branch"
MAX_CATEGORIES = 64
"""Values of one unordered parameter that have a feature of their own; others share none."""


class Encoder:
    """Turns configurations of one space into vectors."""

    def __init__(self, candidates: Sequence[Candidate], costs: tuple[str, ...]) -> None:
        """Learn the features and their ranges.

        Args:
            candidates: the whole space, or a large sample of it.
            costs: names of the costs that are features too, and scaled by `scale`.
        """
        self.costs = costs
        rows = [_flat(candidate) for candidate in candidates]
        names = dict.fromkeys(name for row in rows for name in row)
        self._features = [feature for name in names for feature in _features(name, rows)]
        costs_NC = np.log([_costs(candidate, costs) for candidate in candidates])
        self._low, span = costs_NC.min(axis=0), np.ptp(costs_NC, axis=0)
        self._span = np.where(span > 0, span, 1.0)

    def encode(self, candidates: Iterable[Candidate]) -> tuple[Floats, Floats]:
        """Return features (N, D) and scaled costs (N, C), both in [0, 1]."""
        chosen = list(candidates)
        rows = [_flat(candidate) for candidate in chosen]
        u_NC = self.scale([_costs(candidate, self.costs) for candidate in chosen])
        own = np.array([[feature(row) for feature in self._features] for row in rows], dtype=float)
        return np.hstack([own.reshape(len(rows), len(self._features)), u_NC.clip(0, 1)]), u_NC

    def scale(self, costs_NC: Any) -> Floats:
        """Return the logarithm of costs, 0 at the least and 1 at the greatest of the space."""
        logs_NC = np.log(np.asarray(costs_NC, dtype=float).reshape(-1, len(self.costs)))
        scaled: Floats = (logs_NC - self._low) / self._span
        return scaled


def _costs(candidate: Candidate, names: tuple[str, ...]) -> list[float]:
    return [float(getattr(candidate.cost, name)) for name in names]


def _flat(candidate: Candidate) -> dict[str, Any]:
    """Return a configuration's parameters, those of mappings by key, and its branch."""
    flat: dict[str, Any] = {BRANCH: f"{candidate.point.branch}"}
    for name, value in candidate.configuration.parameters.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": one for key, one in value.items()}
        elif value is not None:
            flat[name] = value
    return flat


def _features(name: str, rows: Sequence[dict[str, Any]]) -> list[Feature]:
    """Return the features of one parameter; none where it never varies."""
    values = {_text(row[name]): row[name] for row in rows if name in row}
    if len(values) < 2 and (name == BRANCH or all(name in row for row in rows)):
        return []
    known = list(values.values())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return [_number(name, [float(value) for value in known])] if len(known) > 1 else []
    if all(isinstance(value, list | tuple) for value in known):
        entries = dict.fromkeys(_text(entry) for value in known for entry in value)
        return [_entry(name, entry) for entry in entries]
    texts = list(values)[:MAX_CATEGORIES]
    return [_category(name, text) for text in (texts[1:] if len(texts) == 2 else texts)]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _number(name: str, known: list[float]) -> Feature:
    low, high = min(known), max(known)
    if low > 0 and high >= 4 * low:
        span = math.log(high / low)
        return lambda row: (
            _clip(math.log(max(row[name] / low, 1)) / span) if name in row else MIDDLE
        )
    return lambda row: _clip((row[name] - low) / (high - low)) if name in row else MIDDLE


def _entry(name: str, entry: str) -> Feature:
    return lambda row: float(entry in map(_text, row[name])) if name in row else MIDDLE


def _category(name: str, text: str) -> Feature:
    return lambda row: float(_text(row[name]) == text) if name in row else MIDDLE


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
