"""Compute budget regret: how far simulated fronts are below the best front of a table."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, TypedDict, final

import numpy as np

from sftsearch.orchestrator.benchmark.simulator import check_table, simulate, simulate_repeatedly
from sftsearch.orchestrator.metrics import format_number, metric, sign_of
from sftsearch.orchestrator.objectives import Objectives

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from sftsearch.orchestrator.benchmark.simulator import Simulation
    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.search_spaces.load import StudySource

Number = Literal["finished", "stopped", "failed", "seconds", "reused", "regret"]
ENDS: tuple[Number, ...] = ("finished", "stopped", "failed")
NUMBERS: tuple[Number, ...] = (*ENDS, "seconds", "reused", "regret")
"""The numbers of a simulation."""
FrontRow = dict[str, Any]
"""A configuration of a reported front; the cost's name is the key of the cost."""


@final
class Outcome(TypedDict):
    """Result of one simulated search."""

    ended: str
    seconds: float
    finished: int
    stopped: int
    failed: int
    reused: int
    regret: float
    front: list[FrontRow]


@final
class Summary(TypedDict):
    """Averages over several simulations."""

    repetitions: int
    mean: dict[Number, float]
    standard_error: dict[Number, float | None]
    regrets: list[float]


@functools.lru_cache(maxsize=8)
def _truth(
    table: Table, accuracy: str, cost: str
) -> tuple[dict[str, int], NDArray[np.float64], NDArray[np.float64]]:
    """Return rows by id, scaled log costs (N,) and true means (N,)."""
    logs = np.log(table.costs[cost])
    u_N = (logs - logs.min()) / (np.ptp(logs) or 1.0)
    rows = {identity: row for row, identity in enumerate(table.ids)}
    return rows, u_N, table.true_means(accuracy)


def budget_regret(
    table: Table,
    ids: Iterable[str],
    *,
    accuracy: str = "top1",
    cost: str = "gflops",
    chance: float | None = None,
) -> float:
    """Return the budget regret B of a reported front: its mean distance below the best front.

    B is the integral over u of f*(u) - f(u). u is the log cost, scaled to [0, 1] over the table;
    f(u) is the best true mean of the reported configurations that cost at most u, and f*(u) that
    of all configurations. A true mean is over all recorded replicates.

    Args:
        table: the recorded table.
        ids: the reported configurations; all must be in the table.
        accuracy: the metric for accuracy; B has its unit.
        cost: a cost in the table.
        chance: the value where nothing is affordable; None for the worst true mean.
    """
    rows, u_N, means_N = _truth(table, accuracy, cost)
    sign = sign_of(metric(accuracy).direction)
    values_N = sign * means_N
    floor = float(values_N.min()) if chance is None else sign * chance

    reported = np.array([rows[identity] for identity in ids], dtype=np.int64)
    every = np.arange(len(u_N))
    return area(u_N, values_N, every, floor) - area(u_N, values_N, reported, floor)


def area(
    u_N: NDArray[np.float64],
    values_N: NDArray[np.float64],
    chosen: NDArray[np.int64],
    floor: float,
) -> float:
    """Return the integral over u in [0, 1] of the best value of chosen rows that cost up to u."""
    order = chosen[np.argsort(u_N[chosen], kind="stable")]
    steps = np.diff(np.concatenate([[0.0], u_N[order], [1.0]]))
    best = np.maximum.accumulate(np.concatenate([[floor], values_N[order]]))
    return float(steps @ best)


def outcome_of(
    source: StudySource, simulation: Simulation, table: Table, chance: float | None
) -> Outcome:
    """Return the result of a simulated search as plain values.

    Args:
        source: the study.
        simulation: of the study.
        table: the recorded table that it ran on.
        chance: see `budget_regret`.
    """
    objectives = Objectives.of_study(source.study)
    accuracy, cost = objectives.y, objectives.searched_cost
    search = simulation.search
    rows, _, means_N = _truth(table, accuracy, cost)
    posteriors = simulation.concluded.get("beliefs", {})
    by_cost = sorted((float(table.costs[cost][rows[i]]), rows[i]) for i in simulation.reported)
    front: list[FrontRow] = [
        {
            "configuration": table.ids[row],
            "model": table.models[row],
            "parameters": table.parameters[row],
            cost: price,
            "estimated": posteriors[table.ids[row]]["mean"],
            "true": float(means_N[row]),
        }
        for price, row in by_cost
    ]
    return {
        "ended": search.why_ended(),
        "seconds": simulation.seconds,
        "finished": search.state.num_ended["finished"],
        "stopped": search.state.num_ended["stopped"],
        "failed": search.state.num_ended["failed"],
        "reused": simulation.num_reused,
        "regret": budget_regret(
            table, simulation.reported, accuracy=accuracy, cost=cost, chance=chance
        ),
        "front": front,
    }


def measure(
    source: StudySource,
    admission: Admission,
    table: Table,
    *,
    workers: int = 4,
    repetitions: int | None = None,
) -> Outcome | Summary:
    """Simulate a study once or repeatedly and evaluate the reported fronts.

    Args:
        source: the study file.
        admission: of its space.
        table: the recorded table to run on.
        workers: number of concurrent trials.
        repetitions: number of simulations with different seeds; None for one simulation with the
            study's own seeds and the replicates as recorded.

    Returns:
        The `outcome_of` a single simulation; of several, `mean` and `standard_error` of each
        number and all regrets.

    Raises:
        TableError: the table does not match the study.
    """
    check_table(source, admission, table)
    is_accuracy = source.study.objectives[0].metric == "top1"
    chance = 1 / admission.spec.num_classes if is_accuracy else None
    if repetitions is None:
        return outcome_of(
            source, simulate(source, admission, table, workers=workers), table, chance
        )
    outcomes = [
        outcome_of(source, simulation, table, chance)
        for simulation in simulate_repeatedly(
            source, admission, table, workers=workers, repetitions=repetitions
        )
    ]
    columns = {name: [float(o[name]) for o in outcomes] for name in NUMBERS}
    return {
        "repetitions": repetitions,
        "mean": {name: float(np.mean(values)) for name, values in columns.items()},
        "standard_error": {name: _standard_error(values) for name, values in columns.items()},
        "regrets": columns["regret"],
    }


def _standard_error(values: list[float]) -> float | None:
    """Return the standard error of the mean; None for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def front_rows(measured: Outcome | Summary, accuracy: str, cost: str) -> list[dict[str, str]]:
    """Return the front from `measure` as rows of a table; empty for several repetitions."""
    if "repetitions" in measured:
        return []
    return [
        {
            "front": row["configuration"],
            "model": row["model"],
            cost: format_number(row[cost]),
            accuracy: metric(accuracy).format(row["estimated"]),
            "true": metric(accuracy).format(row["true"]),
            "parameters": " ".join(f"{name}={value}" for name, value in row["parameters"].items()),
        }
        for row in measured["front"]
    ]


def describe(measured: Outcome | Summary, accuracy: str) -> str:
    """Format the result of `measure` as text, without the front."""
    numbers: Mapping[Number, float]
    errors: Mapping[Number, float | None]
    if "repetitions" not in measured:
        numbers, errors = {name: measured[name] for name in NUMBERS}, dict.fromkeys(NUMBERS)
        head = f"Ended: {measured['ended']}."
    else:
        numbers, errors = measured["mean"], measured["standard_error"]
        head = f"Means over {measured['repetitions']} repetitions:"

    def show(name: Number, scale: float = 1.0, digits: int = 0) -> str:
        text = f"{numbers[name] * scale:.{digits}f}"
        error = errors[name]
        return text if error is None else f"{text} \N{PLUS-MINUS SIGN} {error * scale:.{digits}f}"

    digits = 0 if "repetitions" not in measured else 1
    share = metric(accuracy).is_share
    trials = ", ".join(f"{show(name, digits=digits)} {name}" for name in ENDS)
    lines = [
        head,
        f"trials:         {trials}",
        f"simulated time: {show('seconds', 1 / 60, 1)} minutes",
        f"budget regret:  {show('regret', 100, 2)} points of {metric(accuracy).label}"
        if share
        else f"budget regret:  {show('regret', 1, 4)} of {metric(accuracy).label}",
    ]
    if numbers["reused"]:
        what = "trials needed a replicate that was not recorded and used another one."
        lines.append(f"{show('reused', digits=digits)} {what}")
    return "\n".join(lines)
