"""Show the progress of a study: a progress bar in a terminal, else log lines."""

from __future__ import annotations

import math
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

from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.metrics import sign_of
from sftsearch.orchestrator.objectives import Objectives
from sftsearch.orchestrator.pareto import hypervolume, non_dominated
from sftsearch.orchestrator.storage.trial_events import Failed, Finished, TrialEnd

if TYPE_CHECKING:
    from rich.console import Console

    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.search.engine import Search
    from sftsearch.orchestrator.storage.event import Numbers
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.search_spaces.load import StudySource


class ConsoleProgress(StudyCallback):
    """Progress callback: stages, then trials with the best accuracy and the time left."""

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
        self._costs = (0.0, 0.0)
        """Lowest and highest cost of the admissible configurations; zeros if unknown."""
        self._share_before = 0.0
        self._began = time.monotonic()
        self._last_line = 0.0
        self._tracking = ""
        """What the progress line says of MLflow."""

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_live()

    def on_stage(self, text: str) -> None:
        """Show the stage that begins."""
        self._stop_live()
        if self._console.is_terminal:
            self._status = self._console.status(escape(text) + " ...")
            self._status.start()
        else:
            self._line(text)

    def on_open(
        self, source: StudySource, admission: Admission, search: Search, max_concurrent_trials: int
    ) -> None:
        """Show the size of the space, and start the progress bar."""
        self._stop_live()
        self._search, self._began = search, time.monotonic()
        study = source.study
        self._objectives = [
            (objective.metric, objective.direction) for objective in study.objectives
        ]
        models = ", ".join(dict.fromkeys(branch.kind for branch in study.space))
        space = (
            f"{len(admission.table)} admissible configurations"
            if admission.table is not None
            else "a space too large to enumerate"
        )
        self._console.print(
            f"[bold]{study.study.name}[/]: {study.search.trials} trials, "
            f"{study.search.replicates}, "
            f"{max_concurrent_trials} at a time, on {study.dataset.kind}; {models}; {space}."
        )
        self._planned = study.search.trials
        self._costs = _range_of(admission, Objectives.of_study(study).x)
        if self._num_done():
            self._outcomes = [
                self._outcome(values)
                for configuration in search.state.configurations.values()
                for values in configuration.values.values()
            ]
            self._console.print(f"Resuming after {self._num_done()} trials.")
        self._share_before = self._done(self._num_done())[0]
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

    def on_event(self, entry: Entry) -> None:
        """Count ended trials, and print failures immediately."""
        event = entry.event
        if not isinstance(event, TrialEnd):
            return
        with self._mutex:
            if isinstance(event, Finished):
                self._outcomes.append(self._outcome(event.values))
            elif isinstance(event, Failed):
                self._console.print(f"[red]trial {event.trial} failed:[/] {escape(event.reason)}")
            self._advance(is_urgent=isinstance(event, Failed))

    def on_notice(self, text: str) -> None:
        """Print a notice above the progress bar."""
        with self._mutex:
            self._console.print(f"[yellow]{escape(text)}[/]", highlight=False)

    def on_tracking(self, problem: str) -> None:
        """Print that MLflow does not answer, or answers again."""
        self._tracking = ", MLflow does not answer" if problem else ""
        if problem:
            self.on_notice(
                f"MLflow does not answer: {problem}. The study goes on; what MLflow lacks is "
                "written when it answers, at the latest by --resume."
            )
        else:
            self.on_notice("MLflow answers again.")

    def _outcome(self, values: Numbers) -> list[float]:
        return [values[metric] for metric, _ in self._objectives]

    def _advance(self, *, is_urgent: bool) -> None:
        share, done = self._done(self._num_done())
        if self._progress is not None:
            self._progress.update(self._task, completed=share, done=done, description=self._best())
        elif is_urgent or time.monotonic() - self._last_line > 2:
            self._last_line = time.monotonic()
            self._line(f"{done}, {self._time_left(share)}{self._best()}")

    def _time_left(self, share: float) -> str:
        """Estimate the time left from the progress since this driver started."""
        gained, elapsed = share - self._share_before, time.monotonic() - self._began
        if gained <= 0 or share >= 1:
            return ""
        minutes = elapsed * (1 - share) / gained / 60
        left = f"{minutes:.0f} min" if minutes >= 2 else f"{60 * minutes:.0f} s"
        return f"about {left} left, "

    def _num_done(self) -> int:
        return self._search.state.num_ended.total() if self._search else 0

    def _done(self, number: int) -> tuple[float, str]:
        """Return the share of the study that is done, by its tightest limit, and a text."""
        assert self._search is not None
        search, budget = self._search, self._search.known.budget
        planned = max(self._planned, search.state.num_trials, number)
        text, share = f"{number} of {planned} trials", number / planned
        if search.state.frozen:
            text += ", measuring the front with fresh replicates"
        shares = budget.shares()
        binding = max(shares, key=shares.__getitem__, default="")
        if binding and shares[binding] > share:
            share = min(1.0, shares[binding])
            text += f", {share:.0%} of {binding}"
        return share, f"{text}, {search.num_running} running{self._tracking}"

    def _best(self) -> str:
        if not self._outcomes:
            return "none finished yet"
        metric, direction = self._objectives[0]
        column = [outcome[0] for outcome in self._outcomes]
        best = max(column, key=lambda value: sign_of(direction) * value)
        on_front = non_dominated(self._outcomes, [direction for _, direction in self._objectives])
        text = f"best {metric} {best:.3f}, {int(sum(on_front))} trials on the front"
        return text + self._hypervolume()

    def _hypervolume(self) -> str:
        """Describe the hypervolume, with log costs scaled to the range of the space.

        It is the best accuracy found at a budget, averaged over budgets, and never falls.
        """
        low, high = self._costs
        directions = [direction for _, direction in self._objectives]
        if directions != ["maximize", "minimize"] or not 0 < low < high:
            return ""
        span = math.log(high / low)
        points = [(value, math.log(cost / low) / span) for value, cost in self._outcomes]
        return f", hypervolume {hypervolume(points, (0.0, 1.0), directions):.3f}"

    def _line(self, text: str) -> None:
        moment = f"[{time.monotonic() - self._began:6.1f} s]"
        self._console.print(f"{moment} {text}", markup=False, soft_wrap=True)

    def _stop_live(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _range_of(admission: Admission, cost: str) -> tuple[float, float]:
    """Return the lowest and highest cost of an enumerated space; of another one, zeros."""
    priced = [c.cost.as_dict() for c in (admission.table or {}).values()]
    costs = [prices[cost] for prices in priced if cost in prices]
    return (min(costs), max(costs)) if costs else (0.0, 0.0)
