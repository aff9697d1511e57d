"""Budget regret: how far the fronts of simulated searches lie below the best of a table."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, TypedDict, final

import numpy as np

from sftsearch.orchestrator.benchmark.simulator import check_table, simulate, simulate_repeatedly
from sftsearch.orchestrator.metrics import EXACT_COSTS, format_number, metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from sftsearch.orchestrator.benchmark.simulator import Simulation
    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.search_spaces.load import Source

Number = Literal["finished", "stopped", "failed", "seconds", "reused", "regret"]
ENDS: tuple[Number, ...] = ("finished", "stopped", "failed")
NUMBERS: tuple[Number, ...] = (*ENDS, "seconds", "reused", "regret")
"""What is counted and measured of a simulation."""
FrontRow = dict[str, Any]
"""A configuration of a reported front; its cost has the name of the cost."""


@final
class Outcome(TypedDict):
    """What a simulated search did and named."""

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
    """What several simulations did, on average."""

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
    """Return the budget regret B of a reported front: how far below the best, on average.

    B is the integral over u of f*(u) - f(u), where u is the logarithm of the cost, scaled to
    [0, 1] over the table; f(u) is the best true mean among the reported configurations that cost
    up to u, and f*(u) that among all of the table. A true mean is over all recorded replicates.

    Args:
        table: the recorded table.
        ids: the configurations that were reported; all of them in the table.
        accuracy: the metric that is the accuracy; its unit is that of B.
        cost: a cost that the table holds.
        chance: what is reached where nothing is affordable; None: the worst true mean.
    """
    rows, u_N, means_N = _truth(table, accuracy, cost)
    sign = 1.0 if metric(accuracy).direction == "maximize" else -1.0
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
    """Return the integral over u in [0, 1] of the best value that the chosen rows afford."""
    order = chosen[np.argsort(u_N[chosen], kind="stable")]
    steps = np.diff(np.concatenate([[0.0], u_N[order], [1.0]]))
    best = np.maximum.accumulate(np.concatenate([[floor], values_N[order]]))
    return float(steps @ best)


def outcome_of(
    source: Source, simulation: Simulation, table: Table, chance: float | None
) -> Outcome:
    """Return what a simulated search did and named, as plain values.

    Args:
        source: the study.
        simulation: of it.
        table: what it was simulated on.
        chance: see `budget_regret`.
    """
    accuracy, cost = axes_of(source)
    search = simulation.search
    rows, _, means_N = _truth(table, accuracy, cost)
    posteriors = simulation.concluded.get("beliefs", {})
    places = sorted((float(table.costs[cost][rows[i]]), rows[i]) for i in simulation.reported)
    front: list[FrontRow] = [
        {
            "configuration": table.ids[row],
            "model": table.models[row],
            "parameters": table.parameters[row],
            cost: price,
            "estimated": posteriors[table.ids[row]]["mean"],
            "true": float(means_N[row]),
        }
        for price, row in places
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
    source: Source,
    admission: Admission,
    table: Table,
    *,
    workers: int = 4,
    repetitions: int | None = None,
) -> Outcome | Summary:
    """Simulate a study, once or often, and judge the fronts that it names.

    Args:
        source: the study file.
        admission: of its space.
        table: what training would have given.
        workers: trials at a time.
        repetitions: how often, with other luck each time; None: once, with the study's own seeds
            and the replicates as they were recorded.

    Returns:
        Of one simulation its `outcome_of`; of several, `mean` and `standard_error` of each number
        and every regret.

    Raises:
        TableError: the table does not hold what the study would train.
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
    """Return the standard error of the mean; None of a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def front_rows(measured: Outcome | Summary, accuracy: str, cost: str) -> list[dict[str, str]]:
    """Return the front that `measure` found as rows of a table; none of several repetitions."""
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
    """Return what `measure` found, without the front, as lines for a person."""
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
        what = "trials had a replicate that was not recorded: another one stood in."
        lines.append(f"{show('reused', digits=digits)} {what}")
    return "\n".join(lines)


def axes_of(source: Source) -> tuple[str, str]:
    """Return the accuracy and the exact cost that a study is searched for."""
    metrics = [objective.metric for objective in source.study.objectives]
    cost = next((name for name in metrics if name in EXACT_COSTS), EXACT_COSTS[0])
    return metrics[0], cost
