"""`sftsearch simulate`: the very same `Search` on a recorded table, with a clock of its own.

Workers train nothing: the epochs of a trial are those of the table, and take as long as they took.
A search of an hour is decided in seconds, and can be repeated a hundred times.
"""

from __future__ import annotations

import heapq
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.admission import Admission
from sftsearch.orchestrator.binding import Configuration
from sftsearch.orchestrator.journal import MemoryJournal
from sftsearch.orchestrator.search import Search
from sftsearch.orchestrator.table import LAST_EPOCHS, TableError
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.admission import Candidate
    from sftsearch.orchestrator.search import Assignment
    from sftsearch.orchestrator.table import Table
    from sftsearch.search_spaces.load import Source
    from sftsearch.search_spaces.space import Point


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """What a simulated search did."""

    search: Search
    journal: MemoryJournal
    seconds: float
    """On the simulated clock."""
    num_reused: int
    """Trials whose replicate was not recorded: another one of the configuration stood in."""


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
        from sftsearch.orchestrator.admission import Candidate

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
        return Simulation(search, self._journal, self._now, self._replay.num_reused)

    def _fill(self) -> None:
        while self._search.num_running < self._workers:
            assignment = self._search.propose()
            if assignment is None:
                return
            row = self._row(assignment)
            self._schedule(assignment, row, self._replay.find(row, assignment.seed), 1)

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
