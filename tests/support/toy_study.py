"""Studies without Ray, on a toy training: a closed form of the configuration and the seed."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.search.engine import Search
from sftsearch.search_spaces.load import parse_study

from journals import Journal, MemoryJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from sftsearch.orchestrator.search.engine import TrialSuggestion
    from sftsearch.orchestrator.storage.journal import Entry
    from sftsearch.search_spaces.load import StudySource

    from journals import RawEvent

STUDY = """
study: {{name: toy}}
dataset: {{kind: wearables}}
search:
  {{sampler: {sampler}, trials: {trials}, replicates: {seeds}, deterministic: {deterministic},
    balance: {balance}, early_stopping: {stop}}}
constraints: [{{metric: parameters, max: 40000}}]
training: {{epochs: 2}}
space:
  - kind: sft
    patch: 8
    num_heads: 4
    stride: {{kind: choice, values: [1, 2, 4, 8, 16]}}
    dim: {{kind: int, low: 8, high: 64, step: 8}}
    fused_layers: {{kind: int, low: 1, high: 3}}
  - kind: concat
    patch: 8
    num_heads: 4
    dim: {{kind: int, low: 8, high: 64, step: 8}}
    num_layers: {{kind: int, low: 1, high: 3}}
"""
TPE = "{kind: tpe, startup_configurations: 4}"
CREATED: dict[str, Any] = {
    "name": "toy",
    "description": "",
    "dataset": "wearables",
    "num_seeds": 1,
    "objectives": [["top1", "maximize"], ["gflops", "minimize"]],
    "facts": {},
}


def accuracy(assignment: TrialSuggestion) -> float:
    """Return a value that grows with cost and differs by seed."""
    return 1 - 1 / (1 + 2000 * assignment.cost["gflops"]) + 0.01 * assignment.seed


class Toy:
    """A study in a folder that can be reopened."""

    def __init__(self, folder: Path, *, sampler: str = TPE, trials: int = 24, seeds: int = 2,
                 deterministic: bool = False, slots: int = 2, balance: str = "none",
                 stop: str = "none",
                 text: str = STUDY) -> None:  # fmt: skip
        text = text.format(
            sampler=sampler,
            trials=trials,
            seeds=seeds,
            deterministic=str(deterministic).lower(),
            balance=balance,
            stop=stop,
        )
        self.source = parse_study(text.encode())
        check_names(self.source)
        self.folder, self.slots = folder, slots

    def open(self) -> tuple[Journal, Search]:
        journal = Journal(self.folder)
        if journal.last_id == 0:
            journal.append("created", **CREATED)
        admission = Admission(self.source, describe("wearables"))
        search = Search(self.source.study, journal, admission, max_concurrent_trials=self.slots)
        search.finish_what_was_begun()
        return journal, search

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        with Journal(self.folder) as journal:
            return [(event.kind, event.body) for event in journal.events()]


def run(
    search: Search,
    *,
    slots: int = 2,
    pick: Callable[[int], int] = lambda _: 0,
    stop_after: int | None = None,
) -> None:
    """Run trials, `slots` at a time; `pick` chooses which running trial ends next."""
    running: list[TrialSuggestion] = []
    ended = 0
    while not search.exhausted and ended != stop_after:
        while len(running) < slots and (assignment := search.propose()) is not None:
            running.append(assignment)
        assignment = running.pop(pick(len(running)))
        finish(search, assignment)
        ended += 1


def finish(search: Search, assignment: TrialSuggestion) -> None:
    for epoch in range(assignment.num_journalled + 1, 3):
        assert search.report(assignment.key, {"epoch": epoch, "top1": accuracy(assignment) / 2})
    values = {"top1": accuracy(assignment), **assignment.cost}
    search.finish(assignment.key, values, {"s01": [1.0, 2.0]})


# ------------------------------------------------- in memory, one epoch at a time

LISTED = """
  - {kind: sft, patch: 8, num_heads: 4, fused_layers: {kind: int, low: 1, high: 2},
     stride: {kind: choice, values: [1, 2, 8]}, dim: {kind: int, low: 8, high: 24, step: 8}}
  - {kind: concat, patch: 8, num_heads: 4, num_layers: {kind: int, low: 1, high: 3},
     dim: {kind: int, low: 8, high: 24, step: 8}}
"""
"""27 configurations."""
ONE = "  - {kind: sft, patch: 8, num_heads: 4, stride: 2, dim: 8, fused_layers: 1}\n"
"""One configuration."""


def width(*dims: int) -> str:
    """Return a space of one model in several widths; the cost grows with the width."""
    return ONE.replace("dim: 8", f"dim: {{kind: choice, values: {list(dims)}}}")


def source_of(search: str, *, space: str = LISTED, epochs: int = 2, more: str = "") -> StudySource:
    """Return a study file of wearables; `search` is the content of its search section."""
    text = (
        f"study: {{name: toy}}\ndataset: {{kind: wearables}}\nsearch: {{{search}}}\n"
        f"training: {{epochs: {epochs}}}\n{more}\nspace:\n{space}"
    )
    source = parse_study(text.encode())
    check_names(source)
    return source


def noise(key: str, epoch: int = 0) -> float:
    """Return a nearly standard normal draw, determined by the trial and the epoch."""
    digest = hashlib.sha256(f"{key}:{epoch}".encode()).digest()
    return (sum(digest[:12]) / 255 - 6) * math.sqrt(256 / 255)


def uneven(assignment: TrialSuggestion) -> float:
    """Return a mean that grows with cost, plus noise by configuration."""
    offset = noise(assignment.key.configuration_id)
    return accuracy(assignment) - 0.01 * assignment.seed + 0.03 * offset


@dataclass
class Training:
    """Values of trials: a closed form of the cost, plus noise by trial and epoch."""

    epochs: int = 2
    sigma: float = 0.01
    seconds: float = 10.0
    """Duration of an epoch, by which `drive` advances the clock."""
    truth: Callable[[TrialSuggestion], float] = accuracy
    """The true mean over infinitely many replicates."""

    def value(self, assignment: TrialSuggestion, epoch: int) -> float:
        final = self.truth(assignment) + self.sigma * noise(assignment.key)
        return final * epoch / self.epochs + 0.2 * self.sigma * noise(assignment.key, epoch)

    def step(self, search: Search, assignment: TrialSuggestion, epoch: int) -> bool:
        """Train an epoch and report it; return whether the trial continues."""
        top1 = self.value(assignment, epoch)
        if not search.report(
            assignment.key, {"epoch": epoch, "top1": top1, "seconds": self.seconds}
        ):
            return False
        if epoch < self.epochs:
            return True
        values = {"top1": top1, **assignment.cost, "seconds": self.seconds * self.epochs}
        search.finish(assignment.key, values, {})
        return False


@dataclass
class Memory:
    """A study in memory with its own clock, which can be cut off after any event."""

    source: StudySource
    slots: int = 1
    admission: Admission = field(init=False)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.admission = Admission(self.source, describe("wearables"))

    def open(
        self, events: Iterable[RawEvent] = (), *, listener: Callable[[Entry], None] | None = None
    ) -> tuple[MemoryJournal, Search]:
        """Reopen the study after the given events of an earlier driver, read back from JSON."""
        journal = MemoryJournal(clock=lambda: self.now)
        for event in events:
            self.now = event.time
            journal.append(event.kind, **json.loads(json.dumps(event.body, allow_nan=False)))
        if not journal.last_id:
            journal.append("created", **CREATED)
        journal.append("opened", trials=self.source.study.search.trials, slots=self.slots)
        self.admission.release()
        search = Search(
            self.source.study, journal, self.admission, max_concurrent_trials=self.slots
        )
        if listener is not None:
            search.listen(listener)
        search.finish_what_was_begun()
        return journal, search

    def drive(
        self,
        search: Search,
        training: Training,
        *,
        pick: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """Run the study to its end, one epoch of one running trial at a time."""
        running: list[tuple[TrialSuggestion, int]] = []
        while not search.exhausted:
            while len(running) < self.slots and (assignment := search.propose()) is not None:
                running.append((assignment, assignment.num_journalled))
            if not running:
                assert search.exhausted, "no trial is running, and search.propose() returns None"
                break
            assignment, epoch = running.pop(pick(len(running)))
            self.now += training.seconds
            if epoch >= training.epochs:  # a driver died after the last epoch
                epoch = training.epochs - 1
            if training.step(search, assignment, epoch + 1):
                running.append((assignment, epoch + 1))
        search.conclude()
