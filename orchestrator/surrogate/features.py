"""Encode configurations as feature vectors for the surrogate.

Every feature is in [0, 1]. A number is scaled over the observed range, logarithmically if all
values are positive and span a factor of four. A list (such as modalities) has one feature per
entry; any other value is one-hot encoded. Parameters of the same name in several branches share a
feature, so that a width learned in one model informs another as far as the branch features allow.
A parameter that a configuration lacks is 0.5. The scaled cost is the last feature: it is known,
and accuracy grows with it.

Shapes: N configurations, D features, C costs.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from sftsearch.orchestrator.candidates.admission import Candidate
    from sftsearch.search_spaces.point import Point

    Floats = NDArray[np.float64]
    Row = dict[str, object]
    KeyedPoint = tuple[str, Point]  # configuration id, point of the space
    Feature = Callable[[Row], float]

MIDDLE = 0.5
BRANCH = "branch"
MAX_CATEGORIES = 64
"""Maximum number of values of an unordered parameter with a feature; others have none."""


class Encoder:
    """Turns configurations of one space into vectors."""

    def __init__(self, candidates: Sequence[Candidate], costs: tuple[str, ...]) -> None:
        """Determine the features and their ranges.

        Args:
            candidates: the whole space, or a large sample of it.
            costs: names of the costs that are also features, scaled by `scale`.
        """
        self.costs = costs
        rows = [_flat(candidate) for candidate in candidates]
        names = dict.fromkeys(name for row in rows for name in row)
        self._features = [feature for name in names for feature in features_of(name, rows)]
        costs_NC = np.log([_costs(candidate, costs) for candidate in candidates])
        self._low, span = costs_NC.min(axis=0), np.ptp(costs_NC, axis=0)
        self._span = np.where(span > 0, span, 1.0)

    def encode(self, candidates: Iterable[Candidate]) -> tuple[Floats, Floats]:
        """Return features (N, D), in [0, 1], and scaled costs (N, C)."""
        chosen = list(candidates)
        rows = [_flat(candidate) for candidate in chosen]
        u_NC = self.scale([_costs(candidate, self.costs) for candidate in chosen])
        own = np.array([[feature(row) for feature in self._features] for row in rows], dtype=float)
        return np.hstack([own.reshape(len(rows), len(self._features)), u_NC.clip(0, 1)]), u_NC

    def scale(self, costs_NC: ArrayLike) -> Floats:
        """Return log costs, scaled to 0 at the lowest and 1 at the highest cost of the space."""
        logs_NC = np.log(np.asarray(costs_NC, dtype=float).reshape(-1, len(self.costs)))
        scaled: Floats = (logs_NC - self._low) / self._span
        return scaled


def _costs(candidate: Candidate, names: tuple[str, ...]) -> list[float]:
    return [float(getattr(candidate.cost, name)) for name in names]


def _flat(candidate: Candidate) -> Row:
    """Return a configuration's branch and parameters, with mappings flattened by key."""
    flat: Row = {BRANCH: f"{candidate.point.branch}"}
    for name, value in candidate.configuration.parameters.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": one for key, one in value.items()}
        elif value is not None:
            flat[name] = value
    return flat


def features_of(name: str, rows: Sequence[Row]) -> list[Feature]:
    """Return the features of one parameter, functions of a row; none if it never varies."""
    values = {_text(row[name]): row[name] for row in rows if name in row}
    if len(values) < 2 and (name == BRANCH or all(name in row for row in rows)):
        return []
    known = list(values.values())
    numbers = [float(value) for value in known if _is_number(value)]
    if len(numbers) == len(known):
        return [_number(name, numbers)] if len(known) > 1 else []
    lists = [value for value in known if isinstance(value, (list, tuple))]
    if len(lists) == len(known):
        entries = dict.fromkeys(_text(entry) for value in lists for entry in value)
        return [_entry(name, entry) for entry in entries]
    texts = list(values)[:MAX_CATEGORIES]
    return [_category(name, text) for text in (texts[1:] if len(texts) == 2 else texts)]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _number(name: str, known: list[float]) -> Feature:
    low, high = min(known), max(known)
    if low > 0 and high >= 4 * low:
        span = math.log(high / low)

        def scaled(value: float) -> float:
            return math.log(max(value / low, 1)) / span
    else:

        def scaled(value: float) -> float:
            return (value - low) / (high - low)

    def feature(row: Row) -> float:
        value = row.get(name)
        return _clip(scaled(value)) if isinstance(value, (int, float)) else MIDDLE

    return feature


def _entry(name: str, entry: str) -> Feature:
    def feature(row: Row) -> float:
        value = row.get(name)
        if not isinstance(value, (list, tuple)):
            return MIDDLE
        return float(entry in map(_text, value))

    return feature


def _category(name: str, text: str) -> Feature:
    return lambda row: float(_text(row[name]) == text) if name in row else MIDDLE


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


class StudyFeatures:
    """Features and scaled costs of configurations, in the order in which they were added.

    They are encoded on first use, because many studies never need them.
    """

    def __init__(self, encode: Callable[[Sequence[KeyedPoint]], tuple[Floats, Floats]]) -> None:
        """Start empty; `encode` turns configurations into features and scaled costs."""
        self._encode = encode
        self._new: list[KeyedPoint] = []
        self._num = 0
        # By row, with spare capacity.
        self._x, self._u = np.zeros((0, 0)), np.zeros((0, 0))

    def add(self, configuration_id: str, point: Point) -> None:
        """Add a configuration as the next row."""
        self._new.append((configuration_id, point))

    def arrays(self) -> tuple[Floats, Floats]:
        """Return features (N, D) and scaled costs (N, C) of all configurations added so far."""
        if self._new:
            x, u = self._encode(self._new)
            before, self._num, self._new = self._num, self._num + len(self._new), []
            if self._num > len(self._x):
                self._x, self._u = _grown(self._x, x, before), _grown(self._u, u, before)
            self._x[before : self._num], self._u[before : self._num] = x, u
        return self._x[: self._num], self._u[: self._num]


def _grown(kept: Floats, more: Floats, number: int) -> Floats:
    """Return a larger array with the first `number` rows of `kept` and capacity for `more`."""
    grown = np.empty((2 * (number + len(more)), more.shape[1]))
    grown[:number] = kept[:number].reshape(number, more.shape[1])
    return grown
