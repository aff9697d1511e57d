"""Deterministic studies: proposals and stops do not depend on the order in which trials end."""

from __future__ import annotations

import hashlib
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.search_spaces.mistakes import StudyFileError

from toy_study import Toy, source_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sftsearch.orchestrator.search.engine import Search, TrialSuggestion

    from journals import RawEvent

EHVI = "{kind: ehvi, startup_configurations: 4}"
MO_ASHA = "{kind: mo_asha, min_epochs: 1, audit_share: 0.2}"
DOMINATED = "{kind: dominated, min_epochs: 1, min_probability: 0.5, audit_share: 0.2}"
TEXT = """
study: {{name: toy}}
dataset: {{kind: wearables}}
search:
  {{sampler: {sampler}, trials: {trials}, replicates: {seeds}, deterministic: {deterministic},
    balance: {balance}, early_stopping: {stop}}}
training: {{epochs: 4}}
space:
  - {{kind: sft, patch: 8, num_heads: 4, fused_layers: {{kind: int, low: 1, high: 3}},
     stride: {{kind: choice, values: [1, 2, 4, 8, 16]}},
     dim: {{kind: int, low: 8, high: 64, step: 8}}}}
"""


class Race:
    """Trains several trials at once, one epoch at a time; `pick` chooses whose epoch is next."""

    def __init__(self, search: Search, pick: Callable[[int], int], slots: int = 3) -> None:
        self.search, self.pick, self.slots = search, pick, slots
        self.running: list[tuple[TrialSuggestion, int]] = []

    def run(self, *, stop_after: int | None = None) -> None:
        """Run until the study ends, or for a number of epochs."""
        count = 0
        while not self.search.exhausted and count != stop_after:
            self._start()
            suggestion, epoch = self.running.pop(self.pick(len(self.running)))
            self._train(suggestion, epoch + 1)
            count += 1

    def _start(self) -> None:
        while len(self.running) < self.slots and (new := self.search.propose()) is not None:
            self.running.append((new, new.num_journalled))

    def _train(self, suggestion: TrialSuggestion, epoch: int) -> None:
        value = accuracy(suggestion, epoch)
        if epoch <= 4 and not self.search.report(suggestion.key, {"epoch": epoch, "top1": value}):
            return
        if epoch >= 4:
            values = {"top1": value, "seconds": 1.0, **suggestion.cost}
            self.search.finish(suggestion.key, values, {"s01": [1.0, 2.0]})
        else:
            self.running.append((suggestion, epoch))


def accuracy(suggestion: TrialSuggestion, epoch: int) -> float:
    """Return a value that rises with the epoch; a third of the configurations are bad."""
    digest = hashlib.sha256(suggestion.key.configuration_id.encode()).digest()
    level = 0.9 - 0.4 * (digest[0] % 3 == 0) + 0.0002 * digest[1] + 0.001 * suggestion.seed
    return level * (1 - 0.4 * math.exp(-epoch))


def facts(events: list[RawEvent]) -> dict[str, Any]:
    """Return what must be equal: proposals, decisions by trial, and the reported front."""
    proposed = [(body["branch"], body["values"]) for kind, body in events if kind == "proposed"]
    judged = {
        (body["trial"], body["epoch"]): (kind, body["best"], body["probability"], body["audit"])
        for kind, body in events
        if kind in ("judged", "stopped")
    }
    frozen = [sorted(body["seeds"].items()) for kind, body in events if kind == "frozen"]
    return {"proposed": proposed, "judged": judged, "frozen": frozen}


def toy_of(folder: Path, stop: str, *, deterministic: bool = True, sampler: str = EHVI) -> Toy:
    return Toy(folder, sampler=sampler, trials=20, seeds="{fresh: 2}", slots=3, stop=stop,  # type: ignore[arg-type]
               deterministic=deterministic, text=TEXT)  # fmt: skip


def race(toy: Toy, pick: Callable[[int], int], *stops: int) -> dict[str, Any]:
    """Run a study, killed after each number of epochs, and return its facts."""
    for stop_after in (*stops, None):
        journal, search = toy.open()
        Race(search, pick).run(stop_after=stop_after)
        if stop_after is None:
            search.conclude()
        journal.close()
    return facts(toy.events())


ORDERS: list[Callable[[int], int]] = [
    lambda _: 0,
    lambda n: n - 1,
    random.Random(1).randrange,
    random.Random(2).randrange,
]


@pytest.mark.medium
@pytest.mark.parametrize("stop", ["none", DOMINATED, MO_ASHA, "{kind: median, min_epochs: 1}"])
def test_proposals_and_stops_do_not_depend_on_the_order_of_ends(tmp_path: Path, stop: str) -> None:
    found = [race(toy_of(tmp_path / str(i), stop), pick) for i, pick in enumerate(ORDERS)]
    for other in found[1:]:
        assert other == found[0]
    assert len(found[0]["frozen"]) == 1
    kinds = {kind for kind, *_ in found[0]["judged"].values()}
    assert kinds == (set() if stop == "none" else {"judged", "stopped"})


@pytest.mark.medium
def test_they_do_depend_on_it_otherwise(tmp_path: Path) -> None:
    """The comparison above is not vacuous."""
    free = [
        race(toy_of(tmp_path / str(i), MO_ASHA, deterministic=False), pick)
        for i, pick in enumerate(ORDERS[:2])
    ]
    assert free[0] != free[1]


@pytest.mark.medium
@pytest.mark.parametrize("stop", [DOMINATED, MO_ASHA])
def test_killed_and_resumed_study_equals_the_undisturbed_one(tmp_path: Path, stop: str) -> None:
    undisturbed = race(toy_of(tmp_path / "whole", stop), ORDERS[0])
    for stops in ((1,), (17,), (40, 3), (5, 30, 22)):
        toy = toy_of(tmp_path / "-".join(map(str, stops)), stop)
        assert race(toy, ORDERS[0], *stops) == undisturbed


@pytest.mark.medium
def test_interrupted_study_concludes_with_all_results_and_resumes_the_same(tmp_path: Path) -> None:
    """Conclusions use results that the sampler does not have yet; later decisions do not."""
    undisturbed = race(toy_of(tmp_path / "whole", MO_ASHA), ORDERS[0])
    toy = toy_of(tmp_path / "interrupted", MO_ASHA)
    journal, search = toy.open()
    Race(search, ORDERS[1]).run(stop_after=42)
    search.conclude()
    search.close()
    journal.close()
    events = toy.events()
    finished = {body["trial"][:12] for kind, body in events if kind == "finished"}
    told = {body["number"] for kind, body in events if kind == "told" and body["values"]}
    (concluded,) = [body for kind, body in events if kind == "concluded"]
    assert concluded["beliefs"].keys() == finished
    assert len(finished) > len(told)
    assert race(toy, ORDERS[0]) == undisturbed


@pytest.mark.parametrize(
    ("replicates", "why"),
    [("{min: 1, max: 2}", "fixed number of replicates"), ("2", "needs a single replicate")],
)
def test_replicates_that_depend_on_the_order_are_refused(replicates: str, why: str) -> None:
    search = (
        f"sampler: {EHVI}, trials: 8, replicates: {replicates}, "
        "deterministic: true, early_stopping: mo_asha"
    )
    with pytest.raises(StudyFileError, match=why):
        source_of(search)
