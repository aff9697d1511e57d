"""`sftsearch simulate`: the very same `Search` on a recorded table, with a clock of its own.

Workers train nothing: the epochs of a trial are those of the table, and take as long as they took.
A search of an hour is decided in seconds, and can be repeated a hundred times.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.benchmark.table import LAST_EPOCHS, TableError
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.binding import GOALS, Configuration
from sftsearch.orchestrator.metrics import EXACT_COSTS, format_number, metric
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.storage.journal import MemoryJournal
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.orchestrator.candidates.admission import Candidate
    from sftsearch.orchestrator.search.engine import Assignment
    from sftsearch.search_spaces.load import Source
    from sftsearch.search_spaces.space import Point


ENDS = ("finished", "stopped", "failed")
NUMBERS = (*ENDS, "seconds", "reused", "regret")
"""What is counted and measured of a simulation."""


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What a simulated search did."""

    search: Search
    journal: MemoryJournal
    seconds: float
    """On the simulated clock."""
    num_reused: int
    """Trials whose replicate was not recorded: another one of the configuration stood in."""
    replicates: dict[str, int]
    """By trial, which recorded replicate stood for it."""

    @property
    def concluded(self) -> dict[str, Any]:
        """What the search believed at the end (the journal's event); empty if nothing finished."""
        bodies = [event.body for event in self.journal.events() if event.kind == "concluded"]
        return bodies[-1] if bodies else {}

    @property
    def reported(self) -> list[str]:
        """The configurations that the search names as its front."""
        return list(self.concluded.get("reported", []))


class TableAdmission(Admission):
    """Prices what a table holds, of models that nobody here can build."""

    def __init__(self, source: Source, spec: DatasetSpec, table: Table) -> None:
        """Take the space of a study file whose points are configurations of the table."""
        self._by_parameters = {
            _canonical(model, parameters): row
            for row, (model, parameters) in enumerate(
                zip(table.models, table.parameters, strict=True)
            )
        }
        self._recorded = table
        super().__init__(source, spec)

    def price(self, point: Point) -> Candidate:
        """Look a point up.

        Raises:
            ConfigError: the table does not hold it.
        """
        from sftsearch.orchestrator.candidates.admission import Candidate

        model, parameters = self.space.models[point.branch], point.parameters
        row = self._by_parameters.get(_canonical(model, parameters))
        if row is None:
            raise ConfigError("The table does not hold this configuration.")
        table = self._recorded
        costs = {name: float(values[row]) for name, values in table.costs.items()}
        configuration = Configuration(
            id=table.ids[row],
            model=model,
            parameters=dict(parameters),
            model_config=None,
            train_config=TrainConfig(epochs=table.num_epochs),
        )
        exact = Cost(costs["gflops"], costs.get("gmacs", 0.0), int(costs.get("parameters", 0)))
        return Candidate(point, configuration, exact)


def _canonical(model: str, parameters: dict[str, Any]) -> str:
    return json.dumps([model, parameters], sort_keys=True)


class Replay:
    """The replicates of a table in the order that one repetition of a simulation sees them.

    Which recorded replicate stands for which is drawn anew for every repetition: folds trade
    places where every configuration was recorded on them, and replicates of one fold among each
    other. So repetitions differ, and configurations keep being compared on equal folds.
    """

    def __init__(self, table: Table, repetition: int | None = None) -> None:
        self._table = table
        self.num_reused = 0
        self._folds = table.num_folds or 1
        self._random = None if repetition is None else np.random.default_rng(repetition)
        self._fold_order = np.arange(self._folds)
        common = min(self._folds, int(table.num_replicates.min()))
        if self._random is not None:
            self._fold_order[:common] = self._random.permutation(common)
        self._order: dict[int, list[list[int]]] = {}

    def find(self, row: int, replicate: int) -> int:
        """Return the recorded replicate that stands for one of a configuration."""
        if row not in self._order:
            self._order[row] = self._draw(row)
        known = self._order[row][int(self._fold_order[replicate % self._folds])]
        turn = replicate // self._folds
        if turn < len(known):
            return known[turn]
        self.num_reused += 1
        every = known or sorted(itertools.chain(*self._order[row]))
        return every[turn % len(every)]

    def _draw(self, row: int) -> list[list[int]]:
        recorded: NDArray[np.int64] = np.flatnonzero(np.isfinite(self._table.seconds[row, :, 0]))
        by_fold = [recorded[recorded % self._folds == fold] for fold in range(self._folds)]
        if self._random is not None:
            by_fold = [self._random.permutation(found) for found in by_fold]
        return [[int(r) for r in found] for found in by_fold]


def simulate(
    source: Source,
    admission: Admission,
    table: Table,
    *,
    workers: int = 4,
    repetition: int | None = None,
    on_end: Callable[[Search, float], None] | None = None,
) -> Simulation:
    """Run a study on a table.

    Args:
        source: the study file.
        admission: of its space; every admitted configuration must be in the table.
        table: what training would have given.
        workers: trials at a time; they are asynchronous.
        repetition: draws which recorded replicates are seen; None: those of the same numbers.
        on_end: hears of every end of a trial, with the simulated seconds.

    Raises:
        TableError: a configuration of the study is not in the table.
    """
    return _Simulator(source, admission, table, workers, repetition, on_end).run()


class _Simulator:
    def __init__(
        self,
        source: Source,
        admission: Admission,
        table: Table,
        workers: int,
        repetition: int | None,
        on_end: Callable[[Search, float], None] | None,
    ) -> None:
        self._now = 0.0
        self._rows = {identity: row for row, identity in enumerate(table.ids)}
        self._table, self._workers, self._on_end = table, workers, on_end
        self._journal = MemoryJournal(clock=lambda: self._now)
        self._replay = Replay(table, repetition)
        self._metrics = {name: table.metrics[name] for name in table.metrics}
        self._search = Search(source.study, self._journal, admission, slots=workers)
        self._journal.append("opened", trials=source.study.search.trials, slots=workers)
        self._events: list[tuple[float, int, Assignment, int, int, int]] = []
        self._order = itertools.count()
        self._stood_in: dict[str, int] = {}

    def _row(self, assignment: Assignment) -> int:
        identity = assignment.key.rpartition("-")[0]
        if identity not in self._rows:
            raise TableError(
                f"Configuration {identity} of the study ({assignment.model} "
                f"{json.dumps(assignment.parameters)}) is not in the table: narrow the study's "
                "space to what was recorded, on the same version of the data."
            )
        return self._rows[identity]

    def run(self) -> Simulation:
        search = self._search
        self._fill()
        while self._events:
            self._now, _, assignment, row, replicate, epoch = heapq.heappop(self._events)
            if self._ends(assignment, row, replicate, epoch):
                if self._on_end is not None:
                    self._on_end(search, self._now)
                self._fill()
            else:
                self._schedule(assignment, row, replicate, epoch + 1)
        search.conclude()
        self._journal.append("ended", reason=search.why_ended(), complete=search.exhausted)
        return Simulation(search, self._journal, self._now, self._replay.num_reused, self._stood_in)

    def _fill(self) -> None:
        while self._search.num_running < self._workers:
            assignment = self._search.propose()
            if assignment is None:
                return
            row = self._row(assignment)
            replicate = self._replay.find(row, assignment.seed)
            self._stood_in[assignment.key] = replicate
            self._schedule(assignment, row, replicate, 1)

    def _schedule(self, assignment: Assignment, row: int, replicate: int, epoch: int) -> None:
        then = self._now + float(self._table.seconds[row, replicate, epoch - 1])
        event = (then, next(self._order), assignment, row, replicate, epoch)
        heapq.heappush(self._events, event)

    def _ends(self, assignment: Assignment, row: int, replicate: int, epoch: int) -> bool:
        """Report an epoch; return whether the trial is over."""
        metrics = {n: float(v[row, replicate, epoch - 1]) for n, v in self._metrics.items()}
        metrics |= {"epoch": float(epoch), "seconds": self._seconds(row, replicate, epoch)}
        if not self._search.report(assignment.key, metrics):
            return True
        if epoch < self._table.num_epochs:
            return False
        last = slice(-LAST_EPOCHS, None)
        values = {n: float(v[row, replicate, last].mean()) for n, v in self._metrics.items()}
        values |= assignment.cost
        values["seconds"] = float(self._table.seconds[row, replicate].sum())
        self._search.finish(assignment.key, values, {})
        return True

    def _seconds(self, row: int, replicate: int, epoch: int) -> float:
        return float(self._table.seconds[row, replicate, epoch - 1])


def simulate_repeatedly(
    source: Source, admission: Admission, table: Table, *, workers: int, repetitions: int
) -> Iterator[Simulation]:
    """Yield simulations that differ in their luck: seeds of the study, replicates that are seen.

    Repetition r has the study's seeds plus r, and sees the replicates in an order drawn from r.
    Arguments are those of `simulate`.
    """
    for repetition in range(repetitions):
        admission.release()
        reseeded = _reseeded(source, repetition)
        yield simulate(reseeded, admission, table, workers=workers, repetition=repetition)


def _reseeded(source: Source, more: int) -> Source:
    """Return a study whose sampler and stopping rule have other seeds."""
    plan = source.study.search

    def changed(section: Any) -> Any:
        if not hasattr(section, "seed"):
            return section
        return section.model_copy(update={"seed": (section.seed + more) % 2**31})

    sections = {"sampler": changed(plan.sampler), "stopping": changed(plan.stopping)}
    study = source.study.model_copy(update={"search": plan.model_copy(update=sections)})
    return replace(source, checked=study)


# ------------------------------------------------------------ against what is true


def check_table(source: Source, admission: Admission, table: Table) -> None:
    """Refuse a table that does not hold what a study would train.

    Raises:
        TableError: it was recorded on other data or folds, lacks an objective, or lacks
            configurations of a space that is priced whole.
    """
    study, facts = source.study, table.facts
    for what, own, recorded in (
        ("the data set", study.dataset.kind, facts.get("dataset")),
        ("the version of the data set", admission.spec.fingerprint, facts.get("fingerprint")),
        ("`dataset.folds`", study.dataset.folds, facts.get("folds")),
    ):
        if own != recorded:
            raise TableError(
                f"The table is not of this study: {what} was {recorded} when it was recorded, and "
                f"is {own} in '{source.name}'."
            )
    known = {*table.metrics, *table.costs, "seconds"}
    lacking = [o.metric for o in study.objectives if o.metric not in known]
    if lacking:
        raise TableError(
            f"The table lacks the objective `{lacking[0]}`; it has {', '.join(sorted(known))}."
        )
    missing = (admission.table or {}).keys() - set(table.ids)
    if missing:
        raise TableError(
            f"{len(missing)} of the study's {len(admission.table or {})} configurations are not in "
            f"the table ({min(missing)}, ...): take the space and the training it was recorded "
            "with, or a part of that space."
        )


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
    sign = 1.0 if GOALS[accuracy] == "maximize" else -1.0
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
) -> dict[str, Any]:
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
    beliefs = simulation.concluded.get("beliefs", {})
    places = sorted((float(table.costs[cost][rows[i]]), rows[i]) for i in simulation.reported)
    front = [
        {
            "configuration": table.ids[row],
            "model": table.models[row],
            "parameters": table.parameters[row],
            cost: price,
            "believed": beliefs[table.ids[row]]["mean"],
            "true": float(means_N[row]),
        }
        for price, row in places
    ]
    return {
        "ended": search.why_ended(),
        "seconds": simulation.seconds,
        "finished": search.num_finished,
        "stopped": search.num_stopped,
        "failed": search.num_failed,
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
) -> dict[str, Any]:
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


def front_rows(measured: dict[str, Any], accuracy: str, cost: str) -> list[dict[str, str]]:
    """Return the front that `measure` found as rows of a table; none of several repetitions."""
    return [
        {
            "front": row["configuration"],
            "model": row["model"],
            cost: format_number(row[cost]),
            accuracy: metric(accuracy).format(row["believed"]),
            "true": metric(accuracy).format(row["true"]),
            "parameters": " ".join(f"{name}={value}" for name, value in row["parameters"].items()),
        }
        for row in measured.get("front", [])
    ]


def in_words(measured: dict[str, Any], accuracy: str) -> str:
    """Return what `measure` found, without the front, as lines for a person."""
    if "repetitions" not in measured:
        numbers, errors = {name: measured[name] for name in NUMBERS}, dict.fromkeys(NUMBERS)
        head = f"Ended: {measured['ended']}."
    else:
        numbers, errors = measured["mean"], measured["standard_error"]
        head = f"Means over {measured['repetitions']} repetitions:"

    def show(name: str, scale: float = 1.0, digits: int = 0) -> str:
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
