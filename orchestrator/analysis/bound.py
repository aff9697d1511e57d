"""Bind a study's configurations to models and dataset, for reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.candidates.binding import Configuration
    from sftsearch.orchestrator.storage.study_record import StudyRecord


class BoundStudy:
    """Configurations of one study with the fields that its models give them.

    The training section is not part of the record, so `train_config` has its own parameters only.
    """

    def __init__(self, study: StudyRecord) -> None:
        """Look up the dataset; without it, or with another version of it, nothing is bound."""
        self.spec = _spec_of(study)
        self._bound: dict[tuple[str, str], Configuration | None] = {}

    def bind(self, model: str, parameters: Mapping[str, object]) -> Configuration | None:
        """Return a configuration; None if model or dataset are unknown here, or values invalid."""
        if self.spec is None:
            return None
        key = (model, json.dumps(parameters, sort_keys=True))
        if key not in self._bound:
            self._bound[key] = _bind(model, parameters, self.spec)
        return self._bound[key]

    def cost_of(self, model: str, parameters: Mapping[str, object], name: str) -> float | None:
        """Return an exact cost of a configuration, such as `gflops`; None as for `bind`."""
        configuration = self.bind(model, parameters)
        if configuration is None or self.spec is None:
            return None
        from sftsearch.trainables.catalog import MODELS

        try:
            cost = MODELS[model].cost(self.spec, configuration.model_config)
        except UserError:  # some models check their modalities only here
            return None
        return float(getattr(cost, name))


def _spec_of(study: StudyRecord) -> DatasetSpec | None:
    try:
        spec = describe(study.dataset, root=study.root)
    except UserError:
        return None
    known = study.facts.get("fingerprint", spec.fingerprint)
    return spec if spec.fingerprint == known else None


def _bind(model: str, parameters: Mapping[str, object], spec: DatasetSpec) -> Configuration | None:
    # It imports torch, which takes seconds; a report without configurations needs neither.
    from sftsearch.orchestrator.candidates.binding import bind
    from sftsearch.trainables.catalog import MODELS

    if model not in MODELS:
        return None
    values = {name: value for name, value in parameters.items() if name != "model"}
    try:
        return bind(model, values, {}, spec)
    except UserError:  # a value that does not fit, also of another version
        return None
