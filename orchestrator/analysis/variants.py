"""Switch one parameter of configurations, and find where it has an effect."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from sftsearch.orchestrator.analysis.parameters import used_parameters
from sftsearch.orchestrator.surrogate.features import BRANCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.bound import BoundStudy
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary

    Parameters = dict[str, object]
    Row = dict[str, object]


class Variants:
    """The configurations tried, and the same with one parameter switched to another tried value.

    Names and values are those of flat parameters: `stride.watch_acc` is the stride of a modality,
    which only configurations that use the modality have. Values are compared as JSON.
    """

    def __init__(
        self, tried: Sequence[ConfigurationSummary], bound: BoundStudy, *, most_values: int
    ) -> None:
        """Find the parameters that vary within a model.

        Args:
            tried: configurations with a value.
            bound: of their study.
            most_values: that a parameter may have in a model; others are not switched.
        """
        self.tried, self._bound, self._most_values = tried, bound, most_values
        self._parameters = [
            {name: value for name, value in c.parameters.items() if name != "model"} for c in tried
        ]
        self._flat = [flatten(parameters) for parameters in self._parameters]
        self._values = self._values_by_model()
        self.names = list(dict.fromkeys(name for _, name in self._values))
        """Parameters with two to `most_values` values in some model."""
        self._inert = [
            {name for name in self.names if self._is_inert(c.model, own, name)}
            for c, own in zip(tried, self._parameters, strict=True)
        ]
        for name in self.names:
            # Without the training section, such as its `mixup`, nothing seems to have an effect.
            having = [n for n, c in enumerate(tried) if (c.model, name) in self._values]
            if all(name in self._inert[n] for n in having):
                for n in having:
                    self._inert[n].discard(name)
        self._conditional = {name for inert in self._inert for name in inert}
        self.rows: list[Row] = [
            self._row(n, flat, inert)
            for n, (flat, inert) in enumerate(zip(self._flat, self._inert, strict=True))
        ]
        """Flat parameters of each configuration, without those that have no effect in it."""

    def _values_by_model(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], dict[str, None]] = {}
        for c, flat in zip(self.tried, self._flat, strict=True):
            for name, value in flat.items():
                found.setdefault((c.model, name), {})[_text(value)] = None
        return {
            key: sorted(values)
            for key, values in found.items()
            if 2 <= len(values) <= self._most_values
        }

    def comparable_models(self, name: str) -> list[tuple[str, ...]]:
        """Return the models in which a parameter varies, divided so that each part shares values.

        The values of a model are connected with those of another if the two have one in common.
        """
        parts: list[tuple[set[str], set[str]]] = []
        for (model, other), values in self._values.items():
            if other != name:
                continue
            linked = [part for part in parts if part[1] & set(values)]
            models = {model}.union(*(part[0] for part in linked))
            known = set(values).union(*(part[1] for part in linked))
            parts = [part for part in parts if part not in linked] + [(models, known)]
        return [tuple(sorted(models)) for models, _ in parts]

    def text(self, n: int, name: str) -> str:
        """Return a configuration's value of a parameter as JSON."""
        return _text(self._flat[n][name])

    def has_effect(self, n: int, name: str) -> bool:
        """Return whether switching a parameter would give a different configuration."""
        return name in self.rows[n] and name not in self._inert[n]

    def defaults(self, n: int) -> Parameters:
        """Return the defaults of a configuration's parameters; empty for an unknown model."""
        configuration = self._bound.bind(self.tried[n].model, self._parameters[n])
        if configuration is None:
            return {}
        configs = (configuration.model_config, configuration.train_config)
        return {field.name: field.default for one in configs for field in dataclasses.fields(one)}

    def switched(self, n: int, name: str, value: object) -> Row | None:
        """Return a configuration's row with another value of one parameter.

        None if its model has not tried the value, or does not allow it with the other parameters.
        """
        model = self.tried[n].model
        if _text(value) not in self._values.get((model, name), ()):
            return None
        if _text(value) == self.text(n, name):
            return self.rows[n]
        parameters = _switch(self._parameters[n], name, value)
        if self._id(model, parameters) is None and self._id(model, self._parameters[n]) is not None:
            return None
        inert = self._inert[n] - self._conditional
        inert |= {one for one in self._conditional if self._is_inert(model, parameters, one)}
        return self._row(n, flatten(parameters), inert)

    def _row(self, n: int, flat: Parameters, inert: set[str]) -> Row:
        kept = {name: v for name, v in flat.items() if name not in inert and v is not None}
        return {BRANCH: self.tried[n].model, **kept}

    def _is_inert(self, model: str, parameters: Parameters, name: str) -> bool:
        """Return whether all tried values of a parameter give equivalent configurations."""
        own = self._id(model, parameters)
        if own is None or name not in flatten(parameters):
            return False
        others = (
            self._id(model, _switch(parameters, name, json.loads(text)))
            for text in self._values.get((model, name), ())
        )
        return (model, name) in self._values and all(other in (own, None) for other in others)

    def _id(self, model: str, parameters: Parameters) -> str | None:
        configuration = self._bound.bind(model, parameters)
        return None if configuration is None else configuration.id


def flatten(parameters: Parameters) -> Parameters:
    """Return parameters with one entry per modality, for the modalities used."""
    flat: Parameters = {}
    for name, value in used_parameters(parameters).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            flat[name] = value
    return flat


def _switch(parameters: Parameters, name: str, value: object) -> Parameters:
    """Return parameters with one flat parameter replaced."""
    if name in parameters:
        return parameters | {name: value}
    outer, key = name.split(".", 1)
    inner = parameters[outer]
    assert isinstance(inner, dict)
    return parameters | {outer: inner | {key: value}}


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
