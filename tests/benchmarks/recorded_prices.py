"""Look up the costs of configurations in a table, for models that cannot be built here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sftsearch.orchestrator.candidates.admission import Candidate
from sftsearch.orchestrator.candidates.binding import Configuration
from sftsearch.trainables.config import ConfigError, TrainConfig, TransformerConfig
from sftsearch.trainables.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.search_spaces.load import StudySource
    from sftsearch.search_spaces.point import Point


def recorded_prices(source: StudySource, table: Table) -> Callable[[Point], Candidate]:
    """Return a `price` function for `Admission` that looks costs up in a table."""
    named = zip(table.models, table.parameters, strict=True)
    rows = {_canonical(model, parameters): row for row, (model, parameters) in enumerate(named)}
    models = [branch.kind for branch in source.study.space]

    def price(point: Point) -> Candidate:
        model, parameters = models[point.branch], point.parameters
        row = rows.get(_canonical(model, parameters))
        if row is None:
            raise ConfigError("The table does not contain this configuration.")
        costs = {name: float(values[row]) for name, values in table.costs.items()}
        configuration = Configuration(
            id=table.ids[row],
            model=model,
            parameters=dict(parameters),
            model_config=TransformerConfig(),
            train_config=TrainConfig(epochs=table.num_epochs),
        )
        exact = Cost(costs["gflops"], costs.get("gmacs", 0.0), int(costs.get("parameters", 0)))
        return Candidate(point, configuration, exact)

    return price


def _canonical(model: str, parameters: dict[str, Any]) -> str:
    return json.dumps([model, parameters], sort_keys=True)
