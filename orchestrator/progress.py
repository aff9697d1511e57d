"""What a person sees while a study runs: a live bar in a terminal, log lines elsewhere."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sftsearch.orchestrator.pareto import non_dominated
from sftsearch.orchestrator.study import Watcher

if TYPE_CHECKING:
    from rich.console import Console

    from sftsearch.orchestrator.admission import Admission
    from sftsearch.orchestrator.journal import Event
    from sftsearch.orchestrator.search import Search
    from sftsearch.search_spaces.load import Source


class ConsoleWatcher(Watcher):
    """Shows stages, then trials with the best so far and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._mutex = threading.Lock()
        self._status: Any = None
        self._progress: Progress | None = None
        self._task: Any = None
        self._search: Search | None = None
        self._planned = 0
        self._objectives: list[tuple[str, str]] = []
        self._outcomes: list[list[float]] = []
        self._began = time.monotonic()
        self._said = 0.0

    def __enter__(self) -> ConsoleWatcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_live()

    def stage(self, text: str) -> None:
        """Show what begins."""
        self._stop_live()
        if self._console.is_terminal:
            self._status = self._console.status(escape(text) + " ...")
            self._status.start()
        else:
            self._line(text)

    def opened(self, source: Source, admission: Admission, search: Search, slots: int) -> None:
        """Show the size of the space, and begin the bar."""
        self._stop_live()
        self._search, self._began = search, time.monotonic()
        study = source.study
        self._objectives = [(objective.metric, objective.goal) for objective in study.objectives]
        models = ", ".join(dict.fromkeys(branch.kind for branch in study.space))
        space = (
            f"{len(admission.table)} admissible configurations"
            if admission.table is not None
            else "a space too large to list"
        )
        self._console.print(
            f"[bold]{study.study.name}[/]: {study.search.trials} trials, "
            f"{study.search.replicates}, "
            f"{slots} at a time, on {study.dataset.kind}; {models}; {space}."
        )
        self._planned = study.search.trials
        if self._num_done():
            self._console.print(f"Going on after {self._num_done()} trials.")
        if self._console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[done]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            share, done = self._done(self._num_done())
            self._task = self._progress.add_task(self._best(), total=1.0, done=done)
            self._progress.update(self._task, completed=share)
            self._progress.start()

    def event(self, event: Event) -> None:
        """Count what ended; say failures at once."""
        with self._mutex:
            if event.kind == "finished":
                values = event.body["values"]
                self._outcomes.append([values[metric] for metric, _ in self._objectives])
                self._advance(event)
            elif event.kind == "stopped":
                self._advance(event)
            elif event.kind == "failed":
                trial, reason = event.body["trial"], event.body["reason"]
                self._console.print(f"[red]trial {trial} failed:[/] {escape(reason)}")
                self._advance(event)

    def notice(self, text: str) -> None:
        """Say it above the bar."""
        with self._mutex:
            self._console.print(f"[yellow]{escape(text)}[/]", highlight=False)

    def _advance(self, event: Event) -> None:
        share, done = self._done(self._num_done() + 1)  # the search counts it after this
        if self._progress is not None:
            self._progress.update(self._task, completed=share, done=done, description=self._best())
        elif event.kind == "failed" or time.monotonic() - self._said > 2:
            self._said = time.monotonic()
            self._line(f"{done}, {self._best()}")

    def _num_done(self) -> int:
        search = self._search
        return search.num_finished + search.num_failed + search.num_stopped if search else 0

    def _done(self, number: int) -> tuple[float, str]:
        """Return how much of the study is done, by the limit that ends it first, and say so."""
        assert self._search is not None
        budget = self._search.budget
        planned = max(self._planned, budget.trials, number)
        told, share = f"{number} of {planned} trials", number / planned
        shares = budget.shares()
        binding = max(shares, key=shares.__getitem__, default="")
        if binding and shares[binding] > share:
            share = min(1.0, shares[binding])
            told += f", {share:.0%} of {binding}"
        return share, told

    def _best(self) -> str:
        if not self._outcomes:
            return "none finished yet"
        metric, goal = self._objectives[0]
        column = [outcome[0] for outcome in self._outcomes]
        best = max(column) if goal == "maximize" else min(column)
        on_front = non_dominated(self._outcomes, [goal for _, goal in self._objectives])
        return f"best {metric} {best:.3f}, {int(sum(on_front))} trials on the front"

    def _line(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began:6.1f} s] {text}", markup=False)

    def _stop_live(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
