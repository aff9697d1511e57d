"""Simulate a study on a recorded table: the production `Search` with a simulated clock.

Nothing is trained: each epoch has its recorded metrics and duration. A search of an hour takes
seconds, so it can be repeated a hundred times.
"""

from __future__ import annotations

import heapq
import itertools
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.benchmark.table import TableError
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.storage.events import Concluded, Opened
from sftsearch.orchestrator.storage.journal import MemoryJournal
from sftsearch.search_spaces.search_plan import Exhaustive, NoStop
from sftsearch.trainables.training_record import LAST_EPOCHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from sftsearch.orchestrator.benchmark.table import Table
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.search.engine import TrialSuggestion
    from sftsearch.search_spaces.load import StudySource


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Result of a simulated search."""

    search: Search
    journal: MemoryJournal
    seconds: float
    """On the simulated clock."""
    num_reused: int
    """Trials whose replicate was not recorded and that reused another one."""
    replicates: dict[str, int]
    """The recorded replicate that each trial used."""

    @property
    def concluded(self) -> dict[str, Any]:
        """The body of the journal's last `concluded` event; empty if nothing finished."""
        events = (entry.event for entry in self.journal.entries())
        bodies = [event.to_json() for event in events if isinstance(event, Concluded)]
        return bodies[-1] if bodies else {}

    @property
    def reported(self) -> list[str]:
        """The configurations that the search reports as its front."""
        return list(self.concluded.get("reported", []))


class Replay:
    """Assigns recorded replicates to the trials of one simulation.

    Every repetition permutes the folds on which all configurations were recorded, and the
    replicates within each fold. Repetitions therefore differ, while configurations are still
    compared on equal folds.
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
        """Return the recorded replicate to use for a replicate of the configuration in a row."""
        if row not in self._order:
            self._order[row] = self._draw(row)
        known = self._order[row][int(self._fold_order[replicate % self._folds])]
        round_ = replicate // self._folds
        if round_ < len(known):
            return known[round_]
        self.num_reused += 1
        every = known or sorted(itertools.chain(*self._order[row]))
        return every[round_ % len(every)]

    def _draw(self, row: int) -> list[list[int]]:
        recorded: NDArray[np.int64] = np.flatnonzero(np.isfinite(self._table.seconds[row, :, 0]))
        by_fold = [recorded[recorded % self._folds == fold] for fold in range(self._folds)]
        if self._random is not None:
            by_fold = [self._random.permutation(found) for found in by_fold]
        return [[int(r) for r in found] for found in by_fold]


def simulate(
    source: StudySource,
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
        table: the recorded table.
        workers: number of concurrent trials; they are asynchronous.
        repetition: seeds the order of the recorded replicates; None keeps it.
        on_end: is called at the end of every trial, with the simulated seconds.

    Raises:
        TableError: a configuration of the study is not in the table.
    """
    return _Simulator(source, admission, table, workers, repetition, on_end).run()


class _Simulator:
    def __init__(
        self,
        source: StudySource,
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
        self._journal.append(Opened(source.study.search.trials, workers))
        self._search = Search(source.study, self._journal, admission, max_concurrent_trials=workers)
        self._events: list[tuple[float, int, TrialSuggestion, int, int, int]] = []
        self._order = itertools.count()
        self._replicates: dict[str, int] = {}

    def _row(self, suggestion: TrialSuggestion) -> int:
        identity = suggestion.key.configuration_id
        if identity not in self._rows:
            raise TableError(
                f"Configuration {identity} of the study ({suggestion.model} "
                f"{json.dumps(suggestion.parameters)}) is not in the table: restrict the study's "
                "space to recorded configurations and use the same version of the dataset."
            )
        return self._rows[identity]

    def run(self) -> Simulation:
        search = self._search
        self._fill()
        while self._events:
            self._now, _, suggestion, row, replicate, epoch = heapq.heappop(self._events)
            if self._ends(suggestion, row, replicate, epoch):
                if self._on_end is not None:
                    self._on_end(search, self._now)
                self._fill()
            else:
                self._schedule(suggestion, row, replicate, epoch + 1)
        search.conclude()
        search.close()
        return Simulation(
            search, self._journal, self._now, self._replay.num_reused, self._replicates
        )

    def _fill(self) -> None:
        while self._search.num_running < self._workers:
            suggestion = self._search.propose()
            if suggestion is None:
                return
            row = self._row(suggestion)
            replicate = self._replay.find(row, suggestion.seed)
            self._replicates[str(suggestion.key)] = replicate
            self._schedule(suggestion, row, replicate, 1)

    def _schedule(self, suggestion: TrialSuggestion, row: int, replicate: int, epoch: int) -> None:
        then = self._now + float(self._table.seconds[row, replicate, epoch - 1])
        event = (then, next(self._order), suggestion, row, replicate, epoch)
        heapq.heappush(self._events, event)

    def _ends(self, suggestion: TrialSuggestion, row: int, replicate: int, epoch: int) -> bool:
        """Report an epoch; return whether the trial is over."""
        metrics = {n: float(v[row, replicate, epoch - 1]) for n, v in self._metrics.items()}
        metrics |= {"epoch": float(epoch), "seconds": self._seconds(row, replicate, epoch)}
        if not self._search.report(suggestion.key, metrics):
            return True
        if epoch < self._table.num_epochs:
            return False
        last = slice(-LAST_EPOCHS, None)
        values = {n: float(v[row, replicate, last].mean()) for n, v in self._metrics.items()}
        values |= suggestion.cost
        values["seconds"] = float(self._table.seconds[row, replicate].sum())
        self._search.finish(suggestion.key, values, {})
        return True

    def _seconds(self, row: int, replicate: int, epoch: int) -> float:
        return float(self._table.seconds[row, replicate, epoch - 1])


def simulate_repeatedly(
    source: StudySource, admission: Admission, table: Table, *, workers: int, repetitions: int
) -> Iterator[Simulation]:
    """Yield simulations with different seeds.

    Repetition r adds r to the study's seeds and draws the order of the replicates from r. See
    `simulate` for the arguments.
    """
    for repetition in range(repetitions):
        admission.release()
        reseeded = _reseeded(source, repetition)
        yield simulate(reseeded, admission, table, workers=workers, repetition=repetition)


def _reseeded(source: StudySource, more: int) -> StudySource:
    """Return the study with `more` added to the seeds of its sampler and stopping rule."""
    plan = source.study.search
    sections = {
        name: section.model_copy(update={"seed": (section.seed + more) % 2**31})
        for name, section in (("sampler", plan.sampler), ("early_stopping", plan.early_stopping))
        if not isinstance(section, Exhaustive | NoStop)
    }
    study = source.study.model_copy(update={"search": plan.model_copy(update=sections)})
    return replace(source, checked=study)


def check_table(source: StudySource, admission: Admission, table: Table) -> None:
    """Check that a table matches a study.

    Raises:
        TableError: it was recorded on another dataset or other folds, lacks an objective, or lacks
            configurations of an enumerated space.
    """
    study, facts = source.study, table.facts
    for what, own, recorded in (
        ("the dataset", study.dataset.kind, facts.get("dataset")),
        ("the version of the dataset", admission.spec.fingerprint, facts.get("fingerprint")),
        ("`dataset.folds`", study.dataset.folds, facts.get("folds")),
    ):
        if own != recorded:
            raise TableError(
                f"The table does not match the study: {what} was {recorded} when the table was "
                f"recorded, and is {own} in '{source.name}'."
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
            f"the table ({min(missing)}, ...): use the training options that it was recorded "
            "with, and its space or a subset of it."
        )
